"""The reverse KL over the whole vocabulary: what MOPD's one sampled token a position estimates. Pure tensor functions."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

# Logits of so many numbers are worked on at a time: several copies of them are needed.
CHUNK = 2**24


def reverse_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, group: dist.ProcessGroup | None = None, chunk: int = CHUNK
) -> torch.Tensor:
    """KL(student || teacher) = sum_v p(v) (log p(v) - log q(v)) at each position, [tokens], with gradient in the student.

    Both logits [tokens, vocab], or this rank's part of the vocabulary, [tokens, vocab / tp], where `group` has the ranks; the result is
    then the same on all of them. d KL / d z_v = p(v) (log p(v) - log q(v) - KL). Of `chunk` numbers at a time are
    probabilities in memory, forwards and backwards. In float32 at least.
    """
    return _ReverseKL.apply(student_logits, teacher_logits.detach(), group, chunk)


class _ReverseKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, group, chunk):
        ctx.save_for_backward(student, teacher)
        ctx.group, ctx.chunk = group, chunk
        parts = [divergence for _, _, _, divergence in _chunks(student, teacher, group, chunk)]
        return torch.cat(parts) if parts else student.new_zeros(0, dtype=torch.promote_types(student.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx, slopes):
        student, teacher = ctx.saved_tensors
        gradient = torch.empty_like(student)
        for rows, probabilities, log_ratio, divergence in _chunks(student, teacher, ctx.group, ctx.chunk):
            gradient[rows] = (slopes[rows, None] * probabilities * (log_ratio - divergence[:, None])).to(student.dtype)
        return gradient, None, None, None


def _chunks(student, teacher, group, chunk) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(rows, p [rows, vocab / tp], log p - log q, KL [rows]) of some positions after the other."""
    step = max(1, chunk // max(student.shape[1], 1))
    for start in range(0, len(student), step):
        rows = slice(start, start + step)
        log_p, log_q = (_log_softmax(logits[rows], group) for logits in (student, teacher))
        probabilities = log_p.exp()
        # What the student never says costs nothing, also where the teacher cannot say it.
        log_ratio = (log_p - log_q).masked_fill(probabilities == 0, 0.0)
        divergence = (probabilities * log_ratio).sum(dim=1)
        if group is not None:
            dist.all_reduce(divergence, group=group)
        yield rows, probabilities, log_ratio, divergence


def _log_softmax(logits: torch.Tensor, group) -> torch.Tensor:
    """Over the vocabulary of all ranks."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if group is None:
        return logits.log_softmax(dim=1)
    largest = logits.max(dim=1, keepdim=True).values
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    total = (logits - largest).exp().sum(dim=1, keepdim=True)
    dist.all_reduce(total, group=group)
    return logits - largest - total.log()
