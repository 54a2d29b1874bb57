"""`nemo-cascade plan`: what is said of the shipped configs, of layouts that cannot be, and of those that do not fit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_cascade.cascade.capacity import layout_of
from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import ConfigErrors, load_config
from nemo_cascade.engine.config import MegatronConfig
from nemo_cascade.engine.memory import GIB, GPUS
from tests.helpers import run_distributed

LAYOUT = "policy.megatron_cfg."


def plan(name: str, overrides=(), gpu: str | None = None, world_size: int | None = None, suggest: bool = True) -> dict:
    return run_distributed(planned, 1, name, overrides, gpu, world_size, suggest)[0]


def planned(name, overrides, gpu, world_size, suggest):
    from nemo_cascade.cascade.capacity import plan_cascade
    from nemo_cascade.engine.planner import rank_models

    cascade = load_config(compose_config(name, overrides), world_size, planning=True)
    cluster = cascade.stages["sft"].cluster
    world_size = world_size or cluster.num_nodes * cluster.gpus_per_node
    return plan_cascade(cascade, GPUS[gpu or cluster.gpu], world_size, rank_models, suggest).as_dict()


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    program = [sys.executable, "-m", "nemo_cascade", *arguments]
    return subprocess.run(program, cwd=cwd, env=os.environ, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize(
    "name, overrides, gpu, ranks",
    [("full", (), "H100 80G", 256), ("node", (), "H200 141G", 8), ("node", ("cluster=8x_h100",), "H100 80G", 8)],
    ids=["full", "node", "node of H100"],
)
def test_the_shipped_configs_fit_the_machines_they_are_for(name, overrides, gpu, ranks):
    found = plan(name, overrides)
    assert found["fits"] and found["suggestion"] is None
    assert (found["gpu"]["name"], found["world_size"], found["parameters"]) == (gpu, ranks, 31_577_937_344)
    required = [required for stage in found["stages"] for required in stage["requirements"]]
    assert all(each["peak"] <= found["gpu"]["memory"] for each in required)


def test_the_stages_of_full_are_those_of_the_paper_in_its_order():
    cascade = load_config(compose_config("full"), planning=True)
    main = [name for name, stage in cascade.stages.items() if not stage.teacher_only]
    rl = "if_rl multi_domain_rl mopd rlhf long_context_rl code_rl swe_rl swe_agentic_rl"
    assert main == ["sft", *rl.split()]
    steps = {name: stage.max_num_steps for name, stage in cascade.stages.items()}
    assert (steps["sft"], steps["if_rl"], steps["multi_domain_rl"], steps["code_rl"]) == (33_000, 180, 70, 22)
    grpo = {name: stage.grpo for name, stage in cascade.stages.items()}
    sizes = {name: (g.num_prompts_per_step, g.num_generations_per_prompt) for name, g in grpo.items()}
    assert (sizes["if_rl"], sizes["mopd"], sizes["swe_agentic_rl"]) == ((128, 16), (512, 1), (16, 64))
    assert cascade.stages["sft"].policy.sequence_packing.train_mb_tokens == 262_144


@pytest.mark.parametrize("name", ["full", "node"])
def test_every_stage_of_the_main_line_has_a_gate_that_stops_and_is_scored_for_it(name):
    cascade = load_config(compose_config(name), planning=True)
    main = [stage for stage in cascade.stages.values() if not stage.teacher_only and stage.parent is not None]
    assert all(stage.gate.max_drop and stage.gate.on_failure == "stop" for stage in main)
    gains = {stage.name: list(stage.gate.min_gain) for stage in main if stage.gate.min_gain}
    assert gains["if_rl"] == ["instruction_following"] and gains["code_rl"] == ["code_gen"]
    assert "preference" not in cascade.stages["if_rl"].gate.max_drop, "the stage is known to cost it"


def test_what_full_and_node_lack_on_this_machine_is_told_without_a_crash(tmp_path):
    done = command("check", "--config-name=full", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for line in (
        "cascade.stages.code_rl.data.train.code_gen.data_path: no file data/code_gen/train.jsonl",
        "policy.tokenizer.name: nano_30b_a3b is neither a folder nor shipped with the package (tiny); "
        "name a folder with a tokenizer.json",
    ):
        assert f"nemo-cascade: {line}\n" in done.stderr


def test_teachers_reference_and_judge_wait_in_the_host_memory_of_every_rank():
    found = plan("node")
    first = {stage["name"]: stage["requirements"][0] for stage in found["stages"]}
    host = {stage["name"]: (stage["work"]["checkpoints"], first[stage["name"]]["host"]) for stage in found["stages"]}
    weights = first["sft"]["weights"]
    # MOPD's three teachers; in RLHF the model that the KL term holds it to.
    assert host["mopd"] == (3, 3 * weights) and host["rlhf"] == (1, weights) and host["if_rl"] == (0, 0)


def test_a_layout_that_does_not_fit_comes_with_the_nearest_that_does():
    found = plan("node", gpu="h100-80g")
    assert not found["fits"] and found["suggestion"] == (LAYOUT + "optimizer.optimizer_cpu_offload=true",)
    sft = found["stages"][0]
    assert sft["problems"] and "more than the 79.1 of H100 80G" in sft["problems"][0]
    assert plan("node", found["suggestion"], gpu="h100-80g")["fits"]


def test_a_suggestion_may_be_of_several_keys_and_of_fewer_replies_at_once():
    overrides = (
        LAYOUT + "context_parallel_size=1",
        LAYOUT + "activation_checkpointing=false",
        "policy.generation.backend=megatron",
    )
    found = plan("full", overrides, world_size=32)
    changes = tuple(found["suggestion"])
    (batch,) = [change for change in changes if change.startswith("cascade.stages.swe_agentic_rl.policy.generation.max_batch_size=")]
    assert not found["fits"] and len(changes) >= 2
    assert plan("full", overrides + changes, world_size=32)["fits"]
    # The batch is the largest power of two that fits.
    key, _, size = batch.partition("=")
    doubled = [change for change in changes if change != batch] + [f"{key}={2 * int(size)}"]
    assert not plan("full", (*overrides, *doubled), world_size=32, suggest=False)["fits"]


def test_a_layout_under_which_the_embedded_engine_does_not_decode_is_planned_and_told():
    (note,) = plan("full", ("policy.generation.backend=megatron",))["notes"]
    assert note.startswith("cannot be run: under policy.megatron_cfg.context_parallel_size=4 the embedded rollout")
    assert "the rollouts or validation of every stage; planned as if" in note and note.endswith("policy.generation.backend=vllm")
    assert plan("node")["notes"] == ()
    pipeline = (LAYOUT + "pipeline_model_parallel_size=2", LAYOUT + "expert_model_parallel_size=4")
    (note,) = plan("node", (*pipeline, "cascade.validation.num_prompts=0"))["notes"]
    assert "pipeline_model_parallel_size=2" in note and "validation of if_rl, multi_domain_rl" in note
    sft = ("cascade.order=[sft]", "cascade.validation.num_prompts=0", LAYOUT + "context_parallel_size=2")
    assert plan("node", sft)["notes"] == ()


def test_what_vllm_takes_of_a_gpu_counts_while_replies_are_drawn_and_must_hold_its_weights_and_a_sequence():
    found = plan("full")
    taken = GPUS["h100-80g"].memory // 2
    for stage in found["stages"]:
        (required,) = stage["requirements"]
        held = required["weights"] + required["gradients"] + required["optimizer"]
        assert required["cache"] == taken and required["phases"]["validate"] == required["weights"] + taken
        assert stage["kind"] == "sft" or required["phases"]["sample"] == held + taken
    whole = plan("full", ("policy.generation.vllm_cfg.tensor_parallel_size=1", "policy.generation.vllm_cfg.expert_parallel_size=1"), suggest=False)
    (problem,) = whole["stages"][0]["problems"]
    assert problem.startswith("vLLM needs 58.8 GiB a rank for its weights and 1.5 for a sequence of 262,144 tokens, more than the 39.5")
    assert problem.endswith("raise policy.generation.vllm_cfg.tensor_parallel_size (1) or gpu_memory_utilization (0.5)")


@pytest.mark.parametrize(
    "overrides",
    [
        ("fp8_cfg.enabled=true", "fp8_cfg.fp8_recipe=tensorwise", "fp8_cfg.first_last_layers_bf16=true"),
        ("activation_checkpointing=false", "recompute_granularity=selective", "recompute_modules=[moe_act]"),
    ],
    ids=["FP8", "moe_act"],
)
def test_what_only_transformer_engine_runs_is_planned_without_it(overrides):
    assert plan("node", tuple(LAYOUT + override for override in overrides))["parameters"] == 31_577_937_344


def test_every_stage_is_planned_with_the_replies_that_score_it():
    stages = {stage["name"]: stage for stage in plan("node")["stages"]}
    # 128 prompts of each of ten domains on eight ranks, of which max_batch_size lets 64 be decoded at once.
    assert stages["sft"]["work"]["sequences"] == 0 and stages["sft"]["work"]["validation_sequences"] == 64
    assert "validate" in stages["sft"]["requirements"][0]["phases"] and stages["sft"]["requirements"][0]["cache"] > 0
    unscored = plan("node", ("cascade.validation.num_prompts=0",))["stages"][0]
    assert unscored["work"]["validation_sequences"] == unscored["requirements"][0]["cache"] == 0


@pytest.mark.parametrize(
    "settings, expected",
    [
        (dict(), (None, 1, ())),
        (dict(activation_checkpointing=True), ("uniform", 1, ())),
        (dict(granularity="full", method="uniform", num_layers=4), ("uniform", 4, ())),
        (dict(granularity="full", method="block", num_layers=20), ("block", 20, ())),
        (dict(granularity="selective", modules=["moe"]), (None, 1, ("moe",))),
    ],
)
def test_formulas_hear_what_is_recomputed(settings, expected):
    settings = {name if "_ch" in name else f"recompute_{name}": value for name, value in settings.items()}
    layout = layout_of(MegatronConfig(**settings))
    assert (layout.recompute_method, layout.recompute_num_layers, layout.recompute_modules) == expected


def test_fewer_recomputed_layers_save_more():
    """A third of the stage's layers as they are, not all of them recomputed as "full" might sound."""
    full = LAYOUT + "activation_checkpointing=false", LAYOUT + "recompute_granularity=full"
    block = (*full, LAYOUT + "recompute_method=block", LAYOUT + "recompute_num_layers=35")
    some, every = (plan("node", overrides, suggest=False)["stages"][0] for overrides in (block, ()))
    assert some["requirements"][0]["activations"] > 2 * every["requirements"][0]["activations"]


