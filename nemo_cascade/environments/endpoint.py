"""Models behind an OpenAI-compatible endpoint (vLLM, NIM, a hosted one): many conversations in, what was said out.

A request that finds no server, a busy one, a broken answer or one that its reader cannot use is sent again, later and later;
after its last try there is no answer (None), which is for the reader to count. Answers that could be used are kept by what
was asked, so that a run that goes on does not ask twice.
"""

import asyncio
import hashlib
import json
import os
import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

# Those of a request that is wrong in itself: to send it again would change nothing.
HOPELESS = {400, 401, 403, 404, 405, 413, 422}


class EndpointError(RuntimeError):
    """An endpoint that refuses what it is sent; names its address and its reason."""


@dataclass
class EndpointConfig:
    """A model behind an endpoint. base_url ends in /v1 as a rule; api_key_env names the variable that has the key.

    temperature, top_p and max_tokens are NeMo Gym's for a judge. concurrency: requests under way from one process.
    timeout: seconds for an answer. tries: how often a request is sent. extra_body: further keys of the request.
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
    extra_body: dict = field(default_factory=dict)


class Endpoint:
    """`ask` many at a time. cache: a file that keeps answers, or none."""

    def __init__(self, config: EndpointConfig, cache: Path | None = None):
        self.config = config
        self.cache = _Cache(cache) if cache is not None else None

    def ask(self, conversations: list[list[dict]], usable: Callable[[str], bool] = bool) -> list[str | None]:
        """What the model says after each conversation (chat messages); None where nothing usable came.

        Raises EndpointError when the endpoint refuses the key, the model or the request.
        """
        return asyncio.run(self._ask_all(conversations, usable))

    async def _ask_all(self, conversations: list[list[dict]], usable) -> list[str | None]:
        limits = httpx.Limits(max_connections=self.config.concurrency)
        gate = asyncio.Semaphore(self.config.concurrency)
        key = os.environ.get(self.config.api_key_env or "", "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(timeout=self.config.timeout, limits=limits, headers=headers) as client:
            return await asyncio.gather(*(self._ask(client, gate, messages, usable) for messages in conversations))

    async def _ask(self, client: httpx.AsyncClient, gate: asyncio.Semaphore, messages: list[dict], usable) -> str | None:
        body = self._body(messages)
        name = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        known = self.cache.get(name) if self.cache is not None else None
        if known is not None:
            return known
        for attempt in range(self.config.tries):
            if attempt:
                # Not all at once: those that failed together would come back together.
                await asyncio.sleep(2 ** (attempt - 2) * random.uniform(0.75, 1.25))
            async with gate:
                text = await self._try(client, body)
            if text is not None and usable(text):
                if self.cache is not None:
                    self.cache.put(name, text)
                return text
        return None

    async def _try(self, client: httpx.AsyncClient, body: dict) -> str | None:
        url = self.config.base_url.rstrip("/") + "/chat/completions"
        try:
            answer = await client.post(url, json=body)
        except httpx.TransportError:
            return None
        if answer.status_code in HOPELESS:
            raise EndpointError(f"{url} refuses a request for {self.config.model}, status {answer.status_code}: {answer.text[:500]}")
        try:
            return answer.raise_for_status().json()["choices"][0]["message"]["content"]
        except (httpx.HTTPStatusError, ValueError, LookupError, TypeError):
            return None

    def _body(self, messages: list[dict]) -> dict:
        # A lone surrogate, which a reply may have, is no text that JSON over HTTP can hold.
        messages = [{**m, "content": m["content"].encode(errors="replace").decode()} for m in messages]
        c = self.config
        settings = dict(temperature=c.temperature, top_p=c.top_p, max_tokens=c.max_tokens)
        return {"model": c.model, "messages": messages, **settings, **c.extra_body}


class _Cache:
    """Answers by the hash of their request, in a file that several processes may use."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("CREATE TABLE IF NOT EXISTS answers (name TEXT PRIMARY KEY, said TEXT)")

    def get(self, name: str) -> str | None:
        found = self.connection.execute("SELECT said FROM answers WHERE name = ?", (name,)).fetchone()
        return found[0] if found else None

    def put(self, name: str, said: str) -> None:
        self.connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (name, said.encode(errors="replace").decode()))
