"""What rollouts by vLLM need: `policy.generation.backend` vllm or vllm_server."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from nemo_cascade.engine.config import PolicyConfig
from nemo_cascade.models.presets import PRESETS
from nemo_cascade.stages.context import LoopConfig

if TYPE_CHECKING:
    from nemo_cascade.cascade.config import CascadeConfig

# What a rank needs to know of its engine, too, to tell whether weights arrived.
OURS = {"tensor_parallel_size", "enable_expert_parallel", "pipeline_parallel_size", "data_parallel_size"}


def problems(stage: LoopConfig, where: Callable[[str], str], world_size: int | None) -> Iterator[str]:
    """Lines "key: what is wrong; what to do". world_size None leaves the number of processes out."""
    policy = stage.policy
    if policy.generation.backend == "vllm_server":
        yield from server_problems(policy, where)
    if policy.generation.backend != "vllm":
        if policy.generation.vllm_kwargs:
            yield f"{where('policy.generation.vllm_kwargs')}: only policy.generation.backend=vllm reads it; set that, or remove it"
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


def server_problems(policy: PolicyConfig, where: Callable[[str], str]) -> Iterator[str]:
    """Whether it is said where servers are and how weights get to them."""
    config, key = policy.generation.vllm_server, "policy.generation.vllm_server"
    if not config.base_urls:
        yield f"{where(f'{key}.base_urls')}: empty; name the servers that python -m nemo_cascade.rollout.vllm_serve has started, [http://host:8000]"
    for url in config.base_urls:
        if not url.startswith(("http://", "https://")):
            yield f"{where(f'{key}.base_urls')}: an address such as http://host:8000, got {url}"
    if not Path(config.weights_path).is_dir():
        yield f"{where(f'{key}.weights_path')}: no folder {config.weights_path}; name one that trainer and servers see"


def absent_servers(cascade: "CascadeConfig", names: list[str]) -> Iterator[str]:
    """Lines on the servers that are to draw these stages' rollouts and that do not answer now."""
    policies = [cascade.stages[name].policy for name in names]
    served = [policy.generation.vllm_server for policy in policies if policy.generation.backend == "vllm_server"]
    for url in dict.fromkeys(url for config in served for url in config.base_urls):
        try:
            httpx.get(f"{url.rstrip('/')}/health", timeout=10).raise_for_status()
        except httpx.HTTPError as error:
            yield f"policy.generation.vllm_server.base_urls: {url}: {type(error).__name__}: {error}; start it by python -m nemo_cascade.rollout.vllm_serve"


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
