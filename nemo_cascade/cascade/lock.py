"""One run at a time in a run directory: rank 0 has a lock on `run.lock` there for as long as its process lives.

The kernel lets go of it when the process ends, however that is, so a killed run leaves nothing in the way. It is a POSIX record lock
(lockf) and not flock's, which processes that rank 0 forks, as those that write checkpoints, would keep after it. Such a lock is lost when
its own process closes the file by any handle, so nothing else there may open it. Whatever only reads a run (status, report, teachers,
doctor, check) asks for no lock. Left out: a file system that locks for one machine only, as Lustre with localflock, cannot be told.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from datetime import datetime
from pathlib import Path

from nemo_cascade.cascade.plan import RunRefused

logger = logging.getLogger(__name__)

FILE = "run.lock"
# A process that was killed takes a moment to be gone, the longer the more memory it had.
PATIENCE = 20.0
TAKEN = (errno.EACCES, errno.EAGAIN)


class RunLock:
    """The lock of a run directory, for rank 0. Nothing is locked before `take`."""

    def __init__(self, run_dir: Path):
        self.path = Path(run_dir) / FILE
        self._file = None

    def take(self) -> None:
        """Raises RunRefused, after PATIENCE seconds, when another process has it; where the file system has no locks it warns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + PATIENCE
        while not self._taken():
            if time.monotonic() >= deadline:
                raise RunRefused(self._refusal())
            time.sleep(0.1)
        began = datetime.now().astimezone().isoformat(" ", "seconds")
        self._file.truncate(0)
        self._file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "began": began}) + "\n")
        self._file.flush()

    def release(self) -> None:
        """Lets go of it and removes the file."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _taken(self) -> bool:
        file = open(self.path, "a", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in TAKEN:
                file.close()
                return False
            logger.warning(
                "%s: this file system has no locks (%s), so nothing keeps a second run out of %s; start none",
                self.path, error.strerror, self.path.parent,
            )
        if not _is_at(file, self.path):  # whoever had it removed it between the two calls
            file.close()
            return False
        self._file = file
        return True

    def _refusal(self) -> str:
        has = holder(self.path.parent)
        if has is not None:
            who = f"process {has['pid']} on {has['host']}, since {has['began']}"
            stop = f"stop it (kill -TERM {has['pid']} there, and it saves first)"
        else:
            who, stop = "by a process that has not said yet which it is", "stop it"
        return (
            f"{self.path.parent}: another run is going on in it, {who}; wait for it, {stop} or give another cascade.run_dir. "
            f"If there is no such process, because the lock is that of a machine that crashed, delete {self.path}"
        )


def holder(run_dir: Path) -> dict | None:
    """{"host", "pid", "began": a time as ISO 8601} of the process that has the lock, or was killed while it did; None where there is
    no such file, or it does not say so yet."""
    try:
        has = json.loads((Path(run_dir) / FILE).read_text(encoding="utf-8"))
        return {key: has[key] for key in ("host", "pid", "began")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_at(file, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
