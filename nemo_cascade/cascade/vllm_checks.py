"""What rollouts by vLLM need: `policy.generation.backend=vllm`."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

from nemo_cascade.stages.context import LoopConfig


def problems(stage: LoopConfig, validation_turns: int, where: Callable[[str], str]) -> Iterator[str]:
    """Lines "key: what is wrong; what to do"; validation_turns: `cascade.validation.max_rollout_turns`."""
    policy, layout = stage.policy, stage.policy.megatron_cfg
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
    # A conversation's ranks wait for each other where they hold one model together, which vLLM's do not.
    if max(stage.grpo.max_rollout_turns, validation_turns) > 1:
        for name in ("tensor_model_parallel_size", "expert_model_parallel_size"):
            if (size := getattr(layout, name)) > 1:
                yield f"{where(f'policy.megatron_cfg.{name}')}: {size}, but conversations of several turns by vllm want 1; or take {key}=megatron"