def test_what_fits_nowhere_is_told_so():
    alone = [f"{LAYOUT}{name}_parallel_size=1" for name in ("tensor_model", "context", "expert_model")]
    found = plan("full", (*alone, LAYOUT + "sequence_parallel=false"), world_size=1)
    assert not found["fits"] and found["suggestion"] is None


def test_illegal_layouts_are_refused_with_the_arithmetic_all_at_once():
    sizes = dict(tensor=3, expert=7, pipeline=5)
    with pytest.raises(ConfigErrors) as errors:
        overrides = [f"{LAYOUT}{name}_model_parallel_size={size}" for name, size in sizes.items()]
        load_config(compose_config("full", overrides), 256, planning=True)
    found = "\n".join(errors.value.problems)
    for part in (
        "which does not divide the 256 started processes (256 = 60 * 4 + 16)",
        "which does not divide the 256 started processes (256 = 35 * 7 + 11)",
        "num_attention_heads 32 = 3 * 10 + 2",
        "mamba_num_groups 8 = 3 * 2 + 2",
        "vocab_size 131072 = 3 * 43690 + 2",
        "num_query_groups 2 = 3 * 0 + 2",
        "num_moe_experts 128 = 7 * 18 + 2",
        "num_layers 52 = 5 * 10 + 2",
    ):
        assert part in found


def test_the_command_prints_json_or_a_table_and_says_by_its_exit_code_whether_all_fits(tmp_path):
    done = command("plan", "--config-name=node", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["fits"]
    assert [stage["name"] for stage in found["stages"]][:2] == ["sft", "if_rl"]
    rank, required = found["stages"][0]["ranks"][0], found["stages"][0]["requirements"][0]
    assert rank["ranks"] == 8 and required["gradients"] == 4 * rank["parameters"] and required["peak"] > 80 * GIB
    done = command("plan", "--config-name=node", "--gpu=h100-80g", "--no-suggest", cwd=tmp_path)
    assert done.returncode == 1 and "31.578 B parameters on 8 x H100 80G" in done.stdout and "NO" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--gpu=h100",), "--gpu h100: not one of h100-80g, h200, b200"),
        (("--world-size=12",), "which does not divide the 12 started processes (12 = 8 * 1 + 4)"),
        ((LAYOUT + "tensor_model_paralel_size=2",), "did you mean tensor_model_parallel_size?"),
        (("cascade.validation.num_prompts=-5",), "cascade.validation.num_prompts: must be >= 0"),
    ],
)
def test_what_cannot_be_found_or_be_ends_with_code_2(arguments, said, tmp_path):
    done = command("plan", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
