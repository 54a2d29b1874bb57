"""vLLM behind HTTP, in an environment or on machines of its own: for images that cannot hold trainer and vLLM both.

Replies come from `/v1/completions`, token ids in and out. Weights go through a folder that both sides see; the workers compare each
tensor with the trainer's checksum as they read it, and what they then hold with what they read (`vllm_worker`). A server that was
restarted, or that another run has pushed to, is noticed before any of its replies are used.
"""

import asyncio
import json
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import httpx
import torch
import torch.distributed as dist

from nemo_cascade.engine import parallel
from nemo_cascade.models.config import ModelConfig
from nemo_cascade.models.hf_folder import write_hf
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.engine import EngineError
from nemo_cascade.rollout.noise import row_keys
from nemo_cascade.rollout.types import Request, Rollout, SamplingParams
from nemo_cascade.rollout.vllm_probe import refuse_unfit, settings, warn_of_mismatch
from nemo_cascade.rollout.vllm_push import checksum

# A request whose connection broke is sent again after so many seconds each: the same reply is drawn again, from its seed.
PAUSES = (1, 4, 16)
# How long a step waits for a reply before it looks whether anything else is to be done.
GLANCE = 0.05


class VllmServerEngine:
    """Replies with the weights of the last `sync`, which all ranks call together; the other calls are a rank's own.

    Raises EngineError, here too, where a server does not answer or serves no model.
    """

    beside = True

    def __init__(self, preset: ModelConfig, config: GenerationConfig):
        self.preset, self.config = preset, config.vllm_server
        urls, rank, ranks = self.config.base_urls, parallel.rank(), parallel.world_size()
        # Those this rank pushes to, and those it asks: with more ranks than servers several ask one.
        self.pushes_to = urls[rank::ranks]
        self.urls = self.pushes_to or [urls[rank % len(urls)]]
        self.http = Http(self.config.timeout, config.max_batch_size)
        models = [self.http.get(url, "/v1/models")["data"][0] for url in self.urls]
        self.model, self.max_tokens = models[0]["id"], min(model["max_model_len"] for model in models)
        self.push, self.asked, self.running = "", 0, {}

    def sharing(self) -> dist.ProcessGroup:
        """All ranks: each asks for replies of its own."""
        return dist.group.WORLD

    def holders(self) -> None:
        """None: no rank holds a part of an engine."""

    def stepping(self) -> None:
        """None: servers step by themselves."""

    def add(self, requests: list[Request], params: SamplingParams) -> None:
        """Sends requests; raises ValueError for one that is empty, or longer with its reply than the server's longest."""
        refuse_unfit(requests, params, self.max_tokens, "start the server with a larger --max-model-len")
        keys = row_keys(params.seed, [r.prompt_id for r in requests], [r.sample for r in requests]).tolist() if requests else []
        for request, key in zip(requests, keys):
            url = self.urls[self.asked % len(self.urls)]
            self.asked += 1
            future = self.http.post(url, "/v1/completions", self._body(list(request.prompt)) | settings(params, key))
            self.running[future] = request

    def busy(self) -> bool:
        """Whether any request of this rank is unfinished."""
        return bool(self.running)

    def step(self) -> list[Rollout]:
        """Waits a moment for replies; raises EngineError naming a server that gave none within the timeout, or refused."""
        done, _ = futures.wait(self.running, GLANCE, futures.FIRST_COMPLETED)
        return [rollout(self.running.pop(future), future.result()["choices"][0]) for future in sorted(done, key=self._number)]

    def abort(self, ids: set[tuple[str, int]]) -> None:
        """Forgets requests by (prompt_id, sample); a server ends what nobody waits for any more."""
        for future, request in list(self.running.items()):
            if (request.prompt_id, request.sample) in ids:
                future.cancel()
                del self.running[future]

    def sync(self, policy) -> None:
        """Writes the policy's weights where the servers see them and has them taken; compares a probe's log-probs in both.

        Raises EngineError, on every rank, naming the server and the tensors that did not arrive as they were sent.
        """
        self.push = parallel.gathered(uuid.uuid4().hex)[0]
        sums: dict[str, int] = {}
        folder = Path(parallel.gathered(self._folder())[0])
        try:
            write_hf(summed(policy.hf_weights(), sums), self.preset, folder, write=parallel.rank() == 0)
            dist.barrier()  # no server reads before all is written
            parallel.raise_anywhere(self._taken(folder, sums))
        finally:
            if parallel.rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)
        warn_of_mismatch(policy, self.score)

    def rest(self) -> None:
        """Raises EngineError if a server's weights are not those of the last `sync`: it was restarted, or serves another run as well."""
        for url in self.urls:
            for answer in self.http.call(url, "weights_of"):
                if not self.push or answer["push"] != self.push:
                    raise EngineError(f"{url}: its weights are no longer this run's; was it restarted, or does another run push to it?")

    def score(self, rows: list[list[int]]) -> list[list[float]]:
        """The log-prob of every token under the plain softmax, entry 0 of each row being 0."""
        asked = [self.http.post(self.urls[0], "/v1/completions", self._body(row) | dict(max_tokens=1, prompt_logprobs=0)) for row in rows]
        found = [future.result()["choices"][0]["prompt_logprobs"] for future in asked]
        return [[0.0, *(entry[str(token)]["logprob"] for token, entry in zip(row[1:], entries[1:]))] for row, entries in zip(rows, found)]

    def _body(self, tokens: list[int]) -> dict:
        return {"model": self.model, "prompt": tokens, "return_token_ids": True}

    def _folder(self) -> str:
        return tempfile.mkdtemp(prefix="weights_", dir=self.config.weights_path) if parallel.rank() == 0 else ""

    def _taken(self, folder: Path, sums: dict[str, int]) -> EngineError | None:
        """What went wrong where this rank's servers took the weights."""
        try:
            for url in self.pushes_to:
                for worker, answer in enumerate(self.http.call(url, "take_weights", str(folder), self.push, sums)):
                    if "error" in answer:
                        return EngineError(f"{url}, worker {worker}: {answer['error']}")
        except EngineError as error:
            return error
        return None

    def _number(self, future) -> tuple[str, int]:
        request = self.running[future]
        return request.prompt_id, request.sample


