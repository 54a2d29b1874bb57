"""What `policy.generation.backend=vllm` needs is told when the config loads."""

import pytest

from nemo_cascade.cascade.vllm_checks import absent_servers
from tests.cascade.test_config import load, problems

CFG, KEY = "policy.generation.vllm_cfg.", "policy.generation.vllm_cfg.tensor_parallel_size"
REFUSED = {
    "ranks": ([f"{CFG}tensor_parallel_size=2"], 3, f"{KEY}: 2 does not divide the 3 processes"),
    "groups": ([f"{CFG}tensor_parallel_size=4"], 4, f"{KEY}: the model's mamba_num_groups 2 cannot be shared by 4 ranks"),
    "none": ([f"{CFG}tensor_parallel_size=0"], 2, f"{KEY}: must be >= 1, got 0"),
    "experts": ([f"{CFG}expert_parallel_size=2"], 2, f"{CFG}expert_parallel_size: 2, but experts lie on the ranks of one engine"),
    "length": ([f"{CFG}max_model_len=8"], 2, f"{CFG}max_model_len: 8 is below policy.max_total_sequence_length"),
    "said twice": (["+policy.generation.vllm_kwargs.tensor_parallel_size=2"], 2, "vllm_kwargs: tensor_parallel_size follow from"),
    "replay": (["policy.router_replay.enabled=true"], 2, "router_replay.enabled: vllm does not report experts"),
}


SERVER = "policy.generation.vllm_server."


def test_where_servers_are_must_be_said_and_weights_must_have_a_way_to_them():
    backend = "policy.generation.backend=vllm_server"
    assert f"{SERVER}base_urls: empty; name the servers" in " ".join(problems(backend))
    found = problems(backend, f"{SERVER}base_urls=[host:8000]", f"{SERVER}weights_path=/no/such")
    assert any(line.startswith(f"{SERVER}base_urls: an address such as http://host:8000, got host:8000") for line in found)
    assert any(line.startswith(f"{SERVER}weights_path: no folder /no/such") for line in found)
    cascade = load(backend, f"{SERVER}base_urls=[http://127.0.0.1:9]")
    (line,) = absent_servers(cascade, ["sft", "if_rl"])
    assert line.startswith(f"{SERVER}base_urls: http://127.0.0.1:9: ConnectError: ")


@pytest.mark.parametrize("case", REFUSED)
def test_what_vllm_cannot_do_is_refused_with_the_key(case):
    overrides, world_size, expected = REFUSED[case]
    found = problems("policy.generation.backend=vllm", *overrides, world_size=world_size)
    assert [line for line in found if expected in line], found
    assert not [line for line in problems("policy.generation.backend=vllm", "policy.zzz=1") if expected in line]
