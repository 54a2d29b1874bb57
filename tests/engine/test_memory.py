"""The memory formulas beside what torch and the engine really keep."""

import dataclasses
import subprocess
import sys
import weakref
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_cascade.engine import memory
from nemo_cascade.engine.config import MegatronConfig, PolicyConfig
from nemo_cascade.engine.memory import GIB, Layout, RankModel, Tensors, Work
from nemo_cascade.models import kernels
from nemo_cascade.models.config import ModelConfig
from nemo_cascade.models.presets import get_preset
from tests.helpers import run_distributed

NANO = get_preset("nano_30b_a3b")
# Wide enough that what is not proportional to tokens does not count.
WIDE = ModelConfig(
    name="wide",
    pattern="M*E",
    vocab_size=512,
    hidden_size=256,
    num_attention_heads=8,
    num_query_groups=2,
    kv_channels=32,
    mamba_num_heads=16,
    mamba_head_dim=32,
    mamba_num_groups=4,
    mamba_state_dim=32,
    num_moe_experts=16,
    moe_router_topk=4,
    moe_ffn_hidden_size=192,
    moe_shared_expert_intermediate_size=384,
)
DOCUMENTS = (512, 512, 1024)


class Live(TorchDispatchMode):
    """The most bytes that tensors made inside had at once, each storage counted while it lives."""

    def __init__(self):
        super().__init__()
        self.peak, self.alive = 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # What was there before, parameters say, does not count.
        before = {t.untyped_storage()._cdata for t in torch.utils._pytree.tree_leaves((args, kwargs)) if _is_tensor(t)}
        result = function(*args, **(kwargs or {}))
        for tensor in filter(_is_tensor, torch.utils._pytree.tree_leaves(result)):
            storage = tensor.untyped_storage()
            if (key := storage._cdata) not in before and key not in self.alive:
                forget = weakref.ref(storage, lambda _, key=key: self.alive.pop(key))
                self.alive[key] = storage.nbytes(), forget
        self.peak = max(self.peak, sum(size for size, _ in self.alive.values()))
        return result


def _is_tensor(value) -> bool:
    return isinstance(value, torch.Tensor)


def kept_by_autograd(precision):
    """Bytes that each layer of WIDE keeps for its backward pass over a pack of DOCUMENTS, by its letter."""
    from nemo_cascade.data.sample import Sample
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.batch import build_pack
    from nemo_cascade.engine.policy import model_settings
    from nemo_cascade.models.specs import build_model, transformer_config

    parallel.init(MegatronConfig())
    model = build_model(WIDE, transformer_config(WIDE, **model_settings(PolicyConfig(precision=precision))))
    samples = [Sample(tokens=[i % 500 for i in range(n + 1)], loss_mask=[0] + [1] * n, fields={}) for n in DOCUMENTS]
    pack = build_pack(samples, [0, 1, 2], 8, "cpu")
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept, alive, running = dict.fromkeys("M*E", 0), [], []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if running and storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            alive.append(tensor)
            kept[running[0]] += storage.nbytes()
        return tensor

    for layer, kind in zip(model.decoder.layers, model.decoder.layer_type_list):
        layer.register_forward_pre_hook(lambda *_, kind=kind: running.append(kind))
        layer.register_forward_hook(lambda *_: running.clear())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(pack.tokens, pack.position_ids, None, labels=pack.labels, packed_seq_params=pack.params)
    return kept


@pytest.mark.parametrize("precision, size, of_scan", [("float32", 4, 2.37), ("bfloat16", 2, 3.35)])
def test_layers_keep_for_their_backward_pass_what_the_formulas_say(precision, size, of_scan, monkeypatch):
    kept = run_distributed(kept_by_autograd, 1, precision)[0]
    tokens = sum(DOCUMENTS)
    # One rank has all experts: nothing can be uneven.
    monkeypatch.setattr(memory, "IMBALANCE", 1)
    formula = {kind: memory.activation_bytes(WIDE, kind, tokens, Layout(), size) for kind in "M*E"}
    assert kept["E"] == pytest.approx(formula["E"], rel=0.01)
    fused = precision == "float32" and kernels.library() is not None
    # The torch attention puts its output in the pack's order for the projection, and so keeps it twice.
    output = 0 if fused else size * tokens * WIDE.num_attention_heads * WIDE.kv_channels
    assert kept["*"] - output == pytest.approx(formula["*"], rel=0.01)
    # The formula is of a fused scan, which keeps less than the torch one, and a little less than ours for a CPU.
    assert kept["M"] == pytest.approx((1.39 if fused else of_scan) * formula["M"], rel=0.02)


