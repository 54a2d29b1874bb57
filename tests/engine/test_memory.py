"""The memory formulas beside what torch and the engine really keep."""

import subprocess
import sys

import pytest

from nemo_cascade.engine import memory
from nemo_cascade.engine.config import MegatronConfig, PolicyConfig
from nemo_cascade.engine.memory import GIB, Layout, RankModel, Tensors, Work
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


def kept_by_autograd(precision):
    """Bytes that each layer of WIDE keeps for its backward pass over a pack of DOCUMENTS, by its letter."""
    import torch

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


@pytest.mark.parametrize("precision, size", [("float32", 4), ("bfloat16", 2)])
def test_layers_keep_for_their_backward_pass_what_the_formulas_say(precision, size, monkeypatch):
    kept = run_distributed(kept_by_autograd, 1, precision)[0]
    tokens = sum(DOCUMENTS)
    # One rank has all experts: nothing can be uneven.
    monkeypatch.setattr(memory, "IMBALANCE", 1)
    formula = {kind: memory.kept_bytes(WIDE, kind, tokens, Layout(), size) for kind in "M*E"}
    assert kept["E"] == pytest.approx(formula["E"], rel=0.01)
    # The torch attention puts its output in the pack's order for the projection, and so keeps it twice.
    output = size * tokens * WIDE.num_attention_heads * WIDE.kv_channels
    assert kept["*"] - output == pytest.approx(formula["*"], rel=0.01)
    # A fused scan keeps less than the torch one.
    assert formula["M"] < kept["M"] < 5 * formula["M"]


@pytest.mark.parametrize("tensor, context", [(1, 1), (2, 1), (1, 4), (2, 4)])
@pytest.mark.parametrize("kind", "M*E")
def test_tensor_and_context_parallel_divide_what_a_layer_keeps(kind, tensor, context):
    whole = memory.kept_bytes(NANO, kind, 65536, Layout(), 2)
    part = memory.kept_bytes(NANO, kind, 65536, Layout(tensor=tensor, context=context), 2)
    assert part == pytest.approx(whole / tensor / context, rel=1e-6)


@pytest.mark.parametrize("kind", "M*E")
def test_whole_layers_that_are_recomputed_leave_their_input_only(kind):
    layout = Layout(recompute_layers=True)
    assert memory.remaining_bytes(NANO, kind, 4096, layout, 2) == 2 * 4096 * NANO.hidden_size
    assert memory.remaining_bytes(NANO, kind, 4096, Layout(), 2) == memory.kept_bytes(NANO, kind, 4096, Layout(), 2)


def cache_of_rows(rows, tokens):
    """Bytes that the engine counts for a row, and those of the caches it then has for all rows."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.rollout.types import Request, SamplingParams
    from nemo_cascade.stages.rollouts import make_engine

    parallel.init(MegatronConfig())
    engine = make_engine(Policy(PolicyConfig(model_name="micro"), seed=0))
    params = SamplingParams(max_new_tokens=tokens - 4, temperature=1.0, top_p=1.0, stop_ids=(), seed=0)
    engine.add([Request(prompt_id="0a", sample=sample, prompt=(1, 2, 3, 4)) for sample in range(rows)], params)
    engine.step()
    caches = [cache for caches in engine.batch.context.key_value_memory_dict.values() for cache in caches]
    return engine._row_bytes(tokens), sum(cache.numel() * cache.element_size() for cache in caches)


def test_rows_of_cache_are_what_the_engine_counts_and_holds():
    micro = get_preset("micro")
    row = memory.row_bytes(micro, micro.pattern, 500, 1, 4)
    assert run_distributed(cache_of_rows, 1, 3, 500)[0] == (row, 3 * row)


def test_nano_keeps_6144_bytes_a_token_and_48_megabytes_of_states_a_reply():
    """The published figures: KV cache in bfloat16, SSM states in float32 (and 4 tokens of the convolutions)."""
    states = memory.row_bytes(NANO, NANO.pattern, 0, 1, 2)
    assert memory.row_bytes(NANO, NANO.pattern, 1000, 1, 2) - states == 6_144_000
    assert states - 23 * 6144 * 4 * 2 == 23 * 64 * 64 * 128 * 4 == pytest.approx(48.2e6, rel=1e-3)
    # Two groups of keys on eight tensor ranks: each has one.
    eighth = memory.row_bytes(NANO, NANO.pattern, 1000, 8, 2) - memory.row_bytes(NANO, NANO.pattern, 0, 8, 2)
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
    rank, work = rank_of(10**9, 10**9, 8, 1), Work(pack=4096, microbatches=1, copies=2)
    here = memory.need(NANO, rank, work, Layout())
    there = memory.need(NANO, rank, work, Layout(optimizer_offload=True))
    assert here.peak - there.peak == here.optimizer == 12 * (10**9 // 8 + 10**9) and there.optimizer == 0
    assert there.host - here.host == here.optimizer + 4 * (10**9 // 8 + 10**9)
    assert here.host == 2 * rank.weights


def test_as_many_replies_as_fit_fit_and_one_more_does_not():
    rank, layout = rank_of(10**9, 10**9, 8, 1), Layout(recompute_layers=True)
    work = Work(pack=4096, microbatches=1, rows=1, row_tokens=100_000, prompt_tokens=1000)
    rows = memory.most_rows(NANO, rank, work, layout, 60 * GIB)

    def sampling(rows):
        asked = memory.need(NANO, rank, Work(4096, 1, rows, 100_000, 1000), layout)
        return asked.phases["sample"] + memory.RESERVE

    assert rows > 10 and sampling(rows) <= 60 * GIB < sampling(rows + 1)


def test_the_formulas_do_without_torch():
    program = "import sys, nemo_cascade.engine.memory; print('torch' in sys.modules, 'megatron' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False False\n", done.stderr
