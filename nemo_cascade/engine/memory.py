"""How much memory one rank needs, as formulas over plain numbers. Importing this imports no torch or megatron-core.

What a rank holds (`RankModel`) is counted on the model itself, by `engine.planner`. What depends on lengths and batches
is estimated here: activations, caches, optimizer shards, teachers that wait. Everything is in bytes.

`RESERVE` stands for the CUDA context, NCCL's buffers and the allocator's fragmentation. Left out: what a checkpoint of
the optimizer gathers while it is written, FP8 (all is planned in the parameters' type), and in host memory data loaders
and the page cache.
"""

import dataclasses
import math
from dataclasses import dataclass

from nemo_cascade.models.config import ModelConfig
from nemo_cascade.rollout.config import MAX_CACHE_BYTES

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
    """What formulas want to know of `policy.megatron_cfg`, by megatron-core's names.

    recompute_method: of whole layers, "uniform" (all, in chunks of recompute_num_layers), "block" (the first
    recompute_num_layers of a pipeline stage, one by one) or None. recompute_modules: only these parts of a layer.
    sequence_parallel: False while replies are decoded, when every tensor rank has all tokens between the layers.
    """

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    expert_tensor: int = 1
    sequence_parallel: bool = True
    recompute_method: str | None = None
    recompute_num_layers: int = 1
    recompute_modules: tuple[str, ...] = ()
    distributed_optimizer: bool = True
    optimizer_offload: bool = False

    def tokens_between_layers(self, tokens: int) -> float:
        """How many of a pack's tokens one rank has where no layer has gathered them."""
        return tokens / self.context / (self.tensor if self.sequence_parallel else 1)


@dataclass(frozen=True)
class Work:
    """What a stage asks of a rank.

    pack: tokens of the longest pack. microbatches: packs a rank trains on in a step (those of a pipeline are in flight
    at once). sequences, validation_sequences: how many are decoded at once in a training step (0 for SFT) and to score
    the checkpoint (0 without validation). sequence_tokens, prompt_tokens: their longest length, the longest prompt.
    checkpoints: others than the student's whose log-probs or judgements a step needs, which wait in host memory.
    judged: whether one of them decodes judgements. vllm: what vLLM takes of the GPU while it is awake, weights, caches and all; 0 where
    the embedded engine decodes.
    """

    pack: int
    microbatches: int
    sequences: int = 0
    validation_sequences: int = 0
    sequence_tokens: int = 0
    prompt_tokens: int = 0
    checkpoints: int = 0
    judged: bool = False
    vllm: int = 0

    @property
    def most_sequences(self) -> int:
        return max(self.sequences, self.validation_sequences)


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


def activation_bytes(model: ModelConfig, kind: str, tokens: int, layout: Layout, size: int) -> int:
    """What one layer saves for its backward pass, per rank, nothing being recomputed, with fused kernels (Transformer
    Engine, mamba-ssm, flash attention).

    With s = tokens / CP, n = s / TP (s without sequence parallel), h the hidden size, and `size` bytes a number:

        M   size * (2 h n + s (5 inner + 2 groups state + heads) / TP)
        *   size * (2 h n + s (2 heads + 2 max(groups, TP)) head_dim / TP) + 4 s heads / TP
        E   size * (2 h n + h r + 2 ffn r / ETP + 2 shared s / TP) + 16 n experts,    r = n topk ETP * IMBALANCE

    2 h n: the input of the norm and of the mixer. M: in_proj's output (z, x, B, C, dt), the scan's output, the gated
    norm's input and out_proj's. *: queries, keys, values, the output and its log-sum-exp in float32. E: the routed
    tokens, their hidden layer before and after the activation, the same of the shared expert, and four float32 numbers
    for each token and expert in the router.

    The torch layers of this package save the same, and the attention's output once more, but in M two to four times as
    much: float32 arrays of the chunked scan.
    """
    tp, etp = layout.tensor, layout.expert_tensor
    s, n, h = tokens / layout.context, layout.tokens_between_layers(tokens), model.hidden_size
    inputs = 2 * h * n
    if kind == "M":
        inner = model.mamba_num_heads * model.mamba_head_dim
        width = 5 * inner + 2 * model.mamba_num_groups * model.mamba_state_dim + model.mamba_num_heads
        total = size * (inputs + s * width / tp)
    elif kind == "*":
        heads = 2 * model.num_attention_heads + 2 * max(model.num_query_groups, tp)
        total = size * (inputs + s * heads * model.kv_channels / tp) + 4 * s * model.num_attention_heads / tp
    else:
        routed = _routed_tokens(model, n, layout)
        shared = 2 * model.moe_shared_expert_intermediate_size * s / tp
        total = size * (inputs + h * routed + 2 * model.moe_ffn_hidden_size * routed / etp + shared)
        total += 16 * n * model.num_moe_experts
    return math.ceil(total)


