"""FP8 training: what a user may say about it, and which matrices of a network it takes. Nothing here imports torch.

The keys are NeMo RL's and megatron-core's; the arithmetic is what Transformer Engine asks of a matrix product in FP8:
every side of both operands a multiple of the recipe's block. Weights are not padded, so a matrix that does not fit
stays in BF16.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from nemo_cascade.models.config import ModelConfig

if TYPE_CHECKING:
    from nemo_cascade.engine.config import MegatronConfig

# What the sides of a weight, and the tokens that one rank multiplies it with, must be multiples of: one scale a tensor
# (current or delayed scaling), one for 32 values (MXFP8), one for 128 x 128 (blockwise).
MULTIPLE = {"tensorwise": 16, "delayed": 16, "mxfp8": 32, "blockwise": 128}
FORMATS = ("e4m3", "hybrid")


@dataclass
class Fp8Config:
    """`policy.megatron_cfg.fp8_cfg`. fp8_recipe tensorwise is current scaling; fp8 hybrid has e5m2 for gradients.
    Delayed scaling begins its history anew after a resume, the others have none.

    first_last_layers_bf16 and the two numbers after it are megatron-core's, and so is
    moe_router_padding_for_quantization (tokens of each expert filled up to a block by the router, else by the experts;
    in decoding always by the experts, because a few tokens cannot fill a block). Ours: attention_in_bf16 keeps every
    attention layer and the Mamba layer before it in BF16, as the released FP8 model has them (Nemotron 3 Nano report,
    section 4); unaligned_in_bf16 keeps matrices whose sides the recipe does not divide in BF16 instead of refusing
    them.
    """

    enabled: bool = False  # matrix products in FP8; needs Transformer Engine
    fp8: str = "e4m3"
    fp8_recipe: str = "blockwise"
    fp8_param: bool = False  # weights are kept in FP8 too
    first_last_layers_bf16: bool = False
    num_layers_at_start_in_bf16: int = 1  # with first_last_layers_bf16
    num_layers_at_end_in_bf16: int = 1  # with first_last_layers_bf16
    attention_in_bf16: bool = False  # attention layers and the Mamba layer before each stay in BF16
    unaligned_in_bf16: bool = False  # matrices that the recipe's block does not divide stay in BF16, else they are refused
    moe_router_padding_for_quantization: bool = True


class Matrix(NamedTuple):
    """A weight as one rank holds it: `name` in layer number `layer` (from 0), [rows, columns], `copies` (experts)."""

    layer: int
    name: str
    rows: int
    columns: int
    copies: int


def matrices(preset: ModelConfig, cfg: "MegatronConfig") -> Iterator[Matrix]:
    """Every weight that Transformer Engine multiplies by; router, embeddings and output layer are not among them."""
    tp, etp = cfg.tensor_model_parallel_size, cfg.expert_tensor_parallel
    hidden, inner = preset.hidden_size, preset.mamba_num_heads * preset.mamba_head_dim
    queries = preset.num_attention_heads * preset.kv_channels
    # A rank has at least one group of keys and values.
    keys_values = 2 * preset.kv_channels * max(preset.num_query_groups // tp, 1)
    expert, shared = preset.moe_ffn_hidden_size // etp, preset.moe_shared_expert_intermediate_size // tp
    experts = preset.num_moe_experts // cfg.expert_model_parallel_size
    kinds = {
        "M": (
            ("mixer.in_proj", preset.mamba_in_proj_size // tp, hidden, 1),
            ("mixer.out_proj", hidden, inner // tp, 1),
        ),
        "*": (
            ("self_attention.linear_qkv", queries // tp + keys_values, hidden, 1),
            ("self_attention.linear_proj", hidden, queries // tp, 1),
        ),
        "E": (
            ("mlp.experts.linear_fc1", expert, hidden, experts),
            ("mlp.experts.linear_fc2", hidden, expert, experts),
            ("mlp.shared_experts.linear_fc1", shared, hidden, 1),
            ("mlp.shared_experts.linear_fc2", hidden, shared, 1),
        ),
    }
    for layer, kind in enumerate(preset.pattern):
        for name, rows, columns, copies in kinds[kind]:
            yield Matrix(layer, name, rows, columns, copies)


def attention_layers_and_mamba_before(pattern: str) -> set[int]:
    """Numbers (from 0) of the attention layers and of the last Mamba layer before each."""
    attention = [layer for layer, kind in enumerate(pattern) if kind == "*"]
    return {*attention, *(pattern.rfind("M", 0, layer) for layer in attention)} - {-1}


def first_and_last_layers(fp8: Fp8Config, num_layers: int) -> set[int]:
    """Numbers (from 0) of the layers that first_last_layers_bf16 keeps in BF16."""
    if not fp8.first_last_layers_bf16:
        return set()
    last = range(num_layers - fp8.num_layers_at_end_in_bf16, num_layers)
    return {*range(fp8.num_layers_at_start_in_bf16), *last}


def unaligned(preset: ModelConfig, cfg: "MegatronConfig") -> list[Matrix]:
    """Matrices that would be in FP8 but whose sides on one rank are no multiples of the recipe's block."""
    fp8 = cfg.fp8_cfg
    multiple = MULTIPLE[fp8.fp8_recipe]
    kept = first_and_last_layers(fp8, preset.num_layers)
    if fp8.attention_in_bf16:
        kept |= attention_layers_and_mamba_before(preset.pattern)
    return [m for m in matrices(preset, cfg) if m.layer not in kept and (m.rows % multiple or m.columns % multiple)]


