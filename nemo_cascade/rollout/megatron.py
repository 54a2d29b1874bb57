"""The embedded engine: megatron-core's static inference context on the very weights being trained.

Prompts of different lengths share a batch: those of about one length are read together, shorter ones padded on the left, where no
state takes up anything. Then all rows reply at once, their keys aligned at the right and what lies before a shorter prompt hidden by
a mask; there are no positions that this could move. A prompt sampled several times is read once. A batch runs to its end before
the next begins; finished rows leave it when half are done.
"""

import contextlib
import functools
import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.fp8_utils import TE_LINEAR_TYPES
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.ssm.mamba_mixer import MambaMixer

from nemo_cascade.models.fp8 import MULTIPLE
from nemo_cascade.models.megatron import decoding, weights_changed
from nemo_cascade.models.replay import ReplayedExperts, recorded, recording, replays_of
from nemo_cascade.rollout.config import MAX_CACHE_BYTES
from nemo_cascade.rollout.noise import row_keys, uniforms
from nemo_cascade.rollout.sampling import sample
from nemo_cascade.rollout.types import Request, Rollout, SamplingParams

# What is switched off in decoding. The first three: how mcore's layers know that the sequence is split over tensor ranks,
# as one decoded token cannot be. The last: a few tokens cannot be routed to an expert until they fill a block of FP8, and
# megatron-core 0.19 has its experts do it only where the router does not.
OFF_IN_DECODING = (
    "sequence_parallel",
    "scatter_to_sequence_parallel",
    "reduce_scatter_embeddings",
    "moe_router_padding_for_quantization",
)

# Prompts of a batch differ by at most so many tokens and a half: every row's cache is as long as the longest one's.
LENGTH_SLACK = 64
# Prompts are read together while the longest is at most this much longer than the shortest: padding costs as much as tokens.
STRETCH, SLACK = 1.25, 4
# Prompt tokens that are read at once, which bounds what a forward pass holds in memory. On a CPU more is slower (65,536: half
# as fast), because it leaves the caches.
MAX_PREFILL_TOKENS = 4_096


