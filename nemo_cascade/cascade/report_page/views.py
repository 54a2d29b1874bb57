"""What the page says about stages, as plain values: scores with their intervals, verdicts with reasons, teachers, what was gained
for what. Nothing here is decided anew; gates and scores are as the manifest has them."""

import datetime
from dataclasses import dataclass

from nemo_cascade.cascade import gate
from nemo_cascade.cascade.manifest import DONE, RUNNING, Manifest
from nemo_cascade.cascade.report_page.curves import TOTAL, seconds_by_part
from nemo_cascade.cascade.report_page.run_files import Run, StageFiles, setting
from nemo_cascade.cascade.report import domains
from nemo_cascade.cascade.strict import flatten
from nemo_cascade.stages import paired

RULES = {
    "max_drop": ("may lose at most", "differences"),
    "min_gain": ("must gain at least", "differences"),
    "floor": ("must reach", "scores"),
}
VERDICTS = {
    gate.ADVANCE: "passed",
    gate.WARN: "warned, went on",
    gate.STOP: "stopped the run",
    gate.ROLLBACK: "rolled back",
}

# What a verdict led to; {parent} is where the stage itself had started.
LED_TO = {
    gate.ADVANCE: "The cascade went on from it.",
    gate.WARN: "The cascade went on from it all the same.",
    gate.STOP: "The run ended here.",
    gate.ROLLBACK: "Later stages start from {parent} instead. The checkpoint stays and may teach.",
}

SHOWN_ELSEWHERE = ("directory", "status", "parent", "teacher_only", "teachers", "checkpoint", "scores", "seconds", "gate")


@dataclass
class Score:
    """A domain's score after a stage. change: [mean, low, high] against where the stage started, on the same prompts; low and
    high are None where scores by prompt are not there, all of it where the start has no score."""

    mean: float
    n: int
    change: list | None
    trained: bool

    @property
    def sure(self) -> bool:
        """Whether the change is more than its interval."""
        return self.change is not None and self.change[1] is not None and (self.change[1] > 0 or self.change[2] < 0)


def score_matrix(run: Run) -> dict[str, dict[str, Score]]:
    """stage -> domain -> Score, of stages with scores."""
    return {
        name: {domain: _score(run.manifest, stage, domain) for domain in domains(run.manifest) if domain in stage.record.scores}
        for name, stage in run.stages.items()
        if stage.record.scores
    }


def _score(manifest: Manifest, stage: StageFiles, domain: str) -> Score:
    entry, parent = stage.record.scores[domain], manifest.stages.get(stage.record.parent)
    change = None
    if parent is not None and domain in parent.scores:
        try:
            change = paired.paired_difference(*gate.paired_scores(manifest, stage.record.parent, stage.name, domain))
        except gate.GateError:
            change = [entry["mean"] - parent.scores[domain]["mean"], None, None]
    return Score(entry["mean"], entry["n"], change, domain in stage.trained)


def glance(run: Run) -> dict:
    """What a reader wants to know first: {done, all, running: [(stage, state)], verdicts: [(stage, action)] of gates that did not
    let a stage pass, passed: how many did, seconds}."""
    records = {name: stage.record for name, stage in run.stages.items()}
    gates = {name: record.gate["action"] for name, record in records.items() if record.gate is not None}
    return {
        "done": sum(record.status == DONE for record in records.values()),
        "all": len(records),
        "running": [(name, state(stage)[1]) for name, stage in run.stages.items() if stage.record.status == RUNNING],
        "verdicts": [(name, action) for name, action in gates.items() if action != gate.ADVANCE],
        "passed": sum(action == gate.ADVANCE for action in gates.values()),
        "seconds": sum(record.seconds or 0 for record in records.values()) or None,
    }


def prompts(manifest: Manifest) -> dict[str, str]:
    """domain -> how many prompts its scores have, "250 to 300" where stages differ."""
    counts = {d: {record.scores[d]["n"] for record in manifest.stages.values() if d in record.scores} for d in domains(manifest)}
    return {d: str(min(of)) if len(of) == 1 else f"{min(of)} to {max(of)}" for d, of in counts.items()}


def state(stage: StageFiles) -> tuple[str, str]:
    """(a word for the style, what to say) on how far a stage is."""
    record = stage.record
    if record.status == DONE:
        action = record.gate["action"] if record.gate is not None else gate.ADVANCE
        return (action, VERDICTS.get(action, action)) if action != gate.ADVANCE else ("done", "done")
    if record.status == RUNNING:
        done = stage.log[-1]["step"] if stage.log else 0
        return "running", f"step {done} of {stage.max_num_steps or '?'}"
    return "pending", "not begun"


def side_role(run: Run, name: str) -> str | None:
    """What a stage off the main line is for."""
    if not run.stages[name].record.teacher_only:
        return None
    judges = any(setting(stage.config, "cascade.judge", None) == name for stage in run.stages.values())
    return "judges" if judges else "only teaches"


def last_sign(stage: StageFiles) -> str | None:
    """When a stage that is not done last wrote a step."""
    if stage.record.status != RUNNING or not stage.log or not isinstance(stage.log[-1].get("time"), (int, float)):
        return None
    return datetime.datetime.fromtimestamp(stage.log[-1]["time"]).strftime("%Y-%m-%d %H:%M:%S")