def _routed_tokens(model: ModelConfig, tokens: float, layout: Layout) -> float:
    return tokens * model.moe_router_topk * layout.expert_tensor * IMBALANCE


def workspace_bytes(model: ModelConfig, kind: str, tokens: int, layout: Layout, size: int) -> int:
    """What a layer needs while it runs, beside what it saves: gathered inputs (TP), tokens on their way to experts."""
    numbers = 2 * model.hidden_size * tokens / layout.context if layout.tensor > 1 else 0
    if kind == "E":
        numbers += 3 * model.hidden_size * _routed_tokens(model, layout.tokens_between_layers(tokens), layout)
    return math.ceil(size * numbers)


def selective_bytes(model: ModelConfig, kind: str, tokens: int, layout: Layout, size: int) -> int:
    """What one layer saves outside of the layout's recompute_modules.

    Of those "moe" (all between the layer's norm and its residual) and "shared_experts" are accounted for; others count
    as saved.
    """
    saved = activation_bytes(model, kind, tokens, layout, size)
    if kind == "E" and "moe" in layout.recompute_modules:
        return math.ceil(size * 2 * model.hidden_size * layout.tokens_between_layers(tokens))
    if kind == "E" and "shared_experts" in layout.recompute_modules:
        shared = 2 * model.moe_shared_expert_intermediate_size * tokens / layout.context / layout.tensor
        return saved - math.ceil(size * shared)
    return saved


def chunks(layers: str, layout: Layout) -> list[tuple[str, bool]]:
    """A pipeline stage's layers as `models.stack` runs them: those that run together, and whether they are recomputed
    from their common input."""
    number = layout.recompute_num_layers
    if layout.recompute_method == "uniform":
        return [(layers[first : first + number], True) for first in range(0, len(layers), number)]
    recomputed = number if layout.recompute_method == "block" else 0
    return [(kind, layer < recomputed) for layer, kind in enumerate(layers)]


def saved_bytes(model: ModelConfig, layers: str, tokens: int, layout: Layout, size: int) -> int:
    """What a pipeline stage's layers save for the backward pass of one pack: a recomputed chunk its input only."""
    common_input = math.ceil(size * model.hidden_size * layout.tokens_between_layers(tokens))
    return sum(
        common_input if recomputed else sum(selective_bytes(model, kind, tokens, layout, size) for kind in chunk)
        for chunk, recomputed in chunks(layers, layout)
    )


def training_bytes(model: ModelConfig, rank: RankModel, work: Work, layout: Layout, size: int) -> int:
    """Peak of a training step's activations on a rank.

        what its layers save, times the packs in flight (pipeline stage p of P has min(P - p, packs))
        + the larger of: what the backward pass of the hungriest chunk of layers needs; on the last stage, the head
    """
    in_flight = min(layout.pipeline - rank.pipeline_stage, work.microbatches)
    most = backward_bytes(model, rank, work.pack, layout, size)
    if rank.pipeline_stage == layout.pipeline - 1:
        most = max(most, head_bytes(model, work.pack, layout, size, backward=True))
    return in_flight * saved_bytes(model, rank.layers, work.pack, layout, size) + most


def forward_bytes(model: ModelConfig, layers: str, tokens: int, layout: Layout, size: int) -> int:
    """The hungriest of these layers while it runs: all that it makes, or backward as much of gradients.

    Also where nothing is saved, because megatron-core's MoE layer lets go of no form of its routed tokens before it
    returns.
    """
    return max(
        (
            activation_bytes(model, kind, tokens, layout, size) + workspace_bytes(model, kind, tokens, layout, size)
            for kind in set(layers)
        ),
        default=0,
    )


