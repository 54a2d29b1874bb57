"""A stage's metrics as panels of curves: which belong together, what they are called, few enough points to draw.

A metric that no panel names gets one of its own, so whatever a loop writes is shown.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass

MOST_POINTS = 240


# What stands for a domain in a pattern. A domain has one colour in all panels of a stage, from 1 on; metrics that are no
# domain's have the others, from 0 down.
OF_A_DOMAIN, COLOURS = "([^/]+)", 10


@dataclass(frozen=True)
class Panel:
    """metrics: patterns of the names drawn in it, in this order. sign: what values are multiplied by."""

    title: str
    explains: str
    metrics: tuple[str, ...]
    sign: int = 1


PANELS = (
    Panel(
        "Reward",
        "mean over a step's rollouts",
        (r"train/(reward)", r"train/([^/]+)/reward", r"train/(filtered_reward)"),
    ),
    Panel("Loss", "what the optimizer saw", (r"train/(loss)",)),
    Panel(
        "Validation in the stage",
        "mean score on the prompts that the stage is judged by",
        (r"validation/(reward)", r"validation/([^/]+)/reward"),
    ),
    Panel("Reply length", "tokens, mean", (r"train/(mean_gen_tokens_per_sample)",)),
    Panel("Cut or not verifiable", "share of replies", (r"train/(truncation_rate)", r"train/(verifier_errors)")),
    Panel("Entropy", "of sampled tokens, nats", (r"train/(approx_entropy)",)),
    Panel(
        "Sampling / training mismatch",
        "1 where both engines agree",
        (r"train/(token_mult_prob_error)", r"train/(sampling_importance_ratio)"),
    ),
    Panel("Tokens out of bounds", "share outside the ratio's band", (r"train/(is_oob_ratio)",)),
    Panel(
        "Reverse KL to the teachers",
        "nats a token; falls as the student learns",
        (r"train/(teacher_student_logprob_gap_mean)",),
        sign=-1,
    ),
    Panel("Reverse KL by domain", "nats a token", (r"train/([^/]+)/reverse_kl",)),
    Panel("KL to the start of the stage", "nats a token", (r"train/(kl_penalty)",)),
    Panel(
        "Groups that teach",
        "share whose replies earned differently",
        (r"train/(informative_groups)", r"train/(groups_taught)"),
    ),
    Panel("Gradient norm", "before clipping", (r"train/(grad_norm)",)),
    Panel("Learning rate", "", (r"train/(lr)",)),
)
# Each has its colour wherever time is shown; what is not here comes after them, in the last one's.
PARTS = (
    *("generation", "reward_calculation", "teacher_logprob_inference", "policy_and_reference_logprobs"),
    *("policy_training", "checkpointing", "validation", "data_processing"),
    *("weight_sync", "idle"),
)
TOTAL, PART = "timing/train/total_step_time", re.compile(r"timing/train/(?!total_step_time$)(.+)")
# Counts by which nothing is judged; the table of what was gained for what has them.
UNDRAWN = {"train/tokens", "train/num_replies"}


def panels(log: list[dict]) -> list[dict]:
    """[{title, explains, stacked, series: [{name, points: [[step, value], ...]}]}] of a stage's metrics."""
    numbers = (name for entry in log for name, value in entry.items() if isinstance(value, (int, float)))
    names = [name for name in dict.fromkeys(numbers) if name not in ("step", "time")]
    left = [name for name in names if name not in UNDRAWN and not name.startswith("timing/")]
    drawn, domains = [], []
    for panel in PANELS:
        series = []
        for place, pattern in enumerate(panel.metrics):
            for name in [name for name in left if re.fullmatch(pattern, name)]:
                left.remove(name)
                shown = re.fullmatch(pattern, name)[1]
                if OF_A_DOMAIN in pattern and shown not in domains:
                    domains.append(shown)
                number = 1 + domains.index(shown) if OF_A_DOMAIN in pattern else -place
                series.append({"name": shown, "colour": number % COLOURS, "points": points(log, name, panel.sign)})
        if series:
            drawn.append(_panel(panel.title, panel.explains, series))
    for name in left:
        drawn.append(_panel(name.removeprefix("train/"), name, [{"name": name.split("/")[-1], "points": points(log, name)}]))
    parts = sorted((match[1] for match in map(PART.fullmatch, names) if match), key=colour)
    if parts:
        series = [
            {"name": part, "colour": colour(part), "points": points(log, f"timing/train/{part}", missing=0.0)} for part in parts
        ]
        explains = "seconds; checkpointing and logging are those after the step before"
        drawn.append(_panel("Time of a step by its parts", explains, series, stacked=True))
    return drawn


def points(log: list[dict], name: str, sign: int = 1, missing: float | None = None) -> list[list]:
    """[step, value] of a metric, means over equal stretches where there are more than MOST_POINTS steps. A stretch without a
    finite value is left out, or has `missing`."""
    length = max(1, math.ceil(len(log) / MOST_POINTS))
    found = []
    for first in range(0, len(log), length):
        stretch = log[first : first + length]
        values = [entry.get(name, missing) for entry in stretch]
        values = [value for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
        if values:
            found.append([stretch[-1]["step"], float(f"{sign * sum(values) / len(values):.6g}")])
    return found


def seconds_by_part(log: list[dict]) -> dict[str, float]:
    """Where all steps together spent their time, in the order of PARTS."""
    seconds: Counter[str] = Counter()
    for entry in log:
        for name, value in entry.items():
            match = PART.fullmatch(name)
            if match and isinstance(value, (int, float)):
                seconds[match[1]] += value
        seconds["validation"] += entry.get("timing/validation/total_validation_time") or 0
    return {part: seconds[part] for part in sorted(seconds, key=colour) if seconds[part] > 0}


def colour(part: str) -> int:
    """The number of a part's colour."""
    return PARTS.index(part) if part in PARTS else len(PARTS) - 1


def _panel(title: str, explains: str, series: list[dict], stacked: bool = False) -> dict:
    return {"title": title, "explains": explains, "series": series, "stacked": stacked}
