"""Gates: may the cascade go on from a stage, seen from its validation scores and its parent's on the same prompts?

A verdict rests on paired differences with a bootstrap interval, never on a bare difference of means. It is a function of the
stored scores and the config alone, so a gate can be changed after the fact. Minimal gains, floors and keep-best are not here yet.
"""

import json
import math
from typing import TYPE_CHECKING

import numpy as np

from nemo_cascade.cascade.manifest import Manifest

if TYPE_CHECKING:
    from nemo_cascade.cascade.config import GateConfig

ADVANCE, WARN, STOP, ROLLBACK = "advance", "warn", "stop", "rollback"
RESAMPLES = 10_000


class GateError(ValueError):
    """A score that a gate needs is missing, not finite or not paired; the message names stage and domain."""


def judge(manifest: Manifest, name: str, gate: "GateConfig") -> dict | None:
    """{"action", "differences": domain -> [mean, low, high] of score minus the parent's}; None without a gate.

    A domain fails when it lost more than its `max_drop` and the 95 % interval lies below 0; one that fails makes the
    action `gate.on_failure`, none makes it advance. Raises GateError.
    """
    if not gate.max_drop:
        return None
    parent = manifest.stages[name].parent
    differences = {
        domain: paired_difference(*paired_scores(manifest, parent, name, domain)) for domain in gate.max_drop
    }
    failed = any(mean < -gate.max_drop[domain] and high < 0 for domain, (mean, _, high) in differences.items())
    return {"action": gate.on_failure if failed else ADVANCE, "differences": differences}


def paired_difference(before: np.ndarray, after: np.ndarray) -> list[float]:
    """[mean, low, high] of after - before [prompts]: the 95 % percentile bootstrap [Efron & Tibshirani 1993, section 13.3].

    The resampling has a fixed seed, so the same scores always give the same verdict.
    """
    difference = np.asarray(after) - np.asarray(before)
    draws = np.random.default_rng(0).integers(0, len(difference), size=(RESAMPLES, len(difference)))
    low, high = np.percentile(difference[draws].mean(axis=1), [2.5, 97.5])
    return [float(difference.mean()), float(low), float(high)]


def paired_scores(manifest: Manifest, before: str, after: str, domain: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores by prompt [prompts] of two stages in a domain. Raises GateError."""
    (first, prompts), (second, others) = (per_prompt(manifest, stage, domain) for stage in (before, after))
    if len(first) != len(second):
        raise GateError(
            f"{domain}: {before} was scored on {len(first)} prompts and {after} on {len(second)}, so they cannot be "
            "compared; repeat the stage that was scored on other prompts with --from-stage"
        )
    if prompts != others:
        raise GateError(
            f"{domain}: the validation prompts of {before} and {after} differ, so their scores cannot be compared; the file "
            f"was changed in between: put it back, or repeat {before} with --from-stage {before}"
        )
    return first, second


def per_prompt(manifest: Manifest, stage: str, domain: str) -> tuple[np.ndarray, str | None]:
    """A stage's score of every validation prompt of a domain and the hash of these prompts, from its `validation.json`.

    Raises GateError.
    """
    path = manifest.directory(stage) / "validation.json"
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))[domain]
        scores = entry["per_prompt"]
    except (OSError, ValueError, KeyError) as error:
        raise GateError(
            f"{path}: no scores of {domain} ({type(error).__name__}: {error}); take {domain} out of the gate.max_drop of the "
            f"stages that started from {stage}, or repeat {stage} with --from-stage {stage}"
        ) from error
    if not scores or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in scores):
        raise GateError(f"{path}: a score of {domain} is not a finite number; repeat {stage} with --from-stage {stage}")
    return np.array(scores, dtype=float), entry.get("prompts")


def lines(name: str, verdict: dict | None, gate: "GateConfig") -> list[str]:
    """What a verdict says to the user; empty without a gate."""
    if verdict is None:
        return []
    told = [
        f"{domain} {mean:+.3f} [{low:+.3f}, {high:+.3f}], allowed -{gate.max_drop[domain]:g}"
        for domain, (mean, low, high) in verdict["differences"].items()
    ]
    return [f"gate of {name}: {verdict['action']}; {'; '.join(told)}"]
