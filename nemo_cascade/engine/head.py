"""The output layer and the log-probs of its labels in one, over tensor ranks, a chunk of tokens at a time.

Logits [tokens, vocab], their log-softmax and the gradients of both would be the largest tensors of a step: 4.3 GB each
for 8,192 tokens and 131,072 ids in float32. Here they are of one chunk and share one buffer, from the logits to their
gradient. Cross entropy is minus what this gives.

The distribution is the one that was sampled from: with p = softmax(logits / temperature) and N the nucleus of p
(`rollout.sampling.distribution`, the sampler's own), a token was drawn from q(y) = p(y) / p(N) for y in N [Holtzman et
al. 2020, section 3.1]. N is chosen without gradient and joined by the label: a token that was drawn must have a finite
log-prob where rounding puts it outside, and so must one that another model drew. Where rounding moves another token
across the edge, p(N) and so log q differ from the sampler's by that token's share. There are no padded ids, here or in
the sampler (`models.specs.build_model`, `rollouts.make_engine`).

Three matmuls are needed: logits, gradient of the hidden states, gradient of the weight. But when the loss says how much
each log-prob matters, all chunks except the last are forgotten, and a fourth has to bring them back; in a wide model on
a CPU, where matmuls are nearly all of the time, that is a third more. So the caller may tell the slope of its loss
beforehand, chunk by chunk, and a chunk is done with before the next begins. The slope is not taken on trust: where it
proves to be another, the backward pass makes up for the difference, at the price of that fourth matmul.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nemo_cascade.engine import cpu

cpu.install()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core.tensor_parallel.mappings import (  # noqa: E402
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
)
from torch.autograd.function import once_differentiable  # noqa: E402

from nemo_cascade.rollout.config import GenerationConfig  # noqa: E402
from nemo_cascade.rollout.sampling import distribution  # noqa: E402

# Logits of a chunk on one rank: on a CPU 64 MiB in float32, 128 tokens of 131,072 ids. There a quarter of the time went
# into matmuls of too few rows at half as many; more only adds to the peak. A small vocabulary's pack is one chunk. A GPU
# (1,024 tokens of as many ids) waits for the launch of 128 tokens' operations longer than it takes for them.
CHUNK, CHUNK_ON_GPU = 2**24, 2**27
# So many numbers of whole rows pass at once through what takes several copies of them: a nucleus's sort, an entropy.
BLOCK = 2**18
# Whether a product of bfloat16 may be added to float32 as it is computed; older ones cannot.
ADDS_IN_FLOAT32 = hasattr(torch.ops.aten.addmm, "dtype_out")

# From the log-probs [n] of a chunk and its place among the tokens to d loss / d log-prob [n].
Slope = Callable[[torch.Tensor, slice], torch.Tensor]


def label_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    generation: GenerationConfig = GenerationConfig(),
    *,
    group: dist.ProcessGroup | None = None,
    slope: Slope | None = None,
    with_entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(log-probs of the labels, entropies in nats of what they are drawn from or None), both [tokens], differentiable.

    hidden [tokens, hidden] and labels [tokens] are the same on all ranks of `group`, weight [vocab / tp, hidden] is
    this rank's part. The results are the same on all ranks, in float32 at least. The gradient of hidden is this rank's
    share of a sum over the group, which is left to the mapping that brought hidden here (`whole_pack`).
    Of `generation` temperature and top_p count; at temperature 0 it is the plain softmax, as greedy replies report.
    slope, where it is known: the gradient of the loss by a chunk's log-probs, from these. It is asked for chunk by
    chunk while gradients are wanted, except for the last chunk, which is not forgotten.
    """
    keep = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    head = _Head(weight, len(labels), generation, group, with_entropy)
    return _LabelLogprobs.apply(hidden, weight, labels, head, slope if keep else None, keep)


def whole_pack(hidden: torch.Tensor, sequence_parallel: bool) -> torch.Tensor:
    """A pack's hidden states [tokens, hidden] on every tensor rank, from the model's [tokens, 1, hidden].

    Under sequence parallel the model has [tokens / tp, 1, hidden]. Backwards, the ranks' shares of the gradient are
    summed.
    """
    if sequence_parallel:
        return gather_from_sequence_parallel_region(hidden)[:, 0]
    return copy_to_tensor_model_parallel_region(hidden)[:, 0]