class MegatronEngine:
    """Decodes with `model` (an unwrapped MambaModel). vocab_size: ids from there on are padding and never sampled."""

    alone = False

    def __init__(self, model, vocab_size: int, max_batch_size: int = 256, max_cache_bytes: int = MAX_CACHE_BYTES):
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
        self.replays = replays_of(model)
        # Put in for decoding only; `forward` is the layer's own.
        self.padded = {
            module: functools.partial(whole_blocks, MULTIPLE[model.config.fp8_recipe], module.forward)
            for module in self.modules
            if model.config.fp8 and isinstance(module, TE_LINEAR_TYPES)
        }
        self.settings = [
            (owner, name) for owner in [model.config, *self.modules] for name in OFF_IN_DECODING if hasattr(owner, name)
        ]

    def sharing(self) -> dist.ProcessGroup:
        """Data-parallel ranks; the others hold parts of one model and step together."""
        return parallel_state.get_data_parallel_group()

    def add(self, requests: list[Request], params: SamplingParams) -> None:
        """Queues requests; raises ValueError for an empty prompt, and where experts are to be reported by routers that do not record them."""
        if params.report_experts and not self.replays:
            raise ValueError("report_experts: this model's routers do not record; it needs MoE layers and policy.router_replay.enabled=true")
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
        if self.batch is None:
            # Weights may have changed since the last batch: Transformer Engine must not go on with FP8 copies of the old ones.
            self.model.set_is_first_microbatch()
            weights_changed(self.mixers)
            self.batch = self._next_batch() if self.waiting else None
        reporting = self.batch is not None and self.batch.params.report_experts
        with self._decoding(), recording(self.replays if reporting else []):
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

    def rest(self) -> None:
        """Nothing to do: it holds no memory between batches."""

    def _next_batch(self) -> "Batch":
        """The longest-waiting request chooses the batch: as many with its settings and about its prompt's length as fit."""
        first, params = self.waiting[0]
        length = len(first.prompt)
        rows = [
            request
            for request, other in self.waiting
            if other == params and abs(len(request.prompt) - length) <= LENGTH_SLACK + length // 2
        ]
        rows = rows[: self.max_batch_size]
        longest = max(len(request.prompt) for request in rows) + params.max_new_tokens
        size = len(rows) * self._row_bytes(longest)
        if size > self.max_cache_bytes:
            raise MemoryError(
                f"{len(rows)} rows of up to {longest} tokens need {size / 2**30:.1f} GiB of decoding cache, more than "
                f"{self.max_cache_bytes / 2**30:.1f} GiB; lower policy.generation.max_batch_size or max_new_tokens"
            )
        chosen = set(map(id, rows))
        self.waiting = [(request, other) for request, other in self.waiting if id(request) not in chosen]
        device = next(self.model.parameters()).device
        return Batch(rows, params, self.vocab_size, self.mixers, device, self.replays if params.report_experts else [])

    def _row_bytes(self, tokens: int) -> int:
        """Cache of one row: keys and values of every attention layer, convolution and SSM state of every Mamba layer."""
        config = self.model.config
        tp = parallel_state.get_tensor_model_parallel_world_size()
        attention_layers = self.model.decoder.layer_type_list.count("*")
        # Under more tensor ranks than query groups every rank has one group.
        keys = 2 * tokens * max(config.num_query_groups // tp, 1) * config.kv_channels * attention_layers
        inputs = sum(math.prod(mixer.mamba_state_shapes_per_request()[0]) for mixer in self.mixers)
        states = sum(mixer.nheads_local_tp * mixer.headdim * mixer.d_state for mixer in self.mixers)
        # The states are fp32 at every precision.
        return (keys + inputs) * next(self.model.parameters()).element_size() + 4 * states

    def _forward(self, tokens: torch.Tensor, position: int, context, visible: torch.Tensor | None = None) -> torch.Tensor:
        """tokens [rows, n] at positions position.. -> logits of the last one [rows, vocab], the same on all tensor ranks.

        visible [rows, position + n]: which tokens are there to be attended to, the others being padding; all without it.
        """
        device = next(self.model.parameters()).device
        tokens, visible = tokens.to(device), None if visible is None else visible.to(device)
        positions = torch.arange(position, position + tokens.shape[1], device=device).expand_as(tokens)
        padded = self._hidden_from_states(~visible) if visible is not None and not position else contextlib.nullcontext()
        with padded:
            logits = self.model(tokens, positions, visible, inference_context=context, runtime_gather_output=True)
        return logits[:, -1, : self.vocab_size].float()

    @contextlib.contextmanager
    def _hidden_from_states(self, padding: torch.Tensor) -> Iterator[None]:
        """Keeps padding [rows, n] out of Mamba's states: nothing of it enters the convolution, and its time steps are 0."""

        def hide(mixer, projection, inputs, output):
            projected, bias = output  # [n, rows, z + x + B + C + dt]
            hidden = padding.T[..., None]
            other, dt = projected.tensor_split([-mixer.nheads_local_tp], -1)
            return torch.cat([other.masked_fill(hidden, 0), dt.masked_fill(hidden, -torch.inf)], -1), bias

        hooks = [mixer.in_proj.register_forward_hook(functools.partial(hide, mixer)) for mixer in self.mixers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextlib.contextmanager
    def _decoding(self) -> Iterator[None]:
        """eval mode, OFF_IN_DECODING off, products in FP8 filled up; all as before afterwards, whatever happens."""
        training, before = self.model.training, [(m, name, getattr(m, name)) for m, name in self.settings]
        if training:
            self._set_training(False)
        for module, name, value in before:
            if value:
                setattr(module, name, False)
        for module, forward in self.padded.items():
            module.__dict__["forward"] = forward
        try:
            with decoding():
                yield
        finally:
            for module in self.padded:
                del module.__dict__["forward"]
            for module, name, value in before:
                if value:
                    setattr(module, name, value)
            if training:
                self._set_training(True)

    def _set_training(self, training: bool) -> None:
        """`model.train(training)` without Module.__setattr__, which for all modules took a tenth of a decoding step."""
        for module in self.modules:
            module.__dict__["training"] = training


def whole_blocks(multiple: int, forward, x: torch.Tensor, *args, **kwargs) -> tuple:
    """A linear layer's `forward` on x [tokens, rows, in] -> ([tokens, rows, out], bias), in FP8 whatever tokens * rows is.

    Filled up with zeros to a multiple of a recipe's block. megatron-core's own `prepare_model_for_fp8_inference` knows
    no block of 128, fills up the tokens of every row (16 times the work for one token), and stays in the layers: in
    training under sequence parallel it would gather and reduce a second time.
    """
    flat = x.reshape(-1, 1, x.shape[-1])
    filled = torch.nn.functional.pad(flat, (0, 0, 0, 0, 0, -len(flat) % multiple))
    output, bias = forward(filled, *args, **kwargs)
    return output[: len(flat)].reshape(*x.shape[:-1], -1), bias


class Batch:
    """Rows that decode together; all replies begin at the same position, so one context serves them."""

    def __init__(
        self,
        requests: list[Request],
        params: SamplingParams,
        vocab_size: int,
        mixers: list,
        device,
        replays: list[ReplayedExperts] = (),
    ):
        """replays: of the routers whose experts the rollouts report."""
        self.params, self.vocab_size, self.mixers, self.device = params, vocab_size, mixers, device
        self.requests = sorted(requests, key=lambda request: (len(request.prompt), request.prompt_id, request.sample))
        lengths = torch.tensor([len(request.prompt) for request in self.requests])
        self.start = self.position = int(lengths[-1])
        self.limit = self.start + params.max_new_tokens
        self.tokens = torch.zeros(len(lengths), self.limit, dtype=torch.long)
        for row, request in enumerate(self.requests):
            self.tokens[row, self.start - len(request.prompt) : self.start] = torch.tensor(request.prompt)
        self.visible = torch.arange(self.limit) >= self.start - lengths[:, None]
        self.logprobs = torch.zeros(len(lengths), self.limit, dtype=torch.float64)
        self.alive = torch.ones(len(lengths), dtype=torch.bool)
        self.keys = row_keys(params.seed, [r.prompt_id for r in self.requests], [r.sample for r in self.requests])
        self.stop_ids = torch.tensor(params.stop_ids)
        self.context = StaticInferenceContext(len(lengths), self.limit)
        self.unread = list(prompts_to_read([request.prompt for request in self.requests]))
        self.first_logits = torch.zeros(len(lengths), vocab_size)
        self.replays = replays
        # [rows, positions, layers, topk], made when the first are known.
        self.experts: torch.Tensor | None = None

    def done(self) -> bool:
        return not bool(self.alive.any())

    def step(self, forward) -> list[Rollout]:
        """One forward pass: reads some of the prompts, or gives every row its next token."""
        if self.unread:
            self._read(forward, self.unread.pop(0))
            if self.unread:
                return []
            self._resize_mixers()
            logits = self.first_logits
        else:
            visible = None if bool(self.visible[:, 0].all()) else self.visible[:, : self.position + 1]
            newest = self.tokens[:, self.position : self.position + 1]
            logits = forward(newest, self.position, self.context, visible).cpu()
            self._note_experts(slice(self.position, self.position + 1))
            self.position += 1
        self.context.sequence_len_offset = self.position
        self._choose(logits)
        finished = self._finish()
        self._compact()
        return finished

    def drop(self, ids: set[tuple[str, int]]) -> None:
        """Lets rows end without a rollout."""
        for row, request in enumerate(self.requests):
            if (request.prompt_id, request.sample) in ids:
                self.alive[row] = False

    def _read(self, forward, rows_of: list[list[int]]) -> None:
        """Reads some prompts of about one length, each for all the rows that have it, and hands these their states."""
        first = [rows[0] for rows in rows_of]
        source = torch.tensor([n for n, rows in enumerate(rows_of) for _ in rows])
        target = torch.tensor([row for rows in rows_of for row in rows])
        length = len(self.requests[first[-1]].prompt)
        context = StaticInferenceContext(len(first), length)
        prompts = slice(self.start - length, self.start)
        visible = self.visible[first, prompts]
        logits = forward(self.tokens[first, prompts], 0, context, None if bool(visible.all()) else visible)
        self.first_logits[target] = logits.cpu()[source]
        self._note_experts(prompts, target, source)
        source, target = source.to(self.device), target.to(self.device)
        mamba = {mixer.layer_number for mixer in self.mixers}
        for layer, states in context.key_value_memory_dict.items():
            if layer not in self.context.key_value_memory_dict:
                self.context.key_value_memory_dict[layer] = tuple(self._room(state, layer in mamba) for state in states)
            for whole, state in zip(self.context.key_value_memory_dict[layer], states):
                if layer in mamba:
                    whole[target] = state[source]
                else:
                    whole[self.start - length : self.start, target] = state[:, source]

    def _room(self, state: torch.Tensor, mamba: bool) -> torch.Tensor:
        """A cache for all rows like `state`: Mamba states are [rows, ..], keys and values [positions, rows, ..]."""
        order = memory_order(state, mamba)
        shape = [*state.shape]
        shape[order[0]] = len(self.requests)
        if not mamba:
            shape[0] = self.limit
        return in_order(state.new_zeros([shape[axis] for axis in order]), order)

    def _choose(self, logits: torch.Tensor) -> None:
        """Writes every row's next token, at `position`, with its log-prob."""
        noise = uniforms(self.keys, torch.full((len(self.requests),), self.position - self.start))
        chosen, logprobs = sample(logits, noise, self.params.temperature, self.params.top_p)
        self.tokens[:, self.position], self.logprobs[:, self.position] = chosen, logprobs

    def _finish(self) -> list[Rollout]:
        """Rollouts of the rows whose newest token is a stop token or the last one allowed."""
        stopped = torch.isin(self.tokens[:, self.position], self.stop_ids)
        ended = self.alive & (stopped | (self.position + 1 == self.limit))
        self.alive &= ~ended
        finished = []
        for row in ended.nonzero()[:, 0].tolist():
            request, reply = self.requests[row], slice(self.start, self.position + 1)
            finished.append(
                Rollout(
                    prompt_id=request.prompt_id,
                    sample=request.sample,
                    prompt=list(request.prompt),
                    response=self.tokens[row, reply].tolist(),
                    logprobs=self.logprobs[row, reply].tolist(),
                    finish_reason="stop" if stopped[row] else "length",
                    experts=self._experts_of(row),
                )
            )
        return finished

    def _note_experts(self, positions: slice, target: torch.Tensor | None = None, source: torch.Tensor | None = None) -> None:
        """Keeps the experts of a forward pass over these positions, of its rows `source` for the rows `target`; of all for all without."""
        if not self.replays:
            return
        # Routers see the tokens of a position side by side.
        chosen = recorded(self.replays).unflatten(0, (positions.stop - positions.start, -1)).transpose(0, 1).cpu()
        if self.experts is None:
            self.experts = chosen.new_zeros(len(self.requests), self.limit, *chosen.shape[2:])
        rows = slice(None) if target is None else target
        self.experts[rows, positions] = chosen if source is None else chosen[source]

    def _experts_of(self, row: int) -> torch.Tensor | None:
        """Those that the tokens of a row went through, its newest not among them."""
        if not self.replays:
            return None
        return self.experts[row, self.start - len(self.requests[row].prompt) : self.position].clone()

    def _compact(self) -> None:
        """Drops finished rows once they are half of the batch."""
        if self.done() or 2 * int(self.alive.sum()) > len(self.requests):
            return
        kept = self.alive.nonzero()[:, 0]
        self.requests = [self.requests[row] for row in kept.tolist()]
        for name in ("tokens", "logprobs", "visible", "alive", "keys", *(["experts"] if self.replays else [])):
            setattr(self, name, getattr(self, name)[kept])
        self._select(kept)

    def _select(self, rows: torch.Tensor) -> None:
        """Makes cache row i what row rows[i] was."""
        rows = rows.to(self.device)
        mamba = {mixer.layer_number for mixer in self.mixers}
        cache = self.context.key_value_memory_dict
        for layer, states in cache.items():
            cache[layer] = tuple(select_rows(state, rows, memory_order(state, layer in mamba)) for state in states)
        self.context.max_batch_size = len(rows)
        self._resize_mixers()

    def _resize_mixers(self) -> None:
        """mcore zeroes the states of a mixer that sees another number of rows than it remembers."""
        for mixer in self.mixers:
            mixer.cached_batch_size = len(self.requests)


def memory_order(state: torch.Tensor, mamba: bool) -> tuple[int, ...]:
    """A cache's axes, rows first, in the order in which they lie in memory: what one new token reads lies side by side.

    Keys and values [positions, rows, groups, dim]: a head's positions. Convolution inputs [rows, channels, width]: channels.
    """
    if not mamba:
        return (1, 2, 0, 3)
    return (0, 2, 1) if state.dim() == 3 else tuple(range(state.dim()))


def in_order(memory: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """What lies in memory with its axes in this order, as a tensor with the axes in their own."""
    return memory.permute([order.index(axis) for axis in range(memory.dim())])


def select_rows(state: torch.Tensor, rows: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """Some rows of a cache in the same order in memory."""
    return in_order(state.permute(order).index_select(0, rows), order)


def prompts_to_read(prompts: list[tuple[int, ...]]) -> Iterator[list[list[int]]]:
    """Which prompts are read at once: of about one length, at most MAX_PREFILL_TOKENS in all, each as the rows that have it.

    prompts are those of all rows, shortest first.
    """
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows_of.setdefault(prompt, []).append(row)
    together: list[tuple[int, ...]] = []
    for prompt in rows_of:
        if together:
            too_long = len(prompt) > STRETCH * len(together[0]) + SLACK
            if too_long or (len(together) + 1) * len(prompt) > MAX_PREFILL_TOKENS:
                yield [rows_of[p] for p in together]
                together = []
        together.append(prompt)
    yield [rows_of[p] for p in together]
