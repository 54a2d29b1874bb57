"""vLLM in the processes that train: one engine a rank, without workers of its own, on weights that are pushed after every step.

A rank's engine holds the whole model and replies to its own share of the requests, so that no rank waits for another inside a step;
under vLLM's tensor parallel neighbouring ranks hold one model, reply to the same requests and step together, each of their schedulers
coming to the same decisions. Token ids go in and come out; log-probs are those of the distribution that was sampled from. A reply's
seed depends on (seed, prompt, sample), but how sums are rounded on its batch, so a token may come out otherwise in another batch;
rollouts are on disk before they are trained on, and a resumed run reads them there.

Starting an engine takes long, so one serves all stages of the same settings. On a GPU it sleeps, its weights given up, from the end of
one batch of requests until the next weights are pushed; that has not been run on one yet. Left out: pipeline parallel engines, prefix
caching.
"""

from functools import partial

import torch
import torch.distributed as dist

from nemo_cascade.engine import parallel
from nemo_cascade.models.config import ModelConfig
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.engine import EngineError
from nemo_cascade.rollout.noise import row_keys
from nemo_cascade.rollout.types import Request, Rollout, SamplingParams
from nemo_cascade.rollout.vllm_build import engine_for, ranks_of, shard_of, told
from nemo_cascade.rollout.vllm_probe import refuse_unfit, settings, warn_of_mismatch
from nemo_cascade.rollout.vllm_push import Sent, recorded, refuse_changed
from nemo_cascade.rollout.vllm_shard import local_part


class VllmEngine:
    """Replies with the weights of the last `sync`. All ranks make the same calls of `sync`; the others are those of the ranks that hold
    one engine. Raises ValueError where so many ranks cannot hold one."""

    beside = False

    def __init__(self, preset: ModelConfig, config: GenerationConfig, precision: str):
        self.preset = preset
        self.shard = shard_of(config, parallel.rank())
        self.ranks = ranks_of(self.shard.size, dist.group.WORLD)
        self.llm = engine_for(preset, config, precision)
        # Stored where they lie for good: a push writes into them.
        self.parameters = self.llm.apply_model(lambda model: dict(model.named_parameters()))[0]
        self.max_tokens = self.llm.model_config.max_model_len
        self.sleeps = torch.cuda.is_available()
        self.running: dict[str, Request] = {}

    def sharing(self) -> dist.ProcessGroup:
        """One rank of every engine."""
        return self.ranks.sharing

    def holders(self) -> dist.ProcessGroup | None:
        """The ranks of this engine."""
        return self.ranks.holders

    def stepping(self) -> None:
        """None: an engine's holders have the same requests."""

    def add(self, requests: list[Request], params: SamplingParams) -> None:
        """Queues requests; raises ValueError for one that is empty, or longer with its reply than the engine's longest."""
        refuse_unfit(requests, params, self.max_tokens, "raise policy.generation.vllm_cfg.max_model_len")
        if requests and self.sleeps and self.llm.is_sleeping():
            raise EngineError("vLLM sleeps without weights; call sync before add")
        keys = row_keys(params.seed, [r.prompt_id for r in requests], [r.sample for r in requests]).tolist() if requests else []
        with told(self.running):
            for request, key in zip(requests, keys):
                name = f"{request.prompt_id}/{request.sample}"
                self.running[name] = request
                self.llm.add_request(name, {"prompt_token_ids": list(request.prompt)}, sampling(params, key))

    def busy(self) -> bool:
        """Whether any request of this rank is unfinished."""
        return bool(self.running)

    def step(self) -> list[Rollout]:
        """One forward pass; raises EngineError, with vLLM's own behind it, when it fails."""
        with told(self.running):
            outputs = [output for output in self.llm.step() if output.finished]
        return [self._rollout(output) for output in outputs if output.request_id in self.running]

    def abort(self, ids: set[tuple[str, int]]) -> None:
        """Forgets requests by (prompt_id, sample), waiting or running."""
        names = [name for name, request in self.running.items() if (request.prompt_id, request.sample) in ids]
        self.llm.abort_request(names)
        for name in names:
            del self.running[name]

    def sync(self, policy) -> None:
        """Pushes the policy's weights, compares what arrived with what was sent, and a probe's log-probs in both engines.

        Raises EngineError, on every rank, naming the tensors that are not what was sent; a probe that is apart is only warned of.
        """
        error = None
        sent: dict[str, Sent] = {}
        gathered = policy.hf_weights()
        weights = recorded(gathered, self.parameters, sent, partial(local_part, preset=self.preset, shard=self.shard))
        experts = self.shard.of(self.preset.num_moe_experts) if self.shard.whole_experts else range(1)
        try:
            with told():
                if self.sleeps and self.llm.is_sleeping():
                    self.llm.wake_up(tags=["weights"])
                self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
                refuse_changed(self.parameters, sent, experts.start)
                if self.sleeps and self.llm.is_sleeping():
                    self.llm.wake_up(tags=["kv_cache"])
        except EngineError as raised:
            error = raised
            for _ in gathered:  # the other ranks still gather
                pass
        parallel.raise_anywhere(error)
        warn_of_mismatch(policy, self.score)

    def rest(self) -> None:
        """On a GPU, sleeps without weights, which the next `sync` pushes anew."""
        if self.sleeps:
            with told():
                self.llm.sleep(level=2)

    def score(self, rows: list[list[int]]) -> list[list[float]]:
        """The log-prob of every token under the plain softmax, entry 0 of each row being 0."""
        from vllm import SamplingParams as Sampling

        asked = Sampling(max_tokens=1, prompt_logprobs=0, detokenize=False)
        scores: dict[str, list[float]] = {}
        with told():
            for number, row in enumerate(rows):
                self.llm.add_request(f"score/{number}", {"prompt_token_ids": list(row)}, asked)
            while len(scores) < len(rows):
                for output in self.llm.step():
                    if output.finished:
                        entries = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:])
                        scores[output.request_id] = [0.0, *(entry[token].logprob for token, entry in entries)]
        return [scores[f"score/{number}"] for number in range(len(rows))]

    def _rollout(self, output) -> Rollout:
        request, reply = self.running.pop(output.request_id), output.outputs[0]
        return Rollout(
            prompt_id=request.prompt_id,
            sample=request.sample,
            prompt=list(request.prompt),
            response=list(reply.token_ids),
            logprobs=[entry[token].logprob for token, entry in zip(reply.token_ids, reply.logprobs)],
            finish_reason=reply.finish_reason,
        )


def sampling(params: SamplingParams, key: int):
    """Our settings as vLLM's."""
    from vllm import SamplingParams as Sampling
    from vllm.sampling_params import RequestOutputKind

    return Sampling(**settings(params, key), detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
