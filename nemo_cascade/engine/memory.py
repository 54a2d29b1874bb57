"""How much memory one rank needs, as formulas over plain numbers: nothing here imports torch or megatron-core.

What a rank holds (`RankModel`) is counted on the model itself, by `engine.planner`. What depends on lengths and batches
is estimated here: activations, caches, optimizer shards, teachers that wait. Everything is in bytes.

`RESERVE` stands for the CUDA context, NCCL's buffers and the allocator's fragmentation. Left out: what a checkpoint of
the optimizer gathers while it is written, and in host memory data loaders and the page cache.
"""

import math
from dataclasses import dataclass, field

from nemo_cascade.models.config import ModelConfig

GIB = 2**30
RESERVE = 6 * GIB


@dataclass(frozen=True)
class Gpu:
    """memory: what CUDA gives a process, which is less than the name says. host_memory: of a node of eight."""

    name: str
    memory: int
    host_memory: int = 2048 * GIB


GPUS = {
    "h100-80g": Gpu("H100 80G", int(79.1 * GIB)),
    "h200": Gpu("H200 141G", int(139.8 * GIB)),
    "b200": Gpu("B200 180G", int(178.3 * GIB)),
}


@dataclass(frozen=True)
class Tensors:
    """Parameters of one sort on a rank. expert: whose gradients are reduced over expert-data-parallel ranks only."""

    count: int
    element_size: int
    expert: bool
    trainable: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * self.element_size


@dataclass(frozen=True)
class RankModel:
    """What every rank of one pipeline stage holds.

    ranks: how many of them there are; layers: their letters of the pattern. data_parallel counts context ranks too,
    since gradients and optimizer are shared out over both. whole: parameters of the stage's part of the model, each
    counted once.
    """

    pipeline_stage: int
    ranks: int
    layers: str
    tensors: tuple[Tensors, ...]
    buffers: int
    whole: int
    largest: int
    data_parallel: int
    expert_data_parallel: int

    @property
    def parameters(self) -> int:
        return sum(tensors.count for tensors in self.tensors)

    @property
    def weights(self) -> int:
        """Bytes of the parameters and of the persistent buffers."""
        return sum(tensors.size for tensors in self.tensors) + self.buffers


@dataclass(frozen=True)
class Layout:
    """What formulas want to know of `policy.megatron_cfg`. recompute_layers: all of them, each from its input;
    recompute_modules: only these parts of a layer, by megatron-core's names."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    expert_tensor: int = 1
    recompute_layers: bool = False
    recompute_modules: tuple[str, ...] = ()
    distributed_optimizer: bool = True
    optimizer_offload: bool = False


@dataclass(frozen=True)
class Work:
    """What a stage asks of a rank.

    pack: tokens of the longest pack. microbatches: packs a rank trains on in a step (those of a pipeline are in flight
    at once). rows, row_tokens, prompt_tokens: replies decoded at once, their longest length, the longest prompt; 0 rows
    for SFT. copies: other checkpoints whose log-probs or judgements a step needs, which wait in host memory.
    """

    pack: int
    microbatches: int
    rows: int = 0
    row_tokens: int = 0
    prompt_tokens: int = 0
    copies: int = 0


# ---------------------------------------------------------------------------------- what training keeps per parameter


def gradient_bytes(rank: RankModel) -> int:
    """megatron-core's gradient buffer, in float32 whatever the parameters are in."""
    return sum(4 * tensors.count for tensors in rank.tensors if tensors.trainable)


def optimizer_bytes(rank: RankModel, layout: Layout) -> int:
    """Adam as megatron-core keeps it: two float32 moments, and a float32 master of what is not float32 itself.

    The distributed optimizer deals them out over the ranks that hold the same parameters: data x context parallel, for
    experts expert-data parallel. Its buckets are padded, by less than 0.1 % at sizes that matter.
    """
    total = 0
    for tensors in rank.tensors:
        if tensors.trainable:
            copies = rank.expert_data_parallel if tensors.expert else rank.data_parallel
            each = 8 if tensors.element_size == 4 else 12
            total += each * math.ceil(tensors.count / (copies if layout.distributed_optimizer else 1))
    return total


def offloaded_bytes(rank: RankModel, layout: Layout) -> int:
    """Host memory of the same where it is offloaded: beside it the gradient that Adam reads there, in float32."""
    shards = 0
    for tensors in rank.tensors:
        if tensors.trainable:
            shards += math.ceil(tensors.count / (rank.expert_data_parallel if tensors.expert else rank.data_parallel))
    return optimizer_bytes(rank, layout) + 4 * shards


# ---------------------------------------------------------------------------------- activations

# A rank's experts get this many times the tokens that an even router would send them.
IMBALANCE = 1.25
# Logits of a chunk of tokens and what is made of them: float32 numbers a rank has at once (`engine.head`).
HEAD_CHUNK = 2**24
# Prompts are read so many tokens at a time, one at least (`rollout.megatron`).
PREFILL = 4_096


