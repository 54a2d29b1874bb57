"""The embedded engine: megatron-core's static inference context on the very weights being trained, with continuous batching.

Requests enter the running batch as soon as that costs less than their waiting, and their replies leave it when they end: a long reply
holds up nobody. What rows are (`Batch`) and where their tokens' keys and states lie (`Cache`) is beside this.
"""

import contextlib
import functools
import itertools
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
from nemo_cascade.models.replay import recording, replays_of
from nemo_cascade.models.short_way import short_way
from nemo_cascade.rollout.batch import Batch, shared, whole_length
from nemo_cascade.rollout.config import MAX_CACHE_BYTES
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

# One enters only if it comes to at most so many tokens and a half more than the cache has columns: every row has as many.
LENGTH_SLACK = 64


class MegatronEngine:
    """Decodes with `model` (an unwrapped MambaModel). vocab_size: ids from there on are padding and never sampled.

    max_batch_size: rows that decode at once; fewer where their caches would be more than max_cache_bytes, which bounds those of all
    running rows together, each counted as long as the longest may become. Beside it there is room for one layer's caches, which are
    there twice while rows come and go, and for the caches of prompts that are read at once (MAX_PREFILL_TOKENS). by_modules: decode by
    megatron-core's modules even where there is a short way (`models.short_way`).
    """

    beside = False

    def __init__(
        self, model, vocab_size: int, max_batch_size: int = 256, max_cache_bytes: int = MAX_CACHE_BYTES, by_modules: bool = False
    ):
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
        # How many of them are not for this batch, as far as is known.
        self.unfit = 0
        self.batch: Batch | None = None
        self.modules = list(model.modules())
        self.mixers = [module for module in self.modules if isinstance(module, MambaMixer)]
        self.replays = replays_of(model)
        self.short_way = None if by_modules else short_way(model)
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

    def holders(self) -> dist.ProcessGroup:
        """The tensor ranks of one model."""
        return parallel_state.get_tensor_model_parallel_group()

    def stepping(self) -> dist.ProcessGroup:
        """Expert-parallel ranks: MoE layers exchange tokens."""
        return parallel_state.get_expert_model_parallel_group()

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
        self._admit()
        with self._decoding(), recording(self.replays if self._reporting() else []):
            if self.batch is None:
                self._forward(torch.zeros(1, 1, dtype=torch.long), 0, StaticInferenceContext(1, 1))
                return []
            finished = self.batch.step(self._forward)
        if self.batch.done():
            self.batch = None
        return finished

    def so_far(self, prompt_id: str, sample: int) -> list[int]:
        """What a running request has been replied by now, to be shown before it is whole; nothing of any other."""
        rows = self.batch.rows if self.batch is not None else []
        asked = (prompt_id, sample)
        return next(([*row.response] for row in rows if (row.request.prompt_id, row.request.sample) == asked and not row.over), [])

    def abort(self, ids: set[tuple[str, int]]) -> None:
        """Forgets requests by (prompt_id, sample), waiting or running."""
        self.waiting, self.unfit = [entry for entry in self.waiting if (entry[0].prompt_id, entry[0].sample) not in ids], 0
        if self.batch is not None:
            self.batch.drop(ids)
            if self.batch.done():
                self.batch = None

    def sync(self, policy) -> None:
        """Nothing to do: the engine decodes with the policy's own tensors."""

    def rest(self) -> None:
        """Nothing to do: it holds no memory between batches."""

    def _admit(self) -> None:
        """When that is due, what is over leaves the batch and waiting requests enter it; the longest-waiting one begins a new batch."""
        if self.batch is None:
            if self.waiting:
                device = next(self.model.parameters()).device
                batch = Batch(self.waiting[0][1], self.vocab_size, self.mixers, device, self.replays)
                batch.enter(self._entering(batch))
                self.batch = batch
        elif self.batch.due(min(len(self.waiting) - self.unfit, self.max_batch_size - self.batch.alive())):
            self.batch.enter(self._entering(self.batch))

    def _entering(self, batch: Batch) -> list[tuple[Request, SamplingParams]]:
        """Takes from the waiting requests, in their order, those for which the batch has room.

        A request that is of another kind than the batch, or much longer, waits for the next one. Samples of a prompt enter
        together, so that it is read once, unless they are most of a batch. Raises MemoryError when the cache of one row is too large.
        """
        rows = batch.alive()
        columns = batch.longest() if rows else whole_length(*self.waiting[0])
        most, capacity = columns + columns // 2 + LENGTH_SLACK, self._capacity(columns)
        entering, self.unfit = [], 0
        for (kind, longest, _), samples in itertools.groupby(self.waiting, kind_length_prompt):
            samples = list(samples)
            if kind != shared(batch.params) or longest > most:
                self.unfit += len(samples)
                continue
            if longest > columns:
                columns, capacity = longest, self._capacity(longest)
            room = max(capacity - rows - len(entering), 0)
            if len(samples) > room:
                alone = rows + len(entering) == 0
                entering += samples[:room] if alone or 2 * len(samples) > capacity else []
                break
            entering += samples
        if not rows and not entering:
            raise MemoryError(
                f"a prompt and reply of up to {columns} tokens need {self._row_bytes(columns) / 2**30:.1f} GiB of decoding cache, more "
                f"than {self.max_cache_bytes / 2**30:.1f} GiB; lower policy.generation.max_new_tokens or policy.max_total_sequence_length"
            )
        chosen = set(map(id, entering))
        self.waiting = [entry for entry in self.waiting if id(entry) not in chosen]
        return entering

    def _capacity(self, columns: int) -> int:
        """How many rows of so many tokens may decode at once."""
        return min(self.max_batch_size, self.max_cache_bytes // self._row_bytes(columns))

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
        if position and self.short_way is not None and not self._reporting():
            return self.short_way(tokens[:, 0], context, visible)[:, : self.vocab_size]
        device = next(self.model.parameters()).device
        tokens, visible = tokens.to(device), None if visible is None else visible.to(device)
        positions = torch.arange(position, position + tokens.shape[1], device=device).expand_as(tokens)
        padded = self._hidden_from_states(~visible) if visible is not None and not position else contextlib.nullcontext()
        with padded:
            logits = self.model(tokens, positions, visible, inference_context=context, runtime_gather_output=True)
        return logits[:, -1, : self.vocab_size].float()

    def _reporting(self) -> bool:
        """Whether routers record which experts they choose."""
        return self.batch is not None and self.batch.params.report_experts

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


def kind_length_prompt(entry: tuple[Request, SamplingParams]) -> tuple:
    """What samples that enter together have in common."""
    request, params = entry
    return shared(params), whole_length(request, params), request.prompt


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
