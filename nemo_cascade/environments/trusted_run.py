"""Runs a small Python program in a process of its own under limits. This is NOT a sandbox.

The limits contain accidents: endless loops, memory, output, children left behind. They do not contain malice: the
program has the host's user, so it can read and delete the host's files, use the network, and, as root, lift its limits
or leave its process group with setsid() and live on. So `run_program` refuses unless the caller vouches for the program
with trusted_demo=True; rows of our own demo data say so by `"trusted_demo": true`, and the config has to say so as well. RLIMIT_NPROC leaves no further
process or thread at all, but not where the host is root: there it does nothing, and the end of the group has to do.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nemo_cascade.environments import program_server

MEMORY = 256 * 2**20
# Bytes of each of stdout and stderr, and of any file the program writes.
MAX_OUTPUT = 64 * 2**10


@dataclass(frozen=True)
class Result:
    """How a program ended (exit status, or minus the signal that killed it) and what it wrote, cut at MAX_OUTPUT."""

    returncode: int
    stdout: str
    stderr: str
    timed_out: bool


def problem(row: dict) -> str | None:
    """What keeps a row's replies from being run here."""
    if row.get("trusted_demo") is True:
        return None
    return (
        'no "trusted_demo": true, which only our own demo data carries; what a model writes for any other row may run '
        "in a sandbox only, and the sandbox is not here yet"
    )


def run_program(
    source: str,
    stdin: str = "",
    files: dict[str, str] | None = None,
    timeout: float = 2.0,
    memory: int = MEMORY,
    *,
    trusted_demo: bool = False,
) -> Result:
    """Runs Python source, without site-packages or environment, in a new folder of its own.

    files: {path: text} in that folder, from which the program can import. timeout: seconds on the wall; then, and when
    the program ends, its process group is killed. memory: bytes of address space of each process. Output beyond
    MAX_OUTPUT is an OSError in the program. Thread-safe. Raises PermissionError without trusted_demo, ValueError for a
    path that leads out of the folder.
    """
    if not trusted_demo:
        raise PermissionError("run_program is no sandbox; it runs what its caller vouches for with trusted_demo=True")
    limits = {
        "RLIMIT_AS": memory,
        "RLIMIT_CPU": int(timeout) + 1,
        "RLIMIT_FSIZE": MAX_OUTPUT,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
    }
    # Files and not pipes: the kernel cuts them at RLIMIT_FSIZE, and nobody can block the reader by holding an end open.
    with (
        tempfile.TemporaryDirectory(prefix="trusted_run-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        tempfile.TemporaryFile() as program,
    ):
        # A folder in a folder of its own, so that "..", too, is the program's alone.
        work = Path(folder, "work")
        work.mkdir()
        _write(work, files or {})
        for file, text in ((given, stdin), (program, source)):
            # A lone surrogate is no text that a file can hold; it becomes "?".
            file.write(text.encode(errors="replace"))
            file.seek(0)
        asked = {"folder": str(work), "limits": limits, "timeout": timeout}
        ended = _ask(asked, [file.fileno() for file in (given, out, err, program)])
        return Result(stdout=_read(out), stderr=_read(err), **ended)


class _Server:
    """A process that runs one program at a time."""

    def __init__(self):
        self.control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", program_server.__file__, str(other.fileno())]
        silent = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        with other:
            self.process = subprocess.Popen(command, **silent, env={}, pass_fds=[other.fileno()], start_new_session=True)

    def run(self, asked: dict, files: list[int]) -> dict:
        socket.send_fds(self.control, [json.dumps(asked).encode()], files)
        answer = self.control.recv(65_536)
        if not answer:
            raise RuntimeError(f"the process that programs are forked from has ended (exit status {self.process.wait()})")
        return json.loads(answer)

    def close(self) -> None:
        self.control.close()
        self.process.wait()


# Those that wait for work, as many as programs ever ran at a time. A fork of this process must not talk to them.
_idle: list[_Server] = []
os.register_at_fork(after_in_child=_idle.clear)


def _ask(asked: dict, files: list[int]) -> dict:
    try:
        server = _idle.pop()
    except IndexError:
        server = _Server()
    ended = server.run(asked, files)
    _idle.append(server)
    return ended


@atexit.register
def _close_all() -> None:
    while _idle:
        _idle.pop().close()


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = Path(os.path.normpath(folder / name))
        if folder not in path.parents:
            raise ValueError(f"file {name!r} leads out of the program's folder; use a relative path without '..'")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode(errors="replace"))


def _read(file) -> str:
    file.seek(0)
    return file.read(MAX_OUTPUT).decode(errors="replace")
