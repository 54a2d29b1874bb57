"""What must hold across the keys and stages of a config: the list of all that is looked at, and ranges, choices and relations of
values; stages, teachers and gates are in graph_checks, rows in data_checks, and so on.

Every function yields problems as lines "key: what is wrong; what to do" and looks at one idea. What fits a type but
not the recipe is caught here, before any process group, folder or model exists.
"""

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_cascade.cascade import (
    compute,
    data_checks,
    graph_checks,
    judge_checks,
    layout,
    loss_checks,
    operation_checks,
    replay_checks,
    start_checks,
    vllm_checks,
)
from nemo_cascade.cascade.graph_checks import AUTO
from nemo_cascade.cascade.strict import NAME, did_you_mean, flatten, is_missing, nearest
from nemo_cascade.data import demo
from nemo_cascade.data.tokenizer import find_tokenizer
from nemo_cascade.engine import disk
from nemo_cascade.engine.memory import GPUS
from nemo_cascade.models import fp8
from nemo_cascade.models.presets import PRESETS, is_hf_folder
from nemo_cascade.stages import estimators
from nemo_cascade.stages.config import SandboxConfig

if TYPE_CHECKING:
    from nemo_cascade.cascade.config import CascadeConfig, DemoDataConfig, Source, StageConfig

CHOICES = {
    "kind": ("sft", "rl"),
    "policy.precision": ("float32", "bfloat16"),
    "policy.generation.backend": ("megatron", "vllm", "vllm_server"),
    "policy.megatron_cfg.moe_router_dtype": ("fp32", "fp64"),
    "policy.megatron_cfg.moe_router_load_balancing_type": ("none", "aux_loss", "seq_aux_loss", "global_aux_loss"),
    "policy.megatron_cfg.gradient_accumulation_fusion": ("auto", True, False),
    "policy.megatron_cfg.recompute_granularity": (None, "full", "selective"),
    "policy.megatron_cfg.recompute_method": (None, "uniform", "block"),
    "policy.megatron_cfg.fp8_cfg.fp8": fp8.FORMATS,
    "policy.megatron_cfg.fp8_cfg.fp8_recipe": tuple(fp8.MULTIPLE),
    "policy.megatron_cfg.optimizer.optimizer": ("adam",),
    "policy.megatron_cfg.scheduler.lr_decay_style": ("constant", "linear", "cosine", "inverse-square-root"),
    "grpo.adv_estimator.name": ("opd", *estimators.names()),
    "grpo.overlong": (None, "reward_zero", "mask", "keep"),
    "grpo.async_grpo.max_trajectory_age_steps": (1,),
    "genrm.comparison_strategy": ("all_pairs", "circular"),
    "loss_fn.truncated_importance_sampling_type": (None, "tis", "icepop", "seq-mask-tis"),
    # k1 has a gradient of mean 0, so as a loss it would hold nothing in place.
    "loss_fn.reference_policy_kl_type": ("k2", "k3"),
    "cluster.gpu": tuple(GPUS),
    "data.on_bad_row": ("stop", "skip"),
    "gate.on_failure": ("advance", "warn", "stop", "rollback"),
}