@dataclass
class Verdict:
    """A gate's verdict.

    rows: a rule each, those that failed first: {failed, domain, rule, limit, least, beyond, signed, mean, low, high, chance,
    detectable, picture}; least: what the mean must not be below, beyond: whether it is, be it by noise. nearest: of rules that
    were kept, the row nearest to failing. led_to: what followed.
    """

    action: str
    rows: list[dict]
    nearest: dict | None
    led_to: str


def verdicts(run: Run) -> dict[str, Verdict]:
    """stage -> Verdict, of stages with a gate."""
    return {name: _verdict(stage) for name, stage in run.stages.items() if stage.record.gate is not None}


def _verdict(stage: StageFiles) -> Verdict:
    rows = verdict_rows(stage)
    kept = [row for row in rows if not row["failed"] and row["limit"] is not None and row["mean"] is not None]
    nearest = min(kept, key=lambda row: row["mean"] - row["least"], default=None)
    action = stage.record.gate["action"]
    return Verdict(action, rows, nearest, LED_TO.get(action, "").format(parent=stage.record.parent))


def verdict_rows(stage: StageFiles) -> list[dict]:
    """The rows of a Verdict."""
    verdict = stage.record.gate or {}
    failed = {tuple(entry) for entry in verdict.get("failed", [])}
    rows = []
    for rule, of_domain in verdict.get("chances", {}).items():
        meaning, figures = RULES.get(rule, (rule, "differences"))
        for domain, chance in of_domain.items():
            mean, low, high = verdict.get(figures, {}).get(domain, [None] * 3)
            limit = setting(stage.config, f"cascade.gate.{rule}.{domain}", None)
            least = -limit if rule == "max_drop" and limit is not None else limit
            rows.append(
                {
                    "failed": (rule, domain) in failed,
                    "domain": domain,
                    "rule": meaning,
                    "limit": limit,
                    "least": least,
                    "beyond": None not in (mean, least) and mean < least,
                    "signed": rule != "floor",
                    "mean": mean,
                    "low": low,
                    "high": high,
                    "chance": chance,
                    "detectable": verdict.get("detectable", {}).get(domain) if rule == "max_drop" else None,
                }
            )
    for signed in (True, False):
        _picture([row for row in rows if row["signed"] is signed and row["low"] is not None])
    return sorted(rows, key=lambda row: not row["failed"])


def _picture(rows: list[dict]) -> None:
    """Gives rows of one scale a `picture`: where mean, low, high, limit and zero lie on it, in percent of its width."""
    marks = [
        {key: row[key] for key in ("mean", "low", "high")}
        | ({"zero": 0.0} if row["signed"] else {})
        | ({"limit": row["least"]} if row["limit"] is not None else {})
        for row in rows
    ]
    values = [value for of_row in marks for value in of_row.values()]
    least, most = min(values, default=0.0), max(values, default=1.0)
    for row, of_row in zip(rows, marks):
        row["picture"] = {key: round(4 + 92 * (value - least) / ((most - least) or 1), 1) for key, value in of_row.items()}


def teacher_rows(run: Run) -> list[dict]:
    """A row a student and domain: {student, domain, teacher, anchor, taught, before, after, closed}, scores None where not known.

    closed: the share of the gap between start and teacher that the student made up, None where it was not behind.
    """
    rows = []
    for name, stage in run.stages.items():
        for domain, teacher in stage.record.teachers.items():
            taught, before, after = (_mean(run, stage_name, domain) for stage_name in (teacher, stage.record.parent, name))
            behind = None not in (taught, before, after) and taught > before
            rows.append(
                {
                    "student": name,
                    "domain": domain,
                    "teacher": teacher,
                    "anchor": setting(stage.config, f"cascade.teachers.{domain}.anchor", False) or teacher == stage.record.parent,
                    "taught": taught,
                    "before": before,
                    "after": after,
                    "closed": (after - before) / (taught - before) if behind else None,
                }
            )
    return rows


def _mean(run: Run, name: str | None, domain: str) -> float | None:
    stage = run.stages.get(name)
    return stage.record.scores[domain]["mean"] if stage is not None and domain in stage.record.scores else None


def spent(stage: StageFiles, scores: dict[str, Score]) -> dict:
    """What a stage cost and what it brought: steps, replies, tokens, seconds, seconds in steps by part, the mean gain in the
    domains that it trains (None where it is not known)."""
    replies = sum(entry.get("train/num_replies") or 0 for entry in stage.log)
    sampled = sum((e.get("train/num_replies") or 0) * (e.get("train/mean_gen_tokens_per_sample") or 0) for e in stage.log)
    gains = [score.change[0] for score in scores.values() if score.trained and score.change is not None]
    in_steps = sum(entry.get(TOTAL) or 0 for entry in stage.log)
    return {
        "steps": stage.log[-1]["step"] if stage.log else 0,
        "replies": int(replies) or None,
        "tokens": int(sampled or sum(entry.get("train/tokens") or 0 for entry in stage.log)) or None,
        "seconds": stage.record.seconds if stage.record.seconds is not None else (in_steps or None),
        "in_steps": in_steps,
        "parts": seconds_by_part(stage.log),
        "gain": sum(gains) / len(gains) if gains else None,
    }


def facts(stage: StageFiles) -> dict[str, str]:
    """What else the manifest has of a stage, as "dotted key" -> text: its hashes, and whatever checks have left there."""
    record = {key: value for key, value in vars(stage.record).items() if key not in SHOWN_ELSEWHERE}
    return {key: str(value) for key, value in flatten(record).items() if value not in (None, {}, [])}