def peaks_without_gradients(precision):
    """The most bytes that each layer of WIDE has at once over a pack of DOCUMENTS, with its input, by its letter."""
    from nemo_cascade.data.sample import Sample
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.batch import build_pack
    from nemo_cascade.engine.policy import model_settings
    from nemo_cascade.models.specs import build_model, transformer_config

    parallel.init(MegatronConfig())
    config = PolicyConfig(precision=precision)
    model = build_model(WIDE, transformer_config(WIDE, **model_settings(config)))
    samples = [Sample(tokens=[i % 500 for i in range(n + 1)], loss_mask=[0] + [1] * n, fields={}) for n in DOCUMENTS]
    pack = build_pack(samples, [0, 1, 2], 8, "cpu")
    peaks = {}
    with torch.no_grad():
        hidden = model.embedding(pack.tokens, pack.position_ids)
        for layer, kind in zip(model.decoder.layers, model.decoder.layer_type_list):
            with Live() as live:
                layer(hidden_states=hidden.clone(), attention_mask=None, packed_seq_params=pack.params)
            peaks[kind] = live.peak
    return peaks


@pytest.mark.parametrize("precision, size", [("float32", 4), ("bfloat16", 2)])
def test_layers_that_save_nothing_need_at_once_what_the_formula_says(precision, size, monkeypatch):
    peaks = run_distributed(peaks_without_gradients, 1, precision)[0]
    monkeypatch.setattr(memory, "IMBALANCE", 1)
    formula = {kind: memory.forward_bytes(WIDE, kind, sum(DOCUMENTS), Layout(), size) for kind in "M*E"}
    # Without expert parallel nothing is exchanged, and on a CPU not sorted by expert again: two copies of the routed
    # tokens less.
    routed = 2 * size * sum(DOCUMENTS) * WIDE.moe_router_topk * WIDE.hidden_size
    assert peaks["E"] == pytest.approx(formula["E"] - routed, rel=0.15)
    # The torch layers hold more, as they save more.
    assert formula["*"] < peaks["*"] < 2 * formula["*"] and formula["M"] < peaks["M"] < 5 * formula["M"]


@pytest.mark.parametrize("tensor, context", [(1, 1), (2, 1), (1, 4), (2, 4)])
@pytest.mark.parametrize("kind", "M*E")
def test_tensor_and_context_parallel_divide_what_a_layer_keeps(kind, tensor, context):
    whole = memory.activation_bytes(NANO, kind, 65536, Layout(), 2)
    part = memory.activation_bytes(NANO, kind, 65536, Layout(tensor=tensor, context=context), 2)
    assert part == pytest.approx(whole / tensor / context, rel=1e-6)


@pytest.mark.parametrize("number", [1, 3, 5, 52])
@pytest.mark.parametrize("method", ["uniform", "block"])
def test_layers_are_recomputed_in_the_chunks_that_the_stack_runs(method, number):
    from nemo_cascade.models.stack import Stack

    layout = Layout(recompute_method=method, recompute_num_layers=number)
    stack = SimpleNamespace(config=layout, layers=NANO.pattern)
    run = [(NANO.pattern[first:last], recomputed) for first, last, recomputed in Stack._chunks(stack)]
    assert memory.chunks(NANO.pattern, layout) == run


@pytest.mark.parametrize("number, inputs", [(1, 52), (5, 11), (52, 1)])
def test_uniform_recompute_saves_the_input_of_each_chunk_and_makes_a_whole_chunk_again(number, inputs):
    layout = Layout(recompute_method="uniform", recompute_num_layers=number)
    saved = memory.saved_bytes(NANO, NANO.pattern, 4096, layout, 2)
    assert saved == inputs * 2 * 4096 * NANO.hidden_size
    layers = {kind: memory.activation_bytes(NANO, kind, 4096, Layout(), 2) for kind in "M*E"}
    chunks = [NANO.pattern[first : first + number] for first in range(0, 52, number)]
    running = {kind: layers[kind] + memory.workspace_bytes(NANO, kind, 4096, Layout(), 2) for kind in "M*E"}
    again = max(sum(layers[kind] for kind in chunk) + max(running[kind] for kind in chunk) for chunk in chunks)
    assert memory.backward_bytes(NANO, rank_of(1, 1, 1, 1), 4096, layout, 2) == again


@pytest.mark.parametrize("number", [1, 7, 52])
def test_block_recompute_saves_the_inputs_of_the_first_layers_and_all_of_the_others(number):
    layout = Layout(recompute_method="block", recompute_num_layers=number)
    rest = sum(memory.activation_bytes(NANO, kind, 4096, Layout(), 2) for kind in NANO.pattern[number:])
    saved = memory.saved_bytes(NANO, NANO.pattern, 4096, layout, 2)
    assert saved == number * 2 * 4096 * NANO.hidden_size + rest


