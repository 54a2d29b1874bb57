"""What IOI and ICPC share: programs out of replies, none submitted twice, those that fail the statement's samples not at all."""

from dataclasses import dataclass

from nemo_cascade.environments.code_gen import LANGUAGES, code_of
from nemo_cascade.scaling.types import Ask, Case
from nemo_cascade.scaling.work import Work

NAMES = {"cpp": "C++", "python": "Python"}


@dataclass(frozen=True)
class Candidate:
    """A program that a reply ends in."""

    key: str
    language: str
    code: str

    @property
    def block(self) -> str:
        """As a message shows it, and as it is graded."""
        return f"```{self.language}\n{self.code.strip()}\n```"


def candidates_of(problem: dict, asks: list[Ask], work: Work, seen: set[str]) -> list[Candidate]:
    """The programs of the replies to these, in order, whose code is not among `seen`, to which it is added."""
    found = []
    for ask, reply in zip(asks, work.generate(asks)):
        if reply is None:
            continue
        language, code = code_of(reply.text, LANGUAGES[problem.get("language", "cpp")])
        if code.strip() and code.strip() not in seen:
            seen.add(code.strip())
            found.append(Candidate(ask.key, language, code))
    return found


def passing_samples(problem: dict, candidates: list[Candidate], work: Work) -> list[Candidate]:
    """Those that give the statement's sample outputs; all where the problem has no `samples`."""
    if "samples" not in problem:
        return candidates
    row = row_of(problem, problem["samples"])
    verdicts = work.grade([Case(f"{candidate.key}/samples", row, candidate.block) for candidate in candidates])
    return [candidate for candidate, verdict in zip(candidates, verdicts) if verdict is not None and verdict["reward"] == 1]


def row_of(problem: dict, tests: dict, partial: bool = False) -> dict:
    """A row of the code environment with these tests ({"inputs", "outputs"}) under the problem's language and limits."""
    metadata = {"unit_tests": tests, "partial": partial, "language": problem.get("language", "cpp")}
    if "limits" in problem:
        metadata["limits"] = problem["limits"]
    return {
        "responses_create_params": {"input": problem["statement"]},
        "agent_ref": {"name": "code_gen"},
        "verifier_metadata": metadata,
    }


def how_to_answer(problem: dict) -> str:
    """The last words of a prompt."""
    language = LANGUAGES[problem.get("language", "cpp")]
    return f"Write a {NAMES[language]} program that reads standard input and writes standard output, whole, in a ```{language} block."
