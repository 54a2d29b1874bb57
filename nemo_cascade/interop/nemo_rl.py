"""A stage as a config of NeMo RL: its YAML, the commands around it, and what that config cannot say.

The YAML inherits NeMo RL's own exemplar, because its code takes no key for granted, and says over it what the stage means. Every
key of a stage is in one of the lists below (a test sees to it): said there, made into other keys, of no matter for what is
learned, or without words there, which is told. Where weights come from is `starts.py`'s, the way back `import_checkpoint.py`'s.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import yaml

from nemo_cascade.cascade.config import BLOCKS, CascadeConfig, StageConfig
from nemo_cascade.cascade.strict import flatten
from nemo_cascade.data.rows import server_of
from nemo_cascade.engine.config import pack_alignment
from nemo_cascade.interop.starts import Starts

EXEMPLARS = {"sft": "examples/configs/sft.yaml", "rl": "examples/configs/grpo_math_1B.yaml"}
PROGRAMS = {"sft": "examples/run_sft.py", "rl": "examples/nemo_gym/run_grpo_nemo_gym.py"}
# So many epochs that only the number of steps ends a stage, as here.
EPOCHS = 1_000_000

# Configs of NeMo Gym's servers, below its folder. A server that is not among them is told.
GYM_MODEL = "responses_api_models/vllm_model/configs/vllm_model_for_training.yaml"
GYM_CONFIGS = {
    name: f"resources_servers/{name}/configs/{file or name}.yaml"
    for name, file in {
        "math_with_judge": None,
        "code_gen": None,
        "workplace_assistant": None,
        "mcqa": None,
        "instruction_following": None,
        "structured_outputs": "structured_outputs_json",
        "genrm_compare": None,
    }.items()
}

MEGATRON = "policy.megatron_cfg"
# Our key -> theirs, of the same meaning.
SAID = {
    **{
        key: key
        for key in (
            "policy.precision",
            "policy.max_total_sequence_length",
            "policy.max_grad_norm",
            "policy.sequence_packing.train_mb_tokens",
            "policy.generation.max_new_tokens",
            "policy.generation.temperature",
            "policy.generation.top_p",
            "policy.generation.vllm_cfg.tensor_parallel_size",
            "policy.generation.vllm_cfg.expert_parallel_size",
            "policy.generation.vllm_cfg.gpu_memory_utilization",
            "policy.generation.vllm_cfg.enforce_eager",
            "policy.router_replay.enabled",
            "sft.max_num_steps",
            "sft.val_period",
            "grpo.num_prompts_per_step",
            "grpo.num_generations_per_prompt",
            "grpo.max_num_steps",
            "grpo.val_period",
            "grpo.normalize_rewards",
            "grpo.use_leave_one_out_baseline",
            "grpo.use_dynamic_sampling",
            "grpo.dynamic_sampling_max_gen_batches",
            "grpo.async_grpo.max_trajectory_age_steps",
            "grpo.adv_estimator.name",
            "checkpointing.higher_is_better",
            "checkpointing.checkpoint_must_save_by",
            "logger.tensorboard_enabled",
            "logger.wandb_enabled",
            "logger.mlflow_enabled",
            "cluster.num_nodes",
            "cluster.gpus_per_node",
            *(
                f"{MEGATRON}.{name}"
                for name in (
                    "tensor_model_parallel_size",
                    "pipeline_model_parallel_size",
                    "context_parallel_size",
                    "expert_model_parallel_size",
                    "sequence_parallel",
                    "freeze_moe_router",
                    "moe_router_dtype",
                    "moe_router_load_balancing_type",
                    "moe_router_bias_update_rate",
                    "activation_checkpointing",
                    "optimizer.optimizer",
                    "optimizer.lr",
                    "optimizer.min_lr",
                    "optimizer.weight_decay",
                    "optimizer.adam_beta1",
                    "optimizer.adam_beta2",
                    "optimizer.adam_eps",
                    "optimizer.use_distributed_optimizer",
                    "optimizer.optimizer_cpu_offload",
                    "scheduler.lr_decay_style",
                    "scheduler.lr_warmup_iters",
                    "scheduler.lr_warmup_init",
                    "fp8_cfg.enabled",
                    "fp8_cfg.fp8",
                    "fp8_cfg.fp8_recipe",
                    "fp8_cfg.fp8_param",
                )
            ),
            *(
                f"loss_fn.{name}"
                for name in (
                    "token_level_loss",
                    "disable_ppo_ratio",
                    "force_on_policy_ratio",
                    "sequence_level_importance_ratios",
                    "use_cispo",
                    "ratio_clip_min",
                    "ratio_clip_max",
                    "ratio_clip_c",
                    "use_importance_sampling_correction",
                    "truncated_importance_sampling_type",
                    "truncated_importance_sampling_ratio",
                    "truncated_importance_sampling_ratio_min",
                    "reference_policy_kl_penalty",
                    "reference_policy_kl_type",
                    "kl_input_clamp_value",
                    "kl_output_clamp_value",
                    "use_on_policy_kl_approximation",
                    "use_kl_in_reward",
                    "positive_example_nll_weight",
                )
            ),
        )
    },
    f"{MEGATRON}.fp8_cfg.first_last_layers_bf16": f"{MEGATRON}.first_last_layers_bf16",
    f"{MEGATRON}.fp8_cfg.num_layers_at_start_in_bf16": f"{MEGATRON}.num_layers_at_start_in_bf16",
    f"{MEGATRON}.fp8_cfg.num_layers_at_end_in_bf16": f"{MEGATRON}.num_layers_at_end_in_bf16",
    "checkpointing.async_save": f"{MEGATRON}.checkpoint.async_save",
}
# What the functions below make other keys of, by the beginning of the key.
MADE = (
    "policy.model_name",
    "policy.tokenizer.",
    "policy.train_global_batch_size",
    "policy.generation.backend",
    "policy.generation.vllm_cfg.max_model_len",
    "policy.generation.vllm_kwargs",
    f"{MEGATRON}.expert_tensor_parallel_size",
    f"{MEGATRON}.moe_aux_loss_coeff",
    f"{MEGATRON}.recompute_",
    f"{MEGATRON}.gradient_accumulation_fusion",
    f"{MEGATRON}.fp8_cfg.moe_router_padding_for_quantization",
    f"{MEGATRON}.model_overrides",
    f"{MEGATRON}.scheduler.lr_decay_iters",
    "grpo.overlong",
    "grpo.overlong_filtering",
    "grpo.async_grpo.enabled",
    "grpo.adv_estimator.full_vocabulary",
    "genrm.",
    "env.judges",
    "data.train",
    "data.validation",
    "data.shuffle",
    "checkpointing.metric_name",
    "checkpointing.save_period",
    "checkpointing.keep_top_k",
    "checkpointing.pretrained_checkpoint",
    "sandbox.url",
    "logger.tensorboard",
    "logger.wandb",
    "logger.mlflow",
    "teachers",
    "judge",
    "judge_endpoint",
)
# How and where it is done, or ours to do when the result is imported (gates, scores), by the beginning of the key.
OURS = (
    "policy.generation.max_batch_size",
    "policy.generation.vllm_server.",
    "grpo.partial_rollouts.max_new_tokens_per_round",
    "grpo.partial_rollouts.num_prompts_in_flight",
    "env.num_workers",
    "env.max_faults",
    "env.nemo_gym.concurrency",
    "env.nemo_gym.timeout",
    "logger.rollouts_per_step",
    "cluster.gpu",
    "cluster.collective_timeout_minutes",
    "name",
    "kind",
    "parent",
    "teacher_only",
    "gate",
)
# Key -> (what it is where nothing is lost, why it cannot be said).
UNSAID = {
    f"{MEGATRON}.fp8_cfg.attention_in_bf16": (False, "there is no such key; te_precision_config_file can name these layers"),
    f"{MEGATRON}.fp8_cfg.unaligned_in_bf16": (False, "there is no such key; te_precision_config_file can name these matrices"),
    "sft.val_patience": (0, "nothing ends a stage at a plateau there"),
    "grpo.val_patience": (0, "nothing ends a stage at a plateau there"),
    "grpo.swe_group_threshold": (None, "no group is left out by its best reward there"),
    "grpo.max_rollout_turns": (1, "how often the model may speak is a setting of NeMo Gym's agents there"),
    "grpo.partial_rollouts.enabled": (False, "a step waits for all of its replies there"),
    "grpo.adv_estimator.domain_shares": ({}, "each token counts as it is there, whatever its domain"),
    "env.nemo_gym.servers": ({}, "NeMo RL starts NeMo Gym's servers itself, by env.nemo_gym.config_paths"),
    "data.on_bad_row": ("stop", "a bad row ends the run there; mend the files"),
}
# Blocks that the loop of a kind does not read.
UNREAD = {"sft": ("grpo.", "loss_fn.", "genrm.", "env.", "sandbox.", "policy.generation.", "policy.router_replay."), "rl": ("sft.",)}


@dataclasses.dataclass
class Exported:
    """document: the YAML's content. untold: what it cannot say, a line each."""

    document: dict
    untold: list[str]

    def text(self, title: str, commands: list[str]) -> str:
        """The file: what it is, how it is started and what is lost as comments, then the keys."""
        lines = [title, "", *commands, "", "What it cannot say:", *([f"- {line}" for line in self.untold] or ["- nothing"])]
        head = "".join(f"# {line}".rstrip() + "\n" for line in lines)
        return head + yaml.safe_dump(self.document, sort_keys=False, width=120)


