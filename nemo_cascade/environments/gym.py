"""A NeMo Gym resources server as an environment: `verify` over HTTP, the same row and reply as our own functions get.

Gym's `/verify` wants the whole row with the reply as an OpenAI response under `response`, and answers with both and `reward`.
"""

import asyncio
import random
from collections.abc import Iterable

import httpx

from nemo_cascade import environments, heartbeat
from nemo_cascade.environments import foreign, workers

# Statuses of a server that is busy or away, of one that fails at a request, and of one that refuses all of them.
AWAY, FAILED, CLOSED = {408, 425, 429, 502, 503, 504}, 500, {401, 403, 404, 405}


class GymError(RuntimeError):
    """A server that cannot be reached, or refuses what it is sent; names its address."""


class Unusable(GymError):
    """No verdict on one reply from a server that is there: it fails at that reply, or answers with garbage."""

    kind = "server_failed"


class Refused(Unusable):
    """No verdict, and none if it is asked again."""


class Slow(Refused):
    """No verdict within the time that one may take."""

    kind = "verifier_timeout"


class GymClient:
    """One server. `verify` asks about one reply, `verify_all` about many, so many of them at a time.

    url: of the server, without /verify. timeout: seconds for one answer. tries: how often a request is sent that finds no
    server, a busy one, an error of its own or an answer without a reward, with pauses that double from half a second.
    """

    def __init__(self, url: str, *, concurrency: int = 64, timeout: float = 600.0, tries: int = 5):
        self.url = url.rstrip("/")
        self.concurrency, self.timeout, self.tries = concurrency, timeout, tries

    def verify(self, row: dict, response: dict) -> dict:
        """The server's verdict: {"reward", and what else it says}, without what it was sent. Raises GymError."""
        return self.verify_all([(row, response)])[0]

    def verify_all(self, asked: Iterable[tuple[dict, dict]]) -> list[dict]:
        """The verdicts on (row, response) pairs, in their order.

        A reply that gets none, where others do, and one that takes too long have none (`faults.py`). Raises GymError where the
        server is away, and where it fails at all that it is asked about.
        """
        asked = list(asked)
        told = asyncio.run(self._verify_all(asked))
        errors = [verdict for verdict in told if isinstance(verdict, Unusable)]
        if len(errors) == len(told) and not all(isinstance(error, Slow) for error in errors):
            raise errors[0]
        return [
            workers.failed(environments.environment_of(row), row, verdict.kind, str(verdict)) if isinstance(verdict, Unusable) else verdict
            for (row, _), verdict in zip(asked, told)
        ]

    async def _verify_all(self, asked: list[tuple[dict, dict]]) -> list[dict | Unusable]:
        limits = httpx.Limits(max_connections=self.concurrency)
        gate = asyncio.Semaphore(self.concurrency)
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(timeout=self.timeout, limits=limits, headers=headers) as client:
            return await asyncio.gather(*(self._ask(client, gate, row, response) for row, response in asked))

    async def _ask(self, client: httpx.AsyncClient, gate: asyncio.Semaphore, row: dict, response: dict) -> dict | Unusable:
        sent = {**row, "response": complete(response)}
        sent.setdefault("responses_create_params", {"input": []})
        try:
            body = foreign.write(sent)
        except ValueError as error:
            return Unusable(f"{self.url}/verify cannot be sent this row or reply: {error}")
        for attempt in range(self.tries):
            if attempt:
                # Not all at once: those that failed together would come back together.
                await asyncio.sleep(2 ** (attempt - 2) * random.uniform(0.75, 1.25))
            async with gate:
                told = await self._try(client, body, sent)
            if isinstance(told, dict | Refused):
                return told
        trouble = f"{self.url}/verify has not answered in {self.tries} tries, the last time {told}"
        if isinstance(told, Unusable):
            return Unusable(trouble)
        raise GymError(f"{trouble}; is it running?")

    async def _try(self, client: httpx.AsyncClient, body: bytes, sent: dict) -> dict | GymError:
        """The verdict, or why there is none."""
        try:
            answer = await client.post(f"{self.url}/verify", content=body)
        # It took the request and is at it: to wait as long again, and again, would stall the step.
        except httpx.ReadTimeout:
            return Slow(f"{self.url}/verify took longer than {self.timeout:g} s")
        except httpx.TransportError as error:
            return GymError(f"{type(error).__name__} {error}".strip())
        # An answer that is not encoded as it says.
        except httpx.RequestError as error:
            return Unusable(f"{type(error).__name__} {error}")
        heartbeat.beat()
        if answer.is_success:
            try:
                return _verdict(answer.content, sent)
            except (ValueError, TypeError, KeyError):
                return Unusable(f"without a reward: {foreign.beginning(answer.content)}")
        trouble = f"status {answer.status_code}: {foreign.beginning(answer.content)}"
        if answer.status_code in AWAY:
            return GymError(trouble)
        if answer.status_code == FAILED:
            return Unusable(trouble)
        refusal = Refused(f"{self.url}/verify refuses a reply, {trouble}")
        if answer.status_code in CLOSED:
            raise refusal
        return refusal


def _verdict(content: bytes, sent: dict) -> dict:
    """Raises ValueError, TypeError or KeyError for an answer without a reward."""
    told = foreign.read(content)
    told["reward"] = foreign.number(told["reward"])
    return {key: value for key, value in told.items() if key not in sent or key == "reward"}


def complete(response: dict) -> dict:
    """The response with the fields that OpenAI's schema asks for and no verifier reads."""
    output = [
        {"id": f"item_{number}", **({"status": "completed"} if item.get("type") != "reasoning" else {}), **item}
        for number, item in enumerate(response["output"])
    ]
    rest = dict(id="resp_0", created_at=0, model="policy", object="response")
    return {**rest, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], **response, "output": output}