class _LabelLogprobs(torch.autograd.Function):
    """The loop over chunks, forwards and backwards."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, head, slope, keep):
        gradients = Gradients(hidden, weight, *ctx.needs_input_grad[:2]) if slope else None
        logprobs = torch.zeros(len(labels), dtype=head.dtype, device=hidden.device)
        entropy = torch.zeros_like(logprobs) if head.with_entropy else None
        told, softmax = torch.zeros_like(logprobs), None
        for chunk in head.chunks:
            softmax = head.softmax(hidden[chunk], weight, labels[chunk])
            logprobs[chunk] = softmax.logprobs
            if head.with_entropy:
                entropy[chunk] = softmax.entropy
            if slope and chunk != head.chunks[-1]:
                told[chunk] = slope(softmax.logprobs, chunk)
                gradients.add(chunk, hidden, weight, head.logit_gradient(softmax, told[chunk], None))
        if keep:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(hidden, weight, labels)
            ctx.head, ctx.ahead = head, (told, gradients, softmax)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, slopes, entropy_slopes):
        hidden, weight, labels = ctx.saved_tensors
        # A second backward pass through a kept graph begins from nothing.
        nothing = torch.zeros(len(labels), dtype=ctx.head.dtype, device=hidden.device)
        told, gradients, last = ctx.ahead or (nothing, None, None)
        ctx.ahead = None
        gradients = gradients or Gradients(hidden, weight, *ctx.needs_input_grad[:2])
        untold = (nothing if slopes is None else slopes) - told
        for chunk, wanted in zip(reversed(ctx.head.chunks), reversed(ctx.head.wanted(untold, entropy_slopes))):
            of_entropy = None if entropy_slopes is None else entropy_slopes[chunk]
            if wanted:
                softmax = last or ctx.head.softmax(hidden[chunk], weight, labels[chunk])
                gradients.add(chunk, hidden, weight, ctx.head.logit_gradient(softmax, untold[chunk], of_entropy))
            last = None
        return gradients.hidden, gradients.weight_as(weight), None, None, None, None


@dataclass
class _Softmax:
    """Of n tokens: log-probs, entropy [n]; probabilities [n, vocab / tp] in the buffer, until the next overwrites them.

    column [n]: the label's among those of this rank; here [n]: whether it is one of them (column is 0 otherwise).
    """

    probabilities: torch.Tensor
    logprobs: torch.Tensor
    entropy: torch.Tensor | None
    column: torch.Tensor
    here: torch.Tensor


class _Head:
    """What is done to one chunk, and the buffer it is done in."""

    def __init__(self, weight: torch.Tensor, tokens: int, generation: GenerationConfig, group, with_entropy: bool):
        plain = generation.temperature == 0
        self.temperature, self.top_p = (1.0, 1.0) if plain else (generation.temperature, generation.top_p)
        self.group, self.with_entropy = group, with_entropy
        self.ranks, self.rank = (group.size(), group.rank()) if group is not None else (1, 0)
        self.width = weight.shape[0]
        size = max((CHUNK_ON_GPU if weight.is_cuda else CHUNK) // self.width, 1)
        self.chunks = [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]
        self.dtype = torch.promote_types(weight.dtype, torch.float32)
        self.buffer = weight.new_empty(min(size, tokens), self.width, dtype=self.dtype)
        # What matmuls give and take, where that is another type.
        self.narrow = self.buffer if weight.dtype == self.dtype else torch.empty_like(self.buffer, dtype=weight.dtype)

    def wanted(self, *slopes: torch.Tensor | None) -> list[bool]:
        """Whether any of these [tokens] is not 0 in a chunk, for all chunks: the same on all ranks, which reduce together
        for each, though their slopes may differ in a last bit."""
        some = sum(slope != 0 for slope in slopes if slope is not None)
        flags = torch.stack([some[chunk].any() for chunk in self.chunks]).int() if self.chunks else some.new_zeros(0)
        return self._reduce(flags, dist.ReduceOp.MAX).bool().tolist()

    def softmax(self, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> _Softmax:
        """hidden [n, hidden], labels [n] of a chunk. The steps are those of mcore's cross entropy, bit for bit."""
        logits = self._logits(hidden, weight)
        self._restrict(logits, labels)
        largest = self._reduce(logits.amax(-1), dist.ReduceOp.MAX)
        logits.sub_(largest[:, None])
        column = labels - self.rank * self.width
        here = (column >= 0) & (column < self.width)
        column = column.where(here, 0)
        chosen = logits.gather(-1, column[:, None])[:, 0].where(here, 0)
        probabilities = logits.exp_()
        chosen, total = self._reduce(torch.stack([chosen, probabilities.sum(-1)]))
        probabilities.div_(total[:, None])
        entropy = self._entropy(probabilities) if self.with_entropy else None
        return _Softmax(probabilities, chosen - total.log(), entropy, column, here)

    def logit_gradient(
        self, softmax: _Softmax, slopes: torch.Tensor, entropy_slopes: torch.Tensor | None
    ) -> torch.Tensor:
        """d loss / d logits [n, vocab / tp] of this rank, in place of the probabilities; slopes [n].

        d log p(y) / d z_j = [j = y] - p_j and d H / d z_j = -p_j (log p_j + H), with z = logits / temperature.
        """
        p, slopes = softmax.probabilities, slopes / self.temperature
        if entropy_slopes is None:
            p.mul_(-slopes[:, None])
        else:
            of_entropy = entropy_slopes / self.temperature
            of_both = slopes + of_entropy * softmax.entropy
            for rows in self._blocks(len(p)):
                uncertainty = torch.special.entr(p[rows]).mul_(of_entropy[rows, None])
                p[rows].mul_(-of_both[rows, None]).add_(uncertainty)
        p.scatter_add_(-1, softmax.column[:, None], (slopes * softmax.here)[:, None])
        return p if self.narrow is self.buffer else self.narrow[: len(p)].copy_(p)

    def _logits(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        logits, narrow = self.buffer[: len(hidden)], self.narrow[: len(hidden)]
        torch.mm(hidden, weight.T, out=narrow)
        return logits if self.narrow is self.buffer else logits.copy_(narrow)

    def _restrict(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Makes of logits, in place, those of q: after temperature, -inf outside the nucleus."""
        if self.top_p < 1:
            for rows in self._blocks(len(labels)):
                logits[rows].masked_fill_(~self._nucleus(logits[rows], labels[rows]), -torch.inf)
        if self.temperature != 1:
            logits.div_(self.temperature)

    def _nucleus(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """This rank's part of the mask of N and the label; it takes a row's whole vocabulary to choose N."""
        whole = gather_from_tensor_model_parallel_region(logits, group=self.group) if self.ranks > 1 else logits
        kept = distribution(whole, self.temperature, self.top_p) > -torch.inf
        return kept.scatter_(-1, labels[:, None], True).narrow(-1, self.rank * self.width, self.width)

    def _entropy(self, probabilities: torch.Tensor) -> torch.Tensor:
        parts = [torch.special.entr(probabilities[rows]).sum(-1) for rows in self._blocks(len(probabilities))]
        return self._reduce(torch.cat(parts))

    def _blocks(self, tokens: int) -> Iterator[slice]:
        size = max(BLOCK // (self.width * self.ranks), 1)
        return (slice(start, start + size) for start in range(0, tokens, size))

    def _reduce(self, values: torch.Tensor, op=dist.ReduceOp.SUM) -> torch.Tensor:
        """`values` over the ranks of the group, in place."""
        if self.ranks > 1:
            dist.all_reduce(values, op=op, group=self.group)
        return values


class Gradients:
    """Sums over chunks, None if not wanted: hidden [tokens, hidden]; weight [vocab / tp, hidden] in float32 or more."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, of_hidden: bool, of_weight: bool):
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.hidden = torch.zeros_like(hidden) if of_hidden else None
        self.weight = torch.zeros_like(weight, dtype=dtype) if of_weight else None

    def add(self, chunk: slice, hidden: torch.Tensor, weight: torch.Tensor, logit_gradient: torch.Tensor) -> None:
        """Adds a chunk's part; logit_gradient [n, vocab / tp] in the weight's type."""
        if self.hidden is not None:
            self.hidden[chunk].addmm_(logit_gradient, weight)
        if self.weight is not None and self.weight.dtype == logit_gradient.dtype:
            self.weight.addmm_(logit_gradient.T, hidden[chunk])
        elif self.weight is not None and self.weight.is_cuda and ADDS_IN_FLOAT32:
            # Products of bfloat16 are sums in float32 there, which can go on from one chunk to the next.
            factors = logit_gradient.T, hidden[chunk]
            torch.addmm(self.weight, *factors, out_dtype=self.weight.dtype, out=self.weight)
        elif self.weight is not None:
            self.weight.add_(logit_gradient.T @ hidden[chunk])

    def weight_as(self, weight: torch.Tensor) -> torch.Tensor | None:
        """The weight's gradient in the weight's type."""
        return None if self.weight is None else self.weight.to(weight.dtype)
