"""The teacher registry: which checkpoint teaches a domain, from the stage x domain scores of the run.

A candidate is every finished stage before the student's that is scored in the domain: side branches, and stages that their gates
rolled back, too. Scores are compared prompt by prompt with those of the student's start. Reads the manifest and the stages'
`validation.json`, and decides nothing else; whether the chosen weights may teach is `provenance`'s to say.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from nemo_cascade.cascade import gate
from nemo_cascade.cascade.checks import AUTO
from nemo_cascade.cascade.manifest import DONE, PENDING, Manifest
from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.stages import paired

if TYPE_CHECKING:
    from nemo_cascade.cascade.config import StageConfig

# The chance of noise from which on a better score is told to be none.
LEVEL = 0.05


@dataclass
class Margin:
    """How much better than the student's start a stage is in a domain: mean and 95 % interval of the prompts' differences, the
    number of prompts, and how likely noise is to make such a gain."""

    mean: float
    low: float
    high: float
    prompts: int
    chance: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def candidates(manifest: Manifest, student: str, domain: str) -> list[str]:
    """Finished stages before `student` that are scored in the domain, in the order they ran."""
    names = list(manifest.stages)
    earlier = names[: names.index(student)] if student in names else names
    return [name for name in earlier if manifest.stages[name].status == DONE and domain in manifest.stages[name].scores]


def best(manifest: Manifest, names: list[str], domain: str, start: str | None) -> str | None:
    """The stage with the highest mean score, of equal ones the student's start, else the earliest; None of no names."""

    def rank(name: str) -> tuple[float, bool]:
        return float(gate.scored(manifest, name, domain).mean()), name == start

    return max(names, key=rank, default=None)


def margin(manifest: Manifest, start: str | None, name: str, domain: str) -> Margin | None:
    """How much better `name` is than `start`; None where one of them is not scored in the domain. Raises GateError for scores
    that cannot be compared."""
    known = (manifest.stages.get(stage) for stage in (start, name))
    if not all(record is not None and domain in record.scores for record in known):
        return None
    difference = -np.subtract(*gate.paired_scores(manifest, start, name, domain))
    return Margin(*paired.interval(difference), len(difference), paired.chance_of_gain(difference))


def resolve(manifest: Manifest, stage: "StageConfig") -> dict[str, str]:
    """domain -> the stage, or the folder, that teaches it. A stage that has begun keeps what it began with.

    An anchor holds the student where it starts, and after a rollback that is not the stage the config names. Raises RunRefused
    for a domain of which nothing is known.
    """
    record, found = manifest.stages[stage.name], {}
    for domain, teacher in stage.teachers.items():
        if teacher.path is not None:
            found[domain] = teacher.path
        elif teacher.stage != AUTO:
            found[domain] = record.parent if teacher.anchor and teacher.stage == stage.parent else teacher.stage
        elif record.status != PENDING and domain in record.teachers:
            found[domain] = record.teachers[domain]
        else:
            chosen = best(manifest, candidates(manifest, stage.name, domain), domain, record.parent)
            if chosen is None:
                raise RunRefused(
                    f"stage {stage.name}: teachers.{domain} is {AUTO}, but no stage that has finished is scored in {domain}; "
                    "name a stage, or run those before it"
                )
            found[domain] = chosen
    return found


# -------------------------------------------------------------------------------- in words


def lines(facts: dict[str, dict]) -> list[str]:
    """What a stage that begins says of its teachers: one line each, the anchors together in another, and warnings."""
    told = []
    for domain, entry in facts.items():
        if not entry["anchor"]:
            how = f" (the best of {entry['candidates']})" if entry["auto"] else ""
            told.append(f"teacher of {domain}: {entry['teacher']}{how}, {_gain(entry)}, weights {entry['weights_hash'][:12]}")
    anchors = [domain for domain, entry in facts.items() if entry["anchor"]]
    if anchors:
        start = facts[anchors[0]]["start"]
        told.append(f"anchors, that hold the student where it starts ({start}): {', '.join(anchors)}")
    return [*told, *(f"warning: {entry['warning']}" for entry in facts.values() if entry["warning"])]


def _gain(entry: dict) -> str:
    known = entry["margin"]
    if known is None:
        return f"not scored beside {entry['start']}"
    return f"{Margin(**known)} over {entry['start']} on {known['prompts']} prompts"


def registry(manifest: Manifest) -> list[Table]:
    """The stage x domain scores with the best of each domain marked, what it is ahead of the main line's end by; and the teachers
    that stages of this run had."""
    scored = list(dict.fromkeys(domain for record in manifest.stages.values() for domain in record.scores))
    end = main_line_end(manifest)
    leaders = {domain: best(manifest, candidates(manifest, "", domain), domain, end) for domain in scored}
    table = Table(title=f"{manifest.run_dir}: the best checkpoint of each domain (*)", title_justify="left", caption_justify="left")
    ties = f"that of {end}, where a next stage would start, if it is among them, else " if end is not None else ""
    table.caption = f"* the highest mean; of equal ones {ties}the earliest"
    table.add_column("stage", no_wrap=True)
    for domain in scored:
        table.add_column(domain, justify="right", no_wrap=True)
    for name, record in manifest.stages.items():
        label = f"{name}{' (side branch)' if record.teacher_only else ''}{' (rolled back)' if record.rolled_back else ''}"
        table.add_row(label, *(_cell(record, domain, leaders[domain] == name) for domain in scored))
    if end is not None:
        table.add_section()
        margins = (margin(manifest, end, leaders[domain], domain) for domain in scored)
        table.add_row(f"best less {end}", *("-" if known is None else str(known) for known in margins))
    taught = Table(title="teachers", title_justify="left")
    for column in ("student", "domain", "teacher", "over the student's start", "weights", "parents"):
        taught.add_column(column, no_wrap=True)
    for name, record in manifest.stages.items():
        for domain, entry in record.teacher_facts.items():
            known = "anchor" if entry["anchor"] else str(Margin(**entry["margin"])) if entry["margin"] else "not scored"
            parents = " < ".join(parent for parent, _ in entry["chain"][1:])
            taught.add_row(name, domain, entry["teacher"], known, entry["weights_hash"][:12], parents)
    return [table, taught] if taught.row_count else [table]


def main_line_end(manifest: Manifest) -> str | None:
    """The finished stage of the main line from which a next stage would start; None before there is one."""
    done = [name for name, record in manifest.stages.items() if record.status == DONE and not record.teacher_only]
    return manifest.standing(done[-1]) if done else None


def _cell(record, domain: str, leads: bool) -> str:
    if domain not in record.scores:
        return "-"
    return f"{'*' if leads else ''}{record.scores[domain]['mean']:.3f}"
