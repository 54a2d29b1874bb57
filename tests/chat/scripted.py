"""A model whose turns are written beforehand, and a server in this process over a real socket."""

import contextlib
import copy
import itertools
import threading
import time
from collections.abc import Iterator

import httpx
import uvicorn

from nemo_cascade.chat.turns import Called, Ended, Said, Thought, Turn

# In the place of events: goes on until it is stopped.
FOREVER = "forever"
ANSWER = [Thought("Let me"), Thought(" see."), Said("It is"), Said(" 4."), Ended("stop", 7, 5)]


def calling(code: str) -> list:
    return [Thought("I compute."), Called("call_1", "stateful_python_code_exec", {"code": code}), Ended("tool_calls", 9, 9)]


class Scripted:
    """A `Model`: says its turns in order, the last one again and again; asked: (messages, tools, settings) of each."""

    name = "scripted"

    def __init__(self, *turns: list):
        self.turns, self.asked, self.closed = turns, [], 0

    def turn(self, messages, tools, settings) -> Turn:
        return Turn(self._events(messages, tools, settings))

    def _events(self, messages, tools, settings):
        self.asked.append((copy.deepcopy(messages), tools, settings))
        try:
            for event in self.turns[min(len(self.asked), len(self.turns)) - 1]:
                if isinstance(event, Exception):
                    raise event
                for said in [event] if event != FOREVER else self._forever():
                    yield said
        finally:
            self.closed += 1

    def _forever(self):
        for number in itertools.count():
            yield Said(f"{number} ")
            time.sleep(0.01)

    def close(self) -> None:
        pass


@contextlib.contextmanager
def serving(app) -> Iterator[str]:
    """Its address."""
    from tests.helpers import _free_port

    port = _free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{url}/info")
                break
            time.sleep(0.05)
        yield url
    finally:
        server.should_exit = True
        thread.join()
