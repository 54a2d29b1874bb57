"""Models behind an OpenAI-compatible endpoint (vLLM, NIM, a hosted one): many conversations in, what was said out.

A request that finds no server, a busy one, a broken answer or one that its reader cannot use is sent again, later and later;
after its last try there is no answer (`Silence`), which is for the reader to count. Answers that could be used are kept by what
was asked, so that a run that goes on does not ask twice.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import os
import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from nemo_cascade import heartbeat
from nemo_cascade.environments import foreign

logger = logging.getLogger(__name__)

# What no request to this endpoint will get past, and what is wrong with one request: to send that again would change nothing.
CLOSED, HOPELESS = {401, 403, 404, 405}, {400, 413, 422}
JSON = {"Content-Type": "application/json"}
# With `logprobs`, so many of the likeliest tokens at each place.
TOP_LOGPROBS = 20


class EndpointError(RuntimeError):
    """An endpoint that refuses what it is sent; names its address and its reason."""


@dataclass
class EndpointConfig:
    """A model behind an endpoint. base_url ends in /v1 as a rule; api_key_env names the variable that has the key.

    temperature, top_p and max_tokens are NeMo Gym's for a judge. concurrency: requests under way from one process.
    timeout: seconds for an answer. tries: how often a request is sent. logprobs: whether tokens' probabilities are asked for.
    extra_body: further keys of the request.
    """

    base_url: str = "???"
    model: str = "???"
    api_key_env: str | None = None
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 16_384
    concurrency: int = 64
    timeout: float = 600.0
    tries: int = 4
    logprobs: bool = False
    extra_body: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Said:
    """What a model said. tokens: of each generated token its text and {likely token there: probability}, where asked for.

    thought: what a server that takes thoughts out says of them. finish and length: why it ended and in how many tokens, where told.
    """

    text: str
    tokens: tuple[tuple[str, dict[str, float]], ...] = ()
    thought: str = field(default="", compare=False)
    finish: str = field(default="stop", compare=False)
    length: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Silence:
    """No answer that could be used; fault: why, of the last try, by its kind in `faults`."""

    fault: str


UNREACHABLE, REFUSED, UNREADABLE = map(Silence, ("judge_unreachable", "judge_refused", "judge_unreadable"))


class Endpoint:
    """`ask` many at a time. cache: a file that keeps answers, no other process's, or none."""

    def __init__(self, config: EndpointConfig, cache: Path | None = None):
        self.config = config
        self.cache = _Cache(cache) if cache is not None else None
        self._has_answered = False

    def ask(self, conversations: list[list[dict]], usable: Callable[[str], bool] = bool) -> list[Said | Silence]:
        """What the model says after each conversation (chat messages), or why nothing came whose text is usable.

        Raises EndpointError when the endpoint refuses the key or the model, or every request that it has had.
        """
        # Equal ones once; replies of a group often agree.
        names = [json.dumps(messages) for messages in conversations]
        distinct = dict(zip(names, conversations))
        answers = asyncio.run(self._ask_all(list(distinct.values()), usable))
        refusals = [answer for answer in answers if isinstance(answer, EndpointError)]
        self._has_answered |= any(isinstance(answer, Said) for answer in answers)
        if refusals and not self._has_answered:
            raise refusals[0]
        # A reply that is too long for the model, say, which must cost itself only.
        for refusal in refusals:
            logger.warning("%s", refusal)
        told = {name: REFUSED if isinstance(answer, EndpointError) else answer for name, answer in zip(distinct, answers)}
        return [told[name] for name in names]

    def ask_each(
        self,
        requests: list[tuple[list[dict], dict]],
        heard: Callable[[int, Said | Silence | EndpointError], None],
        seconds: float | None = None,
    ) -> None:
        """Asks (conversation, further keys of the request) each for itself, equal ones too, and tells each answer, with its place, as it comes.

        What has not come after `seconds` is given up. Raises EndpointError when the endpoint refuses the key or the model.
        """

        async def ask_all() -> None:
            gate = asyncio.Semaphore(self.config.concurrency)
            async with self.client() as client:

                async def ask(place: int, messages: list[dict], more: dict) -> None:
                    heard(place, await self._ask(client, gate, messages, lambda text: True, more))

                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.gather(*(ask(n, *request) for n, request in enumerate(requests))), seconds)

        asyncio.run(ask_all())

    def trouble(self) -> str | None:
        """Why nothing can be asked here, by the endpoint's list of models; None where nothing speaks against it."""
        url = self.config.base_url.rstrip("/") + "/models"
        try:
            answer = httpx.get(url, headers=self._headers(), timeout=min(self.config.timeout, 60.0))
            names = [str(model["id"]) for model in foreign.read(answer.content)["data"]] if answer.is_success else []
        except httpx.TransportError as error:
            return f"{url} cannot be reached ({type(error).__name__}: {error}); is it running?"
        # Not everybody has such a list.
        except (httpx.RequestError, ValueError, LookupError, TypeError):
            return None
        if answer.status_code in (401, 403):
            return f"{url} refuses the key, status {answer.status_code}: {foreign.beginning(answer.content)}"
        if names and self.config.model not in names:
            return f"{url} has no model {self.config.model!r}, only {', '.join(names[:10])}"
        return None

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self.config.api_key_env or "", "")
        return {"Authorization": f"Bearer {key}"} if key else {}

    async def _ask_all(self, conversations: list[list[dict]], usable) -> list[Said | EndpointError | Silence]:
        gate = asyncio.Semaphore(self.config.concurrency)
        async with self.client() as client:
            return await asyncio.gather(*(self._ask(client, gate, messages, usable) for messages in conversations))

    async def _ask(
        self, client: httpx.AsyncClient, gate: asyncio.Semaphore, messages: list[dict], usable, more: dict | None = None
    ) -> Said | EndpointError | Silence:
        body = self._body(messages) | (more or {})
        name = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        known = self.cache.get(name) if self.cache is not None else None
        if known is not None:
            return known
        said = await self.send(client, gate, body, _said, lambda said: usable(said.text))
        if isinstance(said, Said) and self.cache is not None:
            self.cache.put(name, said)
        return said

    async def send(self, client: httpx.AsyncClient, gate: asyncio.Semaphore, body: dict, read: Callable, usable: Callable):
        """What `read` makes of the server's answer to a request, the first of `tries` that is usable; why there is none else: a
        Silence, or an EndpointError for a request that it refuses. Raises EndpointError where it refuses all.

        read: from the JSON of an answer; raises ValueError, LookupError, TypeError or AttributeError for one that it cannot use.
        """
        for attempt in range(self.config.tries):
            if attempt:
                # Not all at once: those that failed together would come back together.
                await asyncio.sleep(2 ** (attempt - 2) * random.uniform(0.75, 1.25))
            async with gate:
                said = await self._try(client, body, read)
            if isinstance(said, EndpointError) or not isinstance(said, Silence) and usable(said):
                return said
        return said if isinstance(said, Silence) else UNREADABLE

    def client(self) -> httpx.AsyncClient:
        """For one event loop."""
        limits = httpx.Limits(max_connections=self.config.concurrency)
        return httpx.AsyncClient(timeout=self.config.timeout, limits=limits, headers=self._headers())

    async def _try(self, client: httpx.AsyncClient, body: dict, read: Callable):
        url = self.config.base_url.rstrip("/") + "/chat/completions"
        try:
            answer = await client.post(url, content=foreign.write(body), headers=JSON)
        except httpx.TransportError:
            return UNREACHABLE
        # An answer that is not encoded as it says.
        except httpx.RequestError:
            return UNREADABLE
        heartbeat.beat()
        if answer.status_code in CLOSED | HOPELESS:
            said = foreign.beginning(answer.content)
            refusal = EndpointError(f"{url} refuses a request for {self.config.model}, status {answer.status_code}: {said}")
            if answer.status_code in CLOSED:
                raise refusal
            return refusal
        if not answer.is_success:
            return UNREACHABLE
        try:
            return read(foreign.read(answer.content))
        except (ValueError, LookupError, TypeError, AttributeError):
            return UNREADABLE

    def _body(self, messages: list[dict]) -> dict:
        c = self.config
        settings = dict(temperature=c.temperature, top_p=c.top_p, max_tokens=c.max_tokens)
        settings |= dict(logprobs=True, top_logprobs=TOP_LOGPROBS) if c.logprobs else {}
        return {"model": c.model, "messages": messages, **settings, **c.extra_body}