AT_LEAST_ONE = (
    "cluster.num_nodes",
    "cluster.gpus_per_node",
    "policy.train_global_batch_size",
    "policy.max_total_sequence_length",
    "policy.sequence_packing.train_mb_tokens",
    "policy.generation.max_new_tokens",
    "policy.generation.max_batch_size",
    "policy.generation.vllm_cfg.max_model_len",
    "policy.megatron_cfg.tensor_model_parallel_size",
    "policy.megatron_cfg.pipeline_model_parallel_size",
    "policy.megatron_cfg.context_parallel_size",
    "policy.megatron_cfg.expert_model_parallel_size",
    "policy.megatron_cfg.expert_tensor_parallel_size",
    "policy.megatron_cfg.recompute_num_layers",
    "policy.megatron_cfg.scheduler.lr_decay_iters",
    "sft.max_num_steps",
    "grpo.max_num_steps",
    "grpo.num_prompts_per_step",
    "grpo.num_generations_per_prompt",
    "grpo.dynamic_sampling_max_gen_batches",
    "grpo.max_rollout_turns",
    "grpo.partial_rollouts.max_new_tokens_per_round",
    "grpo.partial_rollouts.num_prompts_in_flight",
    "genrm.judge_max_new_tokens",
    "env.nemo_gym.concurrency",
)
NOT_NEGATIVE = (
    "env.num_workers",
    "policy.generation.temperature",
    "policy.megatron_cfg.moe_aux_loss_coeff",
    "policy.megatron_cfg.moe_router_bias_update_rate",
    "policy.megatron_cfg.fp8_cfg.num_layers_at_start_in_bf16",
    "policy.megatron_cfg.fp8_cfg.num_layers_at_end_in_bf16",
    "policy.megatron_cfg.optimizer.lr",
    "policy.megatron_cfg.optimizer.min_lr",
    "policy.megatron_cfg.optimizer.weight_decay",
    "policy.megatron_cfg.scheduler.lr_warmup_iters",
    "policy.megatron_cfg.scheduler.lr_warmup_init",
    "loss_fn.truncated_importance_sampling_ratio_min",
    "loss_fn.reference_policy_kl_penalty",
    "loss_fn.ratio_clip_min",
    "loss_fn.ratio_clip_max",
    "genrm.group_reasoning_length_penalty_coeff",
    "genrm.group_answer_length_penalty_coeff",
    "genrm.reasoning_bonus",
    "genrm.answer_bonus",
    "sft.val_period",
    "sft.val_patience",
    "grpo.val_period",
    "grpo.val_patience",
    "checkpointing.save_period",
    "checkpointing.keep_top_k",
    "logger.rollouts_per_step",
)
POSITIVE = (
    "cluster.collective_timeout_minutes",
    "env.nemo_gym.timeout",
    "policy.max_grad_norm",
    "policy.megatron_cfg.optimizer.adam_eps",
    "loss_fn.truncated_importance_sampling_ratio",
    "loss_fn.kl_input_clamp_value",
    "loss_fn.kl_output_clamp_value",
)
BELOW_ONE = ("policy.megatron_cfg.optimizer.adam_beta1", "policy.megatron_cfg.optimizer.adam_beta2")

# Blocks that a loop of the other kind reads; an override of them in a stage would be silently without effect.
UNREAD = {"sft": ("grpo", "loss_fn", "genrm"), "rl": ("sft",)}


def all_problems(cascade: "CascadeConfig", source: "Source", world_size: int | None) -> list[str]:
    """Every problem of a resolved config, in reading order, each once."""
    problems = [*order_problems(cascade, source), *cascade_problems(cascade), *place_problems(cascade)]
    problems += judge_checks.judge_problems(cascade)
    for name, stage in cascade.stages.items():

        def where(key: str, name: str = name) -> str:
            return source.where(name, key)

        problems += value_problems(stage, where)
        problems += relation_problems(stage, where)
        problems += offload_problems(stage, where)
        problems += installation_problems(stage, where)
        problems += judge_checks.judges_problems(stage, where)
        problems += operation_checks.operation_problems(stage, where)
        problems += unread_problems(stage, source)
        problems += graph_checks.graph_problems(cascade, stage, source)
        problems += graph_checks.teacher_problems(cascade, stage, source)
        problems += graph_checks.teacher_path_problems(stage, source)
        problems += graph_checks.gate_problems(cascade, stage, source)
        problems += graph_checks.in_stage_validation_problems(cascade, stage, where)
        problems += start_checks.pretrained_problems(stage, source, where)
        problems += data_checks.data_problems(cascade, stage, source, where)
        problems += layout.problems(stage, where, world_size)
        problems += compute.problems(stage, where, swaps_weights(stage))
        problems += replay_checks.problems(stage, source)
        problems += vllm_checks.problems(stage, where, world_size)
    problems += agreement_problems(cascade, source)
    problems += data_checks.domain_problems(source)
    problems += shadowed_problems(source)
    return list(dict.fromkeys(problems))


