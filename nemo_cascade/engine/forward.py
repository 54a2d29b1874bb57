"""A pack through model, head and loss, at every layout: the forward step that megatron-core's schedules call.

Under context parallel a rank holds a part of each document of the pack (`models.context_parallel`); its log-probs are
gathered, so that the loss sees the whole pack on every rank and need not know.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nemo_cascade import heartbeat
from nemo_cascade.engine import cpu

cpu.install()

import torch  # noqa: E402
from megatron.core import parallel_state  # noqa: E402

from nemo_cascade.engine.batch import Pack, scored_positions  # noqa: E402
from nemo_cascade.engine.head import label_logprobs, whole_pack  # noqa: E402
from nemo_cascade.models.context_parallel import gather_values, held_indices  # noqa: E402
from nemo_cascade.models.replay import replaying  # noqa: E402
from nemo_cascade.rollout.config import GenerationConfig  # noqa: E402

# A loss sees log-probs [T] of the pack's labels, of which those not trained on mean nothing, and the pack, and returns
# (sum over the pack, what to divide the global sum by, {metric: (sum, count)}). Where a pack is several of the head's
# chunks, it sees those of each chunk alone first, the others being 0, for its slope there. A sum of terms that look at
# one log-prob each has the same in the end; another loss is trained just as exactly, at some cost (`engine.head`).
# A metric whose name begins or ends with min or max is no sum but an extreme, with the count of what it is of.
Loss = Callable[[torch.Tensor, Pack], tuple[torch.Tensor, torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]]


@dataclass
class ForwardStep:
    """`step(iterator of packs, model)` -> (hidden states or log-probs, the loss of these), as megatron-core wants it.

    model: the unwrapped one. trained_only: log-probs of the labels that the mask has, 0 for the others. The loss may put
    anything third.
    """

    model: torch.nn.Module
    loss: Callable
    generation: GenerationConfig
    trained_only: bool

    def __call__(self, packs: Iterator[Pack], model: torch.nn.Module):
        heartbeat.beat()
        pack = next(packs)
        context = parallel_state.get_context_parallel_group()
        held = held_indices(pack.params.cu_seqlens_q, len(pack.mask), context)
        experts = None if pack.experts is None else self._routed(pack.experts, held)
        with self._without_output_layer(), replaying(self.model, experts):
            hidden = model(
                pack.tokens[:, held],
                pack.position_ids[:, held],
                None,
                packed_seq_params=pack.params,
                padding_mask=self._routed(pack.padding, held)[None],
            )
        if not parallel_state.is_pipeline_last_stage():
            return hidden, None
        # Places among those that this rank holds.
        scored = scored_positions(pack.mask[held]) if self.trained_only else torch.arange(len(held), device=held.device)
        states = whole_pack(hidden, self.model.config.sequence_parallel)[scored]
        return self._answer(states, scored, held, pack)

    def _answer(self, states: torch.Tensor, scored: torch.Tensor, held: torch.Tensor, pack: Pack):
        """(log-probs of the scored labels, the loss of these) from the last hidden states [scored, hidden]."""
        logprobs = self._logprobs(
            states, scored, held, pack, lambda logprobs, chunk: self._slope(logprobs, held[scored[chunk]], pack)
        )
        return logprobs, lambda logprobs: self._counted(self._row(logprobs, scored, held, pack), pack)

    def _logprobs(self, states, scored, held, pack: Pack, slope) -> torch.Tensor:
        logprobs, _ = label_logprobs(
            states,
            self.model.output_layer.weight,
            pack.labels[0, held[scored]],
            self.generation,
            group=parallel_state.get_tensor_model_parallel_group(),
            slope=slope,
        )
        return logprobs

    def _row(self, values: torch.Tensor, scored: torch.Tensor, held: torch.Tensor, pack: Pack) -> torch.Tensor:
        """Values of the scored labels as a row of the whole pack [T], 0 elsewhere."""
        row = values.new_zeros(len(held)).index_copy(0, scored, values)
        return gather_values(row, pack.params.cu_seqlens_q, parallel_state.get_context_parallel_group())

    def _counted(self, logprobs: torch.Tensor, pack: Pack):
        total, count, collected = self.loss(logprobs, pack)
        # All ranks that hold a part compute the same loss, which is divided by its count once.
        return total, count * (parallel_state.get_context_parallel_group().rank() == 0), collected

    def _slope(self, logprobs: torch.Tensor, positions: torch.Tensor, pack: Pack) -> torch.Tensor:
        """d loss / d log-probs [n] of a chunk, which lie at these positions of the pack."""
        with torch.enable_grad():
            logprobs = logprobs.detach().requires_grad_()
            row = logprobs.new_zeros(len(pack.mask)).index_copy(0, positions, logprobs)
            return torch.autograd.grad(self.loss(row, pack)[0], logprobs)[0]

    def _routed(self, values: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        """A pack's values [T, ...] of the tokens that this rank's routers see: under sequence parallel a tensor rank's part."""
        values = values[held]
        if self.model.config.sequence_parallel:
            tensor = parallel_state.get_tensor_model_parallel_group()
            values = values.chunk(tensor.size())[tensor.rank()]
        return values

    @contextlib.contextmanager
    def _without_output_layer(self) -> Iterator[None]:
        """Inside, the model returns its last hidden states: logits are the head's business, a chunk at a time."""
        last, self.model.post_process = self.model.post_process, False
        try:
            yield
        finally:
            self.model.post_process = last
