"""What rollouts by vLLM need: `policy.generation.backend=vllm`."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

from nemo_cascade.stages.context import LoopConfig


def problems(stage: LoopConfig, where: Callable[[str], str]) -> Iterator[str]:
    """Lines "key: what is wrong; what to do"."""
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