def export(cascade: CascadeConfig, name: str, starts: Starts, folder: Path, nemo_rl: str) -> Exported:
    """Stage `name` as NeMo RL trains it. folder: where its checkpoints and logs go. nemo_rl: its folder in the image."""
    stage = cascade.stages[name]
    rl = stage.kind == "rl"
    values = {key: value for key, value in leaves(stage).items() if not key.startswith(UNREAD[stage.kind])}
    untold = list(unsaid(values))
    said = {SAID[key]: value for key, value in values.items() if key in SAID}
    said |= common(cascade, stage, starts, folder)
    domains = list(told_domains(stage, untold)) if rl else []
    said |= of_rl(cascade, stage, domains, untold) if rl else of_sft(cascade, stage, untold)
    if stage.distils:
        said |= of_distillation(stage, starts, domains, untold)
    untold += losses(cascade, stage)
    return Exported({"defaults": f"{nemo_rl}/{EXEMPLARS[stage.kind]}", **nested(said)}, untold)


def launch(kind: str, nemo_rl: str, out: Path) -> str:
    """The command that trains the exported file, inside NeMo RL's image."""
    return f"cd {nemo_rl} && uv run {PROGRAMS[kind]} --config {out.absolute()}"


def leaves(stage: StageConfig) -> dict:
    """Dotted key -> value of everything that a stage says."""
    return flatten({key: value for key, value in dataclasses.asdict(stage).items() if key in BLOCKS or value is not None})


