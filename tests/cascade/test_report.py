"""The table says what the manifest holds."""

import io

from rich.console import Console

from nemo_cascade.cascade import report
from nemo_cascade.cascade.manifest import DONE, RUNNING, Manifest
from nemo_cascade.stages.metrics import MetricsLog

STAGES = {
    "sft": (None, {"instruction_following": 0.41, "math": 0.52, "mcqa": 0.33}),
    "if_rl": ("sft", {"instruction_following": 0.66, "math": 0.51, "mcqa": 0.34}),
    "math_rl": ("sft", {"instruction_following": 0.40, "math": 0.71, "mcqa": 0.33}),
    "multi_domain_rl": ("if_rl", {"instruction_following": 0.64, "math": 0.60, "mcqa": 0.58}),
}


def synthetic_run(run_dir) -> Manifest:
    """Four finished stages and one in the middle."""
    manifest = Manifest(run_dir)
    for name, (parent, scores) in STAGES.items():
        record = manifest.add(name)
        record.status, record.parent, record.seconds, record.teacher_only = DONE, parent, 95.0, name == "math_rl"
        record.scores = {domain: {"mean": mean, "n": 300} for domain, mean in scores.items()}
    record = manifest.add("mopd")
    record.status, record.parent = RUNNING, "multi_domain_rl"
    for step in range(1, 4):
        manifest.directory("mopd").mkdir(parents=True, exist_ok=True)
        MetricsLog(manifest.directory("mopd") / "metrics.jsonl").append({"train/reward": 0.6}, step)
    manifest.save()
    return manifest


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


def test_a_run_without_scores_still_has_a_table(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.add("sft")
    assert "pending" in printed(manifest)
    manifest.save()
    assert [path.name for path in report.write(tmp_path)] == ["scores.md", "index.html"]
