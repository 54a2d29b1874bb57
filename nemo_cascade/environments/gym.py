"""A NeMo Gym resources server as an environment: `verify` over HTTP, the same row and reply as our own functions get.

Gym's `/verify` wants the whole row with the reply as an OpenAI response under `response`, and answers with both and `reward`.
"""

import asyncio
import random
from collections.abc import Iterable

import httpx

from nemo_cascade import heartbeat

# Statuses after which the same request may succeed.
AGAIN = {408, 425, 429, 500, 502, 503, 504}


class GymError(RuntimeError):
    """A server that cannot be reached, or refuses what it is sent; names its address."""


class GymClient:
    """One server. `verify` asks about one reply, `verify_all` about many, so many of them at a time.

    url: of the server, without /verify. timeout: seconds for one answer. tries: how often a request is sent that finds no
    server, a busy one or an error of its own, with pauses that double from half a second.
    """

    def __init__(self, url: str, *, concurrency: int = 64, timeout: float = 600.0, tries: int = 5):
        self.url = url.rstrip("/")
        self.concurrency, self.timeout, self.tries = concurrency, timeout, tries

    def verify(self, row: dict, response: dict) -> dict:
        """The server's verdict: {"reward", and what else it says}, without what it was sent. Raises GymError."""
        return self.verify_all([(row, response)])[0]

    def verify_all(self, asked: Iterable[tuple[dict, dict]]) -> list[dict]:
        """The verdicts on (row, response) pairs, in their order. Raises GymError."""
        return asyncio.run(self._verify_all(list(asked)))

    async def _verify_all(self, asked: list[tuple[dict, dict]]) -> list[dict]:
        limits = httpx.Limits(max_connections=self.concurrency)
        gate = asyncio.Semaphore(self.concurrency)
        async with httpx.AsyncClient(timeout=self.timeout, limits=limits) as client:
            return await asyncio.gather(*(self._ask(client, gate, row, response) for row, response in asked))

    async def _ask(self, client: httpx.AsyncClient, gate: asyncio.Semaphore, row: dict, response: dict) -> dict:
        body = {**row, "response": complete(response)}
        body.setdefault("responses_create_params", {"input": []})
        trouble = ""
        for attempt in range(self.tries):
            if attempt:
                # Not all at once: those that failed together would come back together.
                await asyncio.sleep(2 ** (attempt - 2) * random.uniform(0.75, 1.25))
            async with gate:
                try:
                    answer = await client.post(f"{self.url}/verify", json=body)
                except httpx.TransportError as error:
                    trouble = f"{type(error).__name__} {error}".strip()
                    continue
            heartbeat.beat()
            if answer.is_success:
                return self._verdict(answer, body)
            trouble = f"status {answer.status_code}: {answer.text[:500]}"
            if answer.status_code not in AGAIN:
                raise GymError(f"{self.url}/verify refuses a reply, {trouble}")
        raise GymError(f"{self.url}/verify has not answered in {self.tries} tries, the last time {trouble}; is it running?")

    def _verdict(self, answer: httpx.Response, sent: dict) -> dict:
        try:
            told = answer.json()
            told["reward"] = float(told["reward"])
        except (ValueError, TypeError, KeyError):
            raise GymError(f"{self.url}/verify answers without a reward: {answer.text[:500]}") from None
        return {key: value for key, value in told.items() if key not in sent or key == "reward"}


def complete(response: dict) -> dict:
    """The response with the fields that OpenAI's schema asks for and no verifier reads."""
    output = [
        {"id": f"item_{number}", **({"status": "completed"} if item.get("type") != "reasoning" else {}), **item}
        for number, item in enumerate(response["output"])
    ]
    rest = dict(id="resp_0", created_at=0, model="policy", object="response")
    return {**rest, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], **response, "output": output}
