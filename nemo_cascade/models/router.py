"""megatron-core's router, counting a pack's real tokens and all of them: the same balance at every layout.

Two of its sums are not what a pack held in parts needs. A balancing loss is weighted by a count of tokens, where each rank
adds the gradient of its own part of the pack's loss, so that it must be the whole pack's count; without a mask of padding it
is this rank's, and with one it is the whole pack's only because a sum over ranks happens to be done in place. And the mask
is laid along the experts instead of the tokens where it counts them for the expert bias.
"""

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.router import TopKRouter


class Router(TopKRouter):
    """`forward(hidden [tokens, 1, hidden], padding_mask [tokens, 1])`, True where a token is padding and counts nowhere."""

    def routing(self, logits, padding_mask=None):
        """logits [tokens, 1, experts]."""
        self._pack_tokens = logits.new_tensor(logits.shape[0] * logits.shape[1], dtype=torch.float32)
        if padding_mask is not None:
            self._pack_tokens -= padding_mask.sum()
        if self.tp_cp_group.size() > 1 and self.is_aux_loss_enabled():
            dist.all_reduce(self._pack_tokens, group=self.tp_cp_group)
        return super().routing(logits, padding_mask)

    def attach_and_log_load_balancing_loss(self, *args, valid_token_count=None, **kwargs):
        return super().attach_and_log_load_balancing_loss(*args, valid_token_count=self._pack_tokens, **kwargs)

    def _apply_expert_bias(self, routing_map, padding_mask=None):
        """routing_map [tokens, experts], padding_mask [tokens]."""
        return super()._apply_expert_bias(routing_map, None if padding_mask is None else padding_mask[:, None])
