"""Router replay is refused where nothing could be replayed, before anything is started."""

import pytest

from tests.cascade.test_config import load, problems

ENABLED = "policy.router_replay.enabled=true"


def test_it_is_off_unless_asked_for_and_said_once_it_holds_for_all_stages_that_sample():
    assert not load().stages["if_rl"].policy.router_replay.enabled
    stages = load(ENABLED).stages
    assert stages["mopd"].policy.router_replay.enabled and stages["sft"].policy.router_replay.enabled
    assert load(f"cascade.stages.mopd.{ENABLED}").stages["mopd"].policy.router_replay.enabled


WRONG = {
    f"cascade.stages.sft.{ENABLED}": "cascade.stages.sft.policy.router_replay.enabled: a stage of kind sft trains on texts that it did not sample",
    f"{ENABLED} policy.megatron_cfg.model_overrides={{moe_router_fusion: true}}": (
        "policy.megatron_cfg.model_overrides.moe_router_fusion: Transformer Engine's fused router cannot replay"
    ),
    "policy.router_replay.enable=true": "policy.router_replay.enable: unknown key; did you mean enabled?",
}


@pytest.mark.parametrize("overrides", WRONG)
def test_what_cannot_be_is_told_by_its_key(overrides):
    first, *rest = overrides.split(" ", 1)
    (problem,) = problems(first, *rest)
    assert problem.startswith(WRONG[overrides])


def test_a_network_without_experts_has_nothing_to_replay(monkeypatch):
    from dataclasses import replace

    from nemo_cascade.models import presets

    monkeypatch.setitem(presets.PRESETS, "tiny", replace(presets.PRESETS["tiny"], pattern="M*MM*M"))
    found = problems(ENABLED)
    assert found == ["policy.router_replay.enabled: tiny has no mixture of experts, so there is nothing to replay; set it to false"]
