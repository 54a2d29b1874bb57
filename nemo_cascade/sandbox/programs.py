"""What is run, within which limits, and what came of it: the words that every sandbox, here or on another host, speaks."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from nemo_cascade.sandbox.inside import values

LANGUAGES = ("python", "cpp", "shell")
MIB = 2**20


class SandboxError(RuntimeError):
    """The sandbox itself failed; nothing is known about the program."""


class HostFailed(SandboxError):
    """The host ended a program's sandbox, or the program in it, more than once; other programs may well run."""


class SandboxUnavailable(SandboxError):
    """No isolation is to be had here: the reason, and the remedy."""


@dataclass(frozen=True)
class Call:
    """A function of a Python program to call, or a method of its class Solution, with plain values as arguments."""

    function: str
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """Model-written code with what it finds: standard input, files {path: text} in its folder, command-line args.

    contest: a Python program finds what contest sites have imported already (`inside.program.CONTEST`). call: run the
    program, then call a function of it; `Result.value()` is what that returned. packages: a Python program can import pytest
    (`packages.folder`).
    """

    language: str
    source: str
    stdin: str = ""
    files: dict[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    contest: bool = False
    call: Call | None = None
    packages: bool = False

    def __post_init__(self):
        if self.language not in LANGUAGES:
            raise ValueError(f"language {self.language!r}: not one of {', '.join(LANGUAGES)}")
        if self.call is not None and self.language != "python":
            raise ValueError(f"a function can be called in Python only, not in {self.language}")
        told = misplaced(self.files)
        if told is not None:
            raise ValueError(told)


# Bytes of a name, and of a path with the program's folder before it, that Linux takes.
MAX_NAME, MAX_PATH = 255, 4000


def misplaced(paths: Iterable[str]) -> str | None:
    """What keeps these from being the paths of one folder's files, in words; None when nothing does."""
    folders: set[str] = set()
    paths = {path: os.path.normpath(path) for path in paths}
    for path, inside in paths.items():
        parts = inside.split(os.sep)
        if os.path.isabs(path) or parts[0] in ("", ".", "..") or "\0" in path:
            return f"file {path!r} leads out of the program's folder; use a relative path without '..'"
        # A lone surrogate is nothing that a name could hold.
        name = inside.encode(errors="replace")
        if name.decode() != inside or len(name) > MAX_PATH or max(map(len, name.split(b"/"))) > MAX_NAME:
            return f"file {path[:300]!r}: no file can have this name; it may have {MAX_NAME} bytes in UTF-8"
        folders.update(os.sep.join(parts[:count]) for count in range(1, len(parts)))
    both = next((path for path, inside in paths.items() if inside in folders), None)
    return None if both is None else f"file {both!r} is the folder of another"


@dataclass(frozen=True)
class Limits:
    """seconds on the wall, after which all of the run is killed. The others are of all processes of a run together:

    memory: resident bytes (looked at every 20 ms; a process alone cannot ask for more address space than that);
    output: bytes of each of stdout, stderr and what a function returns; disk and inodes: bytes and number of all files;
    processes: they and their threads. open_files is of each process.
    """

    seconds: float = 5.0
    memory: int = 512 * MIB
    output: int = MIB
    disk: int = 16 * MIB
    processes: int = 16
    inodes: int = 1024
    open_files: int = 64

    def __post_init__(self):
        for name, value in vars(self).items():
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 2**60:
                raise ValueError(f"limit {name} is {value!r}; it must be a number above 0")


@dataclass(frozen=True)
class Result:
    """How a program ended (exit status, or minus the signal that killed it) and what it wrote, cut at `Limits.output`.

    limit: the limit that ended it ("seconds", "memory", "output"), None without one; a limit that the program only ran
    into (an error inside of it) is not named. seconds: how long it ran, on the wall, without waiting for its turn. compiled:
    False when a C++ program did not compile; stderr says why. returned: what the called function returned, as text; a program
    can write there too, so it is the program's word.
    """

    returncode: int
    stdout: str
    stderr: str
    limit: str | None = None
    seconds: float = 0.0
    compiled: bool = True
    returned: str | None = None

    @property
    def timed_out(self) -> bool:
        """Whether the time was up."""
        return self.limit == "seconds"

    @property
    def ok(self) -> bool:
        """Whether it ended by itself, with status 0, within its limits."""
        return self.returncode == 0 and self.limit is None

    def value(self):
        """What the called function returned. Raises ValueError when it returned nothing or no plain value."""
        if self.returned is None:
            raise ValueError("no value was returned")
        return values.decode(self.returned)
