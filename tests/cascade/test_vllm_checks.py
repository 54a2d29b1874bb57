"""What `policy.generation.backend=vllm` needs is told when the config loads."""

import pytest

from tests.cascade.test_config import problems

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


@pytest.mark.parametrize("case", REFUSED)
def test_what_vllm_cannot_do_is_refused_with_the_key(case):
    overrides, world_size, expected = REFUSED[case]
    found = problems("policy.generation.backend=vllm", *overrides, world_size=world_size)
    assert [line for line in found if expected in line], found
    assert not [line for line in problems("policy.generation.backend=vllm", "policy.zzz=1") if expected in line]