def planning_problems(cascade: "CascadeConfig", source: "Source", world_size: int | None) -> list[str]:
    """What keeps a config from being planned, wherever its data are and whatever the engine can run today.

    world_size None: as many GPUs as `cluster` has.
    """
    problems = [*order_problems(cascade, source)]
    for name, stage in cascade.stages.items():

        def where(key: str, name: str = name) -> str:
            return source.where(name, key)

        problems += value_problems(stage, where)
        problems += relation_problems(stage, where)
        problems += offload_problems(stage, where)
        problems += judge_checks.judges_problems(stage, where)
        problems += operation_checks.operation_problems(stage, where)
        problems += compute.problems(stage, where, swaps_weights(stage))
        problems += replay_checks.problems(stage, source)
        problems += unread_problems(stage, source)
        problems += graph_checks.graph_problems(cascade, stage, source)
        problems += graph_checks.teacher_problems(cascade, stage, source)
        # Without validation a plan asks what fits, not what is judged.
        problems += graph_checks.gate_problems(cascade, stage, source) if cascade.validation.num_prompts > 0 else []
        gpus = world_size if world_size is not None else stage.cluster.num_nodes * stage.cluster.gpus_per_node
        if gpus > 0:
            problems += layout.legal_problems(stage, where, gpus)
    problems += agreement_problems(cascade, source)
    problems += sampling_problems(cascade)
    problems += data_checks.domain_problems(source)
    problems += shadowed_problems(source)
    return list(dict.fromkeys(problems))


# -------------------------------------------------------------------------------- the pipeline itself


def order_problems(cascade: "CascadeConfig", source: "Source") -> Iterator[str]:
    """The order lists each stage once; a stage outside it must at least be a stage."""
    if not cascade.order:
        yield "cascade.order: no stage to run; list the names of cascade.stages in the order they should run"
    for name in sorted({name for name in cascade.order if cascade.order.count(name) > 1}):
        yield f"cascade.order: {name} is listed more than once; give the second one a name and a stage of its own"
    for name, stage in source.overrides.items():
        if name == AUTO:
            yield f"cascade.stages.{name}: {AUTO} stands for the best teacher; give the stage another name"
        if not NAME.fullmatch(str(name)):
            yield f"cascade.stages.{name}: a stage name becomes a folder; use letters, digits, _ and - only"
        if "kind" not in stage and name not in cascade.order:
            real = [other for other, values in source.overrides.items() if "kind" in values]
            yield f"cascade.stages.{name}: unknown stage{did_you_mean(name, real)}"
        elif name not in cascade.order:
            asked = nearest(name, [other for other in cascade.order if other not in source.overrides])
            if asked is not None:
                yield f"cascade.stages.{name}: cascade.order names no such stage, but one that is missing; did you mean {asked}?"


def cascade_problems(cascade: "CascadeConfig") -> Iterator[str]:
    """Counts and places under `cascade:`."""
    yield from validation_problems(cascade)
    yield from sampling_problems(cascade)
    if cascade.run_dir == "" or Path(cascade.run_dir).is_file():
        yield f"cascade.run_dir: {cascade.run_dir!r} is not a folder; name a folder (it is made when missing)"
    for key in ("max_logprob_error", "max_logprob_error_elsewhere"):
        if getattr(cascade.handover, key) < 0:
            yield f"cascade.handover.{key}: must be >= 0, got {getattr(cascade.handover, key)}"
    if cascade.demo_data is not None:
        yield from demo_data_problems(cascade.demo_data)


def place_problems(cascade: "CascadeConfig") -> Iterator[str]:
    """The run directory can be written to, from here."""
    if cascade.run_dir != "" and not is_missing(cascade.run_dir):
        try:
            disk.refuse_read_only(Path(cascade.run_dir))
        except disk.DiskError as error:
            yield f"cascade.run_dir: {error}"


