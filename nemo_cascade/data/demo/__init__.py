"""Procedural demo domains: small tasks with correct demonstrations and a real check, so that a laptop shows a cascade learning.

Every domain has two levels: "demo", the easier cases that demonstrations cover, and "rl", which goes on to longer and harder ones.
Demonstrations are always right; the room for RL is what they do not cover. Training and validation are disjoint by a hash of
the prompt, at both levels. `write` makes the JSONL files, so that the real file-loading code is what a run goes through.
"""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemo_cascade.data.demo import (
    code_gen,
    instruction_following,
    long_context,
    math,
    mcqa,
    preference,
    structured_output,
    swe_agentic,
    swe_repair,
    tool_use,
    workplace_assistant,
)
from nemo_cascade.data.files import write_atomically
from nemo_cascade.data.rows import tools_of

LEVELS = ("demo", "rl")
# One prompt in so many belongs to validation.
VALIDATION_EVERY = 8
# One demonstration in so many is shown without thinking at all (Nemotron 3 Nano's SFT: 10 %).
NON_THINKING_EVERY = 10


@dataclass(frozen=True)
class Domain:
    """A named task. draw(rng, level) -> row without agent_ref; demonstrate(row, rng) -> (thought, answer).

    environment: the one that verifies replies, where it is not called like the domain.
    """

    name: str
    draw: Callable[[random.Random, str], dict]
    demonstrate: Callable[[dict, random.Random], tuple[str, str]]
    environment: str | None = None

    def rows(self, n: int, split: str, seed: int = 0, level: str = "rl") -> list[dict]:
        """n Gym rows of split "train" or "validation"; deterministic; prompts are distinct, but for demonstrations.

        Raises ValueError when there are not so many.
        """
        if split not in ("train", "validation") or level not in LEVELS:
            raise ValueError(f"split is train or validation, level one of {LEVELS}; got {split!r}, {level!r}")
        rng = random.Random(f"{self.name}-{split}-{level}-{seed}")
        agent = {"type": "responses_api_agents", "name": f"{self.environment or self.name}_simple_agent"}
        rows, seen = [], set()
        for _ in range(50 * n + 1000):
            if len(rows) == n:
                return rows
            row = self.draw(rng, level)
            prompt = prompt_of(row)
            # A prompt may be demonstrated more than once: there is more than one right answer.
            repeated = prompt in seen and not (split == "train" and level == "demo")
            if is_validation(prompt) == (split == "validation") and not repeated:
                seen.add(prompt)
                rows.append({**row, "agent_ref": agent, "domain": self.name})
        raise ValueError(f"{self.name}: found only {len(rows)} {level} {split} rows, not {n}; ask for fewer")

    def demonstration(self, row: dict, number: int = 0) -> dict:
        """A correct answer to a row as an SFT row; the same one every time, another for another number.

        Without a thought, not even an empty one, where the row says so, and for one number in NON_THINKING_EVERY.
        """
        thought, answer = self.demonstrate(row, random.Random(f"{number}-{prompt_of(row)}"))
        reply = {"role": "assistant", "content": answer}
        if row.get("enable_thinking", True) and number % NON_THINKING_EVERY != NON_THINKING_EVERY - 1:
            reply["reasoning_content"] = thought
        tools = {"tools": tools_of(row)} if tools_of(row) else {}
        return {"messages": [*row["responses_create_params"]["input"], reply], **tools, "domain": self.name}


DOMAINS = {
    domain.name: domain
    for domain in (
        Domain("instruction_following", instruction_following.draw, instruction_following.demonstrate),
        Domain("mcqa", mcqa.draw, mcqa.demonstrate),
        Domain("math", math.draw, math.demonstrate),
        Domain("structured_outputs", structured_output.draw, structured_output.demonstrate),
        Domain("tool_use", tool_use.draw, tool_use.demonstrate),
        Domain("preference", preference.draw, preference.demonstrate, environment="genrm_compare"),
        Domain("preference_pairs", preference.draw_pair, preference.judge_pair, environment="genrm"),
        Domain("long_context", long_context.draw, long_context.demonstrate),
        Domain("code_gen", code_gen.draw, code_gen.demonstrate),
        Domain("swe_repair", swe_repair.draw, swe_repair.demonstrate),
    )
}
# Written only when asked for by name: prompts that a laptop's model is too small for.
ON_REQUEST = {
    domain.name: domain
    for domain in (Domain("workplace_assistant", workplace_assistant.draw, workplace_assistant.demonstrate),)
}
# Of these there are so many rows and no more, and no demonstrations: split -> rows.
FIXED = {"swe_agentic": swe_agentic.rows}
FILES = (
    *(f"{name}/{split}.jsonl" for name in DOMAINS for split in ("sft", "train", "validation")),
    *(f"{name}/{split}.jsonl" for name in FIXED for split in ("train", "validation")),
)


def prompt_of(row: dict) -> str:
    """The text of a demo row's conversation."""
    return "\n".join(message["content"] for message in row["responses_create_params"]["input"])


def is_validation(prompt: str) -> bool:
    """Which split a prompt belongs to, whatever drew it."""
    return hashlib.sha256(prompt.encode()).digest()[0] % VALIDATION_EVERY == 0


def write(
    directory: Path,
    *,
    train_rows: int,
    validation_rows: int,
    sft_rows: int,
    seed: int = 0,
    rows_of: dict[str, dict[str, int]] | None = None,
    only: str | None = None,
) -> None:
    """Writes FILES, <domain>/{train,validation,sft}.jsonl: RL prompts, validation prompts of the RL level, demonstrations.

    rows_of: other numbers for a domain, {domain: {"sft_rows": ...}}. only: this domain alone, of DOMAINS or ON_REQUEST.
    """
    for domain in [(DOMAINS | ON_REQUEST)[only]] if only else DOMAINS.values():
        folder = Path(directory) / domain.name
        folder.mkdir(parents=True, exist_ok=True)
        count = {"train_rows": train_rows, "validation_rows": validation_rows, "sft_rows": sft_rows}
        count |= (rows_of or {}).get(domain.name, {})
        asked = domain.rows(count["sft_rows"], "train", seed, level="demo")
        _write_lines(folder / "sft.jsonl", (domain.demonstration(row, number) for number, row in enumerate(asked)))
        _write_lines(folder / "train.jsonl", domain.rows(count["train_rows"], "train", seed))
        _write_lines(folder / "validation.jsonl", domain.rows(count["validation_rows"], "validation", seed))
    for name, rows in ({} if only else FIXED).items():
        (Path(directory) / name).mkdir(exist_ok=True)
        for split in ("train", "validation"):
            _write_lines(Path(directory) / name / f"{split}.jsonl", rows(split))


def ensure(directory: Path, **settings) -> bool:
    """Writes the files (`write`'s settings) unless the same settings wrote them before; returns whether it wrote."""
    marker = Path(directory) / "settings.json"
    # With the names of those that no setting speaks of: a folder from before there were some lacks them.
    wanted = json.dumps(settings | {"fixed": [*FIXED]}, sort_keys=True)
    if marker.exists() and marker.read_text(encoding="utf-8") == wanted:
        return False
    marker.unlink(missing_ok=True)
    write(directory, **settings)
    # Last, so that a kill in between leaves no marker and the files are written again.
    marker.write_text(wanted, encoding="utf-8")
    return True


def _write_lines(path: Path, rows) -> None:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
