"""Whether the weights that lie in vLLM are those that were pushed, tensor by tensor and bit by bit.

vLLM renames, stacks and in one case transforms what it is given (q, k and v in one matrix, all experts of a layer in one tensor,
A = -exp(A_log)); `lying` finds where each Hugging Face tensor has to be then. Sums of every element's bits times an odd number of
its place, which wrap, are compared: one other bit gives another sum, and no tensor has to be kept until the comparison. Under
vLLM's tensor parallel each rank compares what it is to hold of a tensor (`vllm_shard`).

Left out: quantised weights, and kernels that shuffle what they are given.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch

from nemo_cascade.rollout.engine import EngineError
from nemo_cascade.rollout.vllm_shard import EXPERT

WHOLE_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Elements that are summed up at once: as 64-bit numbers they take eight bytes each, whatever the weights do.
CHUNK = 2**24
# splitmix64's increment as a signed number.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
RENAMED = (("backbone.", "model."), (".A_log", ".A"), ("embeddings", "embed_tokens"))
STACKED = {"up": "w13_weight", "down": "w2_weight"}
QKV = re.compile(r"(.*)\.([qkv])_proj\.weight")

Parameters = Mapping[str, torch.Tensor]


Part = Callable[[str, torch.Tensor], torch.Tensor | None]


class Sent(NamedTuple):
    """A tensor that was pushed: the shape of what this rank's vLLM has to hold of it, and its checksum."""

    shape: tuple[int, ...]
    checksum: int


def whole(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """What a rank holds that has a vLLM of its own."""
    return tensor


def recorded(
    weights: Iterable[tuple[str, torch.Tensor]], parameters: Parameters, sent: dict[str, Sent], part: Part = whole
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights, each noted in `sent` as it passes, by what `part` leaves of it for this rank; parameters: vLLM's by name, which say in
    what type it keeps them."""
    for name, tensor in weights:
        parameter, kept = parameters[holder(name, parameters)], part(name, tensor)
        if kept is not None:
            sent[name] = Sent(tuple(kept.shape), checksum(as_kept(name, kept).to(parameter.dtype)))
        yield name, tensor


def refuse_changed(parameters: Parameters, sent: Mapping[str, Sent], first_expert: int = 0) -> None:
    """Raises EngineError naming the tensors that are not in vLLM as they were pushed, or its parameters that got nothing.

    first_expert: the number of the first expert on this rank."""
    changed = [name for name, one in sent.items() if checksum(lying(name, one.shape, parameters, first_expert)) != one.checksum]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise EngineError(
            f"of {len(sent)} tensors pushed to vLLM {len(changed)} are not there as they were sent: {', '.join(changed[:5])}{more}; "
            "replies would be another model's"
        )
    left = sorted(set(parameters) - {holder(name, parameters) for name in sent})
    if left:
        raise EngineError(f"vLLM has parameters to which nothing was pushed: {', '.join(left[:5])}")


def lying(name: str, shape: tuple[int, ...], parameters: Parameters, first_expert: int = 0) -> torch.Tensor:
    """The part of vLLM's parameters where what this rank has of a Hugging Face tensor, of this shape, lies."""
    place = parameters[holder(name, parameters)]
    if expert := EXPERT.fullmatch(name):
        place = place[int(expert[2]) - first_expert]
    if stacked := QKV.fullmatch(name):
        # k and v are of one size, and they come last.
        start = {"q": 0, "k": len(place) - 2 * shape[0], "v": len(place) - shape[0]}[stacked[2]]
        place = place[start:]
    return place[tuple(slice(n) for n in shape)]  # rows or columns beyond are padding


def holder(name: str, parameters: Parameters) -> str:
    """The name of vLLM's parameter that holds a Hugging Face tensor. Raises EngineError where there is none."""
    kept = name
    for theirs, vllms in RENAMED:
        kept = kept.replace(theirs, vllms)
    if expert := EXPERT.fullmatch(kept):
        # vLLM has moved them below modules of their own more than once.
        found = [key for key in parameters if key.startswith(f"{expert[1]}.") and key.endswith(STACKED[expert[3]])]
    elif stacked := QKV.fullmatch(kept):
        found = [f"{stacked[1]}.qkv_proj.weight"]
    else:
        found = [kept]
    if len(found) != 1 or found[0] not in parameters:
        raise EngineError(f"vLLM has no parameter for {name}; this version of it names or stacks weights otherwise")
    return found[0]


def as_kept(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """What vLLM makes of a tensor when it loads it."""
    return -torch.exp(tensor.float()) if name.endswith(".A_log") else tensor


def checksum(tensor: torch.Tensor) -> int:
    """A signed 64-bit sum over the bits of all elements and their places, the same on every device."""
    bits = tensor.detach().contiguous().flatten().view(WHOLE_NUMBERS[tensor.element_size()])
    total = 0
    for start in range(0, len(bits), CHUNK):
        part = bits[start : start + CHUNK].long()
        places = torch.arange(start + 1, start + len(part) + 1, device=part.device)
        total += int((part * (places * _GOLDEN | 1)).sum())
    return total & (2**64 - 1)
