"""megatron-core's router, counting a pack's real tokens and all of them: the same balance at every layout.

What megatron-core counts is not what a pack held in parts needs, and differs from version to version: a balancing loss is
weighted by the tokens of a rank, of a context-parallel group, or of a group times its size; the z-loss is divided by the
tensor- and context-parallel ranks once too often; the mask of padding is laid along the experts where it counts for the
expert bias; and a pack of padding alone has a loss that is no number. So the weights are taken here.
"""

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.moe.router_replay import RouterReplay

from nemo_cascade.models.replay import ReplayedExperts


class Router(TopKRouter):
    """`forward(hidden [tokens, 1, hidden], padding_mask [1, tokens])`, True where a token is padding and counts nowhere.

    Under calculate_per_token_loss the router's losses join a sum over tokens, later divided by the number of those trained
    on: each is weighted by the tokens it is an average of. Otherwise they are megatron-core's.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.router_replay is not None:
            # In the place of megatron-core's in its list of all routers.
            RouterReplay.global_router_replay_instances.remove(self.router_replay)
            self.router_replay = ReplayedExperts(self.num_experts)

    def routing(self, logits, padding_mask=None):
        """logits [tokens, 1, experts] -> (probabilities, routing map), both [tokens, experts]."""
        self._real = logits.new_ones(logits.shape[0] * logits.shape[1], dtype=torch.bool)
        if padding_mask is not None:
            self._real &= ~padding_mask.reshape(-1)
        if self.training and torch.is_grad_enabled() and self.is_aux_loss_enabled():
            # Each rank adds the gradient of its part of the average, which is over all ranks that hold the pack, or for
            # the global loss over their peers' packs too.
            over_data = self.get_aux_loss_coeff("global_aux_loss") > 0
            self._balanced_tokens = self._real.sum(dtype=torch.float32)
            dist.all_reduce(self._balanced_tokens, group=self.tp_dp_cp_group if over_data else self.tp_cp_group)
            if padding_mask is not None:
                # Over no token at all an average is no number, and times the weight of 0 neither.
                padding_mask = padding_mask & (self._balanced_tokens > 0)
        return super().routing(logits, padding_mask)

    def attach_and_log_load_balancing_loss(self, activation, aux_loss_coeff, aux_loss, *args, **kwargs):
        """Lets aux_loss, this rank's share of it, have its gradient when activation has its own. It is not logged."""
        if not self.calculate_per_token_loss:
            return super().attach_and_log_load_balancing_loss(activation, aux_loss_coeff, aux_loss, *args, **kwargs)
        return MoEAuxLossAutoScaler.apply(activation, aux_loss * self._balanced_tokens)

    def apply_z_loss(self, logits, padding_mask=None):
        """logits [tokens, experts] -> the same, with the z-loss attached: coeff * sum of logsumexp^2 (Zoph et al. 2022, eq. 5)."""
        if not self.calculate_per_token_loss:
            return super().apply_z_loss(logits, padding_mask)
        if not self.config.moe_z_loss_coeff or not self.training or not torch.is_grad_enabled():
            return logits
        squares = logits.logsumexp(-1).square().where(self._real, 0)
        return MoEAuxLossAutoScaler.apply(logits, self.config.moe_z_loss_coeff * squares.sum())

    def _apply_expert_bias(self, routing_map, padding_mask=None):
        """Counts routing_map [tokens, experts]."""
        super()._apply_expert_bias(routing_map & self._real[:, None])
