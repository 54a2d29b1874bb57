"""examples/cascade.py behaves alike with NeMo's hydra_runner and without; with the real nemo-toolkit (make test-doors)."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from nemo_cascade.cascade.compose import compose_config, words_for_hydra
from nemo_cascade.interop import hydra_runner

ROOT = Path(__file__).parents[2]
REASON = "nemo-toolkit is not installed here; make test-doors has it in an environment of its own"
HERE = find_spec("nemo") is not None
NEMO = pytest.mark.skipif(not HERE, reason=REASON)
# Of a program of Hydra's own, as NeMo's runner sets them.
QUIET = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout"]
# A decorator as NeMo's, for Hydra itself: what is said of the command line and of errors must hold for both.
STAND_IN = """
import sys

from hydra import main


def hydra_runner():
    def decorate(task):
        sys.argv += ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout"]
        print("the stand-in runs", flush=True)
        return main(version_base=None)(task)

    return decorate
"""


def example(*words: str, path: Path | None = None, code: str | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(p) for p in (ROOT, path) if p)}
    program = [str(ROOT / "examples" / "cascade.py")] if code is None else ["-c", code]
    return subprocess.run([sys.executable, *program, *words], cwd=path or ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture
def nemo(tmp_path):
    """A folder with a module of NeMo's name."""
    (tmp_path / "nemo" / "core" / "config").mkdir(parents=True)
    for folder in ("nemo", "nemo/core"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "nemo" / "core" / "config" / "__init__.py").write_text(STAND_IN)
    return tmp_path


def test_the_words_for_hydra_compose_the_same(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [smoke, _self_]\ncascade: {run_dir: runs/mine}\n")
    code = "import sys, hydra\nfrom omegaconf import OmegaConf\nhydra.main(version_base=None)(lambda c: print(OmegaConf.to_yaml(c)))()"
    overrides = ["cascade.seed=7", "cascade.stages.mopd.grpo.max_num_steps=30", "~cascade.judge", "exp_manager.explicit_log_dir='a b'"]
    done = example(*words_for_hydra("mine", overrides, tmp_path), *QUIET, code=code)
    assert OmegaConf.create(done.stdout) == compose_config("mine", overrides, tmp_path), done.stderr


@pytest.mark.parametrize("runner", ["NeMo's"] if HERE else ["none", "stand-in"])
def test_a_wrong_command_line_or_config_is_told_in_one_line(runner, request):
    path = request.getfixturevalue("nemo") if runner == "stand-in" else None
    wrong = {"--config-name=tinyy": "tinyy.yaml", "cascade.sed=2": "cascade.sed: unknown key", "--redoo=sft": "No such option: --redoo"}
    for word, told in wrong.items():
        done = example(word, path=path)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert [told in line for line in done.stderr.splitlines() if line.startswith(("nemo-cascade: ", "Error: "))] == [True]


def run_to_the_end(tmp_path: Path, *words: str, path: Path | None = None) -> subprocess.CompletedProcess:
    few = [f"cascade.demo_data.{kind}_rows=16" for kind in ("train", "validation", "sft")]
    none = ["~cascade.demo_data.rows_of", "~cascade.judge", "~data.validation.preference"]
    plain = [f"cascade.run_dir={tmp_path}/run", "cascade.order=[sft]", "cascade.validation.num_prompts=0"]
    return example("--config-name=smoke", *plain, *few, *none, *words, path=path)


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["NeMo's"] if HERE else ["stand-in"])
def test_a_stage_is_trained_as_without_and_an_option_of_ours_still_counts(runner, request, tmp_path):
    path = request.getfixturevalue("nemo") if runner == "stand-in" else None
    done = run_to_the_end(tmp_path, "--only", "sft", path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (runner == "stand-in") == ("the stand-in runs" in done.stdout)
    assert len((tmp_path / "run" / "01-sft" / "metrics.jsonl").read_text().splitlines()) == 2
    assert not list(tmp_path.rglob(".hydra")) and not (ROOT / "outputs").exists()
    refused = run_to_the_end(tmp_path, "--only", "stf", path=path)
    assert refused.returncode == 2 and "stf" in refused.stderr


@NEMO
def test_nemos_resolvers_count(tmp_path):
    code = """
import sys
from nemo_cascade.cascade.compose import words_for_hydra
from nemo_cascade.interop import hydra_runner
before = list(sys.argv)
def task(config):
    assert sys.argv == before
    print("grpo", config.grpo.max_num_steps)
    sys.exit(75)
hydra_runner.through(hydra_runner.nemos(), words_for_hydra("smoke", ["grpo.max_num_steps=${multiply:6,7}"]), task)
"""
    done = example(code=code)
    assert "grpo 42" in done.stdout and done.returncode == 75, done.stderr


def test_an_error_keeps_its_traceback_and_the_program_its_words(monkeypatch):
    # Put back afterwards.
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    before = list(sys.argv)

    def fail(config):
        assert sys.argv == before and config.cascade.seed == 3
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        hydra_runner.through(lambda: hydra.main(version_base=None), [*words_for_hydra("smoke", ["cascade.seed=3"]), *QUIET], fail)
    assert sys.argv == before


def test_a_toolkit_that_cannot_be_imported_is_told_and_done_without(tmp_path):
    (tmp_path / "nemo").mkdir()
    (tmp_path / "nemo" / "__init__.py").write_text("raise ImportError('lightning is not what it was')")
    done = example("cascade.sed=2", path=tmp_path)
    assert "nemo-toolkit cannot be imported (ImportError: lightning is not what it was)" in done.stderr
    assert done.returncode == 2 and "cascade.sed: unknown key" in done.stderr
