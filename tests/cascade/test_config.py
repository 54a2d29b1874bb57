"""A wrong config stops with all its problems, each naming its key and a remedy, before anything is started."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_cascade.cascade.checks import get
from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import CascadeConfig, ConfigErrors, load_config
from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.data.packed_dataset import write_packed
from nemo_cascade.data.packing import document_multiple, pack, round_up

CONF = Path(__file__).parents[2] / "conf"


def load(*overrides: str, name: str = "tiny", world_size: int | None = 2) -> CascadeConfig:
    return load_config(compose_config(name, overrides), world_size)


def problems(*overrides: str, **settings) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load(*overrides, **settings)
    return caught.value.problems


# -------------------------------------------------------------------------------- what a config becomes


ORDER = "genrm sft if_rl multi_domain_rl math_rl preference_rl mopd rlhf long_context_rl code_rl swe_rl".split()


def differing(key: str, stages) -> dict:
    """The stages of kind rl that have another value at a key than math_rl, the plainest of them."""
    usual = get(stages["math_rl"], key)
    return {name: get(s, key) for name, s in stages.items() if s.kind == "rl" and get(s, key) != usual}


def test_tiny_reads_like_the_pipeline():
    stages = load().stages
    assert list(stages) == ORDER
    assert [name for name, stage in stages.items() if stage.kind == "sft"] == ["genrm", "sft"]
    assert [name for name, stage in stages.items() if stage.teacher_only] == ["genrm", "math_rl", "preference_rl"]
    assert [name for name, stage in stages.items() if stage.parent is None] == ["genrm", "sft"]
    main_line = ["swe_rl"]
    while stages[main_line[0]].parent is not None:
        main_line.insert(0, stages[main_line[0]].parent)
    assert main_line == [name for name in ORDER if not stages[name].teacher_only]
    assert stages["math_rl"].parent == stages["preference_rl"].parent == "sft"
    assert [name for name, stage in stages.items() if stage.distils] == ["mopd"]


def test_every_domain_is_taught_by_the_stage_that_trained_on_it_or_the_student_is_held_there():
    stages = load().stages
    teachers = stages["mopd"].teachers
    assert list(teachers) == list(stages["mopd"].data.train)
    for domain, teacher in teachers.items():
        assert teacher.anchor or domain in stages[teacher.stage].data.train
        assert teacher.anchor == (teacher.stage == stages["mopd"].parent)
    assert {teacher.stage for teacher in teachers.values() if not teacher.anchor} == {"math_rl", "preference_rl", "sft"}


def test_one_judge_serves_every_stage_after_it():
    cascade = load()
    assert [stage.judge for stage in cascade.stages.values()] == [None] + ["genrm"] * (len(ORDER) - 1)
    assert list(cascade.stages["genrm"].data.train) == ["preference_pairs"]
    late = load("cascade.order=[sft,if_rl,genrm,math_rl]").stages
    assert [stage.judge for stage in late.values()] == [None, None, None, "genrm"]
    assert {stage.judge for stage in load("~cascade.judge").stages.values()} == {None}


def test_every_demo_domain_is_trained_on_by_sft_or_the_judge_by_rl_and_scored():
    stages = load().stages
    rl = {domain for stage in stages.values() if stage.kind == "rl" for domain in stage.data.train}
    assert rl == set(stages["sft"].data.train) == set(stages["swe_rl"].data.validation)
    assert rl | set(stages["genrm"].data.train) == set(DOMAINS)


def test_the_demos_rows_may_differ_by_domain():
    settings = load("cascade.demo_data.rows_of={math: {sft_rows: 5}}").demo_data
    assert settings.rows_of["math"] == {"sft_rows": 5}
    assert set(settings.rows_of) == {"math", "tool_use", "preference", "long_context"}


def test_tiny_holds_the_recipes_constants():
    stages = load().stages
    for name, beta2 in (("sft", 0.98), ("if_rl", 0.95), ("mopd", 0.95)):
        assert stages[name].policy.megatron_cfg.optimizer.adam_beta2 == beta2
    assert stages["sft"].policy.megatron_cfg.scheduler.lr_decay_style == "cosine"
    assert stages["sft"].policy.megatron_cfg.moe_router_load_balancing_type == "seq_aux_loss"
    for stage in (stage for stage in stages.values() if stage.kind == "rl"):
        router = stage.policy.megatron_cfg
        assert (router.moe_router_load_balancing_type, router.moe_router_bias_update_rate) == ("none", 0.0)
    loss = stages["mopd"].loss_fn
    assert (loss.token_level_loss, loss.truncated_importance_sampling_type) == (False, "icepop")
    assert (loss.truncated_importance_sampling_ratio_min, loss.truncated_importance_sampling_ratio) == (0.5, 2.0)
    shares = {domain: file.share for domain, file in stages["multi_domain_rl"].data.train.items()}
    assert max(shares, key=shares.get) == "mcqa" and sum(shares.values()) == pytest.approx(1.0)


def test_stages_differ_in_what_the_recipe_says_and_in_nothing_else():
    stages = load().stages
    for key, expected in {
        "grpo.use_dynamic_sampling": {"if_rl": True},
        "grpo.overlong": {
            **dict.fromkeys(["multi_domain_rl", "preference_rl", "rlhf", "long_context_rl", "code_rl", "swe_rl"], "mask"),
            "mopd": "keep",
        },
        "grpo.swe_group_threshold": {"swe_rl": 0.5},
        "loss_fn.reference_policy_kl_penalty": {"preference_rl": 0.03, "rlhf": 0.03},
        "policy.generation.top_p": {"code_rl": 0.95},
        "policy.generation.temperature": {},
        "grpo.normalize_rewards": {},
    }.items():
        assert differing(key, stages) == expected, key
    judged = stages["rlhf"].genrm
    assert judged == stages["preference_rl"].genrm and judged.comparison_strategy == "all_pairs"
    penalties = [f"group_{part}_length_penalty_coeff" for part in ("reasoning", "answer")]
    terms = [*penalties, "reasoning_bonus", "answer_bonus"]
    recipe = OmegaConf.load(CONF / "stage" / "rlhf.yaml").genrm
    assert {recipe[term] for term in terms} == {0.5} and judged.top_percentile == recipe.top_percentile == 0.2
    assert {getattr(judged, term) for term in terms} == {0.2}, "tiny's letters are short"


def test_smoke_is_tiny_and_an_agentic_stage_with_two_steps_a_stage():
    smoke = load(name="smoke").stages
    assert {name: stage.max_num_steps for name, stage in smoke.items()} == dict.fromkeys([*ORDER, "swe_agentic_rl"], 2)
    assert [stage.parent for stage in smoke.values()] == [*(stage.parent for stage in load().stages.values()), "swe_rl"]
    assert list(load(name="agentic").stages) == list(smoke)


def test_a_stage_overrides_the_top_level_blocks_and_nothing_else():
    cascade = load("policy.max_grad_norm=0.5", "cascade.stages.if_rl.policy.max_grad_norm=2")
    norms = {name: stage.policy.max_grad_norm for name, stage in cascade.stages.items()}
    assert norms == dict.fromkeys(ORDER, 0.5) | {"if_rl": 2.0}


def test_a_key_the_file_does_not_spell_out_can_be_set_on_the_command_line():
    assert load("cascade.stages.mopd.grpo.max_num_steps=7").stages["mopd"].grpo.max_num_steps == 7


def test_model_overrides_pass_through():
    stage = load("policy.megatron_cfg.model_overrides={anything: [1, {deep: x}]}").stages["if_rl"]
    assert stage.policy.megatron_cfg.model_overrides == {"anything": [1, {"deep": "x"}]}


def test_parent_null_means_fresh_weights():
    assert load("cascade.stages.if_rl.parent=null", "~cascade.stages.if_rl.gate").stages["if_rl"].parent is None


def test_a_shorter_order_leaves_stages_out():
    assert list(load("cascade.order=[genrm,sft,if_rl]").stages) == ["genrm", "sft", "if_rl"]


# -------------------------------------------------------------------------------- one problem, one line


CASES = {
    "a typo in a stage": (
        ["cascade.stages.mopd.grpo.max_num_stepz=30"],
        "cascade.stages.mopd.grpo.max_num_stepz: unknown key; did you mean max_num_steps?",
    ),
    "a typo at the top": (["polcy.precision=float32"], "polcy: unknown key; did you mean policy?"),
    "a key in the wrong place": (
        ["policy.lr=1e-3"],
        "policy.lr: unknown key; did you mean megatron_cfg.optimizer.lr?",
    ),
    "a stage that is not there": (
        ["cascade.stages.mopdd.grpo.max_num_steps=3"],
        "cascade.stages.mopdd: unknown stage; did you mean mopd?",
    ),
    "a stage named twice over": (["cascade.stages.sft.name=x"], "cascade.stages.sft.name: unknown key"),
    "a string for a number": (["policy.max_grad_norm=high"], "policy.max_grad_norm: expected a number, got 'high'"),
    "a fraction for a count": (["grpo.max_num_steps=2.5"], "grpo.max_num_steps: expected a whole number, got 2.5"),
    "a flag for a number": (["policy.max_grad_norm=true"], "policy.max_grad_norm: expected a number, got True"),
    "a number for a flag": (["data.shuffle=1"], "data.shuffle: expected true or false, got 1"),
    "a value for a block": (["policy.generation=3"], "policy.generation: expected a mapping, got 3"),
    "not a number": (["policy.max_grad_norm=.nan"], "policy.max_grad_norm: expected a"),
    "a missing value": (["cascade.run_dir=???"], "cascade.run_dir: missing value; set it"),
    "a missing path": (
        ["cascade.stages.if_rl.data.train.mcqa={share: 1.0}"],
        "cascade.stages.if_rl.data.train.mcqa.data_path: missing value; set it",
    ),
    "an interpolation into nothing": (["cascade.run_dir=${cascade.nothing}"], "cascade.run_dir: Interpolation key"),
    "a kind": (["cascade.stages.sft.kind=sftt"], "cascade.stages.sft.kind: 'sftt' is not a choice; did you mean sft?"),
    "an estimator": (
        ["cascade.stages.if_rl.grpo.adv_estimator.name=gpro"],
        "cascade.stages.if_rl.grpo.adv_estimator.name: 'gpro' is not a choice; did you mean grpo?",
    ),
    "a schedule": (
        ["cascade.stages.sft.policy.megatron_cfg.scheduler.lr_decay_style=cosin"],
        "cascade.stages.sft.policy.megatron_cfg.scheduler.lr_decay_style: 'cosin' is not a choice; did you mean cos",
    ),
    "a correction": (
        ["cascade.stages.mopd.loss_fn.truncated_importance_sampling_type=icepopp"],
        "'icepopp' is not a choice; did you mean icepop?",
    ),
    "a backend": (["policy.generation.backend=vlm"], "policy.generation.backend: 'vlm' is not a choice"),
    "a precision": (
        ["policy.precision=float16"],
        "policy.precision: 'float16' is not a choice; did you mean bfloat16?",
    ),
    "a temperature": (["policy.generation.temperature=-0.1"], "policy.generation.temperature: must be >= 0, got -0.1"),
    "a validation temperature": (
        ["cascade.validation.temperature=-1"],
        "cascade.validation.temperature: must be >= 0, got -1",
    ),
    "a validation nucleus": (["cascade.validation.top_p=0"], "cascade.validation.top_p: must be in (0, 1], got 0"),
    "a nucleus of nothing": (["policy.generation.top_p=0"], "policy.generation.top_p: must be in (0, 1], got 0.0"),
    "a nucleus of too much": (["policy.generation.top_p=1.1"], "policy.generation.top_p: must be in (0, 1], got 1.1"),
    "no steps": (
        ["cascade.stages.sft.sft.max_num_steps=0"],
        "cascade.stages.sft.sft.max_num_steps: must be >= 1, got 0",
    ),
    "a group of one": (["grpo.num_generations_per_prompt=1"], "grpo.num_generations_per_prompt: a group of one"),
    "a floor above the rate": (
        ["cascade.stages.sft.policy.megatron_cfg.optimizer.min_lr=1"],
        "cascade.stages.sft.policy.megatron_cfg.optimizer.min_lr: 1.0 is above lr",
    ),
    "no room for a prompt": (
        ["policy.generation.max_new_tokens=1280"],
        "policy.generation.max_new_tokens: 1280 leaves no room",
    ),
    "a pack too short": (
        ["policy.sequence_packing.train_mb_tokens=100"],
        "policy.sequence_packing.train_mb_tokens: 100 is below",
    ),
    "a block the loop never reads": (
        ["cascade.stages.if_rl.sft.max_num_steps=3"],
        "cascade.stages.if_rl.sft: a stage of kind rl never reads this block; remove it",
    ),
    "a default no stage takes": (
        ["policy.megatron_cfg.scheduler.lr_decay_style=linear"],
        "policy.megatron_cfg.scheduler.lr_decay_style: no effect, every stage has its own",
    ),
    "a stage unknown to the order": (
        ["cascade.order=[sft,if_rll]"],
        "cascade.order: unknown stage if_rll; did you mean if_rl?",
    ),
    "a stage twice in the order": (["cascade.order=[sft,sft]"], "cascade.order: sft is listed more than once"),
    "an empty order": (["cascade.order=[]"], "cascade.order: no stage to run"),
    "an unknown parent": (
        ["cascade.stages.if_rl.parent=stf"],
        "cascade.stages.if_rl.parent: unknown stage stf; did you mean sft?",
    ),
    "a parent that comes later": (
        ["cascade.stages.if_rl.parent=mopd"],
        "cascade.stages.if_rl.parent: mopd runs after if_rl; a parent must come earlier",
    ),
    "a stage as its own parent": (
        ["cascade.stages.if_rl.parent=if_rl"],
        "cascade.stages.if_rl.parent: if_rl is the stage itself",
    ),
    "a teacher as a parent": (
        ["cascade.stages.multi_domain_rl.parent=math_rl"],
        "cascade.stages.multi_domain_rl.parent: math_rl is teacher_only",
    ),
    "teachers without distillation": (
        ["cascade.stages.if_rl.teachers={instruction_following: sft}"],
        "cascade.stages.if_rl.teachers: only a stage of kind rl with grpo.adv_estimator.name=opd has teachers",
    ),
    "distillation without teachers": (
        ["~cascade.stages.mopd.teachers"],
        "cascade.stages.mopd.teachers.math: no teacher for a domain that is trained on; add math: <stage>",
    ),
    "a domain without a teacher": (
        ["~cascade.stages.mopd.teachers.math"],
        "cascade.stages.mopd.teachers.math: no teacher for a domain that is trained on",
    ),
    "a teacher of nothing": (
        ["cascade.stages.mopd.teachers.maths=math_rl"],
        "cascade.stages.mopd.teachers.maths: not a domain of this stage's data.train; did you mean math?",
    ),
    "the student as its own teacher": (
        ["cascade.stages.mopd.teachers.mcqa=multi_domain_rl"],
        "cascade.stages.mopd.teachers.mcqa: multi_domain_rl is where the student starts",
    ),
    "a teacher that comes later": (
        ["cascade.order=[sft,if_rl,multi_domain_rl,mopd,math_rl]"],
        "cascade.stages.mopd.teachers.math: math_rl runs after mopd; a teacher must come earlier",
    ),
    "no data": (["~cascade.stages.if_rl.data"], "cascade.stages.if_rl.data.train: no data"),
    "a file that is not there": (
        ["cascade.stages.if_rl.data.train.instruction_following.data_path=/no/such/file.jsonl"],
        "cascade.stages.if_rl.data.train.instruction_following.data_path: no file /no/such/file.jsonl",
    ),
    "a demo file that nothing writes": (
        ["cascade.stages.if_rl.data.train.instruction_following.data_path=runs/tiny/data/math/trian.jsonl"],
        "math/trian.jsonl is not one of the demo files of cascade.demo_data; did you mean math/train.jsonl?",
    ),
    "a share of nothing": (
        ["cascade.stages.multi_domain_rl.data.train.mcqa.share=0"],
        "cascade.stages.multi_domain_rl.data.train.mcqa.share: must be > 0, got 0.0",
    ),
    "a domain nothing scores": (
        ["~data.validation.math"],
        "data.validation.math: math_rl trains on math but nothing scores it",
    ),
    "two models": (
        ["cascade.stages.if_rl.policy.model_name=nano_30b_a3b"],
        "policy.model_name: must be the same in every stage",
    ),
    "an unknown model": (["policy.model_name=tinny"], "policy.model_name: no model 'tinny'; did you mean tiny?"),
    "an unknown tokenizer": (
        ["policy.tokenizer.name=tinny"],
        "policy.tokenizer.name: tinny is neither a folder nor shipped with the package (tiny)",
    ),
    "a folder without a tokenizer": (["policy.tokenizer.name=/"], "policy.tokenizer.name: /: no tokenizer in this folder; name one"),
    "a run directory that cannot be made": (["cascade.run_dir=/proc/runs"], "cascade.run_dir: /proc/runs: cannot be written to ("),
    "greedy sampling for RL": (
        ["cascade.stages.if_rl.policy.generation.temperature=0"],
        "cascade.stages.if_rl.policy.generation.temperature: 0 takes the most likely token",
    ),
    "a balancing loss divided by responses": (
        ["cascade.stages.mopd.policy.megatron_cfg.moe_aux_loss_coeff=1e-4"],
        "cascade.stages.mopd.policy.megatron_cfg.moe_aux_loss_coeff: with loss_fn.token_level_loss=false",
    ),
    "a KL term without a start to hold to": (
        ["cascade.stages.if_rl.parent=null", "~cascade.stages.if_rl.gate", "cascade.stages.if_rl.loss_fn.reference_policy_kl_penalty=0.03"],
        "cascade.stages.if_rl.loss_fn.reference_policy_kl_penalty: 0.03 needs a reference",
    ),
    "a KL estimator that holds nothing": (
        ["loss_fn.reference_policy_kl_type=k1"],
        "loss_fn.reference_policy_kl_type: 'k1' is not a choice",
    ),
    "a loss in percent": (
        ["cascade.stages.if_rl.gate={max_drop: {instruction_following: 2}}"],
        "cascade.stages.if_rl.gate.max_drop.instruction_following: must be 0 to 1, got 2; scores of instruction_following are 0 to 1",
    ),
    "a floor that nothing reaches": (
        ["cascade.stages.if_rl.gate={floor: {instruction_following: 7}}"],
        "cascade.stages.if_rl.gate.floor.instruction_following: must be 0 to 1, got 7",
    ),
    "a teacher that is left out": (
        ["cascade.order=[sft,mopd]", "~cascade.judge"],
        "cascade.stages.mopd.teachers.math: math_rl is left out of cascade.order; put it before mopd, or name a checkpoint, {path",
    ),
    "settings of vLLM without it": (
        ["policy.generation.vllm_kwargs={foo: 1}"],
        "policy.generation.vllm_kwargs: only policy.generation.backend=vllm reads it",
    ),
    "a slip in MLflow's block": (
        ["logger.mlflow={run_nam: mine}"],
        "logger.mlflow.run_nam: unknown key; did you mean run_name?",
    ),
    "a slip in TensorBoard's block": (
        ["logger.tensorboard={log_dri: x}"],
        "logger.tensorboard.log_dri: unknown key; did you mean log_dir?",
    ),
    "older replies without weights": (
        ["cascade.stages.if_rl.grpo.async_grpo.enabled=true", "loss_fn.use_importance_sampling_correction=false"],
        "cascade.stages.if_rl.grpo.async_grpo.enabled: replies are of older weights then, and have to be weighed",
    ),
    "rounds that do not add up to a reply": (
        ["cascade.stages.if_rl.grpo.partial_rollouts={enabled: true, max_new_tokens_per_round: 7, num_prompts_in_flight: 1000}"],
        "cascade.stages.if_rl.grpo.partial_rollouts.max_new_tokens_per_round: 7 does not divide policy.generation.max_new_tokens",
    ),
    "rewards that choose in distillation": (
        ["cascade.stages.mopd.grpo.use_dynamic_sampling=true"],
        "cascade.stages.mopd.grpo.use_dynamic_sampling: rewards choose nothing in distillation",
    ),
    "validation under pipeline parallel": (
        ["cascade.order=[sft]", "policy.megatron_cfg.pipeline_model_parallel_size=2"],
        "cascade.validation.num_prompts: 300, but validation samples, which the embedded rollout engine cannot do "
        "under the pipeline parallel of sft; set it to 0 or policy.megatron_cfg.pipeline_model_parallel_size to 1",
    ),
    "validation under context parallel": (
        ["cascade.order=[sft]", "policy.megatron_cfg.context_parallel_size=2"],
        "cascade.validation.num_prompts: 300, but validation samples, which the embedded rollout engine cannot do "
        "under the context parallel of sft; set it to 0 or policy.megatron_cfg.context_parallel_size to 1",
    ),
    "a best checkpoint that no validation tells": (
        ["cascade.stages.sft.checkpointing.metric_name=val:reward"],
        "cascade.stages.sft.checkpointing.metric_name: without sft.val_period nothing is validated while a stage trains",
    ),
    "patience without validations": (
        ["grpo.val_patience=3"],
        "grpo.val_patience: without grpo.val_period nothing is validated while a stage trains",
    ),
    "a metric nobody measures": (
        ["grpo.val_period=5", "cascade.stages.if_rl.checkpointing.metric_name=val:maths"],
        "cascade.stages.if_rl.checkpointing.metric_name: val:maths is not measured in if_rl; did you mean val:math?",
    ),
    "validation inside a stage without prompts": (
        ["cascade.validation.num_prompts=0", "cascade.stages.sft.sft.val_period=5"],
        "cascade.stages.sft.sft.val_period: there is no prompt to validate on",
    ),
    "a gate on a stage without a parent": (
        ["cascade.stages.sft.gate.max_drop.math=0.05"],
        "cascade.stages.sft.gate.max_drop: sft starts from fresh weights, so there is no score to drop from",
    ),
    "a gate on a domain nobody scores": (
        ["cascade.stages.if_rl.gate.max_drop.maths=0.05"],
        "cascade.stages.if_rl.gate.max_drop.maths: nothing scores it for sft, where if_rl may start; did you mean math",
    ),
    "a gate on a domain that is not scored where a rollback leads": (
        [
            "cascade.stages.if_rl.gate={max_drop: {math: 0.1}, on_failure: rollback}",
            "~data.validation.mcqa",
            "+cascade.stages.if_rl.data.validation.mcqa.data_path=mcqa.jsonl",
            "cascade.stages.multi_domain_rl.gate.max_drop.mcqa=0.1",
        ],
        "cascade.stages.multi_domain_rl.gate.max_drop.mcqa: nothing scores it for sft, where multi_domain_rl may start",
    ),
    "a gate on a domain that its side branch is not scored on": (
        ["cascade.stages.preference_rl.parent=math_rl", "cascade.stages.preference_rl.gate.max_drop.mcqa=0.1"],
        "cascade.stages.preference_rl.gate.max_drop.mcqa: nothing scores it for math_rl, where preference_rl may start",
    ),
    "a gate that asks for a gain": (
        ["cascade.stages.if_rl.gate.max_drop.math=-0.05"],
        "cascade.stages.if_rl.gate.max_drop.math: must be >= 0",
    ),
    "a gain that is negative": (
        ["cascade.stages.if_rl.gate.min_gain.math=-0.05"],
        "cascade.stages.if_rl.gate.min_gain.math: must be >= 0",
    ),
    "a gain over nothing": (
        ["cascade.stages.sft.gate.min_gain.math=0.05"],
        "cascade.stages.sft.gate.min_gain: sft starts from fresh weights",
    ),
    "a floor for a domain nobody scores": (
        ["cascade.stages.sft.gate.floor.maths=0.05"],
        "cascade.stages.sft.gate.floor.maths: nothing scores it; did you mean math?",
    ),
    "a rollback to nothing": (
        ["cascade.stages.sft.gate={floor: {math: 0.05}, on_failure: rollback}"],
        "cascade.stages.sft.gate.on_failure: sft starts from fresh weights, so no stage is left to go on from",
    ),
    "a rollback of a side branch": (
        ["cascade.stages.math_rl.gate={max_drop: {math: 0.1}, on_failure: rollback}"],
        "cascade.stages.math_rl.gate.on_failure: nothing starts from a teacher_only stage",
    ),
    "a gate on what only the judge is scored on": (
        ["cascade.stages.if_rl.gate.max_drop.preference_pairs=0.05"],
        "cascade.stages.if_rl.gate.max_drop.preference_pairs: nothing scores it for sft, where if_rl may start",
    ),
    "a judge that is no stage": (
        ["cascade.judge.stage=genrn"],
        "cascade.judge.stage: unknown stage genrn; did you mean genrm?",
    ),
    "a judge of replies that nobody asks": (
        ["env.judges.maths={base_url: 'http://judge:8000/v1', model: large}"],
        "env.judges.maths: no environment of that name asks a judge about single replies; did you mean math?",
    ),
    "a judge of replies without an address": (
        ["env.judges.math={base_url: judge, model: large}"],
        "env.judges.math.base_url: an address such as http://host:8000/v1, got judge",
    ),
    "a judge that is left out": (["cascade.order=[sft,if_rl]"], "cascade.judge.stage: unknown stage genrm"),
    "a judge without a name": (["cascade.judge.stage=???"], "cascade.judge.stage: missing value; set it"),
    "a judge on the main line": (
        ["cascade.stages.genrm.teacher_only=false"],
        "cascade.judge.stage: genrm is on the main line; set cascade.stages.genrm.teacher_only=true",
    ),
    "a judge as a parent": (
        ["cascade.stages.sft.parent=genrm"],
        "cascade.stages.sft.parent: genrm is teacher_only",
    ),
    "an agreement that is no share": (
        ["cascade.judge.min_agreement=80"],
        "cascade.judge.min_agreement: a share of preferences, from 0 to 1, got 80.0",
    ),
    "a judge whose agreement is not measured": (
        ["cascade.validation.num_prompts=0"],
        "cascade.validation.num_prompts: 0, but genrm may judge only once its agreement is measured",
    ),
    "a judge without preferences to agree with": (
        ["~cascade.stages.genrm.data.validation"],
        "cascade.stages.genrm.data.validation.preference_pairs: missing; on it the judge's agreement is measured",
    ),
    "a judge of a stage's own": (
        ["cascade.stages.rlhf.judge=sft"],
        "cascade.stages.rlhf.judge: one judge serves all stages; set cascade.judge",
    ),
    "two judges": (
        ["cascade.judge.endpoint={base_url: 'http://localhost:8000/v1', model: m}"],
        "cascade.judge: either a stage or an endpoint judges; set one of cascade.judge.stage and cascade.judge.endpoint",
    ),
    "a judge that is nobody": (
        ["cascade.judge.stage=null"],
        "cascade.judge: either a stage or an endpoint judges; set one of cascade.judge.stage and cascade.judge.endpoint",
    ),
    "an endpoint without an address": (
        ["cascade.judge={stage: null, endpoint: {model: m}}"],
        "cascade.judge.endpoint.base_url: missing value; set it",
    ),
    "an endpoint that is no address": (
        ["cascade.judge={stage: null, endpoint: {base_url: 'localhost:8000', model: m}}"],
        "cascade.judge.endpoint.base_url: an address such as http://host:8000/v1, got localhost:8000",
    ),
    "an endpoint whose key is not there": (
        ["cascade.judge={stage: null, endpoint: {base_url: 'http://a/v1', model: m, api_key_env: NO_SUCH_KEY}}"],
        "cascade.judge.endpoint.api_key_env: the environment variable NO_SUCH_KEY is not set",
    ),
    "an endpoint whose agreement is not measured": (
        ["cascade.judge={stage: null, endpoint: {base_url: 'http://a/v1', model: m}}"],
        "cascade.judge.agreement: missing; a JSONL file of known preferences",
    ),
    "no time for a server of NeMo Gym": (
        ["env.nemo_gym.timeout=0"],
        "env.nemo_gym.timeout: must be > 0",
    ),
    "more faults than replies": (
        ["env.max_faults=50"],
        "env.max_faults: must be in [0, 1]",
    ),
    "comparisons of another kind": (
        ["cascade.stages.rlhf.genrm.comparison_strategy=circle"],
        "cascade.stages.rlhf.genrm.comparison_strategy: 'circle' is not a choice; did you mean circular?",
    ),
    "comparisons where nothing is rewarded": (
        ["cascade.stages.sft.genrm.answer_bonus=0.5"],
        "cascade.stages.sft.genrm: a stage of kind sft never reads this block",
    ),
    "a judge that may not speak": (
        ["cascade.stages.rlhf.genrm.judge_max_new_tokens=0"],
        "cascade.stages.rlhf.genrm.judge_max_new_tokens: must be >= 1, got 0",
    ),
    "a bonus that punishes": (
        ["cascade.stages.rlhf.genrm.answer_bonus=-0.5"],
        "cascade.stages.rlhf.genrm.answer_bonus: must be >= 0, got -0.5",
    ),
    "a share of the best that is none": (
        ["cascade.stages.rlhf.genrm.top_percentile=20"],
        "cascade.stages.rlhf.genrm.top_percentile: must be in [0, 1], got 20.0",
    ),
    "a reward for cut replies": (
        ["cascade.stages.rlhf.grpo.overlong=kept"],
        "cascade.stages.rlhf.grpo.overlong: 'kept' is not a choice; did you mean keep?",
    ),
    "shares of rewards": (
        ["+cascade.stages.if_rl.grpo.adv_estimator.domain_shares={instruction_following: 1}"],
        "cascade.stages.if_rl.grpo.adv_estimator.domain_shares: only distillation",
    ),
    "shares of some": (
        ["+cascade.stages.mopd.grpo.adv_estimator.domain_shares={math: 1}"],
        "cascade.stages.mopd.grpo.adv_estimator.domain_shares.mcqa: no share for a domain that is trained on",
    ),
    "a share of nobody": (
        ["+cascade.stages.mopd.grpo.adv_estimator.domain_shares={maths: 1}"],
        "cascade.stages.mopd.grpo.adv_estimator.domain_shares.maths: not a domain of this stage's data.train; did you mean math?",
    ),
    "the whole vocabulary of rewards": (
        ["+cascade.stages.if_rl.grpo.adv_estimator.full_vocabulary=true"],
        "cascade.stages.if_rl.grpo.adv_estimator.full_vocabulary: only distillation",
    ),
    "the whole vocabulary with weighed tokens": (
        ["+cascade.stages.mopd.grpo.adv_estimator.full_vocabulary=true"],
        "cascade.stages.mopd.loss_fn.use_importance_sampling_correction: with grpo.adv_estimator.full_vocabulary no",
    ),
    "two rules for cut replies": (
        ["cascade.stages.rlhf.grpo.overlong_filtering=false"],
        "cascade.stages.rlhf.grpo.overlong_filtering: false is not what grpo.overlong=mask says; remove one of them",
    ),
    "no rows": (["cascade.demo_data.sft_rows=0"], "cascade.demo_data.sft_rows: must be >= 1, got 0"),
    "rows of no domain": (
        ["cascade.demo_data.rows_of.maths={sft_rows: 5}"],
        "cascade.demo_data.rows_of.maths: not a demo domain; did you mean math?",
    ),
    "rows of no kind": (
        ["cascade.demo_data.rows_of.math={sft_row: 5}"],
        "cascade.demo_data.rows_of.math.sft_row: unknown key; did you mean sft_rows?",
    ),
    "no rows of a domain": (
        ["cascade.demo_data.rows_of.math={train_rows: 0}"],
        "cascade.demo_data.rows_of.math.train_rows: must be >= 1, got 0",
    ),
    "a sequence longer than the model": (
        ["policy.max_total_sequence_length=100000", "policy.sequence_packing.train_mb_tokens=100000"],
        "policy.max_total_sequence_length: 100000 is more than the 8192 tokens of tiny",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_problem_is_one_line_that_names_its_key_and_what_to_do(case):
    overrides, expected = CASES[case]
    found = problems(*overrides)
    assert any(expected in line for line in found), found
    assert all("\n" not in line for line in found)


def test_one_mistake_in_a_shared_block_is_told_once():
    assert problems("policy.generation.top_p=2") == ["policy.generation.top_p: must be in (0, 1], got 2.0"]
    (line,) = problems("grpo.val_patience=2")
    assert line == "grpo.val_patience: without grpo.val_period nothing is validated while a stage trains; set that too"


def test_gates_without_validation_are_one_line():
    (line,) = [line for line in problems("cascade.validation.num_prompts=0") if "gate" in line]
    gated = "if_rl, multi_domain_rl, mopd, rlhf, long_context_rl, code_rl, swe_rl"
    assert line.startswith(f"cascade.stages.<stage>.gate (in {gated}): with cascade.validation.num_prompts 0 there is no score")


def test_a_block_of_stages_at_the_top_is_told_where_it_belongs():
    assert problems("+gate.max_drop.math=0.02") == ["gate: unknown key; did you mean cascade.stages.<name>.gate?"]


def test_all_problems_come_at_once():
    found = problems(
        "cascade.stages.mopd.grpo.max_num_stepz=30",
        "policy.generation.temperature=-1",
        "cascade.stages.if_rl.parent=nobody",
        "policy.precision=int4",
    )
    for part in ("max_num_stepz", "temperature", "nobody", "int4"):
        assert sum(part in line for line in found) == 1, found


ROW = '{"responses_create_params": {"input": "2 + 2 = ?"}, "agent_ref": {"name": "%s_simple_agent"}}\n'


@pytest.mark.parametrize("name, expected", [("mcqa", None), ("mqca", "asks for environment mqca; did you mean mcqa?")])
def test_the_environment_of_an_own_file_must_be_registered(name, expected, tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(ROW % name)
    override = f"cascade.stages.multi_domain_rl.data.train.mcqa.data_path={path}"
    if expected is None:
        assert load(override).stages["multi_domain_rl"].data.train["mcqa"].data_path == str(path)
    else:
        (line,) = problems(override)
        assert (
            line.startswith("cascade.stages.multi_domain_rl.data.train.mcqa.data_path: the first row of")
            and expected in line
        )


# -------------------------------------------------------------------------------- layouts

LAYOUT = "policy.megatron_cfg."
IMPOSSIBLE = {
    "processes do not divide": (
        ["tensor_model_parallel_size=2", "sequence_parallel=true"],
        3,
        "policy.megatron_cfg: tensor * pipeline * context parallel sizes multiply to 2, which does not divide the 3",
    ),
    "experts do not divide": (
        ["expert_model_parallel_size=3"],
        3,
        "expert_model_parallel_size: 3 does not divide tiny's num_moe_experts 8 = 3 * 2 + 2",
    ),
    "heads do not divide": (
        ["tensor_model_parallel_size=8", "sequence_parallel=true"],
        8,
        "8 does not divide tiny's num_attention_heads 4",
    ),
    "mamba groups do not divide": (
        ["tensor_model_parallel_size=4", "sequence_parallel=true"],
        4,
        "4 does not divide tiny's mamba_num_groups 2",
    ),
    "pipeline parallel": (
        ["pipeline_model_parallel_size=2"],
        2,
        "2, but the embedded rollout engine cannot decode under pipeline parallel; set it to 1",
    ),
    "layers do not divide": (["pipeline_model_parallel_size=4"], 4, "4 does not divide tiny's num_layers 6"),
    "context parallel": (
        ["context_parallel_size=2"],
        2,
        "2, but the embedded rollout engine cannot decode under context parallel; set it to 1",
    ),
    "mamba heads do not divide by context ranks": (
        ["context_parallel_size=16"],
        16,
        "16 does not divide tiny's 8 Mamba heads of a tensor rank",
    ),
    "tensor without sequence parallel": (["tensor_model_parallel_size=2"], 2, "needs sequence_parallel=true"),
    "zero": (["tensor_model_parallel_size=0"], 2, "tensor_model_parallel_size: must be >= 1, got 0"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_layout_is_refused(case):
    settings, world_size, expected = IMPOSSIBLE[case]
    found = problems(*(LAYOUT + setting for setting in settings), world_size=world_size)
    assert len([line for line in found if expected in line]) == 1, found


SFT_ALONE = ("cascade.order=[sft]", "~cascade.judge", "cascade.validation.num_prompts=0")


@pytest.mark.parametrize("key", ["pipeline_model_parallel_size", "context_parallel_size"])
def test_sft_without_validation_may_have_a_layout_that_cannot_decode(key):
    assert list(load(*SFT_ALONE, f"{LAYOUT}{key}=2").stages) == ["sft"]


TENSOR_2 = ("tensor_model_parallel_size=2", "sequence_parallel=true")
FP8 = ("fp8_cfg.enabled=true", "fp8_cfg.fp8_recipe=tensorwise")
PADDED = {
    "tensor parallel": (TENSOR_2, 2, 1279, 2, 1280),
    "context parallel": (("context_parallel_size=4",), 4, 8190, 8, 8192),
    "both": (("context_parallel_size=2", *TENSOR_2), 4, 1282, 4, 1284),
    "FP8": (FP8, 1, 1288, 16, 1296),
    "FP8 and all": (("context_parallel_size=2", *TENSOR_2, *FP8), 4, 1312, 64, 1344),
}


def sft_packs(tokens: int, settings, world_size: int) -> list[str]:
    """What is wrong with packs of so many tokens, for sequences that fill them."""
    lengths = [f"policy.{key}={tokens}" for key in ("sequence_packing.train_mb_tokens", "max_total_sequence_length")]
    try:
        load(*SFT_ALONE, *lengths, *(LAYOUT + setting for setting in settings), world_size=world_size)
    except ConfigErrors as errors:
        return [line for line in errors.problems if "train_mb_tokens" in line]
    return []


@pytest.mark.parametrize("case", PADDED)
def test_a_pack_that_padding_could_outgrow_is_refused_with_the_next_size_that_it_cannot(case):
    settings, world_size, tokens, multiple, better = PADDED[case]
    (line,) = sft_packs(tokens, settings, world_size)
    assert line.startswith(f"policy.sequence_packing.train_mb_tokens: {tokens} is no multiple of {multiple}, to which")
    assert line.endswith(f"set it to {better}")
    assert sft_packs(better, settings, world_size) == []


def test_what_is_refused_would_have_failed_at_the_first_long_document():
    """8,189 inputs of a document of 8,190 tokens, in eighths, are 8,192: more than its pack; a legal one has room."""
    slots = round_up(8190 - 1, document_multiple(4))
    with pytest.raises(ValueError, match="document 0 has 8192 tokens, more than the 8190 of a pack"):
        pack([slots], 8190)
    assert pack([slots], 8192) == [[0]]


@pytest.mark.parametrize("tp, ep", [(1, 1), (2, 1), (1, 2), (2, 2), (1, 8)])
@pytest.mark.parametrize("data", [1, 3])
def test_a_possible_layout_is_accepted(tp, ep, data):
    settings = [f"tensor_model_parallel_size={tp}", f"expert_model_parallel_size={ep}", "sequence_parallel=true"]
    cascade = load(*(LAYOUT + setting for setting in settings), world_size=tp * ep * data)
    assert cascade.stages["sft"].policy.megatron_cfg.tensor_model_parallel_size == tp


def test_fewer_rollouts_than_data_parallel_ranks_are_refused():
    found = problems("grpo.num_prompts_per_step=2", "grpo.num_generations_per_prompt=2", world_size=8)
    assert any(
        "grpo.num_prompts_per_step: 4 rollouts a step cannot be dealt to 8 data-parallel ranks" in line
        for line in found
    )


def test_stages_with_different_layouts_are_refused():
    found = problems(f"cascade.stages.if_rl.{LAYOUT}expert_model_parallel_size=2")
    assert any(
        line.startswith(f"{LAYOUT}expert_model_parallel_size: must be the same in every stage") for line in found
    )


# -------------------------------------------------------------------------------- composition

BROKEN = {
    "no such config": ("tinyy", [], "--config-name tinyy: no tinyy.yaml in"),
    "an override without a value": ("tiny", ["cascade.run_dir"], "cascade.run_dir: an override is key=value, without spaces; write cascade.run_dir=VALUE"),
    "an override that does not parse": ("tiny", ["cascade.order=[sft"], "config tiny: "),
    "deleting what is not there": ("tiny", ["~cascade.nothing"], "config tiny: "),
    "an unknown group option": ("tiny", ["stage@cascade.stages.sft=sftt"], "config tiny: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_config_that_cannot_be_composed_is_one_line(case):
    name, overrides, expected = BROKEN[case]
    (line,) = problems(*overrides, name=name)
    assert line.startswith(expected) and "\n" not in line


def test_yaml_that_does_not_parse_names_file_and_line(tmp_path):
    (tmp_path / "mine.yaml").write_text("cascade:\n  order: [sft\n")
    with pytest.raises(ConfigErrors) as caught:
        compose_config("mine", directory=tmp_path)
    (line,) = caught.value.problems
    assert "mine.yaml" in line and "line" in line


def test_an_own_config_inherits_from_the_packages(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [tiny, _self_]\ncascade:\n  run_dir: elsewhere\n")
    cascade = load_config(compose_config("mine", ["cascade.seed=5"], directory=tmp_path))
    assert (cascade.run_dir, cascade.seed, list(cascade.stages)) == ("elsewhere", 5, ORDER)
    assert cascade.demo_data.path == "elsewhere/data"


def test_composing_leaves_hydra_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compose_config("tiny")
    compose_config("smoke")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """A folder of packs of 128 tokens."""
    directory = tmp_path_factory.mktemp("packed")
    rows = DOMAINS["math"].rows(5, "train", level="demo")
    lines = [json.dumps(DOMAINS["math"].demonstration(row, number)) for number, row in enumerate(rows)]
    (directory / "sft.jsonl").write_text("\n".join(lines))
    write_packed([directory / "sft.jsonl"], directory / "packs", "tiny", 128)
    return directory / "packs"


def packed(folder, *more: str) -> list[str]:
    """Overrides of `tiny` that have its SFT train on a folder."""
    return ["~cascade.stages.sft.data.train", f"cascade.stages.sft.data.train.packs.data_path={folder}", *more]


def test_sft_takes_a_folder_of_packs(packs):
    assert load(*packed(packs)).stages["sft"].data.packed_folder == packs


PACKED_CASES = {
    "of longer packs": (["policy.sequence_packing.train_mb_tokens=100"], "packs of 128 tokens, more than"),
    "with longer documents": (["policy.max_total_sequence_length=20"], "more than policy.max_total_sequence_length=20"),
    "beside a file": (["cascade.stages.sft.data.train.more={data_path: x.jsonl}"], "packs are a mixture already"),
    "of another layout": ([f"{LAYOUT}context_parallel_size=2"], "context_parallel_size=2 needs 4; pack again with it"),
    "of too few a step": (["policy.train_global_batch_size=3"], "3 packs a step cannot be dealt evenly to 2"),
}


@pytest.mark.parametrize("case", PACKED_CASES)
def test_a_folder_of_packs_that_does_not_fit_is_refused(case, packs):
    overrides, expected = PACKED_CASES[case]
    assert any(expected in line for line in problems(*packed(packs, *overrides), world_size=2))


def test_a_folder_without_packs_is_refused(tmp_path):
    assert any(f"{tmp_path}: no packed dataset" in line for line in problems(*packed(tmp_path)))
