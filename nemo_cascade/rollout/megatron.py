"""The embedded engine: megatron-core's static inference context on the very weights being trained.

Prompts of different lengths share a batch without padding: the batch is prefilled up to its shortest prompt, and the rest of longer
ones is fed token by token while shorter ones already sample, because a padded token would change a Mamba state. A prompt sampled
several times is prefilled once. A batch runs to its end before the next begins; finished rows leave it when half are done.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.ssm.mamba_mixer import MambaMixer

from nemo_cascade.rollout.noise import row_keys, uniforms
from nemo_cascade.rollout.sampling import sample
from nemo_cascade.rollout.types import Request, Rollout, SamplingParams

# Attributes by which mcore's layers know that the sequence is split over tensor ranks; one decoded token cannot be.
SEQUENCE_PARALLEL = ("sequence_parallel", "scatter_to_sequence_parallel", "reduce_scatter_embeddings")

# Prompts of a batch differ by at most so many tokens and an eighth: what is beyond the shortest is fed token by token.
LENGTH_SLACK = 16
# Prompt tokens that are read at once, which bounds what a forward pass holds in memory.
MAX_PREFILL_TOKENS = 65_536


class MegatronEngine:
    """Decodes with `model` (an unwrapped MambaModel). vocab_size: ids from there on are padding and never sampled."""

    def __init__(self, model, vocab_size: int, max_batch_size: int = 256, max_cache_bytes: int = 2**34):
        """Raises ValueError under pipeline or context parallel, which cannot decode."""
        for name, size in (
            ("pipeline", parallel_state.get_pipeline_model_parallel_world_size()),
            ("context", parallel_state.get_context_parallel_world_size()),
        ):
            if size > 1:
                raise ValueError(
                    f"the embedded rollout engine cannot decode under {name} parallel ({size}); set "
                    f"policy.megatron_cfg.{name + '_model' if name == 'pipeline' else name}_parallel_size=1"
                )
        self.model, self.vocab_size = model, vocab_size
        self.max_batch_size, self.max_cache_bytes = max_batch_size, max_cache_bytes
        self.waiting: list[tuple[Request, SamplingParams]] = []
        self.batch: Batch | None = None
        self.modules = list(model.modules())
        self.mixers = [module for module in self.modules if isinstance(module, MambaMixer)]
        self.split = [(m, name) for m in [model.config, *self.modules] for name in SEQUENCE_PARALLEL if hasattr(m, name)]

    def add(self, requests: list[Request], params: SamplingParams) -> None:
        """Queues requests; raises ValueError for an empty prompt."""
        for request in requests:
            if not request.prompt:
                raise ValueError(f"request {request.prompt_id}/{request.sample} has an empty prompt")
        self.waiting += [(request, params) for request in requests]

    def busy(self) -> bool:
        """Whether any rank of this expert-parallel group has work: MoE layers exchange tokens, so all must step together."""
        mine = self.batch is not None or bool(self.waiting)
        group = parallel_state.get_expert_model_parallel_group()
        if group.size() == 1:
            return mine
        flag = torch.tensor(int(mine), device=next(self.model.parameters()).device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=group)
        return bool(flag)

    @torch.no_grad()
    def step(self) -> list[Rollout]:
        """One forward pass of the current batch (or of a stand-in token, to keep expert-parallel peers company)."""
        if self.batch is None and self.waiting:
            self.batch = self._next_batch()
        with self._decoding():
            if self.batch is None:
                self._forward(torch.zeros(1, 1, dtype=torch.long), 0, StaticInferenceContext(1, 1))
                return []
            finished = self.batch.step(self._forward)
        if self.batch.done():
            self.batch = None
        return finished

    def abort(self, ids: set[tuple[str, int]]) -> None:
        """Forgets requests by (prompt_id, sample), waiting or running."""
        self.waiting = [(r, p) for r, p in self.waiting if (r.prompt_id, r.sample) not in ids]
        if self.batch is not None:
            self.batch.drop(ids)
            if self.batch.done():
                self.batch = None

    def sync(self, policy) -> None:
        """Nothing to do: the engine decodes with the policy's own tensors."""

    def _next_batch(self) -> "Batch":
        """The longest-waiting request chooses the batch: as many with its settings and about its prompt's length as fit."""
        first, params = self.waiting[0]
        length = len(first.prompt)
        rows = [
            request
            for request, other in self.waiting
            if other == params and abs(len(request.prompt) - length) <= LENGTH_SLACK + length // 8
        ]
        rows = rows[: max(1, min(self.max_batch_size, MAX_PREFILL_TOKENS // length))]
        longest = max(len(request.prompt) for request in rows) + params.max_new_tokens
        size = len(rows) * self._row_bytes(longest)
        if size > self.max_cache_bytes:
            raise MemoryError(
                f"{len(rows)} rows of up to {longest} tokens need {size / 2**30:.1f} GiB of decoding cache, more than "
                f"{self.max_cache_bytes / 2**30:.1f} GiB; lower policy.generation.max_batch_size or max_new_tokens"
            )
        chosen = set(map(id, rows))
        self.waiting = [(request, other) for request, other in self.waiting if id(request) not in chosen]
        return Batch(rows, params, self.vocab_size, self.mixers, next(self.model.parameters()).device)

    def _row_bytes(self, tokens: int) -> int:
        """Cache of one row: keys and values of every attention layer, convolution and SSM state of every Mamba layer."""
        config = self.model.config
        tp = parallel_state.get_tensor_model_parallel_world_size()
        attention_layers = sum(hasattr(layer, "self_attention") for layer in self.model.decoder.layers)
        keys = 2 * tokens * config.num_query_groups * config.kv_channels * attention_layers
        states = sum(
            mixer.nheads_local_tp * mixer.headdim * mixer.d_state + mixer.conv1d.weight.numel() for mixer in self.mixers
        )
        return (keys // tp + states) * next(self.model.parameters()).element_size()

    def _forward(self, tokens: torch.Tensor, position: int, context) -> torch.Tensor:
        """tokens [rows, n] at positions position.. -> logits of the last one [rows, vocab], the same on all tensor ranks."""
        tokens = tokens.to(next(self.model.parameters()).device)
        positions = torch.arange(position, position + tokens.shape[1], device=tokens.device).expand_as(tokens)
        logits = self.model(tokens, positions, None, inference_context=context, runtime_gather_output=True)
        return logits[:, -1, : self.vocab_size]

    @contextlib.contextmanager
    def _decoding(self) -> Iterator[None]:
        """eval mode, and sequence parallel off; both as before afterwards, whatever happens inside."""
        training, before = self.model.training, [(m, name, getattr(m, name)) for m, name in self.split]
        if training:
            self._set_training(False)
        for module, name, value in before:
            if value:
                setattr(module, name, False)
        try:
            yield
        finally:
            for module, name, value in before:
                if value:
                    setattr(module, name, value)
            if training:
                self._set_training(True)

    def _set_training(self, training: bool) -> None:
        """`model.train(training)` without Module.__setattr__, which for all modules took a tenth of a decoding step."""
        for module in self.modules:
            module.__dict__["training"] = training


class Batch:
    """Rows that decode together; all stand at the same position, so one context serves them."""

    def __init__(self, requests: list[Request], params: SamplingParams, vocab_size: int, mixers: list, device):
        self.params, self.vocab_size, self.mixers, self.device = params, vocab_size, mixers, device
        self.requests = sorted(requests, key=lambda request: (len(request.prompt), request.prompt_id, request.sample))
        lengths = [len(request.prompt) for request in self.requests]
        self.limit = lengths[-1] + params.max_new_tokens
        self.position = 0
        self.tokens = torch.zeros(len(lengths), self.limit, dtype=torch.long)
        for row, request in enumerate(self.requests):
            self.tokens[row, : lengths[row]] = torch.tensor(request.prompt)
        self.logprobs = torch.zeros(len(lengths), self.limit, dtype=torch.float64)
        self.prompt_lengths = torch.tensor(lengths)
        self.alive = torch.ones(len(lengths), dtype=torch.bool)
        self.keys = row_keys(params.seed, [r.prompt_id for r in self.requests], [r.sample for r in self.requests])
        self.stop_ids = torch.tensor(params.stop_ids)
        self.context: StaticInferenceContext | None = None

    def done(self) -> bool:
        return not bool(self.alive.any())

    def step(self, forward) -> list[Rollout]:
        """Consumes one more position (the whole common prefix the first time) and chooses every row's next token."""
        if self.context is None:
            logits = self._prefill(forward)
        else:
            logits = forward(self.tokens[:, self.position : self.position + 1], self.position, self.context)
            self.position += 1
        self.context.sequence_len_offset = self.position
        self._choose(logits.cpu())
        finished = self._finish()
        self._compact()
        return finished

    def drop(self, ids: set[tuple[str, int]]) -> None:
        """Lets rows end without a rollout."""
        for row, request in enumerate(self.requests):
            if (request.prompt_id, request.sample) in ids:
                self.alive[row] = False

    def _prefill(self, forward) -> torch.Tensor:
        """Reads the prompts up to the shortest one's end, each distinct prompt once, and hands every row its state."""
        distinct = {prompt: n for n, prompt in enumerate(dict.fromkeys(request.prompt for request in self.requests))}
        row_of = torch.tensor([distinct[request.prompt] for request in self.requests])
        first_row = torch.tensor([row_of.tolist().index(n) for n in range(len(distinct))])
        self.position = int(self.prompt_lengths[0])
        self.context = StaticInferenceContext(len(distinct), self.limit)
        logits = forward(self.tokens[first_row, : self.position], 0, self.context)
        self._select(row_of)
        return logits[row_of.to(logits.device)]

    def _choose(self, logits: torch.Tensor) -> None:
        """Writes the token at `position`: the prompt's own while it lasts, else a sampled one with its log-prob."""
        replying = self.position >= self.prompt_lengths
        if not bool(replying.any()):
            return
        noise = uniforms(self.keys, self.position - self.prompt_lengths)
        chosen, logprobs = sample(logits, noise, self.params.temperature, self.params.top_p)
        self.tokens[:, self.position] = torch.where(replying, chosen, self.tokens[:, self.position])
        self.logprobs[:, self.position] = torch.where(replying, logprobs, 0.0)

    def _finish(self) -> list[Rollout]:
        """Rollouts of the rows whose newest token is a stop token or the last one allowed."""
        newest = self.tokens[:, self.position]
        reply_length = self.position + 1 - self.prompt_lengths
        stopped = torch.isin(newest, self.stop_ids) & (reply_length > 0)
        ended = self.alive & (stopped | (reply_length >= self.params.max_new_tokens))
        self.alive &= ~ended
        finished = []
        for row in ended.nonzero()[:, 0].tolist():
            request, start = self.requests[row], int(self.prompt_lengths[row])
            finished.append(
                Rollout(
                    prompt_id=request.prompt_id,
                    sample=request.sample,
                    prompt=list(request.prompt),
                    response=self.tokens[row, start : self.position + 1].tolist(),
                    logprobs=self.logprobs[row, start : self.position + 1].tolist(),
                    finish_reason="stop" if stopped[row] else "length",
                )
            )
        return finished

    def _compact(self) -> None:
        """Drops finished rows once they are half of the batch."""
        if self.done() or 2 * int(self.alive.sum()) > len(self.requests):
            return
        kept = self.alive.nonzero()[:, 0]
        self.requests = [self.requests[row] for row in kept.tolist()]
        for name in ("tokens", "logprobs", "prompt_lengths", "alive", "keys"):
            setattr(self, name, getattr(self, name)[kept])
        self._select(kept)

    def _select(self, rows: torch.Tensor) -> None:
        """Makes cache row i what row rows[i] was."""
        rows = rows.to(self.device)
        mamba = {mixer.layer_number for mixer in self.mixers}
        cache = self.context.key_value_memory_dict
        for layer, states in cache.items():
            # Mamba states are [rows, ..]; keys and values are [positions, rows, ..].
            cache[layer] = tuple(state.index_select(0 if layer in mamba else 1, rows) for state in states)
        self.context.max_batch_size = len(rows)
        for mixer in self.mixers:
            # mcore zeroes the states of a mixer that sees another number of rows than it remembers.
            mixer.cached_batch_size = len(rows)
