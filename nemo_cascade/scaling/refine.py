"""Generate, verify, refine: proofs that the model itself rates and mends [paper, section 7.3, after DeepSeek-Math-V2].

A round generates proofs, has each verified several times, and keeps the best of all so far by their mean rating. Each kept one is
refined with those of its verifications that rate it lowest. It ends when the best proof's mean is `enough`, or after `rounds`.
"""

from dataclasses import dataclass, field

from nemo_cascade.environments.response import last_boxed
from nemo_cascade.scaling.types import Ask
from nemo_cascade.scaling.work import Work

RATINGS = {"0": 0.0, "0.5": 0.5, "1": 1.0}


@dataclass
class RefineConfig:
    """`refine`; the numbers are the paper's, whose easier setting is candidates=32 verifications=16 keep=8 rounds=2.

    candidates: proofs of the first round. verifications: of each proof. keep: proofs that are refined in a round. refinements: of
    each of them. critiques: verifications that a refinement is shown. rounds: at most. enough: the mean rating that ends it.
    """

    candidates: int = 128
    verifications: int = 64
    keep: int = 32
    critiques: int = 8
    refinements: int = 4
    rounds: int = 8
    enough: float = 0.99999


@dataclass
class Proof:
    """A proof with what its verifications rated (those that could be read) and said."""

    key: str
    text: str
    parent: str | None = None
    ratings: list[float] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def score(self) -> float:
        """The mean rating; 0 where none could be read."""
        return sum(self.ratings) / len(self.ratings) if self.ratings else 0.0

    def critiques(self, count: int) -> list[str]:
        """What those that rated it lowest said; at equal ratings the earlier ones."""
        order = sorted(range(len(self.ratings)), key=lambda number: self.ratings[number])
        return [self.remarks[number] for number in order[:count]]


def refine(problem: dict, work: Work, config: RefineConfig) -> dict:
    """{"chosen": key, "text", "score", "rounds": the best proof after each, "tried": all proofs}; problem has a `statement`."""
    pool: list[Proof] = []
    rounds: list[dict] = []
    asks = [(Ask(f"r1/p{number}", proof_messages(problem)), None) for number in range(config.candidates)]
    for number in range(1, config.rounds + 1):
        replies = work.generate([ask for ask, _ in asks])
        proofs = [
            Proof(ask.key, reply.text, parent)
            for (ask, parent), reply in zip(asks, replies)
            # A thought that never ended is no proof, and its verifications would be wasted.
            if reply is not None and reply.text.strip()
        ]
        verify(problem, proofs, work, config.verifications)
        # Python's sort is stable: at equal means the earlier proof stays ahead.
        pool = sorted([*pool, *proofs], key=lambda proof: -proof.score)
        if pool:
            rounds.append({"proofs": len(proofs), "chosen": pool[0].key, "score": pool[0].score})
        if work.stopped or not pool or pool[0].score >= config.enough:
            break
        kept = [proof for proof in pool[: config.keep] for _ in range(config.refinements)]
        asks = [
            (Ask(f"r{number + 1}/p{place}", refinement_messages(problem, proof, config.critiques)), proof.key)
            for place, proof in enumerate(kept)
        ]
    best = pool[0] if pool else None
    tried = [
        {"key": proof.key, "parent": proof.parent, "score": proof.score, "verifications": len(proof.ratings)} for proof in pool
    ]
    return {
        "chosen": best.key if best else None,
        "text": best.text if best else None,
        "score": best.score if best else None,
        "rounds": rounds,
        "tried": tried,
    }


def verify(problem: dict, proofs: list[Proof], work: Work, count: int) -> None:
    """Fills ratings and remarks. Of a budget that does not reach, all proofs get their share."""
    asked = [
        (proof, Ask(f"{proof.key}/v{number}", verification_messages(problem, proof.text)))
        for number in range(count)
        for proof in proofs
    ]
    for (proof, _), reply in zip(asked, work.generate([ask for _, ask in asked])):
        rating = rating_of(reply.text) if reply is not None else None
        if rating is not None:
            proof.ratings.append(rating)
            proof.remarks.append(reply.text)


def rating_of(text: str) -> float | None:
    """0, 0.5 or 1, from the last \\boxed{} of a verification; None where there is none of them."""
    said = last_boxed(text)
    return RATINGS.get(said.strip().removesuffix(".0")) if said is not None else None


def proof_messages(problem: dict) -> list[dict]:
    text = (
        f"Prove what the following problem asks for.\n\n{problem['statement']}\n\nWrite a complete, rigorous proof. Justify each step, "
        "treat all cases, and if the problem asks for a value, state it. Say openly what you could not prove."
    )
    return [{"role": "user", "content": text}]


def verification_messages(problem: dict, proof: str) -> list[dict]:
    text = (
        "Examine a proof strictly.\n\n"
        f"## Problem\n\n{problem['statement']}\n\n## Proof\n\n{proof}\n\n"
        "Go through it step by step. Name every error and every gap, where it is and why it matters. Then rate the proof: 1 if it is "
        "complete and every step is justified, 0.5 if its idea is right and only details are missing or slightly wrong, 0 if it has a "
        "fatal error or a serious gap. End with the rating in a box: \\boxed{1}, \\boxed{0.5} or \\boxed{0}."
    )
    return [{"role": "user", "content": text}]


def refinement_messages(problem: dict, proof: Proof, count: int) -> list[dict]:
    remarks = "\n\n".join(f"### Review {number}\n\n{text}" for number, text in enumerate(proof.critiques(count), start=1))
    text = (
        "Improve a proof that was reviewed.\n\n"
        f"## Problem\n\n{problem['statement']}\n\n## Proof\n\n{proof.text}\n\n## Reviews\n\n{remarks or 'None could be read.'}\n\n"
        "Reviews may be wrong. Mend what is rightly criticised, or prove it in another way, and write the whole proof anew, complete "
        "and rigorous, without mentioning the reviews."
    )
    return [{"role": "user", "content": text}]
