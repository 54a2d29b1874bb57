"""Verdicts on replies: by their rows' environments, by a judge where one has to be asked, or by comparison (`pairwise`)."""

from collections.abc import Callable, Iterator

from nemo_cascade import environments
from nemo_cascade.data.rows import environment_of
from nemo_cascade.environments.endpoint import Endpoint
from nemo_cascade.environments.judged import judge_all
from nemo_cascade.environments.workers import Verifiers
from nemo_cascade.evaluation import pairwise

Pair = tuple[dict, dict]
# Comparisons at a time, so that a kill costs no more than these; the judge's own answers are kept one by one.
COMPARED = 64


def compares(row: dict) -> bool:
    """Whether a reply to the row has no reward by itself."""
    return environment_of(row) == "genrm_compare"


def needs_judge(row: dict) -> bool:
    """Whether there is no verdict without a judge."""
    return compares(row) or environments.needs_judge(row)


def score(pairs: list[Pair], verifiers: Verifiers, judge: Endpoint | None, scored: Callable[[int, dict], None]) -> list[dict]:
    """The verdict on every (row, response); `scored` gets each with its place as soon as it is the last word.

    judge: must be there where a row `needs_judge`. Raises EndpointError where the judge refuses, SandboxError where no program can be run.
    """
    verdicts: list[dict] = [{}] * len(pairs)
    compared = [place for place, (row, _) in enumerate(pairs) if compares(row)]
    others = [place for place, (row, _) in enumerate(pairs) if not compares(row)]

    def keep(place: int, verdict: dict) -> None:
        verdicts[place] = verdict
        scored(place, verdict)

    futures = [(place, verifiers.submit(*pairs[place])) for place in others]
    open_ones = []
    for place, future in futures:
        verdict = future.result()
        if needs_judge(pairs[place][0]) and "fault" not in verdict:
            open_ones.append((place, verdict))
        else:
            keep(place, verdict)
    for name in dict.fromkeys(environment_of(pairs[place][0]) for place, _ in open_ones):
        mine = [(place, verdict) for place, verdict in open_ones if environment_of(pairs[place][0]) == name]
        for (place, _), last in zip(mine, judge_all([(*pairs[place], verdict) for place, verdict in mine], judge)):
            keep(place, last)
    for some in _slices(compared, COMPARED):
        for place, verdict in zip(some, pairwise.compare([pairs[place] for place in some], judge)):
            keep(place, verdict)
    return verdicts


def _slices(items: list, size: int) -> Iterator[list]:
    return (items[start : start + size] for start in range(0, len(items), size))
