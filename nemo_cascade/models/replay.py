"""Router replay: experts that were chosen elsewhere, while sampling, take the place of a router's own choice.

megatron-core's RouterReplay does the recording and the replaying, of which this adds what packs need: tokens that have nothing to
replay, indices in few bytes, and which layer of the whole network a router of a pipeline stage is. What a chosen expert counts
stays the router's own: its gate values are the current scores of those experts, and so are their gradients.
"""

import contextlib
from collections.abc import Iterator

from nemo_cascade.engine import cpu

cpu.install()

import torch  # noqa: E402
from megatron.core.transformer.moe.router_replay import RouterReplay, RouterReplayAction  # noqa: E402

# In a pack, of a token that has nothing to replay, such as padding: its experts are the router's own choice.
OWN_CHOICE = -1


class ReplayedExperts(RouterReplay):
    """The replay of one router. place: which of the network's MoE layers it is; dtype: what indices of its experts are kept in;
    replayed, changed: how many were replayed in forward passes (not when recomputed), and how many of them the router would not have
    chosen itself."""

    def __init__(self, num_experts: int):
        super().__init__()
        self.place = self.replayed = self.changed = 0
        self.dtype = torch.uint8 if num_experts <= 256 else torch.int16

    def get_replay_topk(self, scores, topk, num_groups=None, group_topk=None, default_compute_topk=None):
        """scores [tokens, experts] -> (scores of the chosen experts, their indices), both [tokens, topk]."""
        again = self.router_replay_action is RouterReplayAction.REPLAY_BACKWARD
        if not again and self.router_replay_action is not RouterReplayAction.REPLAY_FORWARD:
            return super().get_replay_topk(scores, topk, num_groups, group_topk, default_compute_topk)
        own = default_compute_topk(scores, topk, num_groups=num_groups, group_topk=group_topk)[1]
        given = (self.replay_backward_list.pop(0) if again else self.target_topk_idx).to(own)
        chosen = torch.where(given == OWN_CHOICE, own, given)
        if not again:
            self.replayed = self.replayed + (given != OWN_CHOICE).sum()
            self.changed = self.changed + (chosen[:, :, None] != own[:, None, :]).all(-1).sum()
        return scores.gather(1, chosen), chosen


def replays_of(model: torch.nn.Module) -> list[ReplayedExperts]:
    """Those of a model's routers, in the order of its layers; none where it was built without moe_enable_routing_replay."""
    found = (getattr(module, "router_replay", None) for module in model.modules())
    return [replay for replay in found if replay is not None]


def place_replays(model: torch.nn.Module, pattern: str) -> None:
    """Tells every router of a pipeline stage which of the MoE layers of the whole network, of this pattern, it is."""
    for module in model.modules():
        if getattr(module, "router_replay", None) is not None:
            # Layers count from 1.
            module.router_replay.place = pattern[: module.layer_number - 1].count("E")


@contextlib.contextmanager
def recording(replays: list[ReplayedExperts]) -> Iterator[None]:
    """Inside, each router keeps the experts of its last forward pass."""
    for replay in replays:
        replay.set_router_replay_action(RouterReplayAction.RECORD)
    try:
        yield
    finally:
        for replay in replays:
            replay.clear_router_replay_action()
            replay.clear_indices()


def recorded(replays: list[ReplayedExperts]) -> torch.Tensor:
    """[tokens, layers, topk] of the last forward pass inside `recording`, in few bytes."""
    return torch.stack([replay.get_recorded_indices().to(replay.dtype) for replay in replays], dim=1)


@contextlib.contextmanager
def replaying(model: torch.nn.Module, experts: torch.Tensor | None) -> Iterator[None]:
    """Around a pack's forward pass. experts [tokens that these routers see, MoE layers of the whole network, topk], some of them
    OWN_CHOICE; None: nothing is replayed.

    From then on until `forget` each router takes the experts of the packs in their order again wherever a layer is recomputed for
    its backward pass, as schedules run these in the order of the forward passes.
    """
    replays = replays_of(model) if experts is not None else []
    for replay in replays:
        replay.set_target_indices(experts[:, replay.place])
        replay.set_router_replay_action(RouterReplayAction.REPLAY_FORWARD)
    try:
        yield
    finally:
        for replay in replays:
            replay.set_router_replay_action(RouterReplayAction.REPLAY_BACKWARD)


def forget(model: torch.nn.Module) -> None:
    """After the last backward pass: routers choose for themselves again."""
    for replay in replays_of(model):
        replay.clear_router_replay_action()
        replay.clear_indices()


def counted(model: torch.nn.Module) -> tuple[int, int]:
    """(experts replayed, those that their routers would not have chosen) by this rank's routers since the last call."""
    replays = replays_of(model)
    counts = sum(int(replay.replayed) for replay in replays), sum(int(replay.changed) for replay in replays)
    for replay in replays:
        replay.replayed = replay.changed = 0
    return counts
