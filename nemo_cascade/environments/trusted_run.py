"""Runs a small Python program in a process of its own under limits. This is NOT a sandbox.

The limits contain accidents: endless loops, memory, output, children left behind. They do not contain malice: the
program has the host's user, so it can read and delete the host's files, use the network, and, as root, lift its limits
or leave its process group with setsid() and live on. So `run_program` refuses unless the caller vouches for the program
with trusted_demo=True; rows of our own demo data say so by `"trusted_demo": true`, and the config has to say so as well. RLIMIT_NPROC leaves no further
process or thread at all, but not where the host is root: there it does nothing, and the end of the group has to do.
"""

import os
import select
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

MEMORY = 256 * 2**20
# Bytes of each of stdout and stderr, and of any file the program writes.
MAX_OUTPUT = 64 * 2**10

# The process limits itself before the program's first line: a preexec_fn is not safe beside threads.
# Then it removes the program's text, which may hold what the code that it runs should not read.
_START = """
def start():
    import os, resource, sys
    for name, value in zip(("AS", "CPU", "FSIZE", "NPROC", "CORE"), map(int, sys.argv[1:])):
        limit = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, 2 * (value if hard == resource.RLIM_INFINITY else min(value, hard),))
    sys.argv, sys.path[:0] = ["program.py"], [""]
    with open("../program.py", encoding="utf-8") as file:
        source = file.read()
    os.remove("../program.py")
    return compile(source, "program.py", "exec")
exec(start(), {"__name__": "__main__"})
"""


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
    limits = [memory, int(timeout) + 1, MAX_OUTPUT, 0, 0]
    command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _START, *map(str, limits)]
    # Files and not pipes: the kernel cuts them at RLIMIT_FSIZE, and nobody can block the reader by holding an end open.
    with (
        tempfile.TemporaryDirectory(prefix="trusted_run-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        work = Path(folder, "work")
        work.mkdir()
        # A lone surrogate is no text that a file can hold; it becomes "?".
        Path(folder, "program.py").write_bytes(source.encode(errors="replace"))
        _write(work, files or {})
        given.write(stdin.encode(errors="replace"))
        given.seek(0)
        process = subprocess.Popen(
            command, stdin=given, stdout=out, stderr=err, cwd=work, env={}, start_new_session=True
        )
        timed_out = _end(process, timeout)
        return Result(process.returncode, _read(out), _read(err), timed_out)


def _end(process: subprocess.Popen, timeout: float) -> bool:
    """Waits for the process, kills what is left of its group; whether the time ran out."""
    handle = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return not poll.poll(timeout * 1000)
    finally:
        # Before the process is reaped: until then nobody else can have its number.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(handle)


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
