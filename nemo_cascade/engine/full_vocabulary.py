"""The reverse KL to a teacher over the whole vocabulary, from the hidden states of both, a chunk of tokens at a time.

A teacher's logits of a batch would not fit anywhere: [tokens, vocab]. So what is kept of a teacher, in host memory, are its last hidden
states where labels are trained on, [tokens, hidden], and its output layer; logits of student and teacher are made of a chunk, forwards
and again backwards. The vocabulary may lie on several tensor ranks. Packs of a step are those that the teacher read: each holds samples
of one teacher, so that a rank finds all that it needs on itself, at every layout.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from nemo_cascade.engine import cpu

cpu.install()

import torch  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from torch.autograd.function import once_differentiable  # noqa: E402

from nemo_cascade.algorithms import reverse_kl  # noqa: E402
from nemo_cascade.engine import head  # noqa: E402
from nemo_cascade.engine.batch import Pack  # noqa: E402
from nemo_cascade.engine.forward import ForwardStep  # noqa: E402


@dataclass
class Lesson:
    """What a teacher said of a pack, in host memory: states [trained labels that this rank holds, hidden]; weight [vocab / tp, hidden],
    one tensor for all packs of a teacher."""

    states: torch.Tensor
    weight: torch.Tensor


def head_reverse_kl(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
    *,
    temperature: float = 1.0,
    group: torch.distributed.ProcessGroup | None = None,
) -> torch.Tensor:
    """KL(student || teacher) of each token, [tokens], with gradient in the student's hidden and weight; see `reverse_kl`.

    hidden [tokens, hidden] are the same on all ranks of `group`, weights [vocab / tp, hidden] this rank's parts. As in
    `head.label_logprobs` the gradient of hidden is this rank's share of a sum over the group.
    """
    return _HeadReverseKL.apply(hidden, weight, teacher_hidden, teacher_weight, temperature or 1.0, group)


class _HeadReverseKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, teacher_hidden, teacher_weight, temperature, group):
        ctx.save_for_backward(hidden, weight, teacher_hidden, teacher_weight)
        ctx.temperature, ctx.group = temperature, group
        tensors = hidden, weight, teacher_hidden, teacher_weight
        parts = [reverse_kl(*_logits(chunk, tensors, temperature), group=group) for chunk in _chunks(hidden, weight)]
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx, slopes):
        saved = ctx.saved_tensors
        hidden, weight = saved[:2]
        gradients = head.Gradients(hidden, weight, *ctx.needs_input_grad[:2])
        for chunk in _chunks(hidden, weight):
            student, teacher = _logits(chunk, saved, ctx.temperature)
            with torch.enable_grad():
                divergence = reverse_kl(student.requires_grad_(), teacher, group=ctx.group)
                (of_logits,) = torch.autograd.grad(divergence, student, slopes[chunk])
            gradients.add(chunk, hidden, weight, (of_logits / ctx.temperature).to(weight.dtype))
        return gradients.hidden, gradients.weight_as(weight), None, None, None, None


def _chunks(hidden: torch.Tensor, weight: torch.Tensor) -> Iterator[slice]:
    """So many tokens at a time as the head takes."""
    size = max((head.CHUNK_ON_GPU if weight.is_cuda else head.CHUNK) // len(weight), 1)
    return (slice(start, start + size) for start in range(0, len(hidden), size))


def _logits(chunk: slice, tensors, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of student and teacher, [n, vocab / tp] in float32 at least."""
    hidden, weight, teacher_hidden, teacher_weight = tensors
    pairs = ((hidden[chunk], weight), (teacher_hidden[chunk], teacher_weight))
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return tuple((states @ layer.T).to(dtype).div_(temperature) for states, layer in pairs)


class CollectStates(ForwardStep):
    """A forward step that keeps the last hidden states at trained labels, in host memory."""

    def _answer(self, states: torch.Tensor, scored: torch.Tensor, held: torch.Tensor, pack: Pack):
        nothing, kept = states.new_zeros(()), states.detach().cpu()
        return nothing, lambda _: (nothing, torch.ones((), dtype=torch.int), {"states": kept})


@dataclass
class FullVocabularyStep(ForwardStep):
    """A forward step whose loss sees, beside the labels' log-probs (without gradient), `pack.fields["reverse_kl"]` [T].

    lessons: one for each of this rank's packs, in their order; the last pipeline stage takes one with each.
    """

    lessons: Iterator[Lesson] = field(kw_only=True)

    def _answer(self, states: torch.Tensor, scored: torch.Tensor, held: torch.Tensor, pack: Pack):
        lesson, layer = next(self.lessons), self.model.output_layer.weight
        with torch.no_grad():
            logprobs = self._logprobs(states, scored, held, pack, slope=None)
        divergence = head_reverse_kl(
            states,
            layer,
            lesson.states.to(states.device),
            lesson.weight.to(states.device),
            temperature=self.generation.temperature,
            group=parallel_state.get_tensor_model_parallel_group(),
        )

        def loss_of(both):
            logprobs, divergence = (self._row(values, scored, held, pack) for values in both)
            return self._counted(logprobs, pack.with_field("reverse_kl", divergence))

        return torch.stack([logprobs, divergence]), loss_of
