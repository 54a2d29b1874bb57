"""Preparing in a process that kills itself at a named moment, after some of its kind have passed."""

import multiprocessing
import os
import signal
from pathlib import Path

from nemo_cascade.data.prepare import parts, run
from nemo_cascade.data.prepare.run import Job, prepare

# Forks of this process, which has imported what takes seconds.
_context = multiprocessing.get_context("fork")

MOMENTS = {
    "shard": (run, "write_shards"),
    "record": (parts.Record, "write"),
    "move": (Path, "replace"),
    "packing": (run, "_packing"),
    "report": (parts, "end"),
    "clean": (parts.shutil, "rmtree"),
}


def _prepare(job: Job, out: Path, moment: str, passing: int) -> None:
    owner, name = MOMENTS[moment]
    original, left = getattr(owner, name), [passing]

    def at(*args, **kwargs):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return original(*args, **kwargs)

    setattr(owner, name, at)
    prepare(job, out)


def killed_at(moment: str, passing: int, job: Job, out: Path) -> None:
    """Prepares in another process until it is killed there. Raises AssertionError if it was not."""
    process = _context.Process(target=_prepare, args=(job, out, moment, passing))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, (moment, process.exitcode)
