"""Validation inside a stage, on the policy in memory: which of its checkpoints is the best, and whether it still gets better.

Its prompts are those that the finished stage is scored on, sampled with other noise, so that the choice of a checkpoint does
not flatter its score by luck in sampling; that the prompts are the same does a little. What was found is in `validations.json`,
cut back when a stage resumes, so that a resumed one decides the same. Left out: validation before the first step, and learning
rates that follow it.
"""

import json
import math
import time

import numpy as np

from nemo_cascade.data.files import write_atomically
from nemo_cascade.engine import parallel
from nemo_cascade.engine.policy import Policy
from nemo_cascade.stages.config import GRPOConfig, SFTConfig
from nemo_cascade.stages.context import StageRun
from nemo_cascade.stages.paired import both_scored, chance_of_gain

FILE = "validations.json"
# The chance of noise that an improvement may have at most. As every validation is tested, noise now and then passes for one,
# which only lets a stage go on for longer.
LEVEL = 0.05


class Validations:
    """What a stage's validations have shown so far: `history`, entries {step, scores: domain -> {mean, per_prompt, ...}}.

    The same on all ranks, which call its methods together. Without `val_period` it does nothing and keeps the newest
    checkpoints.
    """

    def __init__(self, stage: StageRun, loop: SFTConfig | GRPOConfig, done: int):
        """loop: the block that has the stage's length. done: the step that a resumed stage goes on from."""
        self.stage, self.loop, self.checkpointing = stage, loop, stage.config.checkpointing
        path = stage.dir / FILE
        text = parallel.broadcast(path.read_text(encoding="utf-8") if stage.rank == 0 and path.exists() else "[]")
        self.history = [entry for entry in json.loads(text) if entry["step"] <= done]

    def due(self, step: int) -> bool:
        """Whether a validation follows a step."""
        return self.loop.val_period > 0 and (step % self.loop.val_period == 0 or step == self.loop.max_num_steps)

    def after(self, step: int, policy: Policy) -> dict[str, float]:
        """Validates where it is due after a step; returns the metrics. Raises ValueError for a score that is not finite."""
        if not self.due(step):
            return {}
        started = time.perf_counter()
        scores = self.stage.validate(policy)
        for domain, entry in scores.items():
            if not math.isfinite(entry["mean"]):
                told = f"step {step}: the validation score of {domain} is {entry['mean']}"
                raise ValueError(f"{told}; look at what verifies its replies")
        self.history.append({"step": step, "scores": scores})
        if self.stage.rank == 0:
            write_atomically(self.stage.dir / FILE, json.dumps(self.history) + "\n")
        metrics = {f"validation/{domain}/reward": entry["mean"] for domain, entry in scores.items()}
        metrics["validation/reward"] = float(np.mean([entry["mean"] for entry in scores.values()]))
        return metrics | {"timing/validation/total_validation_time": time.perf_counter() - started}

    @property
    def stopped(self) -> bool:
        """Whether `val_patience` validations in a row were no improvement beyond noise over the last one that was."""
        best, waited = None, 0
        for entry in self.history:
            best, waited = (entry, 0) if best is None or self._improved(best, entry) else (best, waited + 1)
            if 0 < self.loop.val_patience <= waited:
                return True
        return False

    @property
    def final_step(self) -> int:
        """Where a stage that has come to its end hands on from: the best step where the best is kept, else the last."""
        if self.checkpointing.metric_name is not None:
            return self.best(1)[0]
        return self.history[-1]["step"] if self.stopped else self.loop.max_num_steps

    def best(self, count: int) -> list[int]:
        """The steps with the best scores, the best first, of equal ones the earlier; all of them for a count of 0."""
        sign = 1 if self.checkpointing.higher_is_better else -1
        ranked = sorted(self.history, key=lambda entry: -sign * self._metric(entry))
        return [entry["step"] for entry in ranked[: count or None]]

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after a step: the stage stops, or it is among the best so far."""
        validated = bool(self.history) and self.history[-1]["step"] == step
        chosen = self.checkpointing.metric_name is not None and step in self.best(self.checkpointing.keep_top_k)
        return validated and (chosen or self.stopped)

    @property
    def retention(self) -> dict:
        """Which checkpoints stay, as `checkpoint.save` takes it: the best and, to resume from, the newest; else the newest."""
        keep = self.checkpointing.keep_top_k
        if self.checkpointing.metric_name is None or keep == 0:
            return {"keep": keep}
        return {"keep": 1, "protect": self.best(keep)}

    def _metric(self, entry: dict) -> float:
        return float(np.mean([entry["scores"][domain]["mean"] for domain in self._domains(entry)]))

    def _domains(self, entry: dict) -> list[str]:
        """Those that `metric_name` looks at."""
        name = (self.checkpointing.metric_name or "val:reward").removeprefix("val:")
        return list(entry["scores"]) if name == "reward" else [name]

    def _improved(self, before: dict, after: dict) -> bool:
        """Whether the metric rose, and by more than noise does (one-sided sign-flip test on its prompts)."""
        differences = []
        for domain in self._domains(after):
            first, second = both_scored(*(entry["scores"][domain]["per_prompt"] for entry in (before, after)))
            differences.append((second - first) / max(len(first), 1))  # domains count the same, whatever their prompts
        difference = np.concatenate(differences)
        return chance_of_gain(difference if self.checkpointing.higher_is_better else -difference) <= LEVEL