def kept_bytes(model: ModelConfig, kind: str, tokens: int, layout: Layout, size: int) -> int:
    """What one layer keeps for its backward pass, per rank, with fused kernels (Transformer Engine, mamba-ssm, flash
    attention).

    With s = tokens / CP, n = s / TP (sequence parallel), h the hidden size, and `size` bytes a number:

        M   size * (2 h n + s (5 inner + 2 groups state + heads) / TP)
        *   size * (2 h n + s (2 heads + 2 max(groups, TP)) head_dim / TP) + 4 s heads / TP
        E   size * (2 h n + h r + 2 ffn r / ETP + 2 shared s / TP) + 16 n experts,    r = n topk ETP * IMBALANCE

    2 h n: the input of the norm and of the mixer. M: in_proj's output (z, x, B, C, dt), the scan's output, the gated
    norm's input and out_proj's. *: queries, keys, values, the output and its log-sum-exp in float32. E: the routed
    rows, their hidden layer before and after the activation, the same of the shared expert, and four float32 numbers
    for each token and expert in the router.

    The torch layers of this package keep the same, and the attention's output once more, but in M three to five times
    as much: float32 arrays of the chunked scan.
    """
    tp, etp = layout.tensor, layout.expert_tensor
    s = tokens / layout.context
    n, h = s / tp, model.hidden_size
    inputs = 2 * h * n
    if kind == "M":
        inner = model.mamba_num_heads * model.mamba_head_dim
        width = 5 * inner + 2 * model.mamba_num_groups * model.mamba_state_dim + model.mamba_num_heads
        kept = size * (inputs + s * width / tp)
    elif kind == "*":
        heads = 2 * model.num_attention_heads + 2 * max(model.num_query_groups, tp)
        kept = size * (inputs + s * heads * model.kv_channels / tp) + 4 * s * model.num_attention_heads / tp
    else:
        rows = _routed_rows(model, n, layout)
        shared = 2 * model.moe_shared_expert_intermediate_size * s / tp
        kept = size * (inputs + h * rows + 2 * model.moe_ffn_hidden_size * rows / etp + shared)
        kept += 16 * n * model.num_moe_experts
    return math.ceil(kept)


def _routed_rows(model: ModelConfig, tokens: float, layout: Layout) -> float:
    return tokens * model.moe_router_topk * layout.expert_tensor * IMBALANCE


def passing_bytes(model: ModelConfig, kind: str, tokens: int, layout: Layout, size: int) -> int:
    """What a layer needs while it runs, beside what it keeps: gathered inputs (TP), rows on their way to experts."""
    s = tokens / layout.context
    passing = 2 * model.hidden_size * s if layout.tensor > 1 else 0
    if kind == "E":
        passing += 3 * model.hidden_size * _routed_rows(model, s / layout.tensor, layout)
    return math.ceil(size * passing)


def remaining_bytes(model: ModelConfig, kind: str, tokens: int, layout: Layout, size: int) -> int:
    """What one layer keeps under the layout's recompute: full leaves its input, selective what is outside of the
    modules named.

    Of those "moe" (all between the layer's norm and its residual) and "shared_experts" are accounted for; others count
    as kept.
    """
    n = tokens / layout.context / layout.tensor
    if layout.recompute_layers:
        return math.ceil(size * model.hidden_size * n)
    kept = kept_bytes(model, kind, tokens, layout, size)
    if kind == "E" and "moe" in layout.recompute_modules:
        return math.ceil(size * 2 * model.hidden_size * n)
    if kind == "E" and "shared_experts" in layout.recompute_modules:
        return kept - math.ceil(size * 2 * model.moe_shared_expert_intermediate_size * n)
    return kept


def training_bytes(model: ModelConfig, rank: RankModel, work: Work, layout: Layout, size: int) -> int:
    """Peak of a training step's activations on a rank.

        sum over its layers of what remains, times the packs in flight (pipeline stage p of P has min(P - p, packs))
        + what the backward pass of the hungriest layer needs: what it recomputes, the gradients of that, what passes
        + on the last stage the head's part
    """
    in_flight = min(layout.pipeline - rank.pipeline_stage, work.microbatches)
    remaining = sum(remaining_bytes(model, kind, work.pack, layout, size) for kind in rank.layers)
    return in_flight * remaining + running_bytes(model, rank, work.pack, layout, size, backward=True)


def running_bytes(model: ModelConfig, rank: RankModel, tokens: int, layout: Layout, size: int, backward: bool) -> int:
    """The hungriest layer while it runs, or the head: forward what it makes, backward that and its gradients.

    The head is never there together with a layer's backward pass, but its gathered hidden states and their gradient
    are.
    """
    peaks = [0]
    for kind in set(rank.layers):
        kept = kept_bytes(model, kind, tokens, layout, size)
        made = kept + passing_bytes(model, kind, tokens, layout, size)
        if not backward:
            peaks.append(made)
        else:
            again = kept if remaining_bytes(model, kind, tokens, layout, size) < kept else 0
            peaks.append(again + made)
    if rank.pipeline_stage == layout.pipeline - 1:
        peaks.append(head_bytes(model, rank, tokens, layout, size, backward))
    return max(peaks)