def matrices_in_bf16(preset: ModelConfig, cfg: "MegatronConfig") -> set[tuple[int, str]]:
    """(layer, name) of the matrices that stay in BF16 by attention_in_bf16 and unaligned_in_bf16; empty without FP8.

    Layers of first_last_layers_bf16 are not among them: those are megatron-core's to keep.
    """
    fp8 = cfg.fp8_cfg
    if not fp8.enabled:
        return set()
    layers = attention_layers_and_mamba_before(preset.pattern) if fp8.attention_in_bf16 else set()
    kept = {(m.layer, m.name) for m in matrices(preset, cfg) if m.layer in layers}
    return kept | {(m.layer, m.name) for m in unaligned(preset, cfg) if fp8.unaligned_in_bf16}


def token_multiple(cfg: "MegatronConfig") -> int:
    """What the tokens of a pack must be a multiple of, so that each rank's share is whole blocks; 1 without FP8.

    Under sequence parallel a rank turns its own share, 1 / (CP TP) of a pack, into FP8 before it is gathered.
    """
    if not cfg.fp8_cfg.enabled:
        return 1
    return MULTIPLE[cfg.fp8_cfg.fp8_recipe] * cfg.context_parallel_size * cfg.tensor_model_parallel_size


def transformer_settings(fp8: Fp8Config) -> dict:
    """megatron-core's TransformerConfig fields."""
    return dict(
        fp8=fp8.fp8 if fp8.enabled else None,
        fp8_recipe=fp8.fp8_recipe,
        fp8_param=fp8.enabled and fp8.fp8_param,
        first_last_layers_bf16=fp8.enabled and fp8.first_last_layers_bf16,
        num_layers_at_start_in_bf16=fp8.num_layers_at_start_in_bf16,
        num_layers_at_end_in_bf16=fp8.num_layers_at_end_in_bf16,
        moe_router_padding_for_quantization=fp8.enabled and fp8.moe_router_padding_for_quantization,
    )


