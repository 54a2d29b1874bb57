"""Gates: may the cascade go on from a stage, seen from its validation scores and its parent's on the same prompts?

A verdict rests on paired differences of prompts and on how likely noise is to make them, never on a bare difference of means.
It is a function of the stored scores and the config alone, so a gate can be changed after the fact. What each rule means is
`config.GateConfig`'s to say. Left out: gates on anything but scores (length, entropy), and a rule on several domains' mean.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nemo_cascade.cascade.manifest import Manifest
from nemo_cascade.data.hashes import file_hash
from nemo_cascade.stages import paired

if TYPE_CHECKING:
    from nemo_cascade.cascade.config import CascadeConfig, GateConfig

# In a stage's folder, the score of every validation prompt.
SCORES = "validation.json"
ADVANCE, WARN, STOP, ROLLBACK = "advance", "warn", "stop", "rollback"
# The chance that a stage fails by noise in any of the domains that its gate protects. The test is exact: at 0.05 every second count over
# a thousand stages would be above 5 %.
HARM_LEVEL = 0.04
# The chance, for each domain that must gain, that noise passes for a gain.
LEVEL = 0.05
# What a rule does not see that has too few replies.
UNSEEN = {
    "max_drop": "a loss of less than {} is mostly not seen",
    "min_gain": "a gain of less than {} mostly counts as noise",
    "floor": "a score less than {} below its floor is mostly not seen",
}
# A loss that a gate should see; where it needs a larger one, and more than twice what may be lost, it says so.
WORTH_SEEING = 0.05


class GateError(ValueError):
    """A score that a gate needs is missing, not finite or not paired; the message names stage and domain."""


def judge(manifest: Manifest, name: str, gate: "GateConfig") -> dict | None:
    """The verdict on a scored stage as JSON values, None without a rule. Raises GateError.

    action: advance, or `gate.on_failure` when a rule failed. failed: [rule, domain], in the order of the rules.
    differences: domain -> [mean, low, high] of score minus the parent's, for domains with `max_drop` or `min_gain`. scores: the
    same of the score itself, for those with a `floor`. chances: rule -> domain -> how likely noise does this (losing, gaining,
    or being below the floor). detectable: domain -> the loss that the `max_drop` rule sees in 4 of 5 stages with it, with these
    prompts.
    """
    if not gate.domains:
        return None
    parent = manifest.stages[name].parent
    differences = {
        domain: -np.subtract(*paired_scores(manifest, parent, name, domain)) for domain in gate.max_drop | gate.min_gain
    }
    scores = {domain: scored(manifest, name, domain) for domain in gate.floor}
    failed, chances = decide(differences, scores, gate)
    level = HARM_LEVEL / max(1, len(gate.max_drop) + len(gate.floor))
    return {
        "action": gate.on_failure if failed else ADVANCE,
        "failed": failed,
        "differences": {domain: paired.interval(values) for domain, values in differences.items()},
        "scores": {domain: paired.interval(values) for domain, values in scores.items()},
        "chances": chances,
        "detectable": {d: paired.detectable_drop(differences[d], level, drop) for d, drop in gate.max_drop.items()},
    }


def decide(
    differences: dict[str, np.ndarray], scores: dict[str, np.ndarray], gate: "GateConfig"
) -> tuple[list[list[str]], dict[str, dict[str, float]]]:
    """(failed, chances) of `judge`, from differences to the parent and scores by domain, each [prompts]."""
    chances = {
        "max_drop": {domain: paired.chance_of_loss(differences[domain]) for domain in gate.max_drop},
        "min_gain": {domain: paired.chance_of_gain(differences[domain]) for domain in gate.min_gain},
        "floor": {domain: paired.chance_of_reaching(scores[domain], gate.floor[domain]) for domain in gate.floor},
    }
    # One family: a stage that harms nothing must come through all of these together.
    harmed = paired.significant({(rule, d): p for rule in ("max_drop", "floor") for d, p in chances[rule].items()}, HARM_LEVEL)
    means = {domain: float(values.mean()) for domain, values in differences.items()}
    failed = [["max_drop", d] for d, drop in gate.max_drop.items() if means[d] < -drop and ("max_drop", d) in harmed]
    failed += [["min_gain", d] for d, g in gate.min_gain.items() if means[d] < g or chances["min_gain"][d] > LEVEL]
    failed += [["floor", d] for d, floor in gate.floor.items() if scores[d].mean() < floor and ("floor", d) in harmed]
    return failed, chances


def blind(gate: "GateConfig", rule: str, prompts: int, replies: int) -> float | None:
    """The change that a rule sees in 4 of 5 stages, from numbers alone; None where it is small enough, or there is no such rule.

    `max_drop`: a loss. `min_gain`: a gain that is one. `floor`: how far below. Of scores of 0 or 1, half of them right, whose correlation
    before and after is 0.5: by the law of docs/gates.md.
    """
    limits = getattr(gate, rule)
    if not limits or prompts * replies == 0:
        return None
    level = LEVEL if rule == "min_gain" else HARM_LEVEL / (len(gate.max_drop) + len(gate.floor))
    least = 0.0 if rule == "floor" else min(limits.values())
    seen = paired.seen_drop(math.sqrt(0.25 / (prompts * replies)), level, least)
    return seen if seen > max(2 * least, WORTH_SEEING) else None


def blind_lines(cascade: "CascadeConfig") -> list[str]:
    """What to tell, before anything runs, of gates that have too few replies to see what they are there for; stages alike in one line."""
    alike: dict[tuple[str, str, int], list[str]] = {}
    replies = cascade.validation.num_samples
    for name, stage in cascade.stages.items():
        for rule, unseen in UNSEEN.items():
            prompts = min((scored_prompts(cascade, name, domain) for domain in getattr(stage.gate, rule)), default=0)
            change = blind(stage.gate, rule, prompts, replies)
            if change is not None:
                alike.setdefault((unseen, f"{change:.2f}", prompts), []).append(name)
    return [
        f"gates of {', '.join(names)}: {unseen.format(change)} with {prompts} prompts and {replies} "
        f"{'reply' if replies == 1 else 'replies'} to each; raise cascade.validation.num_samples, or num_prompts where there are more "
        "(docs/gates.md)"
        for (unseen, change, prompts), names in alike.items()
    ]


def scored_prompts(cascade: "CascadeConfig", stage: str, domain: str) -> int:
    """On how many prompts of a domain a stage will be scored: those that are asked for, if its file has as many rows."""
    asked, source = cascade.validation.num_prompts, cascade.scored(stage).get(domain)
    path = Path(source.data_path) if source is not None else Path()
    if not path.is_file():
        # Yet to be written, or on another machine.
        return asked
    with open(path, encoding="utf-8", errors="replace") as file:
        return min(asked, sum(bool(line.strip()) for line in file))


def paired_scores(manifest: Manifest, before: str, after: str, domain: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores by prompt [prompts] of two stages in a domain, of those prompts that have one in both. Raises GateError."""
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
    return some(paired.both_scored(first, second), f"{before} and {after}", domain)


