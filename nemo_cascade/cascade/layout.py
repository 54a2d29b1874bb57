"""Whether a stage's parallel layout fits the started processes and divides its model.

What the layout itself allows is engine.config.layout_problems; here are the model's heads, groups, experts and widths.
sequence_parallel with tensor_model_parallel_size 1 is legal and has no effect, as in megatron-core.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from nemo_cascade.cascade.strict import did_you_mean
from nemo_cascade.data.packing import round_up
from nemo_cascade.engine.config import MegatronConfig, PolicyConfig, division, layout_problems, pack_alignment
from nemo_cascade.models import fp8
from nemo_cascade.models.config import ModelConfig
from nemo_cascade.models.presets import PRESETS, get_preset, is_hf_folder
from nemo_cascade.stages.context import LoopConfig

SIZES = tuple(field.name for field in dataclasses.fields(MegatronConfig) if field.name.endswith("_parallel_size"))
KEYS = (*SIZES, "sequence_parallel")


def problems(stage: LoopConfig, where: Callable[[str], str], world_size: int | None) -> Iterator[str]:
    """Lines "key: what is wrong; what to do". world_size None leaves the number of processes out."""
    yield from legal_problems(stage, where, world_size)
    yield from decoding_problems(stage, where)


def legal_problems(stage: LoopConfig, where: Callable[[str], str], world_size: int | None) -> Iterator[str]:
    """What no engine could run."""
    cfg = stage.policy.megatron_cfg
    sizes = [getattr(cfg, name) for name in SIZES]
    if any(size is not None and size < 1 for size in sizes):
        return  # reported as values out of range
    fitting = math.prod(size or 1 for size in sizes) * cfg.expert_tensor_parallel
    for problem in layout_problems(cfg, world_size if world_size is not None else fitting):
        yield f"{place(cfg, where)}: {problem}"
    if world_size is not None:
        yield from batch_problems(stage, where, world_size)
    yield from alignment_problems(stage, where)
    name = stage.policy.model_name
    if name not in PRESETS and not is_hf_folder(name):
        yield f"{where('policy.model_name')}: {unknown_model(name)}"
        return
    try:
        preset = get_preset(name)
    except ValueError as error:
        yield f"{where('policy.model_name')}: {error}"
        return
    yield from split_problems(preset, cfg, where)
    if stage.policy.max_total_sequence_length > preset.max_sequence_length:
        yield (
            f"{where('policy.max_total_sequence_length')}: {stage.policy.max_total_sequence_length} is more than the "
            f"{preset.max_sequence_length} tokens of {name}"
        )


def unknown_model(name: str) -> str:
    """What is wrong with a model_name that is neither a preset nor a Hugging Face folder, and what to do."""
    if Path(name).is_dir():
        return (
            f"{name} has no config.json, so it does not say what network it is; name a Hugging Face folder or one of "
            f"{', '.join(PRESETS)} (weights without a config.json are for checkpointing.pretrained_checkpoint)"
        )
    if "/" in name:
        return f"no folder {name}; name the Hugging Face folder of the model to train, or one of {', '.join(PRESETS)}"
    return f"no model {name!r}{did_you_mean(name, PRESETS)}"


def decoding_problems(stage: LoopConfig, where: Callable[[str], str]) -> Iterator[str]:
    """What the embedded rollout engine cannot decode under."""
    if stage.kind != "rl":
        return
    for key, size in undecodable(stage.policy).items():
        yield (
            f"{where(f'policy.megatron_cfg.{key}')}: {size}, but the embedded rollout engine cannot decode under "
            f"{key.split('_')[0]} parallel; set it to 1, take policy.generation.backend=vllm, or leave RL stages out of cascade.order"
        )


def undecodable(policy: PolicyConfig) -> dict[str, int]:
    """The sizes, by key, under which the embedded rollout engine (`rollout.megatron`) cannot decode; none where vLLM does."""
    if policy.generation.backend != "megatron":
        return {}
    sizes = {key: getattr(policy.megatron_cfg, key) for key in ("pipeline_model_parallel_size", "context_parallel_size")}
    return {key: size for key, size in sizes.items() if size > 1}


def alignment_problems(stage: LoopConfig, where: Callable[[str], str]) -> Iterator[str]:
    """The longest sequence, rounded up as its layout asks, must still fit a pack, in training and for log-probs."""
    cfg, tokens = stage.policy.megatron_cfg, stage.policy.sequence_packing.train_mb_tokens
    if cfg.fp8_cfg.enabled and cfg.fp8_cfg.fp8_recipe not in fp8.MULTIPLE:
        return  # reported as no choice
    multiple = pack_alignment(cfg)
    if tokens > 0 and tokens % multiple:
        yield (
            f"{where('policy.sequence_packing.train_mb_tokens')}: {tokens} is no multiple of {multiple}, to which this "
            "layout pads packs (tensor and context parallel, FP8), so that a pack or a long sequence could outgrow it; "
            f"set it to {round_up(tokens, multiple)}"
        )


def place(cfg: MegatronConfig, where: Callable[[str], str]) -> str:
    """The block of the file that sets the layout: the stage's own if it changes anything, else the top-level one."""
    changed = [name for name in KEYS if getattr(cfg, name) != getattr(MegatronConfig(), name)]
    blocks = [where(f"policy.megatron_cfg.{name}").rsplit(".", 1)[0] for name in changed]
    return max(blocks, key=len, default="policy.megatron_cfg")


