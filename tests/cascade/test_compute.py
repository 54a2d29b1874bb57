"""FP8, an optimizer in host memory and recomputation that cannot be are refused when the config loads, with the
arithmetic and all at once."""

from importlib.util import find_spec

import pytest

from nemo_cascade.cascade import checks
from tests.cascade.test_config import load, problems

KEY = "policy.megatron_cfg.fp8_cfg"
FP8 = ["policy.precision=bfloat16", f"{KEY}.enabled=true", f"{KEY}.fp8_recipe=tensorwise"]
NANO = ["policy.model_name=nano_30b_a3b", "policy.megatron_cfg.expert_model_parallel_size=2"]


@pytest.fixture
def transformer_engine(monkeypatch):
    """Checks are told that it is installed."""
    monkeypatch.setattr(checks, "find_spec", lambda name: name == "transformer_engine" or find_spec(name))


@pytest.mark.skipif(find_spec("transformer_engine") is not None, reason="Transformer Engine is installed")
@pytest.mark.parametrize("overrides", [[*FP8, *NANO], ["policy.megatron_cfg.optimizer.optimizer_cpu_offload=true"]])
def test_what_needs_transformer_engine_is_refused_without_it(overrides):
    key = next(override.split("=")[0] for override in overrides if "fp8_cfg.enabled" in override or "offload" in override)
    (problem,) = (problem for problem in problems(*overrides) if "Transformer Engine" in problem)
    assert problem.startswith(f"{key}: ") and "not installed" in problem


def test_fp8_of_a_network_that_fits_is_accepted(transformer_engine):
    cascade = load(*FP8, *NANO, f"{KEY}.attention_in_bf16=true", f"{KEY}.first_last_layers_bf16=true")
    settings = cascade.stages["sft"].policy.megatron_cfg.fp8_cfg
    assert (settings.enabled, settings.fp8, settings.fp8_param) == (True, "e4m3", False)
    assert settings.num_layers_at_end_in_bf16 == 1


def test_fp8_needs_bfloat16_around_it(transformer_engine):
    (problem,) = problems(*NANO, f"{KEY}.enabled=true", f"{KEY}.fp8_recipe=tensorwise")
    assert problem.startswith(f"{KEY}.enabled: ") and "policy.precision=bfloat16" in problem and "float32" in problem


def test_nanos_widths_that_blocks_of_128_do_not_divide_are_named_with_the_numbers(transformer_engine):
    found = problems(*FP8, *NANO, f"{KEY}.fp8_recipe=blockwise", world_size=None)
    assert [problem.split(": ")[0] for problem in found] == [f"{KEY}.fp8_recipe"] * 3
    in_proj, fc1, fc2 = found
    assert "10304 = 80.5 * 128" in in_proj and "mixer.in_proj" in in_proj and "in 23 layers" in in_proj
    assert "1856 = 14.5 * 128" in fc1 and "experts.linear_fc1" in fc1 and "experts.linear_fc2" in fc2
    assert all("unaligned_in_bf16=true" in problem and "tensorwise, mxfp8" in problem for problem in found)
    load(*FP8, *NANO, f"{KEY}.fp8_recipe=blockwise", f"{KEY}.unaligned_in_bf16=true", world_size=None)
    load(*FP8, *NANO, f"{KEY}.fp8_recipe=mxfp8", world_size=None)


def test_a_network_that_megatron_core_refuses_in_any_recipe(transformer_engine):
    (problem,) = problems(*FP8)
    assert problem.startswith(f"{KEY}.enabled: ") and "those of tiny are 648 = 40.5 * 16" in problem


def test_parameters_in_fp8_exclude_other_checkpoints_in_their_buffers(transformer_engine):
    (problem,) = problems(*FP8, *NANO, f"{KEY}.fp8_param=true")
    assert problem.startswith(f"{KEY}.fp8_param: ") and "teachers" in problem
    only_sft = load(*FP8, *NANO, f"{KEY}.fp8_param=true", "cascade.order=[sft]", "~cascade.judge")
    assert only_sft.stages["sft"].policy.megatron_cfg.fp8_cfg.fp8_param


def test_delayed_scaling_has_no_layers_apart(transformer_engine):
    keys = ("first_last_layers_bf16", "attention_in_bf16", "unaligned_in_bf16")
    found = problems(*FP8, *NANO, f"{KEY}.fp8_recipe=delayed", *(f"{KEY}.{key}=true" for key in keys))
    assert [problem.split(": ")[0] for problem in found] == [f"{KEY}.{key}" for key in keys]


def test_only_the_distributed_optimizer_can_be_in_host_memory():
    key = "policy.megatron_cfg.optimizer"
    found = problems(f"{key}.optimizer_cpu_offload=true", f"{key}.use_distributed_optimizer=false")
    assert [problem for problem in found if "use_distributed_optimizer=true or this to false" in problem]
    assert {problem.split(": ")[0] for problem in found} == {f"{key}.optimizer_cpu_offload"}


def test_every_problem_of_a_bad_block_is_told():
    values = ("enabled=true", "fp8=e5m2", "fp8_recipe=mxfp9", "num_layers_at_start_in_bf16=-1", "fp8_params=true")
    found = problems(*(f"{KEY}.{value}" for value in values))
    text = "\n".join(found)
    for part in ("e5m2", "mxfp9", "must be >= 0, got -1", "did you mean fp8_param?"):
        assert part in text, part


def test_more_bf16_layers_than_a_pipeline_stage_has(transformer_engine):
    (problem,) = problems(*FP8, *NANO, f"{KEY}.first_last_layers_bf16=true", f"{KEY}.num_layers_at_end_in_bf16=53")
    assert problem.startswith(f"{KEY}.num_layers_at_end_in_bf16: 53 is more than the 52 / 1 = 52 layers")


RECOMPUTE = "policy.megatron_cfg"


@pytest.mark.parametrize(
    "overrides, key, part",
    [
        (["recompute_granularity=full"], "recompute_granularity", "needs recompute_method and recompute_num_layers"),
        (["recompute_granularity=full", "recompute_method=uniform"], "recompute_granularity", "needs recompute_num_layers"),
        (["recompute_granularity=full", "recompute_method=block", "recompute_num_layers=7"], "recompute_num_layers", "6 / 1 = 6 layers"),
        (["recompute_granularity=selective"], "recompute_granularity", "core_attn"),
        (["recompute_granularity=selective", "recompute_modules=[mamba]"], "recompute_modules", "mamba is not among"),
        (["recompute_modules=[moe]"], "recompute_modules", "selective"),
        (["recompute_num_layers=1"], "recompute_num_layers", "full"),
        (["activation_checkpointing=true", "recompute_granularity=selective"], "activation_checkpointing", "one of them"),
        (["recompute_granularity=some"], "recompute_granularity", "not a choice"),
    ],
)
def test_recomputation_that_says_too_little_or_too_much(overrides, key, part):
    found = problems(*(f"{RECOMPUTE}.{override}" for override in overrides))
    assert any(problem.startswith(f"{RECOMPUTE}.{key}: ") and part in problem for problem in found), found


def test_activation_checkpointing_is_full_recomputation():
    from nemo_cascade.engine.config import recompute_settings

    settings = recompute_settings(load(f"{RECOMPUTE}.activation_checkpointing=true").stages["sft"].policy.megatron_cfg)
    assert settings == {
        "recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1, "recompute_modules": None
    }  # fmt: skip
