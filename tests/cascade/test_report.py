"""The table and the curves say what the manifest and the metrics hold."""

import io
import math
import random

import pytest
from PIL import Image
from rich.console import Console

from nemo_cascade.cascade import pictures, report
from nemo_cascade.cascade.manifest import DONE, RUNNING, Manifest
from nemo_cascade.stages.metrics import MetricsLog

STAGES = {
    "sft": (None, {"instruction_following": 0.41, "math": 0.52, "mcqa": 0.33}, []),
    "if_rl": ("sft", {"instruction_following": 0.66, "math": 0.51, "mcqa": 0.34}, ["instruction_following"]),
    "math_rl": ("sft", {"instruction_following": 0.40, "math": 0.71, "mcqa": 0.33}, ["math"]),
    "multi_domain_rl": ("if_rl", {"instruction_following": 0.64, "math": 0.60, "mcqa": 0.58}, ["mcqa", "math"]),
}


def synthetic_run(run_dir) -> Manifest:
    """Four finished stages and one in the middle, with curves that rise from the parent's score to their own."""
    manifest, draw = Manifest(run_dir), random.Random(0)
    for name, (parent, scores, trained) in STAGES.items():
        record = manifest.add(name)
        record.status, record.parent, record.seconds, record.teacher_only = DONE, parent, 95.0, name == "math_rl"
        record.scores = {domain: {"mean": mean, "n": 300} for domain, mean in scores.items()}
        log = metrics(manifest, name)
        for step in range(1, 31):
            values = {}
            for domain in trained:
                before, after = STAGES[parent][1][domain], scores[domain]
                progress = 1 - math.exp(-step / 10)
                values[f"train/{domain}/reward"] = before + (after - before) * progress + draw.gauss(0, 0.04)
            if values:
                values["train/reward"] = sum(values.values()) / len(values)
            log.append({"train/loss": 1 / step, **values}, step)
    record = manifest.add("mopd")
    record.status, record.parent = RUNNING, "multi_domain_rl"
    for step in range(1, 4):
        values = {f"train/{domain}/reward": 0.6 for domain in STAGES["sft"][1]}
        metrics(manifest, "mopd").append({"train/reward": 0.6, **values}, step)
    manifest.save()
    return manifest


def metrics(manifest: Manifest, name: str) -> MetricsLog:
    manifest.directory(name).mkdir(parents=True, exist_ok=True)
    return MetricsLog(manifest.directory(name) / "metrics.jsonl")


def printed(manifest: Manifest) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(report.score_table(manifest))
    return console.file.getvalue()


def test_the_table_has_scores_and_changes_from_the_parent(tmp_path):
    text = printed(synthetic_run(tmp_path))
    line = next(line for line in text.splitlines() if "multi_domain_rl" in line)
    assert "0.640 (-0.020)" in line and "0.600 (+0.090)" in line and "0.580 (+0.240)" in line
    assert "0.710 (+0.190)" in next(line for line in text.splitlines() if "math_rl (side branch)" in line)
    assert "mcqa 300" in text and "running" in next(line for line in text.splitlines() if "mopd" in line)


def test_markdown_is_the_same_table(tmp_path):
    manifest = synthetic_run(tmp_path)
    lines = report.markdown(manifest).splitlines()
    assert lines[0] == "| stage | status | min | instruction_following | math | mcqa |"
    assert lines[1].count("---") == 6
    assert lines[3] == "| if_rl | done | 1.6 | 0.660 (+0.250) | 0.510 (-0.010) | 0.340 (+0.010) |"
    assert lines[6] == "| mopd | running, step 3 |  | - | - | - |"


def test_a_judges_row_has_its_agreement_and_no_other_row_has_one(tmp_path):
    manifest = Manifest(tmp_path)
    for name, scores in (("genrm", {"preference_pairs": 0.93}), ("sft", {"math": 0.52, "preference": 0.41})):
        record = manifest.add(name)
        record.status, record.seconds, record.teacher_only = DONE, 60.0, name == "genrm"
        record.scores = {domain: {"mean": mean, "n": 300} for domain, mean in scores.items()}
    lines = report.markdown(manifest).splitlines()
    assert lines[0] == "| stage | status | min | preference_pairs | math | preference |"
    assert lines[2] == "| genrm (side branch) | done | 1.0 | 0.930 | - | - |"
    assert lines[3] == "| sft | done | 1.0 | - | 0.520 | 0.410 |"
    manifest.save()
    assert (tmp_path / "report" / "scores.png") in report.write(tmp_path)


def test_a_run_without_scores_still_has_a_table(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.add("sft")
    assert "pending" in printed(manifest)
    manifest.save()
    assert [path.name for path in report.write(tmp_path)] == ["scores.md"]


def changes(plot, manifest, change) -> bool:
    """Whether a picture has many colours and is another one after `change`."""
    path = plot(manifest)
    with Image.open(path) as image:
        assert image.width > 800 and image.height > 400 and len(image.getcolors(maxcolors=1 << 20)) > 100
    first = path.read_bytes()
    change()
    return plot(manifest).read_bytes() != first


def test_reward_curves_are_drawn_for_the_stages_that_have_rewards(tmp_path):
    manifest = synthetic_run(tmp_path)
    assert [path.name for path in report.write(tmp_path)] == ["scores.md", "scores.png", "rewards.png"]
    log = metrics(manifest, "mopd")
    assert changes(pictures.plot_rewards, manifest, lambda: log.append({"train/reward": 0.0, "train/math/reward": 0.0}, 4))


def test_the_heat_map_shows_the_scores(tmp_path):
    manifest = synthetic_run(tmp_path)
    assert changes(pictures.plot_scores, manifest, lambda: manifest.stages["sft"].scores["math"].update(mean=0.9))


@pytest.mark.parametrize("metric", [pictures.LENGTH, pictures.TEACHER_GAP, pictures.KL_TO_START])
def test_lengths_and_divergences_are_drawn_where_there_are_any(tmp_path, metric):
    manifest = synthetic_run(tmp_path)
    assert pictures.plot_lengths_and_kl(manifest) is None
    log = metrics(manifest, "mopd")
    log.append({pictures.LENGTH: 20.0}, 4)
    assert changes(pictures.plot_lengths_and_kl, manifest, lambda: [log.append({metric: 3.0 + n}, 5 + n) for n in range(2)])
    assert "lengths_and_kl.png" in [path.name for path in report.write(tmp_path)]


@pytest.mark.parametrize("window, expected", [(1, [1, 2, 6]), (2, [1, 1.5, 4]), (9, [1, 1.5, 3])])
def test_the_running_mean_looks_back_only(window, expected):
    assert pictures.running_mean([1, 2, 6], window) == expected