def unsaid(values: dict) -> Iterator[str]:
    """A line for each key that is without words there and not neutral."""
    for key, (neutral, why) in UNSAID.items():
        found = {other: value for other, value in values.items() if other == key or other.startswith(f"{key}.")}
        if found and found != {key: neutral}:
            yield f"{key}={json.dumps(found.get(key, nested(found)), default=str)}: {why}"


def nested(flat: dict) -> dict:
    """Dotted keys as mappings in mappings."""
    result: dict = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        place = result
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return result


def common(cascade: CascadeConfig, stage: StageConfig, starts: Starts, folder: Path) -> dict:
    """Weights, layout, batches, checkpoints and logs: what both loops have."""
    policy, cfg = stage.policy, stage.policy.megatron_cfg
    decay = cfg.scheduler.lr_decay_iters or stage.max_num_steps
    overrides = {**cfg.model_overrides, "moe_aux_loss_coeff": cfg.moe_aux_loss_coeff}
    if cfg.fp8_cfg.enabled:
        overrides["moe_router_padding_for_quantization"] = cfg.fp8_cfg.moe_router_padding_for_quantization
    recompute = {name: getattr(cfg, f"recompute_{name}") for name in ("granularity", "modules", "method", "num_layers")}
    # The first two have keys of their own there.
    first_class = {f"{MEGATRON}.recompute_{name}": recompute[name] for name in ("granularity", "modules") if recompute[name]}
    overrides |= {f"recompute_{name}": recompute[name] for name in ("method", "num_layers") if recompute[name] is not None}
    # There it is true or false, and its exemplars know what their image has.
    insisted = cfg.gradient_accumulation_fusion != "auto"
    fusion = {f"{MEGATRON}.gradient_accumulation_fusion": cfg.gradient_accumulation_fusion} if insisted else {}
    checkpointing = stage.checkpointing
    return {
        "policy.model_name": starts.model,
        "policy.tokenizer.name": starts.tokenizer,
        "policy.tokenizer.chat_template_kwargs": None,
        "policy.train_micro_batch_size": 1,
        "policy.dtensor_cfg.enabled": False,
        "policy.optimizer": None,
        "policy.scheduler": None,
        "policy.make_sequence_length_divisible_by": pack_alignment(cfg),
        "policy.dynamic_batching.enabled": False,
        "policy.sequence_packing.enabled": True,
        "policy.sequence_packing.algorithm": "modified_first_fit_decreasing",
        f"{MEGATRON}.enabled": True,
        f"{MEGATRON}.expert_tensor_parallel_size": cfg.expert_tensor_parallel,
        f"{MEGATRON}.pipeline_dtype": policy.precision,
        f"{MEGATRON}.optimizer.bf16": policy.precision == "bfloat16",
        f"{MEGATRON}.optimizer.clip_grad": policy.max_grad_norm,
        f"{MEGATRON}.optimizer.optimizer_offload_fraction": 1.0 if cfg.optimizer.optimizer_cpu_offload else 0.0,
        f"{MEGATRON}.scheduler.start_weight_decay": cfg.optimizer.weight_decay,
        f"{MEGATRON}.scheduler.end_weight_decay": cfg.optimizer.weight_decay,
        f"{MEGATRON}.scheduler.weight_decay_incr_style": "constant",
        f"{MEGATRON}.scheduler.lr_decay_iters": decay,
        f"{MEGATRON}.distributed_data_parallel_config.grad_reduce_in_fp32": policy.precision == "bfloat16",
        f"{MEGATRON}.model_overrides": overrides,
        **first_class,
        **fusion,
        "checkpointing.enabled": True,
        "checkpointing.checkpoint_dir": str(folder / "checkpoints"),
        "checkpointing.metric_name": None,
        # It saves at the end in any case.
        "checkpointing.save_period": checkpointing.save_period or stage.max_num_steps,
        "checkpointing.keep_top_k": checkpointing.keep_top_k or None,
        "checkpointing.pretrained_checkpoint": starts.pretrained,
        "checkpointing.save_optimizer": True,
        "logger.log_dir": str(folder / "logs"),
        **{f"logger.{name}.{key}": value for name in ("wandb", "tensorboard", "mlflow") for key, value in getattr(stage.logger, name).items()},
    }


