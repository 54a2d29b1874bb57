"""Rewards: one file a domain, one shape for all, that of a NeMo Gym `/verify` call.

`get(name).verify(row, response)` returns a dict with at least `reward`. row is a Gym row, response an OpenAI Responses object. An
environment may have `problem(row)`, which tells what keeps a row from being verified, or None, `REWARD_RANGE = (low, high)`, and
`IN_THREADS = True`, when several replies may be verified at once because it waits for processes. `genrm_compare` has no `verify`: a judge compares. Third parties add
environments through the entry-point group `nemo_cascade.environments` (name -> an object with `verify`).
"""

import importlib
from functools import cache
from importlib.metadata import entry_points

from nemo_cascade.data.rows import environment_of
from nemo_cascade.environments.response import answer_of, response_of

OURS = (
    "instruction_following",
    "mcqa",
    "math",
    "structured_outputs",
    "tool_use",
    "long_context",
    "code_gen",
    "swe_repair",
    "genrm_compare",
    "genrm",
)
GROUP = "nemo_cascade.environments"

__all__ = ["answer_of", "get", "names", "response_of", "row_problem"]


def names() -> list[str]:
    """Names of all registered environments."""
    return sorted({*OURS, *_third_party()})


@cache
def get(name: str):
    """The environment of that name: anything with `verify(row, response) -> dict`. Raises KeyError listing the known ones."""
    if name in OURS:
        return importlib.import_module(f"{__name__}.{name}")
    found = _third_party()
    if name not in found:
        raise KeyError(f"no environment {name!r} is registered; known are {', '.join(names())}")
    return found[name].load()


def row_problem(row: dict) -> str | None:
    """What keeps the row's own environment from verifying a reply to it, None when nothing is known to."""
    problem = getattr(get(environment_of(row)), "problem", None)
    return problem(row) if problem is not None else None


@cache
def _third_party() -> dict:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