def batch_problems(stage: LoopConfig, where: Callable[[str], str], world_size: int) -> Iterator[str]:
    """Every data-parallel rank needs a rollout to train on in every step, or as many ready packs as every other one.

    SFT's documents are many and short enough to be dealt to any number of ranks.
    """
    cfg = stage.policy.megatron_cfg
    ranks = world_size // (
        cfg.tensor_model_parallel_size * cfg.pipeline_model_parallel_size * cfg.context_parallel_size
    )
    rollouts = stage.grpo.num_prompts_per_step * stage.grpo.num_generations_per_prompt
    if stage.kind == "rl" and 0 < rollouts < ranks:
        yield (
            f"{where('grpo.num_prompts_per_step')}: {rollouts} rollouts a step cannot be dealt to {ranks} "
            "data-parallel ranks; raise it"
        )
    packs = stage.policy.train_global_batch_size
    if stage.kind == "sft" and stage.data.packed_folder and packs % ranks:
        yield (
            f"{where('policy.train_global_batch_size')}: {packs} packs a step cannot be dealt evenly to {ranks} "
            "data-parallel ranks; set it to a multiple"
        )


def split_problems(preset: ModelConfig, cfg: MegatronConfig, where: Callable[[str], str]) -> Iterator[str]:
    """What of the model does not divide by tensor, pipeline, expert or expert-tensor parallel."""
    tp, ep, etp = cfg.tensor_model_parallel_size, cfg.expert_model_parallel_size, cfg.expert_tensor_parallel
    # Where nobody says otherwise, tensor ranks split the experts too, so a key that is not set is not the one to blame.
    experts, follow = ("moe_ffn_hidden_size",), cfg.expert_tensor_parallel_size is None
    split = {
        "tensor_model_parallel_size": (
            tp,
            (
                "num_attention_heads",
                "mamba_num_heads",
                "mamba_num_groups",
                "moe_shared_expert_intermediate_size",
                "vocab_size",
                *(experts if follow and ep == 1 else ()),
            ),
        ),
        "pipeline_model_parallel_size": (cfg.pipeline_model_parallel_size, ("num_layers",)),
        "expert_model_parallel_size": (ep, ("num_moe_experts",)),
        "expert_tensor_parallel_size": (etp, () if follow else experts),
    }
    for key, (size, names) in split.items():
        unfit = [f"{name} {division(getattr(preset, name), size)}" for name in names if getattr(preset, name) % size]
        # megatron-core copies the few key-value groups when there are fewer of them than ranks.
        groups = preset.num_query_groups
        if key == "tensor_model_parallel_size" and groups % tp and tp % groups:
            unfit.append(f"num_query_groups {division(groups, size)}")
        if unfit:
            yield f"{where(f'policy.megatron_cfg.{key}')}: {size} does not divide {preset.name}'s {', '.join(unfit)}"
    yield from context_problems(preset, cfg, where)


def context_problems(preset: ModelConfig, cfg: MegatronConfig, where: Callable[[str], str]) -> Iterator[str]:
    """Mamba's heads are dealt to tensor and then to context ranks, and its groups too where there are as many."""
    cp, tp = cfg.context_parallel_size, cfg.tensor_model_parallel_size
    heads, groups = preset.mamba_num_heads // tp, preset.mamba_num_groups // tp
    key = where("policy.megatron_cfg.context_parallel_size")
    if heads % cp:
        yield f"{key}: {cp} does not divide {preset.name}'s {heads} Mamba heads of a tensor rank"
    elif groups and groups % cp and cp % groups:
        yield (
            f"{key}: {cp} neither divides {preset.name}'s {groups} Mamba groups of a tensor rank nor is a multiple of "
            "them"
        )