def _said(answer: dict) -> Said:
    choice = answer["choices"][0]
    message = choice["message"]
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    # A reply that was cut inside its thought has no content.
    text = "" if thought and message["content"] is None else message["content"]
    if not isinstance(text, str) or not isinstance(thought, str):
        raise TypeError("what is said is a text")
    length = (answer.get("usage") or {}).get("completion_tokens")
    length = length if type(length) is int and length >= 0 else None
    return Said(foreign.plain(text), _tokens(choice), foreign.plain(thought), str(choice.get("finish_reason")), length)


def _tokens(choice: dict) -> tuple[tuple[str, dict[str, float]], ...]:
    places = (choice.get("logprobs") or {}).get("content") or []
    return tuple((_text(place), dict(map(_likely, (place, *place["top_logprobs"])))) for place in places)


def _text(token: dict) -> str:
    if not isinstance(token["token"], str):
        raise TypeError("a token is a text")
    return foreign.plain(token["token"])


def _likely(token: dict) -> tuple[str, float]:
    logprob = foreign.number(token["logprob"])
    # Rounding may put one a little above 0.
    if logprob > 0.01:
        raise ValueError(f"{logprob} is the logarithm of no probability")
    return _text(token), math.exp(min(logprob, 0.0))


class _Cache:
    """Answers by the hash of their request, in a file of this process's own: two that open it at once would lock it."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("CREATE TABLE IF NOT EXISTS said (name TEXT PRIMARY KEY, said TEXT)")

    def get(self, name: str) -> Said | None:
        found = self.connection.execute("SELECT said FROM said WHERE name = ?", (name,)).fetchone()
        if found is None:
            return None
        text, tokens = json.loads(found[0])
        return Said(text, tuple((token, likely) for token, likely in tokens))

    def put(self, name: str, said: Said) -> None:
        self.connection.execute("INSERT OR REPLACE INTO said VALUES (?, ?)", (name, json.dumps([said.text, said.tokens])))
