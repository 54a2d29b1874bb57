"""What docs/extend shows, taken from the pages as it stands: installed where it is a package, and trained with."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

# A file's name in code, the rest of its paragraph, and the block that is its text.
SHOWN = re.compile(r"`([\w/]+\.\w+)`[^\n]*:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# The last of four replies has no verdict.
ASKED = """
import torch
from nemo_cascade.stages import estimators
rewards, valid = torch.tensor([[1.0, 0, 0, 9]]), torch.tensor([[True, True, True, False]])
print(estimators.get("gentle")(rewards, valid, None).tolist())
"""


def write(page: str, folder: Path) -> dict[str, str]:
    """The files that a page shows, written into the folder; returns their texts by name."""
    files = dict(SHOWN.findall((ROOT / "docs" / "extend" / page).read_text()))
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return files


def run(*words: str, cwd: Path, packages: Path | None = None) -> str:
    """A Python program's output; packages: where others are installed."""
    path = os.pathsep.join([str(ROOT), *([str(packages)] if packages else [])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed(folder: Path) -> Path:
    """The folder's package, built and installed by pip into one of its own."""
    target = folder / "installed"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target), ".", cwd=folder)
    return target


def stages_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "cascade_manifest.json").read_text())["stages"]


def code_lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


def test_an_environment_of_forty_lines_is_found_and_trained_with(tmp_path):
    files = write("environment.md", tmp_path)
    assert sum(code_lines(files[name]) for name in ("pyproject.toml", "my_rewards/__init__.py")) <= 40
    packages = installed(tmp_path)
    assert "ok: 1 stage" in run("-m", "nemo_cascade", "check", "--config", "vowels.yaml", cwd=tmp_path, packages=packages)
    run("-m", "nemo_cascade", "run", "--config", "vowels.yaml", cwd=tmp_path, packages=packages)
    stage = stages_of(tmp_path / "runs/vowels")["vowels_rl"]
    assert stage["status"] == "done" and 0 <= stage["scores"]["vowels"]["mean"] <= 1
    kept = [json.loads(line) for line in (tmp_path / "runs/vowels/01-vowels_rl/rollouts/step_1.jsonl").read_text().splitlines()[:-1]]
    assert all("letters" in rollout["info"] for group in kept for rollout in group["rollouts"]), "the verdict is the package's"


def test_its_rows_and_examples_are_looked_at_before_the_first_step(tmp_path):
    write("environment.md", tmp_path)
    rows = (tmp_path / "rows.jsonl").read_text().replace('"at_least": 2', '"at_least": "two"')
    (tmp_path / "rows.jsonl").write_text(rows)
    with pytest.raises(AssertionError, match="at_least: a whole number of letters is needed"):
        run("-m", "nemo_cascade", "run", "--config", "vowels.yaml", cwd=tmp_path, packages=installed(tmp_path))


def test_an_estimator_is_found_by_its_name_and_trained_with(tmp_path):
    write("estimator.md", tmp_path)
    packages = installed(tmp_path)
    run("-m", "nemo_cascade", "run", "--config", "gentle.yaml", cwd=tmp_path, packages=packages)
    assert stages_of(tmp_path / "runs/gentle")["math_rl"]["status"] == "done"
    (said,) = json.loads(run("-c", ASKED, cwd=tmp_path, packages=packages))
    assert said == pytest.approx([2 / 3, -1 / 6, -1 / 6, 0])


def test_an_estimator_that_nobody_brings_is_refused_with_the_known_ones(tmp_path):
    write("estimator.md", tmp_path)
    with pytest.raises(AssertionError, match="gentle.*known: opd, grpo"):
        run("-m", "nemo_cascade", "check", "--config", "gentle.yaml", cwd=tmp_path)


def test_a_loop_of_ones_own_runs_in_a_cascade_with_others(tmp_path):
    write("stage.md", tmp_path)
    run("imitate.py", cwd=tmp_path)
    stages = stages_of(tmp_path / "runs/imitate")
    assert {name: stage["status"] for name, stage in stages.items()} == {"imitate": "done", "math_rl": "done"}
    assert stages["math_rl"]["parent"] == "imitate"
    logged = {name: (tmp_path / "runs/imitate" / stage["directory"] / "metrics.jsonl").read_text() for name, stage in stages.items()}
    assert "train/token_mult_prob_error" not in logged["imitate"], "its loss is SFT's"
    assert "train/token_mult_prob_error" in logged["math_rl"]
