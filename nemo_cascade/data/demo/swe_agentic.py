"""The demo's repositories, mended by an agent with a shell and an editor (`data.repositories`), at both levels the same ones.

A demonstration applies the golden patch by a command, which is what an agent would have come to after looking around.
"""

import random
from functools import cache

from nemo_cascade.data import repositories
from nemo_cascade.data.chat import render_tool_call


def draw(rng: random.Random, level: str) -> dict:
    row = rng.choice(_rows())
    return {key: value for key, value in row.items() if key != "agent_ref"}


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """No thought; the command."""
    command = f"git apply - <<'END'\n{row['golden_patch']}END"
    return "", render_tool_call({"name": "execute_bash", "arguments": {"command": command}})


def held_out(row: dict) -> bool:
    """Every fourth repository is for validation: so few prompts have no even spread of hashes."""
    return row["instance_id"] in [one["instance_id"] for one in _rows()[::4]]


@cache
def _rows() -> list[dict]:
    return repositories.rows()
