"""What a user may say about sampling: NeMo RL's `policy.generation` block."""

from dataclasses import dataclass

# Decoding cache of one rank beyond which the embedded engine refuses a batch.
MAX_CACHE_BYTES = 2**34
# Engines whose rollouts say which experts their tokens went through.
REPORT_EXPERTS = ("megatron",)


@dataclass
class GenerationConfig:
    """`policy.generation`. `max_batch_size` bounds the rows one rank decodes at once (cache memory).

    RL trains, and takes the log-probs of teachers and reference under, the temperature and top_p it samples with; SFT
    trains at 1.
    """

    backend: str = "megatron"
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    max_batch_size: int = 256