def head_bytes(model: ModelConfig, rank: RankModel, tokens: int, layout: Layout, size: int, backward: bool) -> int:
    """The output layer and the log-probs, in chunks of tokens: hidden states of all of the rank's tokens [tokens / CP,
    hidden] on every tensor rank, a chunk of logits in float32 twice; backward also the gradients of the hidden states
    and of the weight.

    Without chunks it would be 4 tokens vocab / TP bytes, and several times that.
    """
    hidden = size * model.hidden_size * tokens / layout.context
    chunk = 2 * 4 * max(HEAD_CHUNK, model.vocab_size / layout.tensor)
    weight = size * model.vocab_size * model.hidden_size / layout.tensor
    return math.ceil(2 * hidden + chunk + weight if backward else hidden + chunk)


# ---------------------------------------------------------------------------------- decoding


def row_bytes(model: ModelConfig, layers: str, tokens: int, tensor: int, size: int) -> int:
    """Cache of one reply on a rank: keys and values of its attention layers, convolution and float32 SSM states of its
    Mamba layers.

    Under more tensor ranks than query groups every rank has one group.
    """
    groups = max(model.num_query_groups / tensor, 1)
    keys = 2 * tokens * groups * model.kv_channels * size
    heads = model.mamba_num_heads / tensor
    state = 4 * heads * model.mamba_head_dim * model.mamba_state_dim
    channels = heads * model.mamba_head_dim + 2 * model.mamba_num_groups / tensor * model.mamba_state_dim
    convolution = size * channels * model.mamba_conv_kernel
    return math.ceil(layers.count("*") * keys + layers.count("M") * (state + convolution))


# ---------------------------------------------------------------------------------- all together


@dataclass(frozen=True)
class Need:
    """Bytes of one rank of a kind. On the GPU by what, and the peak of each phase; in host memory, of this rank."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    cache: int
    copy: int
    phases: dict[str, int] = field(default_factory=dict)
    host_optimizer: int = 0
    host_copies: int = 0

    @property
    def peak(self) -> int:
        """What the GPU must have: the worst phase, and the reserve."""
        return max(self.phases.values()) + RESERVE

    @property
    def host(self) -> int:
        return self.host_optimizer + self.host_copies


def need(model: ModelConfig, rank: RankModel, work: Work, layout: Layout) -> Need:
    """The memory of a rank in the phases of a stage, which the training loops go through one after the other:

        load     weights, gradients, optimizer, the weights that were read
        train    weights, gradients, optimizer, activations
        sample   weights, gradients, optimizer, cache, what reading a prompt needs
        score    weights, gradients, optimizer, the student's own weights set aside, what one forward pass needs

    Gradients and optimizer stay on the GPU throughout. Scoring keeps the student on the GPU while another checkpoint
    lies in its place (`Policy.weights_of`), and every rank keeps its own shards of each such checkpoint in host memory.
    """
    size = max(rank.tensors, key=lambda tensors: tensors.count).element_size
    weights, gradients = rank.weights, gradient_bytes(rank)
    state = optimizer_bytes(rank, layout)
    on_gpu = 0 if layout.optimizer_offload else state
    held = weights + gradients + on_gpu
    # A gradient is made in the parameter's type before it is added to the buffer.
    activations = training_bytes(model, rank, work, layout, size) + rank.largest
    phases = {"load": held + weights, "train": held + activations}
    cache = copy = 0
    if work.rows:
        cache = work.rows * row_bytes(model, rank.layers, work.row_tokens, layout.tensor, size)
        prompt = running_bytes(model, rank, max(PREFILL, work.prompt_tokens), layout, size, backward=False)
        phases["sample"] = held + cache + prompt
        copy = weights if work.copies else 0
        phases["score"] = held + copy + running_bytes(model, rank, work.pack, layout, size, backward=False)
    return Need(
        weights=weights,
        gradients=gradients,
        optimizer=on_gpu,
        activations=activations,
        cache=cache,
        copy=copy,
        phases=phases,
        host_optimizer=offloaded_bytes(rank, layout) if layout.optimizer_offload else 0,
        host_copies=work.copies * weights,
    )


def most_rows(model: ModelConfig, rank: RankModel, work: Work, layout: Layout, memory: int) -> int:
    """How many replies could be decoded at once in `memory` bytes of GPU; 0 when none."""
    none = Work(work.pack, work.microbatches, 1, work.row_tokens, work.prompt_tokens, work.copies)
    asked = need(model, rank, none, layout)
    room = memory - RESERVE - (asked.phases["sample"] - asked.cache)
    return max(0, room // asked.cache)
