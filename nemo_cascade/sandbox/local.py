"""`Sandbox`: runs programs on this host, as many at a time as it has workers. Thread-safe; a fork of its process gets its own.

C++ is compiled in the sandbox too, once for all runs of the same source.
"""

import atexit
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from nemo_cascade.sandbox import interpreter as interpreters
from nemo_cascade.sandbox import packages, probe
from nemo_cascade.sandbox.inside import values
from nemo_cascade.sandbox.interpreter import Interpreter, Places
from nemo_cascade.sandbox.programs import MIB, HostFailed, Limits, Program, Result, SandboxUnavailable
from nemo_cascade.sandbox.worker import Worker, WorkerDied, contents, memory_file

logger = logging.getLogger(__name__)

# <bits/stdc++.h> takes 1.4 seconds and 200 MB of a quiet core.
COMPILING = Limits(seconds=60.0, memory=1024 * MIB, output=64 * MIB, disk=64 * MIB)
MESSAGES = 2**16
# What g++ says when its compiler proper was killed. What runs out of the limits ends otherwise, so it was the host.
KILLED = "g++: fatal error: Killed signal"
COMPILE = "g++ -std=gnu++17 -O2 -x c++ - -o program && cat program >&3"
BINARIES = 64
OUTPUTS = ("stdout", "stderr", "channel")
PAGE = 4096


class Sandbox:
    """workers: programs at a time, by default a core of this process's share (torchrun's other processes have theirs).

    python: the interpreter for Python programs, see `bubblewrap.find_python`. Nothing starts before the first run, which
    raises SandboxUnavailable where isolation is not to be had.
    """

    def __init__(self, workers: int | None = None, python: str | None = None):
        self.workers = workers or max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self.python = python
        self._forget()
        _all.add(self)

    def run(self, program: Program, limits: Limits = Limits()) -> Result:
        """Raises SandboxUnavailable, HostFailed, or SandboxError when the sandbox fails and not the program."""
        self.probe()
        binary = None
        if program.language == "cpp":
            binary = self._compiled(program.source)
            if isinstance(binary, Result):
                return binary
        return self._run(program, limits, binary)

    def run_many(self, programs: Iterable[Program], limits: Limits = Limits()) -> list[Result]:
        """The results in the order of the programs, run side by side."""
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(lambda program: self.run(program, limits), programs))

    def interpreter(self, limits: Limits = interpreters.LIMITS) -> Interpreter:
        """One that is not started before its first call. At most ALIVE are alive at a time; others wait in `begin`.

        Raises SandboxUnavailable, also where the packages that it offers (`packages.INTERPRETERS`) are not installed."""
        self.probe()
        seen = self._packages(packages.INTERPRETERS)
        made = Interpreter(lambda: self._new_worker(seen), self._end, self._room, self._places, limits)
        self._interpreters.add(made)
        return made

    def probe(self) -> dict:
        """Makes sure that isolation is to be had, once: a program that looks for what it must not find.

        Raises SandboxUnavailable.
        """
        with self._probing:
            if self._probed is None:
                result = self._run(Program("python", probe.LOOK), probe.LIMITS, None)
                self._probed = probe.verdict(result)
            return self._probed

    def close(self) -> None:
        """Ends the workers, and interpreters for good; a later run starts new ones."""
        for interpreter in list(self._interpreters):
            interpreter.close()
        with self._lock:
            idle, self._idle = self._idle, []
            self._workers.difference_update(idle)
        for worker in idle:
            worker.close()

    def __del__(self):
        if hasattr(self, "_workers"):
            self.close()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _run(self, program: Program, limits: Limits, binary: bytes | None, channel: bool = False) -> Result:
        channel = channel or program.call is not None
        files = {"stdin": program.stdin.encode(errors="replace"), "stdout": b"", "stderr": b""}
        files["payload"] = payload(program, binary)
        files |= {"channel": b""} if channel else {}
        files |= {"binary": binary} if binary is not None else {}
        numbers: dict[str, int] = {}
        try:
            for name, data in files.items():
                numbers[name] = memory_file(data)
            ended = self._ask(vars(limits), numbers, self._packages(packages.TESTS) if program.packages else None)
            size = max(os.fstat(numbers[name]).st_size for name in OUTPUTS if name in numbers)
            out, err = (text(contents(numbers[name], limits.output)) for name in ("stdout", "stderr"))
            returned = contents(numbers["channel"], limits.output) if channel else b""
        finally:
            for number in numbers.values():
                os.close(number)
        limit = ended["limit"] or ("output" if size > limits.output else None)
        # One letter a byte: a binary comes this way too.
        value = returned.decode("latin-1") if returned else None
        return Result(ended["status"], out, err, limit, ended["seconds"], returned=value)

    def _ask(self, limits: dict, files: dict[str, int], seen: Path | None) -> dict:
        with self._room:
            for last_try in (False, True):
                worker = self._worker(seen)
                try:
                    ended = worker.run(limits, files)
                except WorkerDied as error:
                    self._end(worker)
                    # The host ran out of memory, say: what exhausts its own is told by the worker, which outlives it.
                    if last_try:
                        raise HostFailed(f"the host failed twice at a program, at last: {error}") from None
                    logger.warning("%s; tried once more", error)
                    # What the first try wrote goes.
                    for name in OUTPUTS:
                        if name in files:
                            os.ftruncate(files[name], 0)
                except BaseException:
                    self._end(worker)
                    raise
                else:
                    with self._lock:
                        self._idle.append(worker)
                    return ended
            raise AssertionError("unreachable")

    def _packages(self, wanted: tuple[str, ...]) -> Path:
        return packages.folder(probe.requirements(self.python)[1], wanted)

    def _worker(self, seen: Path | None) -> Worker:
        """One that sees these packages, and perhaps more than it needs."""
        with self._lock:
            fit = [worker for worker in self._idle if seen in (None, worker.packages)]
            other = fit[-1] if fit else self._idle[0] if self._idle else None
            if other is not None:
                self._idle.remove(other)
        if fit:
            return other
        if other is not None:
            self._end(other)
        return self._new_worker(seen)

    def _new_worker(self, seen: Path | None) -> Worker:
        executable, python = probe.requirements(self.python)
        try:
            worker = Worker(executable, python, seen)
        except WorkerDied as error:
            raise SandboxUnavailable(probe.explain(str(error))) from None
        with self._lock:
            self._workers.add(worker)
        return worker

    def _end(self, worker: Worker) -> None:
        with self._lock:
            self._workers.discard(worker)
        worker.close()

    def _compiled(self, source: str) -> bytes | Result:
        """The binary, or the result of a compilation that failed. Threads that ask for the same source share one.

        Only what the compiler says of the source is kept: what ended by a limit may compile at a quieter moment.
        """
        key = hashlib.sha256(source.encode(errors="replace")).hexdigest()
        with self._lock:
            future, mine = self._binaries.get(key), key not in self._binaries
            if mine:
                future = self._binaries[key] = Future()
            self._binaries.move_to_end(key)
            while len(self._binaries) > BINARIES:
                self._binaries.popitem(last=False)
        if mine:
            try:
                made = self._compile(source)
            except BaseException as error:
                self._drop(key)
                future.set_exception(error)
            else:
                if isinstance(made, Result) and (made.limit is not None or made.returncode < 0):
                    self._drop(key)
                future.set_result(made)
        return future.result()

    def _drop(self, key: str) -> None:
        with self._lock:
            self._binaries.pop(key, None)

    def _compile(self, source: str) -> bytes | Result:
        if shutil.which("g++", path="/usr/local/bin:/usr/bin:/bin") is None:
            raise SandboxUnavailable("C++ programs cannot be compiled: no g++ in /usr/bin; apt-get install g++")
        done = self._run(Program("shell", COMPILE, stdin=source), COMPILING, None, channel=True)
        if done.ok and done.returned:
            return done.returned.encode("latin-1")
        if done.limit is None and KILLED in done.stderr:
            raise HostFailed(f"the host killed the compiler: {done.stderr[:200].strip()}")
        # A template can fill the output with its errors.
        return dataclasses.replace(done, compiled=False, returned=None, stdout="", stderr=done.stderr[:MESSAGES])

    def _forget(self) -> None:
        """At the start, and in a fork, which must not talk to its parent's workers nor wait for its threads' locks."""
        for worker in getattr(self, "_workers", ()):
            worker.abandon()
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []
        self._lock, self._room = threading.Lock(), threading.BoundedSemaphore(self.workers)
        self._binaries: OrderedDict[str, Future] = OrderedDict()
        self._interpreters: weakref.WeakSet[Interpreter] = weakref.WeakSet()
        self._places = Places(interpreters.ALIVE)
        self._probing, self._probed = threading.Lock(), None


