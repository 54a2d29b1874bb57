"""What a user may say about the policy: NeMo RL's `policy` block, as far as this package reads it.

Kept apart from the policy itself so that a config can be checked without importing torch or megatron-core.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nemo_cascade.data.packing import pack_multiple
from nemo_cascade.models import fp8
from nemo_cascade.models.fp8 import Fp8Config
from nemo_cascade.rollout.config import GenerationConfig


@dataclass
class OptimizerConfig:
    """`policy.megatron_cfg.optimizer`: AdamW as megatron-core builds it.

    optimizer_cpu_offload: its state waits, and is updated, in host memory (megatron-core's HybridDeviceOptimizer).
    """

    optimizer: str = "adam"
    lr: float = 3.0e-6  # peak learning rate
    min_lr: float = 0.0  # what it decays to
    weight_decay: float = 0.0  # decoupled, as AdamW's
    adam_beta1: float = 0.9  # of the gradient's mean
    adam_beta2: float = 0.95  # of its square's mean
    adam_eps: float = 1.0e-8  # added to the root of that
    use_distributed_optimizer: bool = True  # data-parallel ranks share the optimizer's state
    optimizer_cpu_offload: bool = False


@dataclass
class SchedulerConfig:
    """`policy.megatron_cfg.scheduler`: lr_decay_iters null means the stage's own number of steps."""

    lr_decay_style: str = "constant"  # the way from lr to min_lr
    lr_warmup_iters: int = 0  # steps of linear warm-up
    lr_warmup_init: float = 0.0  # the rate that warm-up begins with
    lr_decay_iters: int | None = None


@dataclass
class MegatronConfig:
    """`policy.megatron_cfg`: the parallel layout, the router, recomputation, FP8 and the optimizer.

    expert_tensor_parallel_size null means 1 with expert parallel and tensor_model_parallel_size without.
    freeze_moe_router freezes the router's weights; its expert bias follows moe_router_bias_update_rate, of which 0
    freezes it. activation_checkpointing true recomputes every layer in the backward pass, as recompute_granularity
    full, recompute_method uniform and recompute_num_layers 1 say in megatron-core's words.
    gradient_accumulation_fusion: weights' gradients are added inside the product that makes them; auto: where it can be done
    (`engine.gradient_fusion`).
    """

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1  # ranks that share the layers
    context_parallel_size: int = 1  # ranks that share each sequence
    expert_model_parallel_size: int = 1  # ranks that share the experts
    expert_tensor_parallel_size: int | None = None
    sequence_parallel: bool = False  # tensor ranks share the tokens between their products; needed with tensor parallel
    freeze_moe_router: bool = False
    moe_router_dtype: str = "fp32"  # precision of the router's product
    moe_router_load_balancing_type: str = "none"  # of SFT as a rule; RL leaves the balance alone
    moe_aux_loss_coeff: float = 0.0  # weight of that loss
    moe_router_bias_update_rate: float = 0.0
    activation_checkpointing: bool = False
    recompute_granularity: str | None = None
    recompute_method: str | None = None
    recompute_num_layers: int | None = None
    recompute_modules: list[str] | None = None  # with recompute_granularity selective: what is recomputed
    gradient_accumulation_fusion: bool | str = "auto"
    fp8_cfg: Fp8Config = field(default_factory=Fp8Config)
    model_overrides: dict[str, Any] = field(default_factory=dict)  # fields of megatron-core's TransformerConfig, passed on as they are
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    @property
    def expert_tensor_parallel(self) -> int:
        """The size expert_tensor_parallel_size stands for."""
        default = 1 if self.expert_model_parallel_size > 1 else self.tensor_model_parallel_size
        return self.expert_tensor_parallel_size or default


@dataclass
class SequencePackingConfig:
    """`policy.sequence_packing`: tokens in one packed microbatch, for training and for log-probs alike.

    One number for both, because log-probs are compared bit for bit between the two passes.
    """

    train_mb_tokens: int = 2048  # tokens of a pack


@dataclass
class TokenizerConfig:
    """`policy.tokenizer`: a name shipped with the package (`tiny`) or a Hugging Face folder."""

    name: str = "tiny"


@dataclass
class RouterReplayConfig:
    """`policy.router_replay`: RL trains through the experts that were chosen while sampling (`models.replay`)."""

    enabled: bool = False  # off: the router chooses anew in training


@dataclass
class PolicyConfig:
    """`policy`: the model, its layout and how it is optimised.

    `train_global_batch_size` counts packs of `sequence_packing.train_mb_tokens` tokens in SFT; RL stages take their
    batch from `grpo.num_prompts_per_step * grpo.num_generations_per_prompt`.
    """

    model_name: str = "tiny"  # a preset (tiny, nano_30b_a3b), or a Hugging Face folder: the network with its weights
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    precision: str = "float32"  # of products and activations; what must not be rounded stays in fp32
    train_global_batch_size: int = 4
    max_total_sequence_length: int = 1024  # tokens of a prompt with its reply, or of a conversation
    max_grad_norm: float = 1.0  # gradients are scaled down to this norm (L2, over all ranks)
    megatron_cfg: MegatronConfig = field(default_factory=MegatronConfig)
    sequence_packing: SequencePackingConfig = field(default_factory=SequencePackingConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    router_replay: RouterReplayConfig = field(default_factory=RouterReplayConfig)


def layout_problems(config: MegatronConfig, world_size: int) -> list[str]:
    """What keeps this layout from being run on so many processes, each with its remedy; empty when nothing does."""
    tp, ep, etp = config.tensor_model_parallel_size, config.expert_model_parallel_size, config.expert_tensor_parallel
    problems = []
    for product, keys in (
        (tp * config.pipeline_model_parallel_size * config.context_parallel_size, "tensor * pipeline * context"),
        (etp * ep * config.pipeline_model_parallel_size, "expert_tensor * expert * pipeline"),
    ):
        same = ep == 1 and etp == tp  # the second product divides the first then, and has nothing to add
        if world_size % product and not (problems and same):
            problems.append(
                f"{keys} parallel sizes multiply to {product}, which does not divide the {world_size} started "
                f"processes ({division(world_size, product)}); start a multiple of {product} or lower these sizes"
            )
    if tp > 1 and not config.sequence_parallel:
        problems.append("tensor_model_parallel_size > 1 needs sequence_parallel=true (megatron-core's MoE layers)")
    if tp > 1 and ep == 1 and etp != tp:
        problems.append(
            f"expert_tensor_parallel_size={etp} with tensor_model_parallel_size={tp} and no expert parallel: "
            f"megatron-core would not sum the experts' gradients over tensor ranks; set it to {tp} or null"
        )
    return problems


def division(number: int, size: int) -> str:
    """The arithmetic of a division that leaves a rest, as "10 = 4 * 2 + 2"."""
    return f"{number} = {size} * {number // size} + {number % size}"


def pack_alignment(config: MegatronConfig) -> int:
    """What a pack's tokens are padded to a multiple of: what tensor and context parallel ask, and FP8's blocks."""
    needed = pack_multiple(config.tensor_model_parallel_size, config.context_parallel_size)
    return math.lcm(needed, fp8.token_multiple(config))


# megatron-core's recompute_modules that these networks have: the attention itself, a whole MoE layer or its shared
# expert, and with Transformer Engine's layers the norm before the experts and their activation.
RECOMPUTE_MODULES = ("core_attn", "moe", "shared_experts", "layernorm", "moe_act")


def recompute_settings(config: MegatronConfig) -> dict:
    """megatron-core's TransformerConfig fields of what is recomputed in the backward pass."""
    names = ("recompute_granularity", "recompute_method", "recompute_num_layers", "recompute_modules")
    settings = {name: getattr(config, name) for name in names}
    if config.activation_checkpointing:
        usual = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
        settings |= {name: value for name, value in usual.items() if settings[name] is None}
    return settings


def recompute_problems(config: MegatronConfig, num_layers: int | None) -> Iterator[tuple[str, str]]:
    """(key of megatron_cfg, what is wrong; what to do) of what is recomputed; num_layers None where it is not known."""
    said = recompute_settings(config)
    granularity, method, modules = (said[f"recompute_{name}"] for name in ("granularity", "method", "modules"))
    if config.activation_checkpointing and granularity != "full":
        text = f"true means recompute_granularity full, but that is {granularity}; set one of them"
        yield "activation_checkpointing", text
    elif granularity == "full":
        missing = [name for name in ("recompute_method", "recompute_num_layers") if said[name] is None]
        if missing:
            advice = "uniform and 1 recompute every layer"
            yield "recompute_granularity", f"full needs {' and '.join(missing)} as well; set it ({advice})"
        if modules is not None:
            yield "recompute_modules", "recompute_granularity full recomputes whole layers; remove it or set selective"
        count, stages = said["recompute_num_layers"], config.pipeline_model_parallel_size
        if num_layers and count is not None and count > num_layers // stages:
            yield (
                "recompute_num_layers",
                f"{count} is more than the {num_layers} / {stages} = {num_layers // stages} layers of a pipeline "
                "stage; lower it",
            )
    else:
        for name in ("recompute_method", "recompute_num_layers"):
            if said[name] is not None:
                yield name, "only recompute_granularity full reads it; remove it"
        if granularity is None and modules is not None:
            yield "recompute_modules", "only recompute_granularity selective reads it; set that"
        if granularity == "selective" and not modules:
            choices = ", ".join(RECOMPUTE_MODULES)
            yield "recompute_granularity", f"selective needs recompute_modules; choose among {choices}"
    for module in modules or ():
        if module not in RECOMPUTE_MODULES:
            yield "recompute_modules", f"{module} is not among {', '.join(RECOMPUTE_MODULES)}"
    if config.fp8_cfg.enabled and config.fp8_cfg.fp8_recipe == "delayed":
        for module in sorted({"moe_act", "layernorm"} & {*(modules or ())}):
            yield "recompute_modules", f"{module} cannot be recomputed under fp8_recipe delayed; remove it"
