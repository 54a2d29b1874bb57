"""From a global batch of samples to packed microbatches, and back.

A pack lays several samples end to end in one row of T tokens; `cu_seqlens` tells the attention and the Mamba layers where each
begins. Input t predicts label t, so a sample of n tokens fills n - 1 positions (and padding, where context parallel cuts each
sample into equal chunks). Packs are cut from the global batch before they
are dealt to data-parallel ranks, so the same packs are computed whatever the layout (unless their number does not divide by it).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from nemo_cascade.data.packing import pack as pack_lengths
from nemo_cascade.data.packing import round_up, spread
from nemo_cascade.data.sample import Sample
from nemo_cascade.models.megatron import PackedSeqParams, packed_params
from nemo_cascade.models.replay import OWN_CHOICE

PAD_ID = 0


@dataclass
class Pack:
    """One packed row. All but `params` are [T] (tokens, labels and position_ids [1, T]).

    mask: 1 where the label is trained on. segments: index of the sample in the batch, -1 on padding, a sample's own too.
    fields: the samples' own per-token values at the label's position. experts [T, MoE layers, topk]: what is replayed of the samples'
    at the token's, OWN_CHOICE on padding; None: nothing.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    segments: torch.Tensor
    fields: dict[str, torch.Tensor]
    params: PackedSeqParams
    experts: torch.Tensor | None = None

    def with_field(self, name: str, values: torch.Tensor) -> "Pack":
        """The pack with another field [T]."""
        return replace(self, fields=self.fields | {name: values})

    @property
    def padding(self) -> torch.Tensor:
        """[T] bool: what the router must not count."""
        return self.segments < 0


def plan_packs(
    samples: list[Sample], capacity: int, data_parallel_size: int, document_multiple: int = 1
) -> list[list[int]]:
    """Indices of the samples in each pack; the number of packs is a multiple of data_parallel_size.

    Each sample takes a multiple of document_multiple tokens of a pack's `capacity`.

    They are the fewest that best-fit packing finds, evenly filled if that fits, because the slowest rank sets the pace. To
    make their number a multiple where it does not, the fullest packs of several samples are halved; where none is left, packs
    without a sample are added.
    """
    lengths = [round_up(len(sample.tokens) - 1, document_multiple) for sample in samples]
    packs = pack_lengths(lengths, capacity)
    even = spread(lengths, -(-len(packs) // data_parallel_size) * data_parallel_size, capacity)
    if even is not None:
        return sorted(even, key=lambda pack: (-sum(lengths[i] for i in pack), pack))
    while len(packs) % data_parallel_size:
        several = [pack for pack in packs if len(pack) > 1]
        if several:
            largest = max(several, key=lambda pack: sum(lengths[i] for i in pack))
            packs.remove(largest)
            packs += [largest[::2], largest[1::2]]
        else:
            packs.append([])
    return sorted(packs, key=lambda pack: (-sum(lengths[i] for i in pack), pack))


def build_pack(
    samples: list[Sample],
    indices: list[int],
    multiple: int,
    device,
    dtype=torch.float32,
    document_multiple: int = 1,
    replay: bool = False,
) -> Pack:
    """Lays samples[indices] end to end, each padded to a multiple of `document_multiple` tokens, the pack to one of
    `multiple` (by a padding segment of its own). replay: with the samples' experts, where they have any.

    A pack without samples is padding alone, which keeps a rank in step with its peers. Raises ValueError naming a sample without
    experts among others that have them.
    """
    chosen = [samples[i] for i in indices]
    lengths = [len(sample.tokens) - 1 for sample in chosen]
    segment_lengths = [round_up(length, document_multiple) for length in lengths]
    padding = -sum(segment_lengths) % multiple if chosen else multiple
    segment_lengths += [padding] if padding else []

    def row(parts, fill, kind):
        flat = []
        for part, n in zip([*parts, []], segment_lengths):
            flat += part
            flat += [fill] * (n - len(part))
        # numpy reads a list of numbers in a third of torch's time.
        return torch.from_numpy(np.array(flat)).to(device, kind)

    boundaries = torch.tensor([0, *segment_lengths], device=device).cumsum(0).int()
    return Pack(
        tokens=row((s.tokens[:-1] for s in chosen), PAD_ID, torch.long)[None],
        labels=row((s.tokens[1:] for s in chosen), PAD_ID, torch.long)[None],
        position_ids=torch.cat([torch.arange(n, device=device) for n in segment_lengths])[None],
        mask=row((s.loss_mask[1:] for s in chosen), 0, dtype),
        segments=row(([i] * n for i, n in zip(indices, lengths)), -1, torch.long),
        fields={name: row((s.fields[name][1:] for s in chosen), 0.0, dtype) for name in samples[0].fields},
        params=packed_params(boundaries, max(segment_lengths)),
        experts=_laid_experts(samples, chosen, boundaries, device) if replay else None,
    )


def _laid_experts(samples: list[Sample], chosen: list[Sample], boundaries: torch.Tensor, device) -> torch.Tensor | None:
    """Those of the chosen samples, each from its boundary on, in int16, which has room for OWN_CHOICE and all experts."""
    without = [sample for sample in samples if sample.experts is None]
    if len(without) == len(samples):
        return None
    if without:
        raise ValueError(f"{without[0].name or 'a sample'} has no experts to replay and others of its batch have; report them for all, or none")
    starts = boundaries.tolist()
    rows = torch.full((starts[-1], *samples[0].experts.shape[1:]), OWN_CHOICE, dtype=torch.int16)
    for start, sample in zip(starts, chosen):
        rows[start : start + len(sample.experts)] = sample.experts
    return rows.to(device)


def scored_positions(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask [T] is not 0; one position where it is 0 everywhere, because a head over nothing has no gradient."""
    trained = mask.nonzero()[:, 0]
    return trained if len(trained) else torch.zeros(1, dtype=torch.long, device=mask.device)


def scatter_logprobs(packs: list[Pack], rows: list[torch.Tensor], samples: list[Sample]) -> torch.Tensor:
    """Puts per-position values [T] of packs back into one flat vector [sum of sample lengths]; the rest stays 0."""
    starts = torch.tensor([0, *(len(s.tokens) for s in samples)]).cumsum(0)
    device, dtype = (rows[0].device, rows[0].dtype) if rows else ("cpu", torch.float32)
    flat = torch.zeros(int(starts[-1]), dtype=dtype, device=device)
    starts = starts.to(device)
    for pack, row in zip(packs, rows):
        real = pack.segments >= 0
        where = starts[pack.segments[real]] + pack.position_ids[0, real] + 1
        flat[where] = row[real]
    return flat