def of_sft(cascade: CascadeConfig, stage: StageConfig, untold: list[str]) -> dict:
    """What only SFT has: conversations as files, a batch of them."""
    policy = stage.policy
    untold.append(
        f"policy.train_global_batch_size={policy.train_global_batch_size}: packs of {policy.sequence_packing.train_mb_tokens} tokens "
        "a step here, conversations there; set it to as many conversations as fill these packs"
    )
    files = [
        {"dataset_name": "openai_format", "data_path": str(Path(file.data_path).absolute()), "chat_key": "messages", "tool_key": "tools"}
        # Tools' arguments are kept as each row has them.
        | {"use_preserving_dataset": True, "processor": "sft_processor"}
        for file in stage.data.train.values()
    ]
    if stage.data.packed_folder:
        untold.append(f"data.train={stage.data.packed_folder}: packs are not read there; name the JSONL files they were made of")
    return {
        "policy.train_global_batch_size": policy.train_global_batch_size,
        "sft.max_num_epochs": EPOCHS,
        "sft.val_at_start": False,
        "sft.val_at_end": False,
        "sft.seed": cascade.seed,
        **data_block(stage, files, [], add_bos=False, add_eos=False, add_generation_prompt=False),
    }


def of_rl(cascade: CascadeConfig, stage: StageConfig, domains: list[tuple[str, str | None]], untold: list[str]) -> dict:
    """What only RL has: rollouts by vLLM, rewards by NeMo Gym's servers, one update a batch."""
    policy, grpo = stage.policy, stage.grpo
    if policy.generation.backend == "megatron":
        untold.append("policy.generation.backend=megatron: vLLM draws the rollouts there, which NeMo Gym's servers ask over HTTP")
    rows = {"dataset_name": "NemoGymDataset", "env_name": "nemo_gym", "processor": "nemo_gym_data_processor"}
    files = [{"data_path": str(Path(file.data_path).absolute()), **rows} for file in stage.data.train.values()]
    validated = [{"data_path": str(Path(file.data_path).absolute()), **rows} for file in cascade.scored(stage.name).values()]
    apart = stage.distils or grpo.async_grpo.enabled
    zero = grpo.overlong_mode == "reward_zero" and not stage.distils
    if apart and (grpo.use_dynamic_sampling or zero):
        untold.append(
            "grpo.async_grpo.enabled=true: NeMo RL has neither dynamic sampling nor reward shaping beside it, and refuses them; "
            "set grpo.use_dynamic_sampling=false and grpo.overlong=mask or keep, or sample in step"
        )
    engine = policy.generation.vllm_cfg
    servers = dict.fromkeys(server for _, server in domains if server in GYM_CONFIGS)
    gym = {"config_paths": [GYM_MODEL, *(GYM_CONFIGS[server] for server in servers)]}
    if "genrm_compare" in servers:
        names = [field.name for field in dataclasses.fields(stage.genrm) if not field.name.startswith("judge_")]
        settings = {name: getattr(stage.genrm, name) for name in names}
        gym["genrm_compare"] = {"resources_servers": {"genrm_compare": settings}}
        untold.append("cascade.judge: the model that compares replies is one of NeMo Gym's model servers there; serve it and name it in env.nemo_gym")
    for domain in stage.env.judges:
        untold.append(f"env.judges.{domain}: a model that judges is one of NeMo Gym's model servers there; name it in env.nemo_gym")
    if grpo.adv_estimator.name not in ("grpo", "opd"):
        untold.append(f"grpo.adv_estimator.name={grpo.adv_estimator.name}: another package's estimator, which NeMo RL does not know")
    return {
        # Strictly on-policy: all rollouts of a step in one update.
        "policy.train_global_batch_size": grpo.num_prompts_per_step * grpo.num_generations_per_prompt,
        "policy.logprob_batch_size": 1,
        "policy.sequence_packing.logprob_mb_tokens": policy.sequence_packing.train_mb_tokens,
        "policy.generation.backend": "vllm",
        "policy.generation.top_k": None,
        "policy.generation.val_temperature": cascade.validation.temperature,
        "policy.generation.val_top_p": cascade.validation.top_p,
        "policy.generation.val_top_k": None,
        "policy.generation.stop_token_ids": None,
        "policy.generation.stop_strings": None,
        "policy.generation.vllm_cfg.async_engine": True,
        "policy.generation.vllm_cfg.expose_http_server": True,
        "policy.generation.vllm_cfg.precision": policy.precision,
        "policy.generation.vllm_cfg.kv_cache_dtype": "auto",
        "policy.generation.vllm_cfg.pipeline_parallel_size": 1,
        "policy.generation.vllm_cfg.max_model_len": engine.max_model_len or policy.max_total_sequence_length,
        "policy.generation.vllm_kwargs": {"mamba_ssm_cache_dtype": "float32", **policy.generation.vllm_kwargs},
        "policy.generation.colocated.enabled": not apart,
        "policy.generation.colocated.resources.num_nodes": stage.cluster.num_nodes if apart else None,
        "policy.generation.colocated.resources.gpus_per_node": stage.cluster.gpus_per_node if apart else None,
        "cluster.num_nodes": stage.cluster.num_nodes * (2 if apart else 1),
        "grpo.max_num_epochs": EPOCHS,
        "grpo.val_at_start": False,
        "grpo.val_at_end": bool(validated) and grpo.val_period > 0,
        "grpo.val_num_generations_per_prompt": cascade.validation.num_samples,
        "grpo.max_val_samples": None,
        "grpo.val_batch_size": None,
        "grpo.seed": cascade.seed,
        "grpo.batch_multiplier": 1.0,
        "grpo.overlong_filtering": grpo.overlong_mode == "mask",
        "grpo.reward_shaping.enabled": zero and not apart,
        "grpo.reward_shaping.overlong_buffer_length": None,
        "grpo.reward_shaping.overlong_buffer_penalty": None,
        "grpo.reward_shaping.max_response_length": None,
        "grpo.reward_shaping.stop_properly_penalty_coef": 0.0 if zero and not apart else None,
        "grpo.reward_scaling.enabled": False,
        "grpo.async_grpo.enabled": apart,
        "grpo.adv_estimator.normalize_rewards": grpo.normalize_rewards,
        "grpo.adv_estimator.use_leave_one_out_baseline": grpo.use_leave_one_out_baseline,
        "env._override_": True,
        "env.should_use_nemo_gym": True,
        "env.nemo_gym": gym,
        **data_block(stage, files, validated),
    }


