"""What rollouts by vLLM need: `policy.generation.backend=vllm`."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

from nemo_cascade.engine.config import PolicyConfig
from nemo_cascade.models.presets import PRESETS
from nemo_cascade.stages.context import LoopConfig

# What a rank needs to know of its engine, too, to tell whether weights arrived.
OURS = {"tensor_parallel_size", "enable_expert_parallel", "pipeline_parallel_size", "data_parallel_size"}


def problems(stage: LoopConfig, where: Callable[[str], str], world_size: int | None) -> Iterator[str]:
    """Lines "key: what is wrong; what to do". world_size None leaves the number of processes out."""
    policy = stage.policy
    if policy.generation.backend != "vllm":
        return
    key = where("policy.generation.backend")
    if find_spec("vllm") is None:
        yield f"{key}: vllm is not installed here; install it (docs/vllm.md), or take megatron"
    longest = policy.generation.vllm_cfg.max_model_len
    if longest is not None and longest < policy.max_total_sequence_length:
        yield (
            f"{where('policy.generation.vllm_cfg.max_model_len')}: {longest} is below policy.max_total_sequence_length "
            f"{policy.max_total_sequence_length}; raise it, or leave it out"
        )
    yield from sharing(policy, where, world_size)
    ours = sorted(policy.generation.vllm_kwargs.keys() & OURS)
    if ours:
        yield f"{where('policy.generation.vllm_kwargs')}: {', '.join(ours)} follow from policy.generation.vllm_cfg; say it there"


def sharing(policy: PolicyConfig, where: Callable[[str], str], world_size: int | None) -> Iterator[str]:
    """Whether ranks can hold an engine together."""
    from nemo_cascade.rollout.vllm_shard import Shard, sharing_problems  # late, because it imports torch

    size, experts = policy.generation.vllm_cfg.tensor_parallel_size, policy.generation.vllm_cfg.expert_parallel_size
    key = where("policy.generation.vllm_cfg.tensor_parallel_size")
    if size < 1:
        yield f"{key}: must be >= 1, got {size}"
        return
    if world_size is not None and world_size % size:
        yield f"{key}: {size} does not divide the {world_size} processes"
    if policy.model_name in PRESETS:
        yield from (f"{key}: {problem}" for problem in sharing_problems(PRESETS[policy.model_name], Shard(0, size, experts > 1)))
    if experts not in (1, size):
        yield (
            f"{where('policy.generation.vllm_cfg.expert_parallel_size')}: {experts}, but experts lie on the ranks of one engine; set it to 1 "
            f"or to tensor_parallel_size, {size}"
        )
