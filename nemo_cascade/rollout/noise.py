"""The noise of a token as a function of what it is, not of when it is drawn: (seed, prompt, sample, position) -> one uniform.

A counter hashed by splitmix64's finaliser (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"), vectorised
over rows in wrapping int64 arithmetic. So a reply does not depend on batch order, batch size or which rank drew it.
"""

import torch


def _signed(constant: int) -> int:
    """A 64-bit constant as torch's int64 holds it."""
    return constant - (1 << 64) if constant >= 1 << 63 else constant


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift (torch's >> copies the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser on int64 [rows]: a bijection in which every input bit moves about half of the output bits."""
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def row_keys(seed: int, prompt_ids: list[str], samples: list[int]) -> torch.Tensor:
    """[rows] int64: one key per reply. prompt_ids are hex strings, of which the first 16 digits count."""
    prompts = torch.tensor([_signed(int(prompt_id[:16], 16)) for prompt_id in prompt_ids], dtype=torch.int64)
    replies = torch.tensor(samples, dtype=torch.int64)
    key = mix(torch.full_like(replies, _signed(seed & ((1 << 64) - 1))) + _GOLDEN)
    key = mix(key + prompts + _GOLDEN)
    return mix(key + replies * _SECOND + _GOLDEN)


def uniforms(keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[rows] float64 in (0, 1): the noise of each reply's token at `positions` (counted from the reply's start)."""
    bits = _shift(mix(keys + (positions + 1) * _GOLDEN), 11)
    return (bits.double() + 0.5) * 2.0**-53