def validation_problems(cascade: "CascadeConfig") -> Iterator[str]:
    """Layouts under which a stage of any kind could be trained but not scored at its end."""
    validation = cascade.validation
    if validation.num_prompts > 0:
        stages = {name: layout.undecodable(stage.policy) for name, stage in cascade.stages.items()}
        for key in dict.fromkeys(key for sizes in stages.values() for key in sizes):
            names = ", ".join(name for name, sizes in stages.items() if key in sizes)
            yield (
                f"cascade.validation.num_prompts: {validation.num_prompts}, but validation samples, which the embedded "
                f"rollout engine cannot do under the {key.split('_')[0]} parallel of {names}; set it to 0 or "
                f"policy.megatron_cfg.{key} to 1"
            )


def sampling_problems(cascade: "CascadeConfig") -> Iterator[str]:
    """Ranges of what validation samples."""
    validation = cascade.validation
    if validation.num_prompts < 0:
        yield f"cascade.validation.num_prompts: must be >= 0 (0: no validation), got {validation.num_prompts}"
    if validation.num_samples < 1:
        yield f"cascade.validation.num_samples: must be >= 1, got {validation.num_samples}"
    if validation.max_rollout_turns < 1:
        yield f"cascade.validation.max_rollout_turns: must be >= 1, got {validation.max_rollout_turns}"
    if validation.temperature < 0:
        yield f"cascade.validation.temperature: must be >= 0, got {validation.temperature}"
    if not 0 < validation.top_p <= 1:
        yield f"cascade.validation.top_p: must be in (0, 1], got {validation.top_p}"


def demo_data_problems(settings: "DemoDataConfig") -> Iterator[str]:
    """Numbers of rows, for all domains and for single ones."""
    keys = ("train_rows", "validation_rows", "sft_rows")
    numbers = {key: getattr(settings, key) for key in keys}
    for domain, rows in settings.rows_of.items():
        if domain not in demo.DOMAINS:
            yield f"cascade.demo_data.rows_of.{domain}: not a demo domain{did_you_mean(domain, demo.DOMAINS)}"
        for key, number in rows.items():
            if key in keys:
                numbers[f"rows_of.{domain}.{key}"] = number
            else:
                yield f"cascade.demo_data.rows_of.{domain}.{key}: unknown key{did_you_mean(key, keys)}"
    for key, number in numbers.items():
        if number < 1:
            yield f"cascade.demo_data.{key}: must be >= 1, got {number}"


def agreement_problems(cascade: "CascadeConfig", source: "Source") -> Iterator[str]:
    """What all stages must share, because weights pass from one to the next inside one set of processes."""
    stages = list(cascade.stages.values())
    machines = ("cluster.num_nodes", "cluster.gpus_per_node", "cluster.gpu")
    sizes = (f"policy.megatron_cfg.{name}" for name in layout.KEYS)
    for key in ("policy.model_name", "policy.tokenizer.name", *sizes, *machines):
        values = {stage.name: get(stage, key) for stage in stages}
        if len(set(values.values())) > 1:
            told = ", ".join(f"{name} {value}" for name, value in values.items())
            reason = "stages hand weights on" if key.endswith("name") else "all stages run in the same processes"
            yield f"{key}: must be the same in every stage, because {reason}; it is {told}"
    files: dict[str, tuple[str, str]] = {}
    for stage in stages:
        for domain, dataset in stage.data.validation.items():
            first = files.setdefault(domain, (stage.name, dataset.data_path))
            if first[1] != dataset.data_path:
                yield (
                    f"{source.where(stage.name, f'data.validation.{domain}.data_path')}: {dataset.data_path} is not "
                    f"{first[1]} of stage {first[0]}; a domain has one validation file, or scores cannot be compared"
                )


# -------------------------------------------------------------------------------- one stage's values


def get(stage: object, key: str):
    """The value at a dotted key of a dataclass."""
    for part in key.split("."):
        stage = getattr(stage, part)
    return stage


