"""Megatron Bridge: a network of ours as its model provider, and an SFT stage as a config that its training loop starts from.

    from megatron.bridge.training.finetune import finetune
    from megatron.bridge.training.gpt_step import forward_step
    from nemo_cascade.interop import bridge

    finetune(bridge.recipe("sft", "full"), forward_step)

Bridge is imported by the functions, not with this module. What it saves is a `pretrained_checkpoint`, or a stage that is imported
(`nemo-cascade import-checkpoint`). Left out: RL, which Bridge does not have.
"""

import dataclasses
import inspect
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import StageConfig, load_config
from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.models.presets import get_preset

if TYPE_CHECKING:
    from megatron.bridge.training.config import ConfigContainer

# Bridge's configs have no field for it; it is that of every released network of the family.
CONV_KERNEL = 4
# How tensor parallel splits our layers: Bridge's conversion of weights knows others by the names of their classes.
SPLITS = {"Router": "replicated", "NormColumnParallelLinear": "column", "RMSNorm": "replicated"}


def stack_spec(config: Any = None) -> Any:
    """What Bridge calls for the stack of layers. By a function's name, so that its run_config.yaml can say it."""
    from megatron.bridge.models.conversion.param_mapping import AutoMapping

    from nemo_cascade.models import specs

    for name, split in SPLITS.items():
        AutoMapping.register_module_type(name, split)
    return specs.stack_spec(CONV_KERNEL)


def provider(model: str, **settings) -> Any:
    """Bridge's provider of a preset or of a Hugging Face folder's network, in bfloat16; settings: fields of it, as the layout's sizes.

    Raises ValueError for a network that Bridge has no words for.
    """
    import torch
    from megatron.core.transformer.enums import AttnBackend

    from nemo_cascade.models.specs import transformer_settings

    kind, preset = provider_class(), get_preset(model)
    if preset.mamba_conv_kernel != CONV_KERNEL:
        raise ValueError(f"{model}: convolutions of {preset.mamba_conv_kernel} taps; Megatron Bridge's providers know {CONV_KERNEL} only")
    known = {field.name for field in dataclasses.fields(kind)}
    given = dict(
        vocab_size=preset.vocab_size,
        seq_length=preset.max_sequence_length,
        position_embedding_type="none",
        share_embeddings_and_output_weights=False,
        # The first name that this version of Bridge has.
        **{next(name for name in ("hybrid_layer_pattern", "hybrid_override_pattern") if name in known): preset.pattern},
        **{next(name for name in ("hybrid_stack_spec", "mamba_stack_spec") if name in known): stack_spec},
    )
    precision = dict(params_dtype=torch.bfloat16, bf16=True)
    family = transformer_settings(preset, **{**precision, "attention_backend": AttnBackend.auto, "use_cpu_initialization": False, **settings})
    return kind(**{**given, **family})


def provider_class() -> type:
    """Bridge's provider of hybrid networks; newer ones call it so, older ones after Mamba."""
    from nemo_cascade.engine import cpu

    # Bridge imports megatron-core.
    cpu.install()
    try:
        from megatron.bridge.models.hybrid.hybrid_provider import HybridModelProvider
    except ModuleNotFoundError:
        from megatron.bridge.models.mamba.mamba_provider import MambaModelProvider as HybridModelProvider
    return HybridModelProvider


def recipe(name: str, config_name: str = "full", overrides: Sequence[str] = ()) -> "ConfigContainer":
    """Stage `name` of a config as Bridge trains it. Raises ConfigErrors for a wrong config, RunRefused for a stage that is not SFT's.

    Conversations, the batch of them and the tokenizer's folder on another machine stay the user's (`dataset`, `train.global_batch_size`).
    """
    stages = load_config(compose_config(config_name, list(overrides)), planning=True).stages
    if name not in stages or stages[name].kind != "sft":
        known = [stage.name for stage in stages.values() if stage.kind == "sft"]
        raise RunRefused(f"{name} is no SFT stage of {config_name}, and Megatron Bridge has no RL; choose among {', '.join(known)}")
    return of_stage(stages[name])


def of_stage(stage: StageConfig) -> "ConfigContainer":
    """An SFT stage over Bridge's own recipe for SFT of Nemotron 3 Nano."""
    from megatron.bridge.recipes.nemotronh import nemotron_3_nano_sft_config

    from nemo_cascade.data.tokenizer import SHIPPED
    from nemo_cascade.engine.policy import model_settings

    theirs = nemotron_3_nano_sft_config()
    policy, cfg = stage.policy, stage.policy.megatron_cfg
    optimizer, scheduler, length = cfg.optimizer, cfg.scheduler, policy.sequence_packing.train_mb_tokens
    asked, apex = cfg.gradient_accumulation_fusion, find_spec("fused_weight_gradient_mlp_cuda") is not None
    settings = {**model_settings(policy), "gradient_accumulation_fusion": apex if asked == "auto" else asked, **cfg.model_overrides}
    theirs.model = provider(policy.model_name, seq_length=length, **known_to(provider_class(), settings))
    theirs.mixed_precision = "bf16_mixed" if policy.precision == "bfloat16" else None
    theirs.dataset.seq_length = length
    shipped = SHIPPED / policy.tokenizer.name
    theirs.tokenizer.tokenizer_model = str(shipped if shipped.is_dir() else policy.tokenizer.name)
    theirs.train.train_iters, theirs.train.micro_batch_size = stage.max_num_steps, 1
    assign(
        theirs.optimizer,
        **{name: getattr(optimizer, name) for name in ("optimizer", "lr", "min_lr", "weight_decay", "adam_beta1", "adam_beta2", "adam_eps")},
        clip_grad=policy.max_grad_norm,
        use_distributed_optimizer=optimizer.use_distributed_optimizer,
        optimizer_cpu_offload=optimizer.optimizer_cpu_offload,
    )
    assign(
        theirs.scheduler,
        lr_decay_style=scheduler.lr_decay_style,
        lr_warmup_iters=scheduler.lr_warmup_iters,
        lr_warmup_init=scheduler.lr_warmup_init,
        lr_decay_iters=scheduler.lr_decay_iters or stage.max_num_steps,
        start_weight_decay=optimizer.weight_decay,
        end_weight_decay=optimizer.weight_decay,
    )
    assign(theirs.ddp, use_distributed_optimizer=optimizer.use_distributed_optimizer)
    given = stage.checkpointing.pretrained_checkpoint
    assign(
        theirs.checkpoint,
        save_interval=stage.checkpointing.save_period or stage.max_num_steps,
        async_save=stage.checkpointing.async_save,
        pretrained_checkpoint=given.path if given is not None else None,
    )
    return theirs


def known_to(kind: type, settings: dict) -> dict:
    """Those of megatron-core's settings that a provider's class has as fields."""
    names = set(inspect.signature(kind).parameters)
    return {name: value for name, value in settings.items() if name in names}


def assign(target: Any, **values) -> None:
    """Sets fields that must be there: a name that Bridge has given up would be set without effect. Raises AttributeError."""
    for name, value in values.items():
        getattr(target, name)
        setattr(target, name, value)
