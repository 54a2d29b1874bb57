"""`Sample`: one training sequence, the only thing that travels from data and rollouts to the policy.

Every per-token list is as long as `tokens`, and entry t belongs to token t, i.e. to the prediction made from `tokens[:t]`.
Entry 0 has no prediction and is never trained. One alignment everywhere is what keeps off-by-one errors out.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass
class Sample:
    """tokens [n] ids, loss_mask [n] of 0/1, fields: name -> [n] floats (advantages, sampling_logprobs, ...). name: for errors.

    experts [n - 1, MoE layers, topk]: those that each token, but the last, which no other is predicted from, goes through in training
    (router replay); None: those that the routers choose then.
    """

    tokens: list[int]
    loss_mask: list[int]
    fields: dict[str, list[float]] = field(default_factory=dict)
    name: str = ""
    experts: "torch.Tensor | None" = field(default=None, compare=False)

    def __post_init__(self):
        lengths = {"loss_mask": len(self.loss_mask), **{name: len(values) for name, values in self.fields.items()}}
        for name, length in lengths.items():
            if length != len(self.tokens):
                raise ValueError(f"Sample.{name} has {length} entries for {len(self.tokens)} tokens; they must be equal")
        if self.experts is not None and len(self.experts) != len(self.tokens) - 1:
            raise ValueError(f"Sample.experts has {len(self.experts)} rows for {len(self.tokens)} tokens; it must have one less than these")
        if len(self.tokens) < 2:
            raise ValueError(f"a Sample needs at least 2 tokens to predict one of them, got {len(self.tokens)}")
