"""`RemoteSandbox`: the interface of `Sandbox`, on hosts that run `nemo-cascade sandbox-serve`. Thread-safe.

A run goes to the host that has the fewest of ours. A run changes nothing on its host, so one whose connection broke, or at
which its host failed, is tried again, elsewhere where there is another host.
"""

import http.client
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from nemo_cascade.sandbox import wire
from nemo_cascade.sandbox.programs import HostFailed, Limits, Program, Result, SandboxError, SandboxUnavailable
from nemo_cascade.sandbox.remote_interpreter import RemoteInterpreter

# Seconds to wait before each further try.
PAUSES = (0.1, 0.5, 2.0, 5.0)
# Seconds that a run may wait for its turn.
QUEUE = 600.0


class Sick(SandboxError):
    """A host that answers, with an error of its own or with what is no result."""


class RemoteSandbox:
    """urls: `http://host:port`, with commas between several. token: by default NEMO_CASCADE_SANDBOX_TOKEN."""

    def __init__(self, urls: str, token: str | None = None):
        self.urls = [url.strip().rstrip("/") for url in urls.split(",") if url.strip()]
        for url in self.urls:
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise ValueError(f"sandbox.url {url!r}: not http://host:port")
        if not self.urls:
            raise ValueError("sandbox.url is empty; write http://host:port, with commas between several")
        self.token = token if token is not None else os.environ.get(wire.TOKEN, "")
        if not self.token:
            raise SandboxUnavailable(f"sandbox.url is set and {wire.TOKEN} is not; it must be the server's token")
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    @property
    def workers(self) -> int:
        """Programs at a time, over all hosts, as they were when first asked. Raises SandboxError when one did not answer."""
        if self._workers is None:
            self._workers = sum(answer["workers"] for answer in self.probe().values())
        return self._workers

    def probe(self) -> dict:
        """What each host says of its sandbox. Raises SandboxError for one that does not answer or has none."""
        found = {}
        for url in self.urls:
            try:
                found[url] = json.loads(self._exchange(url, "GET", "/health", None, 60.0))
            except (OSError, http.client.HTTPException) as error:
                raise SandboxError(f"the sandbox at {url} cannot be reached: {type(error).__name__}: {error}") from error
        return found

    def run(self, program: Program, limits: Limits = Limits()) -> Result:
        """As `Sandbox.run`. Raises SandboxError when no host gave a result, with what the last one said.

        HostFailed where the last one says that the program may be to blame.
        """
        body = wire.ask(program, limits)
        for number in range(len(PAUSES) + 1):
            with self._lock:
                url = min(self.urls, key=lambda url: (self._failed[url], self._running[url]))
                self._running[url] += 1
            try:
                answer = self._exchange(url, "POST", "/run", body, limits.seconds + QUEUE)
                try:
                    result = wire.answered(answer)
                except (ValueError, TypeError, RecursionError):
                    raise Sick(f"the sandbox at {url} answers with what is no result: {said(answer)}") from None
                self._failed[url] = 0
                return result
            except (OSError, http.client.HTTPException, Sick, HostFailed) as error:
                self._failed[url] += 1
                if number < len(PAUSES):
                    time.sleep(PAUSES[number])
                elif isinstance(error, SandboxError):
                    raise
                else:
                    reason = f"{type(error).__name__}: {error}"
                    raise SandboxError(f"the sandbox at {url} cannot be reached: {reason}") from error
            finally:
                with self._lock:
                    self._running[url] -= 1
        raise AssertionError("unreachable")

    def run_many(self, programs: Iterable[Program], limits: Limits = Limits()) -> list[Result]:
        """The results in the order of the programs, run side by side."""
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(lambda program: self.run(program, limits), programs))

    def interpreter(self) -> RemoteInterpreter:
        """One that stays on the host that has a place for it, first those that run the fewest of our programs.

        Raises SandboxUnavailable, also where a host lacks the packages that it offers."""
        if not self._interprets:
            for url, answer in self.probe().items():
                if "no interpreters" in answer:
                    raise SandboxUnavailable(f"the sandbox at {url}: {answer['no interpreters']}")
            self._interprets = True
        return RemoteInterpreter(self._exchange, self._idlest_first, QUEUE)

    def _idlest_first(self) -> list[str]:
        with self._lock:
            return sorted(self.urls, key=lambda url: (self._failed[url], self._running[url]))

    def close(self) -> None:
        """Closes this thread's connections; those of other threads close with them."""
        for connection in vars(self._local).values():
            connection.close()
        vars(self._local).clear()

    def __enter__(self) -> "RemoteSandbox":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _exchange(self, url: str, method: str, path: str, body: bytes | None, seconds: float) -> bytes:
        connections = vars(self._local)
        if url not in connections:
            parts = urlsplit(url)
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            connections[url] = kind(parts.hostname, parts.port)
        connection = connections[url]
        connection.timeout = seconds
        if connection.sock is not None:
            connection.sock.settimeout(seconds)
        try:
            connection.request(method, urlsplit(url).path + path, body, {"Authorization": f"Bearer {self.token}"})
            reply = connection.getresponse()
            answer = reply.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            raise
        if reply.status != 200:
            raise _kind(reply.status, answer)(f"the sandbox at {url} answers {reply.status}: {said(answer)}")
        return answer

    def _forget(self) -> None:
        self._local, self._lock = threading.local(), threading.Lock()
        self._workers: int | None = None
        self._interprets = False
        self._running: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()


def said(answer: bytes) -> str:
    """The error in a reply, or its beginning where it is not one of ours."""
    return str(_told(answer).get("error", answer[:200].decode(errors="replace")))


def _kind(status: int, answer: bytes) -> type[SandboxError]:
    if status in (401, 501):
        return SandboxUnavailable
    if status < 500:
        return SandboxError
    return HostFailed if _told(answer).get("lost") is True else Sick


def _told(answer: bytes) -> dict:
    try:
        told = json.loads(answer)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}
