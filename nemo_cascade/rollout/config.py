"""What a user may say about sampling: NeMo RL's `policy.generation` block."""

from dataclasses import dataclass, field

# Decoding cache of one rank: of the rows that wait, the embedded engine takes in as many as it has room for.
MAX_CACHE_BYTES = 2**34
# Engines whose rollouts say which experts their tokens went through.
REPORT_EXPERTS = ("megatron",)


@dataclass
class VllmConfig:
    """`policy.generation.vllm_cfg`, NeMo RL's names. max_model_len: tokens of a prompt with its reply, without one the model's own
    longest. gpu_memory_utilization, the share of a GPU that vLLM takes while it is awake, says nothing on a CPU. One engine lies on
    tensor_parallel_size neighbouring ranks, and each of its experts whole on one of them if expert_parallel_size is the same."""

    tensor_parallel_size: int = 1
    expert_parallel_size: int = 1
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.6
    enforce_eager: bool = False  # no CUDA graphs


@dataclass
class VllmServerConfig:
    """`policy.generation.vllm_server`: vLLM in environments of their own, as `python -m nemo_cascade.rollout.vllm_serve` starts it.

    base_urls: servers, http://host:port each; ranks share them. weights_path: a folder that trainer and servers see, through which
    weights go; without one, the memory of the machine that all of them are on. timeout: seconds without any answer after which a
    server is given up.
    """

    base_urls: list[str] = field(default_factory=list)
    weights_path: str = "/dev/shm"
    timeout: float = 1800.0


@dataclass
class GenerationConfig:
    """`policy.generation`. `max_batch_size` bounds the rows one rank decodes at once (cache memory).

    backend: `megatron`, the embedded engine on the weights being trained, `vllm`, to which they are pushed, or `vllm_server`, the same
    behind HTTP; `vllm_kwargs` go to the EngineArgs of `vllm` as they are.
    RL trains, and takes the log-probs of teachers and reference under, the temperature and top_p it samples with; SFT
    trains at 1.
    """

    backend: str = "megatron"
    max_new_tokens: int = 64  # tokens of a reply, its thought included; of each turn, where there are several
    temperature: float = 1.0
    top_p: float = 1.0
    max_batch_size: int = 256
    vllm_cfg: VllmConfig = field(default_factory=VllmConfig)
    vllm_server: VllmServerConfig = field(default_factory=VllmServerConfig)
    vllm_kwargs: dict = field(default_factory=dict)
