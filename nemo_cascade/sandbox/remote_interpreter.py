"""Interpreters on another host: `Held` keeps them where `nemo-cascade sandbox-serve` runs, `RemoteInterpreter` asks for one from afar.

What keeps its names cannot be tried again elsewhere: a call whose connection breaks has failed, and the next one begins anew.
"""

import dataclasses
import http.client
import json
import threading
import time
import uuid
from collections.abc import Callable

from nemo_cascade.sandbox.interpreter import CLOSED, LIMITS, Cell, Interpreter
from nemo_cascade.sandbox.programs import HostFailed, Limits, SandboxError

PATH = "/interpreters"
# Seconds without a call after which one may be ended where another wants its place: whoever had it has died.
FORGOTTEN = 3600.0
# Seconds between two looks whether a place is free.
GLANCE = 0.5


class Held:
    """The interpreters of a server, by the names that their users were given. Thread-safe."""

    def __init__(self, make: Callable[[Limits], Interpreter]):
        self._make, self._lock = make, threading.Lock()
        self._all: dict[str, Interpreter] = {}
        self._used: dict[str, float] = {}

    def open(self, limits: Limits) -> str | None:
        """The name of a new one, None where there is no place for it. Raises as `Sandbox.interpreter`."""
        made = self._make(limits)
        if not made.begin(wait=False):
            self._end_forgotten()
            if not made.begin(wait=False):
                made.close()
                return None
        name = uuid.uuid4().hex
        with self._lock:
            self._all[name], self._used[name] = made, time.monotonic()
        return name

    def run(self, name: str, code: str) -> Cell:
        """Raises as `Interpreter.run`, and HostFailed for one that is not there."""
        with self._lock:
            interpreter = self._all.get(name)
            self._used[name] = float("inf")  # not while it runs
        try:
            if interpreter is None:
                raise HostFailed("the host has no such interpreter; it was started again, or nobody had called this one for long")
            return interpreter.run(code)
        finally:
            with self._lock:
                self._used[name] = time.monotonic()
                if name not in self._all:
                    del self._used[name]

    def close(self, name: str) -> None:
        with self._lock:
            interpreter = self._all.pop(name, None)
        if interpreter is not None:
            interpreter.close()
        with self._lock:
            self._used.pop(name, None)

    def _end_forgotten(self) -> None:
        with self._lock:
            forgotten = [name for name, used in self._used.items() if time.monotonic() - used > FORGOTTEN]
        for name in forgotten:
            self.close(name)


class RemoteInterpreter:
    """The interface of `Interpreter`. exchange(url, method, path, body, seconds) -> reply, as `RemoteSandbox` has it.

    urls: hosts, the first of which that has a place is taken; queue: seconds that a call may wait for its turn there.
    """

    def __init__(self, exchange: Callable[..., bytes], urls: Callable[[], list[str]], queue: float, limits: Limits = LIMITS):
        self._exchange, self._urls, self._queue, self.limits = exchange, urls, queue, limits
        self._place: tuple[str, str] | None = None
        self._closed, self._changing = threading.Event(), threading.Lock()

    def begin(self, wait: bool = True) -> bool:
        """As `Interpreter.begin`. Raises SandboxError, too, where a host cannot be reached."""
        while not self._closed.is_set():
            with self._changing:
                if self._place is None:
                    self._place = next(filter(None, map(self._ask, self._urls())), None)
                if self._place is not None or not wait:
                    break
            self._closed.wait(GLANCE)
        if self._closed.is_set():
            self._leave()
            raise SandboxError(CLOSED)
        return self._place is not None

    def run(self, code: str) -> Cell:
        """As `Interpreter.run`; raises HostFailed where its host is lost, and then begins a new one at the next call."""
        self.begin()
        place = self._place
        if place is None:
            raise SandboxError(CLOSED)
        url, name = place
        body = json.dumps({"code": code}).encode()
        try:
            return Cell(**json.loads(self._exchange(url, "POST", f"{PATH}/{name}", body, self.limits.seconds + self._queue)))
        except (OSError, http.client.HTTPException, ValueError, TypeError, SandboxError) as error:
            if self._closed.is_set():
                raise SandboxError(CLOSED) from error
            self._leave()
            if isinstance(error, SandboxError) and not isinstance(error, HostFailed):
                raise
            reason = f"{type(error).__name__}: {error}"
            raise HostFailed(f"the sandbox at {url} ended an interpreter, and with it what it knew: {reason}") from error

    def close(self) -> None:
        """Ends it, also while another thread waits in `run`; a host that does not answer ends it by itself, sometime."""
        self._closed.set()
        self._leave()

    def _ask(self, url: str) -> tuple[str, str] | None:
        body = json.dumps({"limits": dataclasses.asdict(self.limits)}).encode()
        try:
            name = json.loads(self._exchange(url, "POST", PATH, body, 60.0))["name"]
        except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError) as error:
            raise SandboxError(f"the sandbox at {url} gives no interpreter: {type(error).__name__}: {error}") from error
        return (url, name) if name is not None else None

    def _leave(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            try:
                self._exchange(place[0], "DELETE", f"{PATH}/{place[1]}", None, 60.0)
            except (OSError, http.client.HTTPException, SandboxError):
                pass
