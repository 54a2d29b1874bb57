"""The IOI loop: subtask after subtask, in rounds, with what was submitted before in the prompt [paper, section 7.3].

Every submission is scored on all subtasks. A subtask's score is the most that any submission got for it, and the problem's the sum, as at
the IOI. A subtask ends at its full score, after `rounds`, or when the budget or `max_submissions` is used up. History is Cascade 1's:
the last submissions, or for a subtask that gives part of its points the best ones.
"""

from dataclasses import dataclass

from nemo_cascade.scaling.contest import Candidate, candidates_of, how_to_answer, passing_samples, row_of
from nemo_cascade.scaling.types import Ask, Case
from nemo_cascade.scaling.work import Work


@dataclass
class IOIConfig:
    """`ioi`; rounds and candidates (programs generated a round) are the paper's, of each subtask, history and best Cascade 1's.

    history: earlier submissions in the prompt. best: those instead where a subtask is `partial`. submissions_per_round: at most, null
    for all that pass the samples. max_submissions: of a problem (50 at the IOI itself), null for any number.
    """

    rounds: int = 50
    candidates: int = 40
    history: int = 5
    best: int = 3
    submissions_per_round: int | None = None
    max_submissions: int | None = None


@dataclass(frozen=True)
class Submission:
    """A program with its points and verdict by subtask; of subtasks that had full score before neither."""

    candidate: Candidate
    points: dict[str, float]
    verdicts: dict[str, str]


def ioi(problem: dict, work: Work, config: IOIConfig) -> dict:
    """{"score": sum over subtasks, "full": points there are, "subtasks": {name: {"points", "of", "chosen", "rounds"}}, "tried"}.

    problem: `statement`, and `subtasks` with a name, points, `tests` and perhaps a statement of their own and `partial`.
    """
    subtasks = {subtask["name"]: subtask for subtask in problem["subtasks"]}
    state = {name: {"points": 0.0, "of": subtask["points"], "chosen": None, "rounds": 0} for name, subtask in subtasks.items()}
    submissions: list[Submission] = []
    seen: set[str] = set()
    for name, subtask in subtasks.items():
        own: list[Submission] = []
        for number in range(1, config.rounds + 1):
            room = left_of(config.max_submissions, len(submissions))
            if work.stopped or room == 0 or is_full(state[name]):
                break
            messages = ioi_messages(problem, subtask, history(own, subtask, config), accepted(submissions, state, name))
            asks = [Ask(f"{name}/r{number}/c{place}", messages) for place in range(config.candidates)]
            made = passing_samples(problem, candidates_of(problem, asks, work, seen), work)
            submitted = made[: least(config.submissions_per_round, room)]
            # Within a round nothing is known of the others, so all are graded on what was open when it began.
            open_ones = [other for other in subtasks.values() if not is_full(state[other["name"]])]
            graded = submit(problem, open_ones, submitted, work)
            own += graded
            submissions += graded
            state[name]["rounds"] = number
            for submission in graded:
                for other, points in submission.points.items():
                    if points > state[other]["points"]:
                        state[other].update(points=points, chosen=submission.candidate.key)
    tried = [{"key": s.candidate.key, "points": s.points, "verdicts": s.verdicts} for s in submissions]
    codes = {s.candidate.key: s.candidate.block for s in submissions}
    for entry in state.values():
        entry["code"] = codes.get(entry["chosen"])
    return {
        "score": sum(entry["points"] for entry in state.values()),
        "full": sum(entry["of"] for entry in state.values()),
        "subtasks": state,
        "submissions": len(submissions),
        "tried": tried,
    }


def submit(problem: dict, subtasks: list[dict], candidates: list[Candidate], work: Work) -> list[Submission]:
    """Each candidate scored on each of the subtasks; one whose verdicts did not come for want of time was not submitted."""
    pairs = [(candidate, subtask) for candidate in candidates for subtask in subtasks]
    rows = {subtask["name"]: row_of(problem, subtask["tests"], subtask.get("partial", False)) for subtask in subtasks}
    told = work.grade(
        [Case(f"{candidate.key}/on-{subtask['name']}", rows[subtask["name"]], candidate.block) for candidate, subtask in pairs]
    )
    points: dict[str, dict[str, float]] = {}
    verdicts: dict[str, dict[str, str]] = {}
    for (candidate, subtask), verdict in zip(pairs, told):
        if verdict is not None:
            points.setdefault(candidate.key, {})[subtask["name"]] = subtask["points"] * verdict["reward"]
            verdicts.setdefault(candidate.key, {})[subtask["name"]] = verdict.get("fault") or verdict.get("verdict", "")
    return [Submission(one, points[one.key], verdicts[one.key]) for one in candidates if one.key in points]


def history(own: list[Submission], subtask: dict, config: IOIConfig) -> list[Submission]:
    """Which earlier submissions for a subtask its next prompt shows, the oldest (or the worst) first."""
    name = subtask["name"]
    if not subtask.get("partial", False):
        return own[-config.history :] if config.history else []
    ordered = sorted(own, key=lambda submission: submission.points.get(name, 0.0))
    return ordered[-config.best :] if config.best else []


def accepted(submissions: list[Submission], state: dict[str, dict], name: str) -> dict[str, Candidate]:
    """Of the other subtasks that have full score, the program that got it."""
    programs = {submission.candidate.key: submission.candidate for submission in submissions}
    return {other: programs[entry["chosen"]] for other, entry in state.items() if other != name and is_full(entry)}


def is_full(entry: dict) -> bool:
    """Whether a subtask can bring no more points."""
    return entry["points"] >= entry["of"]


def left_of(limit: int | None, used: int) -> int | None:
    return None if limit is None else limit - used


def least(*limits: int | None) -> int | None:
    """The least of those that are no None; None where all are."""
    return min((limit for limit in limits if limit is not None), default=None)


def ioi_messages(problem: dict, subtask: dict, earlier: list[Submission], solved: dict[str, Candidate]) -> list[dict]:
    name = subtask["name"]
    parts = [
        "Solve one subtask of a contest problem.",
        f"## Problem\n\n{problem['statement']}",
        f"## Subtask {name} ({subtask['points']:g} points)\n\n{subtask.get('statement', 'As in the statement.')}",
    ]
    for other, candidate in solved.items():
        parts.append(f"## A program that solves subtask {other}\n\n{candidate.block}")
    for number, submission in enumerate(earlier, start=1):
        verdict, points = submission.verdicts.get(name, ""), submission.points.get(name, 0.0)
        parts.append(
            f"## Earlier submission {number}: {verdict}, {points:g} of {subtask['points']:g} points\n\n{submission.candidate.block}"
        )
    if earlier:
        parts.append("Find out why these fell short, and do not submit them again.")
    return [{"role": "user", "content": "\n\n".join([*parts, how_to_answer(problem)])}]
