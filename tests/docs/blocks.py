"""What fenced blocks of the documents have: their text, and the commands that bash would start for them."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
# docs/log.md says what was done on a day; its commands are of that day.
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "log.md")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What the documents start; whatever else stands in a block is not found by bash, and the test that runs it fails.
PROGRAMS = ("make", "torchrun", "python", "nemo-cascade", "hf", "docker", "enroot", "srun", "sbatch", "uv", "cat", "pip", "git")
PROGRAMS += ("containers/install.sh", "launch/node.sh", ".venv-vllm/bin/torchrun")
STUB = '#!/bin/bash\nprintf "%s\\0" "{name}" "$@" >> "$CALLS"; printf "\\n\\0" >> "$CALLS"\n'
# bash would run these itself.
BUILTINS = r"""
cd() { :; }
source() { printf '%s\0' source "$@" >> "$CALLS"; printf '\n\0' >> "$CALLS"; }
"""


def blocks(page: Path, language: str) -> list[str]:
    """The texts of a page's blocks in a language."""
    return [text for word, text in FENCE.findall(page.read_text(encoding="utf-8")) if word == language]


def commands(script: str, folder: Path) -> list[list[str]]:
    """[program, arguments...] of each command that a block starts, by bash itself with stand-ins for the programs, in `folder`.

    Other pages use the README's MINE=(...).
    """
    for name in PROGRAMS:
        stub = folder / name if "/" in name else folder / "bin" / name
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text(STUB.format(name=name))
        stub.chmod(0o755)
    calls = folder / "calls"
    calls.write_text("")
    (mine,) = re.findall(r"^MINE=\(.*?\)(?=\s)", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    whole = f"set -eu\n{BUILTINS}\n{mine}\n{script}"
    environment = {"PATH": str(folder / "bin"), "CALLS": str(calls), "HOME": str(folder)}
    subprocess.run(["/bin/bash", "-c", whole], cwd=folder, env=environment, check=True, timeout=60)
    told = [call.split("\0")[:-1] for call in calls.read_text().split("\n\0")[:-1]]
    return [call for call in told if call[0] != "cat"]