def of_distillation(stage: StageConfig, starts: Starts, domains: list[tuple[str, str | None]], untold: list[str]) -> dict:
    """Teachers by the agents of their domains' rows, on nodes of their own."""
    cfg, cluster = stage.policy.megatron_cfg, stage.cluster
    by_agent = {agent_of(stage.data.train[domain].data_path) or domain: starts.teachers[domain] for domain, _ in domains}
    attention = cfg.tensor_model_parallel_size * cfg.pipeline_model_parallel_size * cfg.context_parallel_size
    experts = cfg.expert_tensor_parallel * cfg.expert_model_parallel_size * cfg.pipeline_model_parallel_size
    nodes = math.ceil(math.lcm(attention, experts) / cluster.gpus_per_node)
    own = nodes * len(set(by_agent.values()))
    untold.append(
        f"teachers: here they rotate through the student's own weights, in step; there {len(set(by_agent.values()))} of them wait on "
        f"{own} nodes of their own and vLLM on {cluster.num_nodes}, and replies are drawn with weights of one update before"
    )
    if stage.grpo.adv_estimator.full_vocabulary:
        untold.append("grpo.adv_estimator.full_vocabulary=true: only NeMo RL's single controller has it, which this file does not start")
    return {
        "cluster.num_nodes": 2 * cluster.num_nodes + own,
        "on_policy_distillation.enabled": True,
        # An agent's name may have a dot in it, so not by dotted keys.
        "on_policy_distillation.teacher_model_by_agent_name": by_agent,
        "on_policy_distillation.strict_agent_name_match": True,
        "on_policy_distillation.deduplicate_shared_teacher_checkpoints": True,
        "on_policy_distillation.non_colocated_teachers.enabled": True,
        **{
            f"on_policy_distillation.non_colocated_teachers.default_teacher_cfg.{key}": value
            for key, value in {
                "tensor_model_parallel_size": cfg.tensor_model_parallel_size,
                "pipeline_model_parallel_size": cfg.pipeline_model_parallel_size,
                "context_parallel_size": cfg.context_parallel_size,
                "expert_model_parallel_size": cfg.expert_model_parallel_size,
                "num_nodes": nodes,
                "gpus_per_node": cluster.gpus_per_node,
                "precision": {"bfloat16": "bf16", "float32": "fp32"}[stage.policy.precision],
                "micro_batch_size": 1,
            }.items()
        },
    }


