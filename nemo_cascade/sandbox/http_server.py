"""`nemo-cascade sandbox-serve`: the sandbox of this host over HTTP, for trainers whose own container may not make one.

POST /run (see `wire`) with `Authorization: Bearer <token>`, which all else needs too; GET /health. POST /interpreters {limits} gives the
name of one, null where there is no place; POST /interpreters/NAME {code} runs code in it, DELETE ends it. Plain HTTP: on a
network that others are on, put TLS or a tunnel in front of it.
"""

import dataclasses
import hmac
import logging
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from json import dumps, loads

from nemo_cascade.sandbox import wire
from nemo_cascade.sandbox.local import Sandbox
from nemo_cascade.sandbox.programs import MIB, HostFailed, Limits, SandboxError, SandboxUnavailable
from nemo_cascade.sandbox.remote_interpreter import PATH, Held

logger = logging.getLogger(__name__)

MOST = Limits(
    seconds=300.0, memory=8192 * MIB, output=64 * MIB, disk=2048 * MIB, processes=256, inodes=100_000, open_files=1024
)
MAX_BODY = 256 * MIB
NO_PATH = "GET /health, POST /run or what /interpreters takes"
NO_REQUEST = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class SandboxServer(ThreadingHTTPServer):
    """Serves the sandbox until `shutdown`. Every connection has a thread; the sandbox's workers bound what runs at a time."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, sandbox: Sandbox, token: str, host: str = "127.0.0.1", port: int = 0):
        if not token:
            raise ValueError("a sandbox is not served without a token")
        self.sandbox, self.token, self.held = sandbox, token, Held(sandbox.interpreter)
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 3600  # a client that says nothing for an hour
    # A small reply is not held back until the last one is acknowledged.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self._may():
            if self.path != "/health":
                return self._reply(404, dumps({"error": f"no {self.path}; {NO_PATH}"}).encode())
            self._guarded(lambda: dumps(health(self.server.sandbox)).encode())

    def do_DELETE(self) -> None:
        if self._may():
            kind, _, name = self.path.rpartition("/")
            if kind != PATH:
                return self._reply(404, dumps({"error": f"no {self.path}; {NO_PATH}"}).encode())
            self._guarded(lambda: dumps({"closed": self.server.held.close(name)}).encode())

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY:
            self.close_connection = True
            said = f"Content-Length {length!r}: a number up to {MAX_BODY} is needed"
            return self._reply(413, dumps({"error": said}).encode())
        if not self._may():
            return None
        body = self.rfile.read(int(length))
        kind, _, name = self.path.rpartition("/")
        if self.path not in ("/run", PATH) and kind != PATH:
            return self._reply(404, dumps({"error": f"no {self.path}; {NO_PATH}"}).encode())
        try:
            work = self._asked_to_run(body) if self.path == "/run" else self._asked_of_interpreters(name, body)
        except NO_REQUEST as error:
            return self._reply(400, dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        return self._guarded(work)

    def _asked_to_run(self, body: bytes) -> Callable[[], bytes]:
        program, limits = wire.asked(body)
        refuse_high(limits)
        return lambda: wire.answer(self.server.sandbox.run(program, limits))

    def _asked_of_interpreters(self, name: str, body: bytes) -> Callable[[], bytes]:
        asked, held = loads(body), self.server.held
        if self.path == PATH:
            limits = Limits(**asked["limits"])
            refuse_high(limits)
            return lambda: dumps({"name": held.open(limits)}).encode()
        code = asked["code"]
        if not isinstance(code, str):
            raise ValueError("code must be a text")
        return lambda: dumps(dataclasses.asdict(held.run(name, code))).encode()

    def _may(self) -> bool:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer" and hmac.compare_digest(token.encode(), self.server.token.encode()):
            return True
        # What it sends is not read.
        self.close_connection = True
        self._reply(401, dumps({"error": f"a bearer token is needed, the server's {wire.TOKEN}"}).encode())
        return False

    def _guarded(self, work) -> None:
        try:
            status, body = 200, work()
        except SandboxUnavailable as error:
            status, body = 501, dumps({"error": str(error)}).encode()
        except SandboxError as error:
            # "lost": the program may be to blame after all, and others may run.
            status, body = 500, dumps({"error": str(error), "lost": isinstance(error, HostFailed)}).encode()
        self._reply(status, body)

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, text: str, *args) -> None:
        logger.debug(text, *args)


def refuse_high(limits: Limits) -> None:
    """Raises ValueError for limits over `MOST`."""
    too_high = [name for name, most in vars(MOST).items() if getattr(limits, name) > most]
    if too_high:
        raise ValueError(f"limits over this server's: {', '.join(f'{n} > {getattr(MOST, n)}' for n in too_high)}")


def health(sandbox: Sandbox) -> dict:
    """What it runs at a time, and what its probe saw; why it can run no interpreters, where it cannot. Raises SandboxUnavailable."""
    found = {"workers": sandbox.workers, **sandbox.probe()}
    try:
        sandbox.interpreter()
    except SandboxUnavailable as error:
        found["no interpreters"] = str(error)
    return found


def is_loopback(host: str) -> bool:
    """Whether only programs of this host can reach a server that listens there."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