def payload(program: Program, binary: bytes | None) -> bytes:
    """What `inside.server.init` reads: the program and its files, with the room that they take."""
    size = sum(len(content.encode(errors="replace")) + 4 * PAGE for content in program.files.values())
    size += len(binary or program.source) * (1 if binary else 4) + 8 * PAGE
    asked = {"language": program.language, "args": list(map(plain, program.args)), "contest": program.contest}
    asked |= {"packages": packages.INSIDE if program.packages else None}
    asked |= {"source": plain(program.source) if binary is None else "", "files": program.files, "size": size}
    asked["inodes"] = 8 + sum(2 + path.count("/") for path in program.files)
    if program.call is not None:
        arguments = values.encode((program.call.args, program.call.kwargs))
        asked["call"] = {"function": program.call.function, "arguments": arguments}
    return json.dumps(asked).encode()


def plain(text: str) -> str:
    """A lone surrogate is nothing that a file could hold; it becomes "?"."""
    return text.encode(errors="replace").decode()


def text(data: bytes) -> str:
    return data.decode(errors="replace")


_all: "weakref.WeakSet[Sandbox]" = weakref.WeakSet()


def _forget_all() -> None:
    for sandbox in list(_all):
        sandbox._forget()


@atexit.register
def _close_all() -> None:
    for sandbox in list(_all):
        sandbox.close()


os.register_at_fork(after_in_child=_forget_all)
