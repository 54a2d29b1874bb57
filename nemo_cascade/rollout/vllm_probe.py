"""What both ways of running vLLM share: a request's settings in its words, and a probe that trainer and engine both score."""

import logging
from collections.abc import Callable

import torch

from nemo_cascade.rollout.types import Request, SamplingParams

logger = logging.getLogger(__name__)

# NeMo RL's bound for token_mult_prob_error, the mean of exp |log-prob in one engine - in the other|.
MISMATCH = 1.05


def refuse_unfit(requests: list[Request], params: SamplingParams, max_tokens: int, remedy: str) -> None:
    """Raises ValueError for a request that is empty or longer with its reply than max_tokens, and where experts are asked for."""
    if params.report_experts:
        raise ValueError("vLLM reports no experts to us; set policy.router_replay.enabled=false or backend=megatron")
    for request in requests:
        if not request.prompt:
            raise ValueError(f"request {request.prompt_id}/{request.sample} has an empty prompt")
        if len(request.prompt) + params.max_new_tokens > max_tokens:
            raise ValueError(
                f"request {request.prompt_id}/{request.sample}: a prompt of {len(request.prompt)} tokens and a reply of up to "
                f"{params.max_new_tokens} are more than {max_tokens}; {remedy}"
            )


def settings(params: SamplingParams, key: int) -> dict:
    """Our settings by vLLM's names; key: a signed 64-bit number that is a reply's own."""
    return dict(
        temperature=params.temperature,
        top_p=params.top_p,
        max_tokens=params.max_new_tokens,
        stop_token_ids=list(params.stop_ids),
        ignore_eos=True,  # the stop ids say where a reply ends, no file of the model
        seed=key & (2**63 - 1),
        logprobs=0,
    )


def warn_of_mismatch(policy, score: Callable[[list[list[int]]], list[list[float]]]) -> None:
    """Warns where the probe that checkpoints keep has other log-probs in the engine than in the trainer. All ranks call this."""
    from nemo_cascade.engine import probe

    known = probe.take(policy)
    error = token_mult_prob_error(known.logprobs, score(known.tokens))
    if not error <= MISMATCH:
        logger.warning(
            "vLLM gives a probe's tokens other log-probs than the trainer: token_mult_prob_error %.4f, up to %.2f is usual; "
            "its weights are those that were pushed, so its precision or one of its kernels is not the trainer's",
            error,
            MISMATCH,
        )


def token_mult_prob_error(one: list[list[float]], other: list[list[float]]) -> float:
    """NeMo RL's measure: the mean over tokens of exp |difference of log-probs|, without each row's first token."""
    pairs = [(a, b) for row, second in zip(one, other, strict=True) for a, b in zip(row[1:], second[1:], strict=True)]
    mine, theirs = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    return float((mine - theirs).abs().exp().mean())
