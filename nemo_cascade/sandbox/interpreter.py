"""A Python in the sandbox whose names stay from call to call, for the tools of a conversation.

Each has a server of its own, and with it all the walls of a program: its namespaces, its disk, its limits, of which that of time is
of each call. Between calls its processes stand still. It starts with the first call; one that ended is followed by a new one, with
nothing of what the last one knew.
"""

import fcntl
import json
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from nemo_cascade.sandbox.packages import INSIDE
from nemo_cascade.sandbox.programs import MIB, HostFailed, Limits, SandboxError
from nemo_cascade.sandbox.worker import Worker, WorkerDied, contents, memory_file

LIMITS = Limits(seconds=120.0, memory=1024 * MIB, output=MIB, disk=16 * MIB, inodes=1024, processes=16, open_files=64)
# Of a sandbox, at a time.
ALIVE = 64
PAGE = 4096
CLOSED = "the interpreter has been closed"


@dataclass(frozen=True)
class Cell:
    """What a call came to. output: what it printed, errors too, and the value of its last line.

    status: None where the interpreter goes on; else it has ended, with that exit status, or minus the signal that killed it, and limit
    is the one that ended it, None without one.
    """

    output: str
    seconds: float
    status: int | None = None
    limit: str | None = None


class Places:
    """How many interpreters may be alive."""

    def __init__(self, count: int):
        self.free, self.changed = count, threading.Condition()


class Interpreter:
    """One for one conversation. `run` from one thread at a time; `close` from any, also while another one waits in `run`.

    start: makes a worker; room: held through each call, so that no more of them run than there are cores for.
    """

    def __init__(
        self, start: Callable[[], Worker], end: Callable[[Worker], None], room: AbstractContextManager, places: Places, limits: Limits
    ):
        self._start, self._end, self._room, self._places, self.limits = start, end, room, places, limits
        self._placed = self._closed = False
        self._worker: Worker | None = None
        self._files: dict[str, int] = {}
        # Held while the worker is used, so that its socket is not closed under who waits for it.
        self._using = threading.Lock()

    def begin(self, wait: bool = True) -> bool:
        """Takes a place among those that may be alive, or waits for one; whether it has it. Kept until it is closed.

        Raises SandboxError when it is closed."""
        with self._places.changed:
            if wait:
                self._places.changed.wait_for(lambda: self._closed or self._placed or self._places.free)
            if self._closed:
                raise SandboxError(CLOSED)
            if not self._placed and self._places.free:
                self._places.free -= 1
                self._placed = True
            return self._placed

    def run(self, code: str) -> Cell:
        """Runs the code with the names that are there. Raises HostFailed, SandboxUnavailable, or SandboxError when it is closed."""
        self.begin()
        with self._room, self._using:
            if self._closed:
                raise SandboxError(CLOSED)
            try:
                return self._run(code)
            except WorkerDied as error:
                self._drop()
                raise HostFailed(f"the host ended an interpreter, and with it what it knew: {error}") from None
            except BaseException:
                self._drop()
                raise

    def close(self) -> None:
        """Ends it and all that runs in it, and waits for that; nothing where it never started."""
        with self._places.changed:
            first, self._closed = not self._closed, True
            # Those who wait for a place in vain, too.
            self._places.changed.notify_all()
        worker = self._worker
        if worker is not None:
            worker.kill()
        with self._using:
            self._drop()
        with self._places.changed:
            if first and self._placed:
                self._placed = False
                self._places.free += 1
                self._places.changed.notify_all()

    def _run(self, code: str) -> Cell:
        if self._worker is None:
            self._worker = self._start()
            # Whoever closed it did not see this one.
            if self._closed:
                raise SandboxError(CLOSED)
        if not self._files:
            self._open()
        code_file, output = self._files["stdin"], self._files["stdout"]
        for number in (code_file, output):
            os.ftruncate(number, 0)
        text = memoryview(code.encode(errors="replace"))
        written = 0
        while written < len(text):
            written += os.pwrite(code_file, text[written:], written)
        ended = self._worker.call(self.limits.seconds)
        told = contents(output, self.limits.output).decode(errors="replace")
        limit = ended.get("limit")
        if "status" in ended:
            # One that could write no more may have ended before the server saw how much it had written.
            limit = limit or ("output" if os.fstat(output).st_size > self.limits.output else None)
            # The server is there, and begins the next one.
            self._close_files()
        return Cell(told, ended["seconds"], ended.get("status"), limit)

    def _open(self) -> None:
        """Has the worker begin an interpreter."""
        asked = {"language": "interpreter", "packages": INSIDE, "room": self.limits.output // 2}
        asked |= {"files": {}, "size": 8 * PAGE, "inodes": 8}
        try:
            self._files["stdin"], self._files["stdout"] = memory_file(b""), memory_file(b"")
            # Whoever writes there writes at its end, which is its beginning again at each call.
            fcntl.fcntl(self._files["stdout"], fcntl.F_SETFL, fcntl.fcntl(self._files["stdout"], fcntl.F_GETFL) | os.O_APPEND)
            payload = memory_file(json.dumps(asked).encode())
            try:
                files = {**self._files, "stderr": self._files["stdout"], "payload": payload}
                self._worker.interpret(vars(self.limits), files)
            finally:
                os.close(payload)
        except BaseException:
            self._close_files()
            raise

    def _drop(self) -> None:
        self._close_files()
        worker, self._worker = self._worker, None
        if worker is not None:
            self._end(worker)

    def _close_files(self) -> None:
        for number in self._files.values():
            os.close(number)
        self._files = {}