def head_peak(precision, tokens, backward):
    """Bytes that the output layer and the log-probs of WIDE's hidden states have at most at once, chunk by chunk."""
    from nemo_cascade.engine import head

    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDE.hidden_size, generator=generator).to(dtype).requires_grad_(backward)
    labels = torch.randint(VOCABULARY, (tokens,), generator=generator)
    with patch.multiple(head, CHUNK=HEAD_TOKENS * VOCABULARY, CHUNK_ON_GPU=HEAD_TOKENS * VOCABULARY), torch.set_grad_enabled(backward), Live() as live:
        own = torch.ones(tokens, 1, WIDE.hidden_size, dtype=dtype)
        # As `engine.forward` does, but for the backward pass of the indexing, which under a dispatch mode copies more.
        scored = head.whole_pack(own, False)[torch.arange(tokens)].detach().requires_grad_(backward)
        slope = (lambda logprobs, _: torch.ones_like(logprobs)) if backward else None
        logprobs, _ = head.label_logprobs(scored, weight, labels, slope=slope)
        if backward:
            logprobs.sum().backward()
    return live.peak


VOCABULARY, HEAD_TOKENS = 4096, 128


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("tokens", [64, 1024])
@pytest.mark.parametrize("precision, size", [("float32", 4), ("bfloat16", 2)])
def test_the_head_has_at_once_what_its_formula_says(precision, size, tokens, backward):
    from nemo_cascade.engine import head

    model = dataclasses.replace(WIDE, vocab_size=VOCABULARY)
    with patch.multiple(head, CHUNK=HEAD_TOKENS * VOCABULARY, CHUNK_ON_GPU=HEAD_TOKENS * VOCABULARY):
        formula = memory.head_bytes(model, tokens, Layout(), size, backward)
    # Labels, and a handful of numbers a token.
    assert head_peak(precision, tokens, backward) == pytest.approx(formula, rel=0.02)


