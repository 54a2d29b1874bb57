"""Before the first step of a distillation stage: the student as its own teacher has nothing to learn.

The weights that the stage starts from are read and asked just as a teacher's are, about a fixed batch of random tokens; what they say
and what the student says must be one, or every advantage of the stage would be off by the difference. A stage from fresh weights
has no checkpoint that could teach it, and goes without.
"""

from pathlib import Path

import torch

from nemo_cascade.algorithms import mopd_advantages
from nemo_cascade.data.rows import DataError
from nemo_cascade.data.sample import Sample
from nemo_cascade.engine import probe
from nemo_cascade.engine.policy import Policy
from nemo_cascade.models.presets import is_hf_folder
from nemo_cascade.stages.context import StageRun


def refuse_unless_own_teacher(policy: Policy, stage: StageRun, ask) -> float | None:
    """The largest advantage of the student taught by its own start, None where it has none to read; called on all ranks, before
    the first step. ask: `rl.add_teacher_logprobs`, what asks the stage's teachers.

    Raises DataError, the same on every rank, where it is above `stage.max_logprob_error`.
    """
    start = own_start(stage)
    if start is None:
        return None
    rows = probe.fixed_tokens(policy)
    samples = [Sample(list(row), [0] + [1] * (len(row) - 1), name=f"random text {n}") for n, row in enumerate(rows)]
    domains = list(stage.teachers)[:1] * len(samples)
    ask(policy, samples, domains, dict.fromkeys(domains, start), f"stage {stage.name}, before step 1")
    if start not in stage.teachers.values():
        policy.forget_weights_of(start)
    rows = zip(samples, policy.logprobs(samples, trained_only=True))
    triples = [(s.fields["teacher_logprobs"], logprobs, s.loss_mask) for s, logprobs in rows]
    advantages = [mopd_advantages(*(torch.tensor(row) for row in triple)) for triple in triples]
    worst = torch.cat(advantages).abs().max().item()
    if not worst <= stage.max_logprob_error:
        raise DataError(
            f"stage {stage.name}: the student as its own teacher ({start}) has an advantage of {worst:g}, not "
            f"{stage.max_logprob_error:g}: teachers would be read or asked wrongly; look at that checkpoint's hand-over, or, where "
            "the kernels of this machine add in any order, raise cascade.handover.max_logprob_error"
        )
    return worst


def own_start(stage: StageRun) -> Path | None:
    """Where the weights are that a stage begins with (`stages.start`)."""
    given, model = stage.config.checkpointing.pretrained_checkpoint, stage.config.policy.model_name
    if stage.parent is not None:
        return stage.parent
    if given is not None:
        return Path(given.path)
    return Path(model) if is_hf_folder(model) else None
