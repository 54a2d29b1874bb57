"""What goes into a rollout engine (`Request`), what comes out (`Rollout`), and the `Group` a reward and an advantage see."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


# Ends of a rollout that are no doing of its model: its tools did not answer. Nothing is learned from it.
FAILED = ("tool_timeout", "tool_failed")


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn. The noise of a token depends on (seed, prompt_id, sample, position) and nothing else.

    temperature 0 is greedy. top_p < 1 keeps the smallest set of tokens whose mass reaches it; log-probs returned are
    those of the distribution that was sampled from (after temperature and top-p). report_experts: rollouts say which experts their
    tokens went through.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    stop_ids: tuple[int, ...] = (2, 11)
    seed: int = 0
    report_experts: bool = False


@dataclass(frozen=True)
class Request:
    """One reply to be sampled: `sample` counts the replies to the same `prompt_id` (a hex string)."""

    prompt_id: str
    sample: int
    prompt: tuple[int, ...]


@dataclass
class Rollout:
    """One sampled reply, or a conversation with tools: all that follows the prompt, token by token as it was sampled or told.

    `response` ends in its stop token unless finish_reason is "length"; "turns" is the end of one whose last turn called a tool and
    was the last allowed. `logprobs` is as long as it. own [len(response)]: 1 for tokens that the model wrote, 0 for what it was
    told, whose log-probs are 0; None where all are its own.

    experts [prompt + response - 1, MoE layers, topk], where they were asked for: indices of those that each token but the last, which
    no other was drawn from, went through; uint8 where that has room for them all. Of a conversation they
    are those of its last turn, which read all before it.
    """

    prompt_id: str
    sample: int
    prompt: list[int]
    response: list[int]
    logprobs: list[float]
    finish_reason: str
    reward: float | None = None
    info: dict[str, Any] = field(default_factory=dict)
    own: list[int] | None = None
    experts: "torch.Tensor | None" = field(default=None, compare=False)

    @property
    def fault(self) -> str | None:
        """The kind of what kept it from a verdict (`environments.faults`), so that its reward is none; None where it has one."""
        return self.info.get("fault")

    @property
    def written(self) -> list[int]:
        """`own`, spelled out."""
        return self.own if self.own is not None else [1] * len(self.response)


@dataclass
class Group:
    """All rollouts of one row in one step."""

    row: dict
    domain: str
    rollouts: list[Rollout]