def value_problems(stage: "StageConfig", where) -> Iterator[str]:
    """Every value by itself: choices and ranges."""
    for key, allowed in CHOICES.items():
        value = get(stage, key)
        if value not in allowed and not is_missing(value):
            names = [choice if isinstance(choice, str) else json.dumps(choice) for choice in allowed]
            yield f"{where(key)}: {value!r} is not a choice{did_you_mean(value, names)}"
    rules = (
        (AT_LEAST_ONE, lambda value: value >= 1, ">= 1"),
        (NOT_NEGATIVE, lambda value: value >= 0, ">= 0"),
        (POSITIVE, lambda value: value > 0, "> 0"),
        (BELOW_ONE, lambda value: 0 <= value < 1, "in [0, 1)"),
        (("policy.generation.top_p", "policy.generation.vllm_cfg.gpu_memory_utilization"), lambda value: 0 < value <= 1, "in (0, 1]"),
        (("genrm.top_percentile", "env.max_faults"), lambda value: 0 <= value <= 1, "in [0, 1]"),
    )
    for keys, holds, text in rules:
        for key in keys:
            value = get(stage, key)
            if value is not None and not holds(value):
                yield f"{where(key)}: must be {text}, got {value}"


def swaps_weights(stage: "StageConfig") -> bool:
    """Whether weights of teachers, of a reference or of a judge pass through the policy's buffers."""
    held_to_a_reference = stage.kind == "rl" and stage.loss_fn.reference_policy_kl_penalty > 0
    return stage.distils or stage.judge is not None or held_to_a_reference


def relation_problems(stage: "StageConfig", where) -> Iterator[str]:
    """Pairs of values of one stage that exclude each other."""
    optimizer = stage.policy.megatron_cfg.optimizer
    if optimizer.min_lr > optimizer.lr:
        key = where("policy.megatron_cfg.optimizer.min_lr")
        yield f"{key}: {optimizer.min_lr} is above lr {optimizer.lr}; lower it"
    yield from length_problems(stage, where)
    if stage.kind == "rl":
        yield from advantage_problems(stage, where)
        yield from overlong_problems(stage, where)
        yield from loss_checks.loss_problems(stage, where)


def length_problems(stage: "StageConfig", where) -> Iterator[str]:
    """A sequence has room for a prompt, and a pack for a sequence."""
    policy = stage.policy
    if policy.generation.max_new_tokens >= policy.max_total_sequence_length:
        yield (
            f"{where('policy.generation.max_new_tokens')}: {policy.generation.max_new_tokens} leaves no room "
            f"for a prompt in policy.max_total_sequence_length {policy.max_total_sequence_length}"
        )
    if policy.sequence_packing.train_mb_tokens < policy.max_total_sequence_length:
        yield (
            f"{where('policy.sequence_packing.train_mb_tokens')}: {policy.sequence_packing.train_mb_tokens} is below "
            f"policy.max_total_sequence_length {policy.max_total_sequence_length}; a pack must hold one sequence"
        )


def advantage_problems(stage: "StageConfig", where) -> Iterator[str]:
    """Replies of a group must be able to differ, where their rewards teach; where teachers do, no reward chooses."""
    if not stage.distils and stage.grpo.num_generations_per_prompt == 1:
        yield (
            f"{where('grpo.num_generations_per_prompt')}: a group of one always has advantage 0 with adv_estimator "
            "grpo; use at least 2"
        )
    if stage.policy.generation.temperature == 0:
        yield (
            f"{where('policy.generation.temperature')}: 0 takes the most likely token, so all replies of a group "
            "would be the same and a stage of kind rl would learn nothing; set it above 0"
        )
    yield from share_problems(stage, where)
    if stage.distils:
        for key in ("use_dynamic_sampling", "swe_group_threshold"):
            if getattr(stage.grpo, key) not in (False, None):
                yield f"{where(f'grpo.{key}')}: rewards choose nothing in distillation (adv_estimator opd); remove it"