def data_block(stage: StageConfig, train: list[dict], validation: list[dict], **more) -> dict:
    """`data`, in place of the exemplar's."""
    return {
        "data._override_": True,
        "data.max_input_seq_length": None,
        "data.shuffle": stage.data.shuffle,
        "data.num_workers": 1,
        "data.use_multiple_dataloader": False,
        "data.train": train,
        "data.validation": validation or None,
        "data.default": None,
        **{f"data.{key}": value for key, value in more.items()},
    }


def losses(cascade: CascadeConfig, stage: StageConfig) -> Iterator[str]:
    """What of several keys together, or of the whole cascade, has no words there."""
    shares = {name: file.share for name, file in stage.data.train.items()}
    if len(shares) > 1:
        yield f"data.train: shares {shares} are those of the steps here; there all rows are shuffled together, so each file counts by its rows"
    if stage.kind == "rl" and cascade.validation.num_prompts:
        yield f"cascade.validation.num_prompts={cascade.validation.num_prompts}: the first of each domain here, all rows of the files there"
    if stage.checkpointing.metric_name is not None:
        yield f"checkpointing.metric_name={stage.checkpointing.metric_name}: NeMo Gym's servers name their metrics otherwise; set it, else the newest stay"


def told_domains(stage: StageConfig, untold: list[str]) -> Iterator[tuple[str, str | None]]:
    """(domain, NeMo Gym's server of its rows), and what is to be said of each."""
    for domain, file in stage.data.train.items():
        agent = agent_of(file.data_path)
        server = server_of({"agent_ref": {"name": agent}}) if agent else None
        if agent is None:
            untold.append(f"data.train.{domain}: {file.data_path} is not here or its first row has no agent_ref.name, which NeMo RL needs")
        elif server not in GYM_CONFIGS:
            untold.append(f"data.train.{domain}: rows of {agent}; name the config of its server in env.nemo_gym.config_paths")
        if server == "code_gen":
            untold.append(f"data.train.{domain}: NeMo Gym's code_gen runs what the model wrote without a sandbox of its own")
        yield domain, server


def agent_of(path: str) -> str | None:
    """agent_ref.name of a file's first row; None where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.loads(file.readline())["agent_ref"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
