"""Causal attention in torch: packed documents in training, static caches in decoding, no positions anywhere.

Stands where the TE spec has TEDotProductAttention. A pack's documents of similar length share one padded
scaled_dot_product_attention call, which is several times faster than a call per document. Dropout is left out.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from nemo_cascade.models import kernels
from nemo_cascade.models.context_parallel import gather_pack, partitioned_indices

# Documents share a padded call while the longest is at most this much longer than the shortest.
STRETCH, SLACK = 1.25, 4


class PackedAttention(torch.nn.Module):
    """Core attention: query [t, b, heads, dim] (or [tokens, heads, dim] packed), key and value with fewer heads (GQA)."""

    def __init__(
        self, config, layer_number, attn_mask_type, attention_type, attention_dropout=None, pg_collection=None, **_
    ):
        super().__init__()
        self.context_group = pg_collection.cp if config.context_parallel_size > 1 else None
        if attention_dropout or config.attention_dropout:
            raise ValueError("attention dropout is not implemented; set attention_dropout=0")

    def forward(self, query, key, value, attention_mask=None, attn_mask_type=None, attention_bias=None, packed_seq_params=None):
        """-> [t, b, heads * dim], or [tokens, heads * dim] for a pack."""
        if packed_seq_params is not None:
            if self.context_group is not None:
                return self._over_ranks(query, key, value, packed_seq_params.cu_seqlens_q)
            return packed_attention(query, key, value, packed_seq_params.cu_seqlens_q)
        query, key, value = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        if query.shape[2] == 1:
            return attend_to_cache(query, key, value, attention_mask)
        # As many queries as keys is a causal prefill.
        causal = query.shape[2] == key.shape[2]
        if causal and attention_mask is not None:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=causal_mask(attention_mask), enable_gqa=True)
        else:
            out = F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)
        return out.permute(2, 0, 1, 3).flatten(-2)


    def _over_ranks(self, query, key, value, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """This rank's queries [tokens / cp, heads, dim] against the keys and values of all ranks -> [tokens / cp, heads * dim].

        The other ranks' queries are left at 0 and their answers unused: it is there to be right, on GPUs TE's does this.
        """
        group = self.context_group
        total = query.shape[0] * group.size()
        mine = partitioned_indices(cu_seqlens, total, group.size(), group.rank())
        key, value = (gather_pack(t, cu_seqlens, group) for t in (key, value))
        query = query.new_zeros(total, *query.shape[1:]).index_copy(0, mine, query)
        return packed_attention(query, key, value, cu_seqlens)[mine]


def causal_mask(visible: torch.Tensor) -> torch.Tensor:
    """visible [b, t] -> [b, 1, t, t]: who attends to whom. A token always to itself, or padding would be a mean over nothing."""
    length = visible.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=visible.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=visible.device)
    return (visible[:, None, :] & earlier | itself)[:, None]


def attend_to_cache(query, key, value, visible=None) -> torch.Tensor:
    """One new token against cached ones: query [b, heads, 1, dim], key and value [b, groups, t, dim] -> [1, b, heads * dim].

    visible [b, t]: which of the cached tokens; all of them without it. The heads that share keys stand as queries of one head,
    so that long caches are not copied for each of them.
    """
    batch, _, _, dim = query.shape
    groups, length = key.shape[1:3]
    # By batched products, which read the cache as it lies in memory; scaled_dot_product_attention takes twice as long for one query.
    scores = torch.bmm((query * dim**-0.5).reshape(batch * groups, -1, dim), key.flatten(0, 1).transpose(1, 2))
    if visible is not None:
        scores.view(batch, groups, -1, length).masked_fill_(~visible[:, None, None], -torch.inf)
    return torch.bmm(scores.softmax(-1), value.flatten(0, 1)).reshape(1, batch, -1)


def packed_attention(query, key, value, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Causal attention inside each document of a pack: [tokens, heads, dim] -> [tokens, heads * dim]."""
    query, key, value = (t.reshape(-1, *t.shape[-2:]) for t in (query, key, value))
    if kernels.usable(query, key, value, widths=query.shape[-1:]):
        return FusedAttention.apply(query, key, value, cu_seqlens)
    buckets, position = plan_buckets(cu_seqlens.tolist(), query.device)
    rows = []
    for index in buckets:
        q, k, v = (t[index].transpose(1, 2) for t in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        rows.append(out.transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat(rows)[position]


class FusedAttention(torch.autograd.Function):
    """`packed_attention` by the kernels."""

    @staticmethod
    def forward(ctx, query, key, value, cu_seqlens):
        query, key, value = (t if t[0].is_contiguous() else t.contiguous() for t in (query, key, value))
        starts = cu_seqlens.to(torch.int32).contiguous()
        stats, out = query.new_empty(query.shape[1], len(query), 2), torch.empty_like(query, memory_format=torch.contiguous_format)
        kernels.call("attention_forward", *_attention(query, key, value, starts), stats, out)
        ctx.save_for_backward(query, key, value, starts, stats)
        return out.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, value, starts, stats = ctx.saved_tensors
        grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (query, key, value)]
        kernels.call("attention_backward", *_attention(query, key, value, starts), stats, grad.contiguous(), *grads)
        return *grads, None


def _attention(query, key, value, starts: torch.Tensor) -> tuple:
    """The kernels' first arguments."""
    sizes = len(starts) - 1, starts, query.shape[1], key.shape[1], query.shape[2], query.shape[2] ** -0.5
    return *sizes, *(part for t in (query, key, value) for part in (t, t.stride(0)))


def plan_buckets(cu_seqlens: list[int], device) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Token indices [documents, longest] of each bucket (short rows repeat their last token, which causality hides), and
    where each token of the pack lies in the concatenated buckets [tokens]."""
    documents = sorted((b - a, a) for a, b in zip(cu_seqlens, cu_seqlens[1:]) if b > a)
    position = torch.empty(cu_seqlens[-1], dtype=torch.long, device=device)
    buckets, offset, first = [], 0, 0
    while first < len(documents):
        last = first
        while last < len(documents) and documents[last][0] <= STRETCH * documents[first][0] + SLACK:
            last += 1
        lengths, starts = torch.tensor(documents[first:last], device=device).unbind(1)
        ramp = torch.arange(documents[last - 1][0], device=device)
        index = starts[:, None] + torch.minimum(ramp[None], lengths[:, None] - 1)
        where = offset + torch.arange(index.numel(), device=device).view_as(index)
        real = ramp[None] < lengths[:, None]
        position[index[real]] = where[real]
        buckets.append(index)
        offset, first = offset + index.numel(), last
    return buckets, position