def share_problems(stage: "StageConfig", where) -> Iterator[str]:
    """Shares of the loss are those of all domains of a distillation, and positive."""
    shares, domains, key = stage.grpo.adv_estimator.domain_shares, list(stage.data.train), where("grpo.adv_estimator.domain_shares")
    if not shares:
        return
    if not stage.distils:
        yield f"{key}: only distillation (adv_estimator.name=opd) shares its loss out; remove it"
        return
    for domain in domains:
        if domain not in shares:
            yield f"{key}.{domain}: no share for a domain that is trained on; add it, or name none at all"
    for domain, share in shares.items():
        if domain not in domains:
            yield f"{key}.{domain}: not a domain of this stage's data.train{did_you_mean(domain, domains)}"
        elif not share > 0:
            yield f"{key}.{domain}: must be > 0, got {share}"


def overlong_problems(stage: "StageConfig", where) -> Iterator[str]:
    """NeMo RL's key and ours say the same of replies that were cut."""
    mode, filtered = stage.grpo.overlong, stage.grpo.overlong_filtering
    if mode is not None and filtered is not None and (mode == "mask") != filtered:
        yield f"{where('grpo.overlong_filtering')}: {str(filtered).lower()} is not what grpo.overlong={mode} says; remove one of them"


def offload_problems(stage: "StageConfig", where) -> Iterator[str]:
    """What megatron-core's optimizer in host memory needs beside it; it would only say so in an assertion."""
    optimizer = stage.policy.megatron_cfg.optimizer
    if optimizer.optimizer_cpu_offload and not optimizer.use_distributed_optimizer:
        yield (
            f"{where('policy.megatron_cfg.optimizer.optimizer_cpu_offload')}: only the distributed optimizer can be in "
            "host memory; set use_distributed_optimizer=true or this to false"
        )


def installation_problems(stage: "StageConfig", where) -> Iterator[str]:
    """What must be on this machine beside the data."""
    model, tokenizer = stage.policy.model_name, stage.policy.tokenizer.name
    # Of a model's folder that is not there the layout tells; that its tokenizer is not there either helps nobody.
    told = tokenizer == model and model not in PRESETS and not is_hf_folder(model)
    if not is_missing(tokenizer) and not told:
        try:
            find_tokenizer(tokenizer)
        except ValueError as error:
            yield f"{where('policy.tokenizer.name')}: {error}"
    cfg = stage.policy.megatron_cfg
    needing = {"optimizer.optimizer_cpu_offload": cfg.optimizer.optimizer_cpu_offload, "fp8_cfg.enabled": cfg.fp8_cfg.enabled}
    for key in (key for key, wanted in needing.items() if wanted and find_spec("transformer_engine") is None):
        text = "megatron-core needs Transformer Engine for it, which is not installed; install it or set this to false"
        yield f"{where(f'policy.megatron_cfg.{key}')}: {text}"
    yield from sandbox_problems(stage.sandbox, where)
    yield from operation_checks.tracker_problems(stage, where)


def sandbox_problems(sandbox: SandboxConfig, where) -> list[str]:
    """URLs that are none."""
    urls = [url.strip() for url in sandbox.url.split(",")] if sandbox.url is not None else []
    wrong = [url for url in urls if not re.fullmatch(r"https?://[^/\s,]+(/[^\s,]*)?", url)]
    return [f"{where('sandbox.url')}: {url!r} is not http://host:port; with several, put commas between" for url in wrong]


def shadowed_problems(source: "Source") -> Iterator[str]:
    """Top-level values that every stage overrides: whoever sets one, say on the command line, would change nothing."""
    stages = [flatten(overrides) for overrides in source.overrides.values()]
    for key in flatten(source.defaults):
        if stages and all(key in overrides for overrides in stages):
            yield f"{key}: no effect, every stage has its own; set cascade.stages.<stage>.{key}"


def unread_problems(stage: "StageConfig", source: "Source") -> Iterator[str]:
    """Overrides that the stage's loop never reads."""
    for block in UNREAD.get(stage.kind, ()):
        if block in source.overrides[stage.name]:
            yield f"{source.own(stage.name, block)}: a stage of kind {stage.kind} never reads this block; remove it"
