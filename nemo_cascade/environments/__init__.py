"""Rewards: one file a domain, one shape for all, that of a NeMo Gym `/verify` call.

`get(name).verify(row, response)` returns a dict with at least `reward`. row is a Gym row, response an OpenAI Responses
object. What an environment says of itself, all but the first of which may be missing:

    verify(row, response) -> dict; what it raises leaves the reply without a verdict (`faults.py`)
    problem(row) -> what keeps a row from being verified, or None
    repair(row) -> the row with what is known to be wrong with released ones mended
    EXAMPLES     [(row, reply, reward), ...], good and bad replies; `self_test` looks whether they earn that
    REWARD_RANGE (least, most); (0, 1) if not given. Of a reply without a verdict the least is reported
    least(row)   the least for a reply to this row, where that is more
    reference(row) -> a reply that is right, where the row tells one, or None
    TIME_LIMIT   seconds after which a reply has no verdict; 10 if not given
    warm_up()    what is better done once in a worker than with the first reply, as slow imports
    session(row) -> a fresh one, with `call(tool, arguments)`, for agents that make calls and see what they say (`rollout.agent.Session`)
    IN_THREADS   True where a reply waits for programs in the sandbox, which has its own limits: no worker is needed, and no other
                 limit holds, so nothing else there may take long

and, where a model has to be asked about what `verify` alone cannot decide (`judged.py`; `env.judges` says which model):

    question(row, response, verdict, answers) -> the chat messages to ask next, after these answers (Said), or None
    usable(text)  whether an answer can be read; others are asked for again
    judged(row, response, verdict, answers) -> the last verdict; an answer that never came is None, and the verdict then none
    needs_judge(row)  True where there is no verdict without; not given, there always is one

`genrm_compare` has no `verify`: a judge compares. Third parties add environments through the entry-point group
`nemo_cascade.environments` (name -> an object with `verify`). Where replies come from a model, `workers.Verifiers` verifies
them, in processes of their own.
"""

import importlib
from functools import cache
from importlib.metadata import entry_points

from nemo_cascade.data.rows import AGENT_SUFFIX, DataError, environment_of
from nemo_cascade.environments.response import answer_of, response_of, response_of_turns

OURS = (
    "instruction_following",
    "mcqa",
    "math",
    "math_with_python",
    "structured_outputs",
    "reasoning_gym",
    "tool_use",
    "workplace_assistant",
    "long_context",
    "code_gen",
    "swe_repair",
    "swe_agentic",
    "genrm_compare",
    "genrm",
)
GROUP = "nemo_cascade.environments"
# What a row with values of other types than expected makes Python raise.
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

__all__ = [
    "AGENT_SUFFIX",
    "answer_of",
    "asking",
    "environment_of",
    "get",
    "in_threads",
    "least",
    "names",
    "needs_judge",
    "reference",
    "repaired",
    "response_of",
    "response_of_turns",
    "reward_range",
    "row_problem",
    "session",
    "self_test",
    "time_limit",
    "verifying",
]


def names() -> list[str]:
    """Names of all registered environments."""
    return sorted({*OURS, *_third_party()})


def verifying() -> list[str]:
    """Those that verify a reply by itself, which is all but the ones that need a judge."""
    return [name for name in names() if hasattr(get(name), "verify")]


def asking() -> list[str]:
    """Those that can ask a judge about a reply that they cannot decide about themselves."""
    return [name for name in names() if hasattr(get(name), "question")]


@cache
def get(name: str):
    """The environment of that name: anything with `verify(row, response) -> dict`. Raises KeyError listing the known ones."""
    if name in OURS:
        return importlib.import_module(f"{__name__}.{name}")
    found = _third_party()
    if name not in found:
        raise KeyError(f"no environment {name!r} is registered; known are {', '.join(names())}")
    return found[name].load()


def reward_range(name: str) -> tuple[float, float]:
    """The least and the most that a reply can earn."""
    return getattr(get(name), "REWARD_RANGE", (0.0, 1.0))


def least(name: str, row: dict) -> float:
    """What is reported of a reply to a row of that environment if it has no verdict; 0 where only a server of Gym's knows that."""
    if name not in names():
        return 0.0
    own = getattr(get(name), "least", None)
    return own(row) if own is not None else reward_range(name)[0]


def time_limit(name: str) -> float:
    """Seconds that one reply may take."""
    return getattr(get(name), "TIME_LIMIT", 10.0)


def in_threads(name: str) -> bool:
    """Whether a reply waits for programs in the sandbox."""
    return getattr(get(name), "IN_THREADS", False)


def row_problem(row: dict) -> str | None:
    """What keeps the row's own environment from verifying a reply to it, None when nothing is known to. Never raises for a row.

    A row is somebody's file: where a value is of a type that nobody thought of, what Python says of it is told.
    """
    try:
        name = environment_of(row)
        problem = getattr(get(name), "problem", None)
    except (DataError, KeyError) as error:
        return error.args[0]
    try:
        return problem(row) if problem is not None else None
    except DataError as error:
        return str(error)
    except MALFORMED as error:
        return f"it is not as rows of {name} are: {type(error).__name__}: {error}"


def session(row: dict):
    """A conversation's tools, where the row's environment has any: `call(name, arguments) -> str`, `tools` and `max_steps`; else None."""
    name = environment_of(row)
    own = getattr(get(name), "session", None) if name in names() else None
    return own(row) if own is not None else None


def needs_judge(row: dict) -> bool:
    """Whether the row's environment has no verdict on a reply to it unless a judge is asked."""
    needs = getattr(get(environment_of(row)), "needs_judge", None)
    return needs is not None and needs(row)


def repaired(row: dict) -> dict:
    """The row as its own environment mends it; the same object where there is nothing to mend."""
    repair = getattr(get(environment_of(row)), "repair", None)
    return repair(row) if repair is not None else row


def reference(row: dict) -> str | None:
    """A right reply to the row, without a thought, if the row tells one."""
    own = getattr(get(environment_of(row)), "reference", None)
    return own(row) if own is not None else None


def self_test(name: str) -> list[str]:
    """What is wrong with an environment, one line each: an example that does not earn what it should, or can earn more."""
    environment = get(name)
    least, most = reward_range(name)
    wrong = []
    for number, (row, reply, expected) in enumerate(getattr(environment, "EXAMPLES", [])):
        place = f"{name}, example {number} ({reply[:60]!r} to {str(row)[:120]})"
        try:
            reward = environment.verify(row, response_of(reply, thinking=False))["reward"]
        except Exception as error:
            wrong.append(f"{place}: {type(error).__name__}: {error}")
            continue
        if reward != expected:
            wrong.append(f"{place}: earns {reward:g} instead of {expected:g}")
        if not least <= reward <= most:
            wrong.append(f"{place}: {reward:g} is outside of its range, {least:g} to {most:g}")
    return wrong


@cache
def _third_party() -> dict:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