def backward_bytes(model: ModelConfig, rank: RankModel, tokens: int, layout: Layout, size: int) -> int:
    """The hungriest chunk of layers while it runs backward, beside what all layers saved.

    What it recomputes, then one layer's gradients of that and its workspace, and a parameter's gradient, which is made
    in the parameter's type before it is added to the buffer.
    """
    peaks = [0]
    for chunk, whole in set(chunks(rank.layers, layout)):
        recomputed = [
            kind
            for kind in chunk
            if whole
            or selective_bytes(model, kind, tokens, layout, size) < activation_bytes(model, kind, tokens, layout, size)
        ]
        again = sum(activation_bytes(model, kind, tokens, layout, size) for kind in recomputed)
        peaks.append(again + forward_bytes(model, chunk, tokens, layout, size))
    return max(peaks) + rank.largest


def head_bytes(model: ModelConfig, tokens: int, layout: Layout, size: int, backward: bool) -> int:
    """The output layer and the log-probs (`engine.head`): hidden states, the buffers of a chunk of tokens, gradients.

    With s = tokens / CP, h the hidden size, v = vocab / TP, c = tokens of a chunk, and `size` bytes a number:

        forward    size h (s / TP + s) + the larger of: c v (4 + size'), and under TP size h s
        backward   size h (s / TP + 2 s) + (c + h) v (4 + size'),    size' = size, but 0 in float32

    The rank's hidden states and, on every tensor rank, those of all tokens, of which the scored ones are copied out
    (all are counted), with their gradient; logits in float32, and for the matmuls in the weight's type where that is
    narrower; the weight's gradient likewise: a sum in float32 to which each chunk's product is added.
    Without chunks it would be 4 s v bytes, and several times that.
    """
    from nemo_cascade.engine.head import CHUNK_ON_GPU  # late, because it imports torch

    s, v = tokens / layout.context, model.vocab_size / layout.tensor
    whole = size * model.hidden_size * s
    widths = 4 + (size if size < 4 else 0)
    chunk = min(max(CHUNK_ON_GPU // v, 1), s) * v * widths
    if backward:
        return math.ceil(whole / layout.tensor + 2 * whole + chunk + model.hidden_size * v * widths)
    return math.ceil(whole / layout.tensor + whole + max(chunk, whole if layout.tensor > 1 else 0))


# ---------------------------------------------------------------------------------- decoding


def cache_bytes(model: ModelConfig, layers: str, tokens: int, tensor: int, size: int) -> int:
    """Cache of one sequence on a rank: keys and values of its attention layers, convolution and float32 SSM states of
    its Mamba layers.

    Under more tensor ranks than query groups every rank has one group.
    """
    groups = max(model.num_query_groups / tensor, 1)
    keys = 2 * tokens * groups * model.kv_channels * size
    heads = model.mamba_num_heads / tensor
    state = 4 * heads * model.mamba_head_dim * model.mamba_state_dim
    channels = heads * model.mamba_head_dim + 2 * model.mamba_num_groups / tensor * model.mamba_state_dim
    convolution = size * channels * model.mamba_conv_kernel
    return math.ceil(layers.count("*") * keys + layers.count("M") * (state + convolution))


def prompt_bytes(
    model: ModelConfig, rank: RankModel, sequences: int, prompt_tokens: int, layout: Layout, size: int
) -> int:
    """What reading prompts needs beside the cache of the sequences: the prompts' own cache, a forward pass, logits.

    Prompts are read so many tokens at once as `rollout.batch` allows, one prompt at least. A sequence being decoded
    is not cut: not over context ranks, nor over tensor ranks between the layers.
    """
    from nemo_cascade.rollout.batch import MAX_PREFILL_TOKENS  # late, because it imports torch

    tokens = max(MAX_PREFILL_TOKENS, prompt_tokens)
    layout = dataclasses.replace(layout, context=1, sequence_parallel=False)
    own = prompt_cache_bytes(model, rank.layers, sequences, tokens, layout.tensor, size)
    # A rank's part and, under tensor parallel, all of them, in the weights' type; then in float32.
    logits = sequences * model.vocab_size * (size + (size / layout.tensor if layout.tensor > 1 else 0) + 4)
    last = rank.pipeline_stage == layout.pipeline - 1
    return own + forward_bytes(model, rank.layers, tokens, layout, size) + math.ceil(logits if last else 0)


def prompt_cache_bytes(model: ModelConfig, layers: str, prompts: int, tokens: int, tensor: int, size: int) -> int:
    """Cache of prompts that are read at once, `tokens` in all: keys of these, states of each prompt."""
    states = cache_bytes(model, layers, 0, tensor, size)
    return cache_bytes(model, layers, tokens, tensor, size) + (prompts - 1) * states


# ---------------------------------------------------------------------------------- all together


@dataclass(frozen=True)
class Requirement:
    """Bytes that one rank needs. On the GPU by what, and the total of each phase; in host memory, of this rank.

    cache: of all sequences decoded at once, or all that vLLM takes. set_aside: the student's weights, while another checkpoint is in their
    place.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    cache: int
    set_aside: int
    phases: dict[str, int]
    host_optimizer: int = 0
    host_checkpoints: int = 0

    @property
    def worst_phase(self) -> str:
        return max(self.phases, key=self.phases.get)

    @property
    def peak(self) -> int:
        """What the GPU must have: the worst phase, and the reserve."""
        return max(self.phases.values()) + RESERVE

    @property
    def host(self) -> int:
        return self.host_optimizer + self.host_checkpoints


def requirement(model: ModelConfig, rank: RankModel, work: Work, layout: Layout) -> Requirement:
    """The memory of a rank in the phases of a stage, which the runner goes through one after the other:

        load       weights, gradients, optimizer, the weights that were read
        train      weights, gradients, optimizer, activations
        sample     weights, gradients, optimizer, cache, what reading prompts needs; or all that vLLM takes
        logprobs   weights, gradients, optimizer, the student's own weights set aside, what one forward pass needs
        validate   weights, and as to sample

    Gradients and optimizer stay on the GPU until the stage is trained; it is scored by a policy without. Another
    checkpoint takes the place of the student, which stays on the GPU (`Policy.rotation`), also while a judge answers;
    every rank keeps its own shards of each such checkpoint in host memory.
    """
    size = max(rank.tensors, key=lambda tensors: tensors.count).element_size
    weights, gradients, state = rank.weights, gradient_bytes(rank), optimizer_bytes(rank, layout)
    on_gpu = 0 if layout.optimizer_offload else state
    held = weights + gradients + on_gpu
    activations = training_bytes(model, rank, work, layout, size)
    set_aside, judged = weights if work.checkpoints else 0, weights if work.judged else 0
    one = cache_bytes(model, rank.layers, work.sequence_tokens, layout.tensor, size)
    # Sequences that find no room wait; one is decoded whatever it takes (`capacity` tells).
    room = max(1, MAX_CACHE_BYTES // one)

    def decoding(sequences: int) -> int:
        if work.vllm:
            return work.vllm
        sequences = min(sequences, room)
        return sequences * one + prompt_bytes(model, rank, sequences, work.prompt_tokens, layout, size)

    phases = {"load": held + weights, "train": held + activations}
    if work.sequences:
        phases["sample"] = held + judged + decoding(work.sequences)
    if work.sequences and work.checkpoints:
        phases["logprobs"] = held + set_aside + _logprobs_bytes(model, rank, work.pack, layout, size)
    if work.validation_sequences:
        phases["validate"] = weights + judged + decoding(work.validation_sequences)
    return Requirement(
        weights=weights,
        gradients=gradients,
        optimizer=on_gpu,
        activations=activations,
        cache=work.vllm if work.vllm and work.most_sequences else min(work.most_sequences, room) * one,
        set_aside=set_aside,
        phases=phases,
        host_optimizer=offloaded_bytes(rank, layout) if layout.optimizer_offload else 0,
        host_checkpoints=work.checkpoints * weights,
    )


def _logprobs_bytes(model: ModelConfig, rank: RankModel, tokens: int, layout: Layout, size: int) -> int:
    last = rank.pipeline_stage == layout.pipeline - 1
    head = head_bytes(model, tokens, layout, size, backward=False) if last else 0
    return max(forward_bytes(model, rank.layers, tokens, layout, size), head)
