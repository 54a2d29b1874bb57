"""What is compared after a push to vLLM, and the experts it lacks on a CPU; vLLM itself is not needed here."""

import subprocess
import sys

import pytest
import torch

from nemo_cascade.rollout.engine import EngineError
from nemo_cascade.rollout.vllm_cpu import squared_relu_experts
from nemo_cascade.rollout.vllm_push import Sent, checksum, lying, recorded, refuse_changed

LAYER = "backbone.layers.1.mixer"


@pytest.fixture
def pushed():
    """Tensors as Hugging Face has them, and where vLLM keeps them once they are loaded."""
    torch.manual_seed(0)
    weights = {f"{LAYER}.{letter}_proj.weight": torch.randn(rows, 6) for letter, rows in (("q", 8), ("k", 4), ("v", 4))}
    for expert in range(3):
        weights[f"{LAYER}.experts.{expert}.up_proj.weight"] = torch.randn(5, 6)
        weights[f"{LAYER}.experts.{expert}.down_proj.weight"] = torch.randn(6, 5)
    weights["backbone.embeddings.weight"] = torch.randn(10, 6)
    weights[f"{LAYER}.A_log"] = torch.randn(4)
    stacked = {way: torch.stack([weights[f"{LAYER}.experts.{e}.{way}_proj.weight"] for e in range(3)]) for way in ("up", "down")}
    parameters = {
        "model.layers.1.mixer.qkv_proj.weight": torch.cat([weights[f"{LAYER}.{letter}_proj.weight"] for letter in "qkv"]),
        "model.layers.1.mixer.experts.routed_experts.w13_weight": stacked["up"],
        "model.layers.1.mixer.experts.routed_experts.w2_weight": torch.nn.functional.pad(stacked["down"], (0, 3)),
        "model.embed_tokens.weight": torch.cat([weights["backbone.embeddings.weight"], torch.zeros(6, 6)]),
        "model.layers.1.mixer.A": -weights[f"{LAYER}.A_log"].exp(),
    }
    sent: dict[str, Sent] = {}
    assert dict(recorded(weights.items(), parameters, sent)).keys() == weights.keys() == sent.keys()
    return weights, parameters, sent


def test_what_arrived_as_it_was_sent_passes_whether_stacked_joined_padded_or_transformed(pushed):
    _, parameters, sent = pushed
    refuse_changed(parameters, sent)


def test_one_bit_of_any_tensor_is_named(pushed):
    weights, parameters, sent = pushed
    for name, tensor in weights.items():
        place = lying(name, tuple(tensor.shape), parameters)
        last = tuple(n - 1 for n in place.shape)
        before = place[last].clone()
        place[last] = torch.nextafter(before, torch.tensor(torch.inf))
        with pytest.raises(EngineError, match=rf"1 are not there as they were sent: {name.replace('.', '[.]')};"):
            refuse_changed(parameters, sent)
        place[last] = before
    refuse_changed(parameters, sent)


def test_two_experts_that_changed_places_are_both_named(pushed):
    _, parameters, sent = pushed
    experts = parameters["model.layers.1.mixer.experts.routed_experts.w13_weight"]
    experts[[0, 2]] = experts[[2, 0]]
    with pytest.raises(EngineError, match=r"2 are not .*experts\.0\.up_proj\.weight, .*experts\.2\.up_proj\.weight"):
        refuse_changed(parameters, sent)


def test_a_parameter_that_got_nothing_and_a_tensor_without_a_place_are_named(pushed):
    _, parameters, sent = pushed
    with pytest.raises(EngineError, match="nothing was pushed: model.norm_f.weight"):
        refuse_changed(parameters | {"model.norm_f.weight": torch.ones(6)}, sent)
    with pytest.raises(EngineError, match="no parameter for backbone.other.weight"):
        lying("backbone.other.weight", (6,), parameters)


def test_a_checksum_is_of_bits_and_their_places():
    for dtype in (torch.float32, torch.bfloat16):
        numbers = torch.tensor([1.0, 2.0, 3.0, 0.0], dtype=dtype)
        others = [numbers.flip(0), -numbers, torch.tensor([1.0, 2.0, 3.0, -0.0], dtype=dtype)]
        assert checksum(numbers) == checksum(numbers.clone()) and len({checksum(numbers), *map(checksum, others)}) == 4
    table = torch.arange(12.0).view(3, 4)
    assert checksum(table[:, 1:3]) == checksum(table[:, 1:3].contiguous()) != checksum(table[:, 0:2])


def test_experts_without_a_gate_are_the_sum_over_each_tokens_own():
    torch.manual_seed(1)
    hidden, w1, w2 = torch.randn(7, 6), torch.randn(4, 5, 6), torch.randn(4, 6, 5)
    experts = torch.stack([torch.randperm(3)[:2] for _ in range(7)])  # nobody asks the last one
    weights, output = torch.rand(7, 2), torch.full((7, 6), torch.nan)
    squared_relu_experts(output, hidden, w1, w2, weights, experts)
    for token in range(7):
        parts = [w * ((hidden[token] @ w1[e].T).relu() ** 2 @ w2[e].T) for w, e in zip(weights[token], experts[token])]
        torch.testing.assert_close(output[token], sum(parts))
    # The first two and the others on a rank each.
    here, there = torch.empty(2, 7, 6)
    squared_relu_experts(here, hidden, w1[:2], w2[:2], weights, experts.where(experts < 2, -1))
    squared_relu_experts(there, hidden, w1[2:], w2[2:], weights, (experts - 2).clamp(min=-1))
    torch.testing.assert_close(here + there, output)


def test_what_a_servers_workers_import_needs_neither_megatron_nor_the_trainers_packages():
    """`vllm_worker` but for vLLM itself, which is not here; the server's environment has this package without what it asks for."""
    names = "rollout.vllm_push, nemo_cascade.rollout.vllm_shard, nemo_cascade.rollout.vllm_cpu, nemo_cascade.models.hf_folder"
    code = f"import sys, nemo_cascade.{names}; print(*{{name.split('.')[0] for name in sys.modules}})"
    imported = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    lacking = {"megatron", "hydra", "omegaconf", "pebble", "transformers", "datasets", "typer", "rich", "httpx", "psutil"}
    assert "torch" in imported and not imported & lacking
