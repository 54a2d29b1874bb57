"""Router replay is refused where nothing could be replayed, before anything is started."""

from dataclasses import replace

from nemo_cascade.models import presets
from tests.cascade.test_config import load, problems

KEY = "policy.router_replay.enabled"


def test_it_is_off_unless_asked_for_and_said_once_it_holds_for_all_stages_that_sample():
    assert not load().stages["if_rl"].policy.router_replay.enabled
    stages = load(f"{KEY}=true").stages
    assert stages["mopd"].policy.router_replay.enabled and stages["sft"].policy.router_replay.enabled


def test_what_cannot_be_is_told_by_its_key(monkeypatch):
    found = problems(
        f"{KEY}=true",
        f"cascade.stages.sft.{KEY}=true",
        "cascade.stages.if_rl.policy.megatron_cfg.model_overrides={moe_router_fusion: true}",
        "policy.generation.backend=sglang",
    )
    texts = (
        f"cascade.stages.sft.{KEY}: a stage of kind sft trains on texts that it did not sample, so there is nothing to replay; remove it",
        f"{KEY}: sglang does not report experts; set policy.generation.backend to megatron, or this to false",
        "cascade.stages.if_rl.policy.megatron_cfg.model_overrides.moe_router_fusion: Transformer Engine's fused router cannot replay; "
        f"remove it, or set {KEY}=false",
    )
    assert {text: found.count(text) for text in texts} == dict.fromkeys(texts, 1)
    monkeypatch.setitem(presets.PRESETS, "tiny", replace(presets.PRESETS["tiny"], pattern="M*MM*M"))
    assert problems(f"{KEY}=true") == [f"{KEY}: tiny has no mixture of experts, so there is nothing to replay; set it to false"]
