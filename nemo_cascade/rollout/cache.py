"""What rows that decode together keep of their tokens: keys and values of every attention layer, states of every Mamba layer.

megatron-core's static inference context writes the next token of all rows into one column. So all rows end at that column, their
keys aligned at the right, whenever they began; there are no positions that this could move. The columns before a row's first
token hold nothing of it and are hidden by a mask.
"""

import torch
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.ssm.mamba_mixer import MambaMixer


class Cache:
    """Of rows that come and go; `arrange` makes room, `put` fills the rows of prompts that were read, `context` is what decodes."""

    def __init__(self, mixers: list[MambaMixer], device: torch.device):
        self.mixers, self.device = mixers, device
        self.mamba = {mixer.layer_number for mixer in mixers}
        self.context = StaticInferenceContext(0, 0)

    @property
    def position(self) -> int:
        """The column of the next token: all rows' tokens end before it."""
        return self.context.sequence_len_offset

    def full(self) -> bool:
        """Whether there is no column left. Rows whose tokens were in the first ones are then over, and the others can move there."""
        return self.position == self.context.max_sequence_length

    def arrange(self, kept: list[int], width: int, rows: int, columns: int, position: int) -> None:
        """Makes a cache of so many rows and columns whose next token is at `position`: first the rows `kept` of the one before with
        their last `width` columns, then empty ones. A layer's memory is there twice while it is moved."""
        index, memory = torch.tensor(kept, dtype=torch.long, device=self.device), self.context.key_value_memory_dict
        old = slice(self.position - width, self.position)
        self.context.max_batch_size, self.context.max_sequence_length = rows, columns
        self.context.sequence_len_offset = position
        for layer, states in memory.items():
            memory[layer] = tuple(self._room(state, layer in self.mamba) for state in states)
            for new, state in zip(memory[layer], states):
                if layer in self.mamba:
                    new[: len(kept)] = state[index]
                else:
                    new[position - width : position, : len(kept)] = state[old][:, index]

    def put(self, read: StaticInferenceContext, source: list[int], target: list[int]) -> None:
        """Gives the rows `target` what the rows `source` of a context hold that has read their prompts to the end."""
        length, memory = read.max_sequence_length, self.context.key_value_memory_dict
        source, target = (torch.tensor(rows, device=self.device) for rows in (source, target))
        for layer, states in read.key_value_memory_dict.items():
            if layer not in memory:
                memory[layer] = tuple(self._room(state, layer in self.mamba) for state in states)
            for whole, state in zip(memory[layer], states):
                if layer in self.mamba:
                    whole[target] = state[source]
                else:
                    whole[self.position - length : self.position, target] = state[:, source]

    def decoding(self) -> StaticInferenceContext:
        """The context for the next token of all rows."""
        # megatron-core zeroes the states of a mixer that sees another number of rows than it remembers.
        for mixer in self.mixers:
            mixer.cached_batch_size = self.context.max_batch_size
        return self.context

    def _room(self, state: torch.Tensor, mamba: bool) -> torch.Tensor:
        """Zeros for all rows like `state`: Mamba states are [rows, ..], keys and values [columns, rows, ..]. What is hidden counts
        nothing, but must be numbers."""
        order = memory_order(state, mamba)
        shape = [*state.shape]
        shape[order[0]] = self.context.max_batch_size
        if not mamba:
            shape[0] = self.context.max_sequence_length
        return in_order(state.new_zeros([shape[axis] for axis in order]), order)


def memory_order(state: torch.Tensor, mamba: bool) -> tuple[int, ...]:
    """A cache's axes, rows first, in the order in which they lie in memory: what one new token reads lies side by side.

    Keys and values [columns, rows, groups, dim]: a head's columns. Convolution inputs [rows, channels, width]: channels.
    """
    if not mamba:
        return (1, 2, 0, 3)
    return (0, 2, 1) if state.dim() == 3 else tuple(range(state.dim()))


def in_order(memory: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """What lies in memory with its axes in this order, as a tensor with the axes in their own."""
    return memory.permute([order.index(axis) for axis in range(memory.dim())])