def problems(
    preset: ModelConfig, cfg: "MegatronConfig", precision: str, swaps_weights: bool
) -> Iterator[tuple[str, str]]:
    """(key below policy, what is wrong; what to do) of an enabled fp8_cfg whose values are choices.

    swaps_weights: whether other checkpoints pass through the policy's buffers (teachers, a reference, a judge).
    """
    block = "megatron_cfg.fp8_cfg"
    if precision != "bfloat16":
        yield (
            f"{block}.enabled",
            f"needs policy.precision=bfloat16 around FP8, but it is {precision}; set one of the two",
        )
    if cfg.fp8_cfg.fp8_param and swaps_weights:
        yield (
            f"{block}.fp8_param",
            "weights of teachers, of a reference or of a judge pass through the policy's buffers, which parameters "
            "kept in FP8 would round; set it to false",
        )
    for found in (bf16_problems(cfg.fp8_cfg), edge_problems(preset, cfg), shape_problems(preset, cfg)):
        yield from ((f"{block}.{key}", text) for key, text in found)


def bf16_problems(fp8: Fp8Config) -> Iterator[tuple[str, str]]:
    """(key below fp8_cfg, text) of parts that are to stay in BF16 under settings that have all in FP8."""
    edges, ours = "first_last_layers_bf16", ("attention_in_bf16", "unaligned_in_bf16")
    for key in (edges, *ours):
        if fp8.fp8_recipe == "delayed" and getattr(fp8, key):
            yield (
                key,
                "delayed scaling keeps one FP8 region over all layers, in which none can stay in BF16; set it to false "
                "or take fp8_recipe tensorwise, blockwise or mxfp8",
            )
    for key in ours:
        if fp8.fp8_param and getattr(fp8, key):
            yield (
                key,
                "fp8_param=true makes FP8 parameters of all layers but the first and last; set one of them to false",
            )


def edge_problems(preset: ModelConfig, cfg: "MegatronConfig") -> Iterator[tuple[str, str]]:
    """(key below fp8_cfg, text): megatron-core looks for the first and last layers in one pipeline stage each."""
    layers, stages = preset.num_layers, cfg.pipeline_model_parallel_size
    for key in ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"):
        if cfg.fp8_cfg.first_last_layers_bf16 and getattr(cfg.fp8_cfg, key) > layers // stages:
            yield (
                key,
                f"{getattr(cfg.fp8_cfg, key)} is more than the {layers} / {stages} = {layers // stages} layers of a "
                "pipeline stage; lower it",
            )


def shape_problems(preset: ModelConfig, cfg: "MegatronConfig") -> Iterator[tuple[str, str]]:
    """(key below fp8_cfg, text) of matrices whose sides the recipe does not divide."""
    projected = preset.mamba_in_proj_size
    if "M" in preset.pattern and projected % 16:
        yield (
            "enabled",
            "megatron-core refuses FP8 unless the rows of mixer.in_proj are a multiple of 16, also where it stays in "
            f"BF16; those of {preset.name} are {projected} = {projected / 16:g} * 16; set it to false",
        )
    elif not cfg.fp8_cfg.unaligned_in_bf16:
        yield from (("fp8_recipe", text) for text in unaligned_problems(preset, cfg))


def unaligned_problems(preset: ModelConfig, cfg: "MegatronConfig") -> Iterator[str]:
    """One line for each kind of matrix that does not fit, with the numbers and how many there are."""
    recipe = cfg.fp8_cfg.fp8_recipe
    multiple = MULTIPLE[recipe]
    by_name: dict[str, list[Matrix]] = {}
    for matrix in unaligned(preset, cfg):
        by_name.setdefault(matrix.name, []).append(matrix)
    fitting = [other for other, needed in MULTIPLE.items() if needed < multiple and other != "delayed"]
    for name, found in by_name.items():
        matrix = found[0]
        sides = [side for side in (matrix.rows, matrix.columns) if side % multiple]
        numbers = ", ".join(f"{side} = {side / multiple:g} * {multiple}" for side in sides)
        other = f", choose a recipe of smaller blocks ({', '.join(fitting)})" if fitting else ""
        yield (
            f"{recipe} needs multiples of {multiple}, but {name} of {preset.name} is {matrix.rows} x {matrix.columns} "
            f"on a rank ({numbers}), in {len(found)} layers; keep such matrices in BF16 with "
            f"unaligned_in_bf16=true{other}"
        )
