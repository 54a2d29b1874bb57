"""Replies of a model behind an OpenAI-compatible endpoint (vLLM, NIM, a hosted one)."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from nemo_cascade.data.hashes import json_hash
from nemo_cascade.environments.endpoint import Endpoint, EndpointConfig, EndpointError, Silence
from nemo_cascade.evaluation.benchmark import Sample, Settings
from nemo_cascade.evaluation.conversation import Turn, converse, read
from nemo_cascade.evaluation.replies import Heard, Reply

logger = logging.getLogger(__name__)


class Served:
    """`replies.Source`. A model is known by its name and by what else is asked of it, not by its address, which a restart may change.

    Of config temperature, top_p and max_tokens are not read: a benchmark has its own.
    """

    rank, ranks = 0, 1

    def __init__(self, config: EndpointConfig):
        self.config, self.endpoint = config, Endpoint(config)
        self.name = f"{config.model} at {config.base_url}"
        self.identity = json_hash(["endpoint", config.model, config.extra_body])

    def trouble(self) -> str | None:
        """Why nothing can be asked there."""
        return self.endpoint.trouble()

    def share(self, function, items: list) -> list:
        return function(items)

    def close(self) -> None:
        pass

    def answer(self, samples: list[Sample], settings: Settings, heard: Heard) -> dict[str, Reply]:
        """Raises EndpointError where the endpoint refuses the key or the model, or every request that it has had."""
        said = asyncio.run(self._answer(samples, settings, heard))
        refusals = [reply for reply in said if isinstance(reply, EndpointError)]
        replies = {sample.key: reply for sample, reply in zip(samples, said) if isinstance(reply, dict)}
        if refusals and not replies:
            raise refusals[0]
        silent = [reply.fault if isinstance(reply, Silence) else str(reply) for reply in said if not isinstance(reply, dict)]
        for reason in dict.fromkeys(silent):
            logger.warning("%d samples have no reply: %s", silent.count(reason), reason)
        return replies

    async def _answer(self, samples: list[Sample], settings: Settings, heard: Heard) -> list:
        # Of conversations; each has one request under way, for which the second one never waits.
        talking, gate = asyncio.Semaphore(self.config.concurrency), asyncio.Semaphore(self.config.concurrency)
        # A conversation may wait inside of a thread for another one's tools to end, so each has one.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(self.config.concurrency))
        async with self.endpoint.client() as client:

            async def one(sample: Sample):
                async def speak(messages: list[dict], tools: list[dict] | None):
                    body = self.body(messages, tools, sample.row["enable_thinking"], settings)
                    return await self.endpoint.send(client, gate, body, read, lambda turn: isinstance(turn, Turn))

                async with talking:
                    reply = await converse(sample.row, settings, speak)
                    if isinstance(reply, dict):
                        heard(sample, reply)
                return reply

            return await asyncio.gather(*map(one, samples))

    def body(self, messages: list[dict], tools: list[dict] | None, thinking: bool, settings: Settings) -> dict:
        """A request of `/chat/completions`. Thinking is the template's default, and only vLLM and its kin know the key that ends it."""
        sampling = dict(temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens)
        given = {"tools": tools} if tools else {}
        off = {} if thinking else {"chat_template_kwargs": {"enable_thinking": False}}
        return {"model": self.config.model, "messages": messages, **sampling, **given, **off, **self.config.extra_body}