def scored(manifest: Manifest, stage: str, domain: str) -> np.ndarray:
    """A stage's scores in a domain [prompts], of the prompts that have one. Raises GateError."""
    values, _ = per_prompt(manifest, stage, domain)
    return some(paired.both_scored(values, values), stage, domain)[0]


def some(pair: tuple[np.ndarray, np.ndarray], stages: str, domain: str) -> tuple[np.ndarray, np.ndarray]:
    """The same. Raises GateError where nothing is in it."""
    if not len(pair[0]):
        raise GateError(f"{domain}: no validation prompt of {stages} has a verdict on any reply; repeat {stages} with --from-stage")
    return pair


def per_prompt(manifest: Manifest, stage: str, domain: str) -> tuple[list[float | None], str | None]:
    """A stage's score of every validation prompt of a domain and the hash of these prompts, from its `validation.json`.

    None for a prompt of which no reply has a verdict (`stages.validation`). Raises GateError, also where the file is no more what the
    stage wrote.
    """
    path, written = manifest.directory(stage) / SCORES, manifest.stages[stage].scores_hash
    if written is not None and path.exists() and file_hash(path) != written:
        raise GateError(f"{path}: not what {stage} wrote; put it back, or repeat {stage} with --from-stage {stage}")
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))[domain]
        scores = entry["per_prompt"]
    except (OSError, ValueError, KeyError) as error:
        raise GateError(
            f"{path}: no scores of {domain} ({type(error).__name__}: {error}); take {domain} out of the gates of {stage} and "
            f"of the stages that started from it, or repeat {stage} with --from-stage {stage}"
        ) from error
    if not scores or not all(value is None or isinstance(value, (int, float)) and math.isfinite(value) for value in scores):
        raise GateError(f"{path}: a score of {domain} is not a finite number; repeat {stage} with --from-stage {stage}")
    return scores, entry.get("prompts")


def lines(name: str, verdict: dict | None, gate: "GateConfig") -> list[str]:
    """What a verdict says to the user: its action with every rule's figures, then what its prompts are too few for; empty
    without a gate."""
    if verdict is None:
        return []
    failed, told = {tuple(entry) for entry in verdict["failed"]}, []
    for rule, meant, figures in (
        ("max_drop", "may lose", "differences"),
        ("min_gain", "must gain", "differences"),
        ("floor", "must reach", "scores"),
    ):
        for domain, limit in getattr(gate, rule).items():
            mean, low, high = (f"{value:{'.3f' if rule == 'floor' else '+.3f'}}" for value in verdict[figures][domain])
            chance = verdict["chances"][rule][domain]
            mark = "FAILED " if (rule, domain) in failed else ""
            told.append(f"{mark}{domain} {mean} [{low}, {high}], {meant} {limit:g}, by chance {chance:.2g}")
    blind = [f"{d} {drop:.3f}" for d, drop in verdict["detectable"].items() if drop > max(2 * gate.max_drop[d], WORTH_SEEING)]
    few = f"gate of {name}: with these prompts only such losses are seen in 4 of 5 stages: {', '.join(blind)}"
    return [f"gate of {name}: {verdict['action']}; {'; '.join(told)}", *([few] if blind else [])]

