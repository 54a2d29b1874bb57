"""Whether a stage has experts to replay: `policy.router_replay`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nemo_cascade.cascade.compute import known_preset
from nemo_cascade.rollout.config import REPORT_EXPERTS

if TYPE_CHECKING:
    from nemo_cascade.cascade.config import Source, StageConfig

KEY = "policy.router_replay.enabled"


def problems(stage: "StageConfig", source: "Source") -> Iterator[str]:
    """Lines "key: what is wrong; what to do". What all stages inherit is no problem of one that samples nothing."""
    key, preset = source.where(stage.name, KEY), known_preset(stage.policy.model_name)
    if not stage.policy.router_replay.enabled:
        return
    if stage.kind != "rl":
        if key == source.own(stage.name, KEY):
            yield f"{key}: a stage of kind {stage.kind} trains on texts that it did not sample, so there is nothing to replay; remove it"
        return
    if preset is not None and "E" not in preset.pattern:
        yield f"{key}: {stage.policy.model_name} has no mixture of experts, so there is nothing to replay; set it to false"
    if (backend := stage.policy.generation.backend) not in REPORT_EXPERTS:
        choices = " or ".join(REPORT_EXPERTS)
        yield f"{key}: {backend} does not report experts; set policy.generation.backend to {choices}, or this to false"
    overrides = "policy.megatron_cfg.model_overrides.moe_router_fusion"
    if stage.policy.megatron_cfg.model_overrides.get("moe_router_fusion"):
        yield f"{source.where(stage.name, overrides)}: Transformer Engine's fused router cannot replay; remove it, or set {KEY}=false"
