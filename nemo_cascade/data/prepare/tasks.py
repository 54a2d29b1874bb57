"""RL rows as stages read them: with an environment that can verify replies to them, told by name, and in one of two splits."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass

from nemo_cascade import environments
from nemo_cascade.data.prepare.outcome import Unusable
from nemo_cascade.data.rows import AGENT_SUFFIX, DataError, environment_of, messages_of, rl_problem, server_of

# The domain that conf/full.yaml has for an environment, where it is not of the same name.
DOMAINS = {"workplace_assistant": "tool_use"}
TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class Task:
    """A row that can be trained on, of which domain and in which split."""

    row: dict
    domain: str
    split: str


def to_task(
    row: dict, validation_share: float, without: tuple[str, ...] = (), gym_servers: tuple[str, ...] = ()
) -> tuple[Task, Counter]:
    """(the task, what was mended). Raises Unusable for a row of an environment `without`, and for one that nothing can verify.

    Rows of `gym_servers` are verified there, so that only their prompts are looked at. Raises SandboxUnavailable for rows
    whose replies are programs where no program can be run.
    """
    mended: Counter = Counter()
    try:
        name = environment_of(row)
    except DataError as error:
        raise Unusable("no_environment", str(error)) from error
    if name in without:
        raise Unusable("left_out", f"a row of {name}, as --without says")
    problem = rl_problem(row, {*environments.names(), *gym_servers})
    if problem:
        raise Unusable("unknown_environment" if problem.startswith("unknown environment") else "prompt", problem)
    if server_of(row) is None:
        row = row | {"agent_ref": {"type": "responses_api_agents", "name": f"{name}{AGENT_SUFFIX}"}}
        mended["agent_ref"] += 1
    if name not in gym_servers:
        # Before it is mended: `problem` mends for itself, and mending wants what `problem` has looked at.
        problem = environments.row_problem(row)
        if problem:
            raise Unusable("unverifiable", problem)
        repaired = environments.repaired(row)
        mended["arguments"] += repaired is not row
        row = repaired
    return Task(row, DOMAINS.get(name, name), split_of(row, validation_share)), +mended


def split_of(row: dict, validation_share: float) -> str:
    """By a hash of the prompt alone, so that rows of one prompt are on one side, whichever subset or order they come in."""
    prompt = json.dumps(messages_of(row), sort_keys=True, ensure_ascii=False)
    place = int.from_bytes(hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
    return VALIDATION if place < validation_share else TRAIN
