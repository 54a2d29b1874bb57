"""Asks git about a repository on this host, and reads the files of a commit."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Modes of plain files; others are links and repositories within.
_PLAIN = (b"100644", b"100755")


def git(folder: Path, *arguments: str, given: bytes = b"", **environment: str) -> bytes:
    """What git writes. Variables for git that this process has, as within a hook, have no part in it. Raises ValueError."""
    without = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], input=given, env=without | environment, capture_output=True)
    except OSError as error:
        raise ValueError(f"git cannot be run ({error}); install it") from None
    if done.returncode:
        raise ValueError(f"git {arguments[0]} in {folder}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def files_at(folder: Path, commit: str) -> Iterator[tuple[str, bytes]]:
    """Plain files of a commit, whatever is checked out. Not by `git archive`, which leaves out what is not to be exported: often tests."""
    entries = (entry.partition(b"\t") for entry in git(folder, "ls-tree", "-r", "-z", "--full-tree", commit).split(b"\0") if entry)
    plain = {name.decode(errors="replace"): said.split()[2] for said, _, name in entries if said.split()[0] in _PLAIN}
    told, at = git(folder, "cat-file", "--batch", given=b"\n".join([*plain.values(), b""])), 0
    for name in plain:
        # "hash blob size", the bytes, a line break.
        start = told.index(b"\n", at) + 1
        at = start + int(told[at:start].split()[2]) + 1
        yield name, told[start : at - 1]