def summed(weights: Iterator[tuple[str, torch.Tensor]], sums: dict[str, int]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights, the checksum of each noted as it passes."""
    for name, tensor in weights:
        sums[name] = checksum(tensor)
        yield name, tensor


def rollout(request: Request, choice: dict) -> Rollout:
    """A reply as `/v1/completions` gives it."""
    return Rollout(
        prompt_id=request.prompt_id,
        sample=request.sample,
        prompt=list(request.prompt),
        response=choice["token_ids"],
        logprobs=choice["logprobs"]["token_logprobs"],
        finish_reason=choice["finish_reason"],
    )


class Http:
    """Requests side by side, of which at most `most` are under way, in a thread of their own. Raises EngineError naming the address."""

    def __init__(self, timeout: float, most: int):
        self.timeout = timeout
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.most = asyncio.Semaphore(most)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=most)
        self.client = httpx.AsyncClient(timeout=httpx.Timeout(timeout, connect=30.0), limits=limits)

    def get(self, url: str, path: str) -> dict:
        return asyncio.run_coroutine_threadsafe(self._send("GET", url.rstrip("/") + path, None), self.loop).result()

    def post(self, url: str, path: str, body: dict) -> futures.Future:
        return asyncio.run_coroutine_threadsafe(self._send("POST", url.rstrip("/") + path, body), self.loop)

    def call(self, url: str, method: str, *args) -> list[dict]:
        """What each of a server's workers answers; arguments that are no strings go as JSON."""
        plain = [arg if isinstance(arg, str) else json.dumps(arg) for arg in args]
        return self.post(url, "/collective_rpc", {"method": method, "args": plain, "timeout": self.timeout}).result()["results"]

    async def _send(self, method: str, address: str, body: dict | None) -> dict:
        async with self.most:
            for pause in (*PAUSES, None):
                try:
                    answer = await self.client.request(method, address, json=body)
                    break
                except httpx.TimeoutException as error:
                    raise EngineError(f"{address} gave no answer within {self.timeout:.0f} s ({type(error).__name__})") from error
                except httpx.HTTPError as error:
                    if pause is None:
                        raise EngineError(f"{address}: {type(error).__name__}: {error}; is the server running?") from error
                    await asyncio.sleep(pause)
        if answer.status_code != 200:
            raise EngineError(f"{address} answered {answer.status_code}: {answer.text[:500]}")
        return answer.json()