def caches_of_the_engine(sequences, tokens, prompt_tokens):
    """Bytes that the engine counts for a sequence, those of the caches it then has for all of them, and of the caches
    it read their prompts with, all different and read at once."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.rollout import batch, cache
    from nemo_cascade.rollout.types import Request, SamplingParams
    from nemo_cascade.stages.rollouts import make_engine

    parallel.init(MegatronConfig())
    engine = make_engine(Policy(PolicyConfig(model_name="micro"), seed=0))
    params = SamplingParams(max_new_tokens=tokens - prompt_tokens, temperature=1.0, top_p=1.0, stop_ids=(), seed=0)
    prompts = [(number, *range(1, prompt_tokens)) for number in range(sequences)]
    engine.add([Request(prompt_id=f"{prompt[0]}", sample=0, prompt=prompt) for prompt in prompts], params)
    contexts = []

    def context(*sizes):
        contexts.append(StaticInferenceContext(*sizes))
        return contexts[-1]

    StaticInferenceContext = batch.StaticInferenceContext
    with patch.object(batch, "StaticInferenceContext", context), patch.object(cache, "StaticInferenceContext", context):
        engine.step()
    own, reading = [
        sum(cache.nbytes for caches in made.key_value_memory_dict.values() for cache in caches) for made in contexts
    ]
    return engine._row_bytes(tokens), own, reading


def test_caches_are_what_the_engine_counts_and_holds_for_replies_and_while_it_reads_their_prompts():
    micro = get_preset("micro")
    one = memory.cache_bytes(micro, micro.pattern, 500, 1, 4)
    reading = memory.prompt_cache_bytes(micro, micro.pattern, 3, 3 * 4, 1, 4)
    assert run_distributed(caches_of_the_engine, 1, 3, 500, 4)[0] == (one, 3 * one, reading)


def counted_by_the_engine_of_nano(tensor, tokens):
    from nemo_cascade.engine.planner import built
    from nemo_cascade.rollout.megatron import MegatronEngine

    cfg = MegatronConfig(tensor_model_parallel_size=tensor, sequence_parallel=tensor > 1)
    config = PolicyConfig(model_name="nano_30b_a3b", precision="bfloat16", megatron_cfg=cfg)
    with built(config, tensor, 0) as model:
        return MegatronEngine(model, NANO.vocab_size)._row_bytes(tokens)


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_a_tensor_rank_of_the_engine_counts_one_key_value_group_at_least(tensor):
    """Nano has two."""
    counted = run_distributed(counted_by_the_engine_of_nano, 1, tensor, 10_000)[0]
    assert counted == memory.cache_bytes(NANO, NANO.pattern, 10_000, tensor, 2)


def test_reading_prompts_is_cut_neither_over_context_nor_between_the_layers_over_tensor_ranks():
    rank = rank_of(1, 1, 1, 1)
    asked = [memory.prompt_bytes(NANO, rank, 8, 16_384, Layout(context=context), 2) for context in (1, 4)]
    assert asked[0] == asked[1]
    whole = memory.forward_bytes(NANO, "E", 16_384, Layout(), 2)
    assert memory.forward_bytes(NANO, "E", 16_384, Layout(tensor=2, sequence_parallel=False), 2) > 0.9 * whole


def test_nano_keeps_6144_bytes_a_token_and_48_megabytes_of_states_a_reply():
    """The published figures: KV cache in bfloat16, SSM states in float32 (and 4 tokens of the convolutions)."""
    states = memory.cache_bytes(NANO, NANO.pattern, 0, 1, 2)
    assert memory.cache_bytes(NANO, NANO.pattern, 1000, 1, 2) - states == 6_144_000
    assert states - 23 * 6144 * 4 * 2 == 23 * 64 * 64 * 128 * 4 == pytest.approx(48.2e6, rel=1e-3)
    # Two groups of keys on eight tensor ranks: each has one.
    eighth = memory.cache_bytes(NANO, NANO.pattern, 1000, 8, 2) - memory.cache_bytes(NANO, NANO.pattern, 0, 8, 2)
    assert eighth == 6_144_000 / 2


def rank_of(dense: int, expert: int, data_parallel: int, expert_data_parallel: int) -> RankModel:
    tensors = (Tensors(dense, 2, False, True), Tensors(expert, 2, True, True))
    return RankModel(0, 8, NANO.pattern, tensors, 0, 0, 0, data_parallel, expert_data_parallel)


def test_one_node_of_eight_holds_83_gigabytes_a_rank_before_activations():
    """Experts split eight ways and all else whole, in bfloat16 with gradients, masters and moments in float32."""
    rank = rank_of(2_203_132_736, 29_374_807_040 // 8, 8, 1)
    assert rank.parameters == pytest.approx(5.875e9, rel=1e-3)
    held = rank.weights + memory.gradient_bytes(rank) + memory.optimizer_bytes(rank, Layout())
    assert held == pytest.approx(83e9, rel=0.01)
    assert held == 6 * rank.parameters + 12 * (2_203_132_736 // 8 + 29_374_807_040 // 8)


def test_an_offloaded_optimizer_is_in_host_memory_and_not_on_the_gpu():
    rank, work = rank_of(10**9, 10**9, 8, 1), Work(pack=4096, microbatches=1, checkpoints=2)
    here = memory.requirement(NANO, rank, work, Layout())
    there = memory.requirement(NANO, rank, work, Layout(optimizer_offload=True))
    assert here.peak - there.peak == here.optimizer == 12 * (10**9 // 8 + 10**9) and there.optimizer == 0
    assert there.host - here.host == here.optimizer + 4 * (10**9 // 8 + 10**9)
    assert here.host == 2 * rank.weights


def test_training_holds_what_all_layers_save_in_every_pack_in_flight():
    rank, work = rank_of(10**9, 10**9, 8, 1), Work(pack=4096, microbatches=8)
    saved = memory.saved_bytes(NANO, rank.layers, 4096, Layout(), 2)
    first = memory.training_bytes(NANO, rank, work, Layout(pipeline=4), 2)
    last = memory.training_bytes(NANO, dataclasses.replace(rank, pipeline_stage=3), work, Layout(pipeline=4), 2)
    head = memory.head_bytes(NANO, 4096, Layout(), 2, backward=True)
    backward = memory.backward_bytes(NANO, rank, 4096, Layout(), 2)
    assert (first, last) == (4 * saved + backward, saved + max(head, backward))


def test_a_stage_is_scored_by_a_policy_without_gradients_and_optimizer():
    rank = rank_of(10**9, 10**9, 8, 1)
    work = Work(4096, 1, sequences=8, validation_sequences=8, sequence_tokens=100_000, prompt_tokens=1000)
    phases = memory.requirement(NANO, rank, work, Layout()).phases
    assert phases["sample"] - phases["validate"] == memory.gradient_bytes(rank) + memory.optimizer_bytes(rank, Layout())
    sft = memory.requirement(NANO, rank, dataclasses.replace(work, sequences=0), Layout())
    assert sft.phases.keys() == {"load", "train", "validate"} and sft.cache == 8 * memory.cache_bytes(
        NANO, NANO.pattern, 100_000, 1, 2
    )


def test_importing_the_formulas_imports_no_torch():
    program = "import sys, nemo_cascade.engine.memory; print('torch' in sys.modules, 'megatron' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False False\n", done.stderr
