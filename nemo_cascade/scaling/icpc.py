"""The ICPC rule: programs are submitted one after another until one is accepted [paper, section 7.3].

A solved problem costs its minutes and 20 more for every submission that was rejected before; a program that does not compile is not
charged. Problems count before minutes.
"""

from dataclasses import dataclass

from nemo_cascade.scaling.contest import Candidate, candidates_of, how_to_answer, passing_samples, row_of
from nemo_cascade.scaling.types import Ask, Case
from nemo_cascade.scaling.work import Work

PENALTY = 20.0
UNCHARGED = ("compilation error",)


@dataclass
class ICPCConfig:
    """`icpc`. candidates: programs generated for a problem, at most, the paper's number; batch: at a time, between which
    it is looked whether one was accepted. max_submissions: of a problem, null for any number."""

    candidates: int = 1000
    batch: int = 40
    max_submissions: int | None = None


def icpc(problem: dict, work: Work, config: ICPCConfig) -> dict:
    """{"solved", "chosen": key, "text": code, "submissions", "rejected", "minutes", "penalty", "tried"}; the last three numbers and
    the text None where unsolved. problem: `statement` and `tests`."""
    row, seen = row_of(problem, problem["tests"]), set()
    tried: list[dict] = []
    chosen: Candidate | None = None
    minutes = None
    for start in range(0, config.candidates, config.batch):
        room = None if config.max_submissions is None else config.max_submissions - len(tried)
        if work.stopped or room == 0 or chosen is not None:
            break
        numbers = range(start, min(start + config.batch, config.candidates))
        asks = [Ask(f"c{number}", icpc_messages(problem)) for number in numbers]
        submitted = passing_samples(problem, candidates_of(problem, asks, work, seen), work)[:room]
        verdicts = work.grade([Case(f"{candidate.key}/tests", row, candidate.block) for candidate in submitted])
        # Graded together, because that is faster; what comes after an accepted one was not submitted.
        for candidate, verdict in zip(submitted, verdicts):
            if verdict is None or "fault" in verdict:
                continue
            tried.append({"key": candidate.key, "verdict": verdict.get("verdict", "")})
            if verdict["reward"] == 1:
                chosen, minutes = candidate, verdict["elapsed"] / 60
                break
    rejected = sum(entry["verdict"] not in UNCHARGED for entry in tried) - (chosen is not None)
    return {
        "solved": chosen is not None,
        "chosen": chosen.key if chosen else None,
        "text": chosen.block if chosen else None,
        "score": float(chosen is not None),
        "submissions": len(tried),
        "rejected": rejected,
        "minutes": minutes,
        "penalty": minutes + PENALTY * rejected if chosen else None,
        "tried": tried,
    }


def icpc_messages(problem: dict) -> list[dict]:
    return [{"role": "user", "content": f"Solve a contest problem.\n\n{problem['statement']}\n\n{how_to_answer(problem)}"}]
