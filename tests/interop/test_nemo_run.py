"""nemo-run starts a stage, and its job for Slurm is launch/slurm.sh's in what matters; with the real nemo-run (make test-doors)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_cascade.interop import nemo_run as recipes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The real package, whose experiments are written to a place of their own."""
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "experiments"))
    # A tunnel to this machine hands stdin on.
    monkeypatch.setattr(sys, "stdin", open(os.devnull))
    # nemo-run looks for torchrun there.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return pytest.importorskip("nemo_run", reason="nemo-run is not installed here; make test-doors has it in an environment of its own")


def test_the_started_processes_do_not_need_nemo_run():
    code = "import sys; import nemo_cascade.interop.nemo_run; sys.exit('nemo_run' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


def directives(script: str) -> dict[str, str]:
    """Options for sbatch by name."""
    return {name: value for name, _, value in re.findall(r"^#SBATCH --([\w-]+)(=(\S+))?", script, re.MULTILINE)}


def options(line: str) -> dict[str, str]:
    """--name=value of a command, the last of equal ones."""
    return dict(re.findall(r"--([\w-]+)[= ]([^\s-]\S*)", line))


def test_the_job_is_that_of_launch_slurm_in_what_matters(run, tmp_path):
    executor = recipes.slurm_executor("mine", str(tmp_path / "jobs"), nodes=4, image="/img.sqsh", mounts=["/lustre:/lustre"])
    with run.Experiment("cascade") as experiment:
        experiment.add(recipes.script("full", ["cascade.run_dir=/lustre/run"], only="mopd"), executor=executor, name="cascade")
        experiment.dryrun(log=False, delete_exp_dir=False)
    (theirs,) = (tmp_path / "experiments").rglob("*_sbatch.sh")
    theirs, ours = theirs.read_text(), (ROOT / "launch" / "slurm.sh").read_text()
    asked, wanted = directives(theirs), directives(ours)
    same = wanted.keys() - {"job-name", "output", "signal"}
    assert len(same) >= 7 and {name: asked.get(name) for name in same} == {name: wanted[name] for name in same}
    assert asked["nodes"] == "4" and asked["account"] == "mine"
    # So many seconds before the limit, whoever is told.
    assert asked["signal"].split("@")[1] == wanted["signal"].split("@")[1] == "900"
    exported = dict(re.findall(r"^export (\w+)=\$\{\1:-(.+)\}$", ours, re.MULTILINE))
    assert len(exported) >= 4 and exported == recipes.ENVIRONMENT
    assert all(f"export {name}={value}" in theirs for name, value in exported.items())
    (started,) = re.findall(r"^srun .*torchrun.*$", theirs, re.MULTILINE)
    (step,) = re.findall(r'^srun (.*?) "\$\{container', ours, re.MULTILINE)
    assert options(started).items() >= options(step).items() and options(started)["wait"] == "0"
    assert "--no-container-mount-home" in started and "--container-image /img.sqsh" in started and "/lustre:/lustre" in started
    assert options(started)["nnodes"] == "4" and options(started)["nproc-per-node"] == "8"
    assert started.endswith("-m nemo_cascade run --config-name=full --only mopd cascade.run_dir=/lustre/run")


def test_a_config_has_a_task_for_each_stage(run):
    tasks = recipes.stages("smoke", ["cascade.seed=3"])
    assert list(tasks)[:3] == ["genrm", "sft", "if_rl"] and tasks["mopd"].only == "mopd"
    assert all(task.overrides == ["cascade.seed=3"] and task.config_name == "smoke" for task in tasks.values())
    assert recipes.cascade("full").only is None


DRIVER = """
import sys

import nemo_run as run

from nemo_cascade.interop import nemo_run as recipes

# nemo-run imports this file again in the processes that it starts.
if __name__ == "__main__":
    executor = run.LocalExecutor(ntasks_per_node=2, launcher="torchrun", env_vars={"OMP_NUM_THREADS": "1"})
    run.run(recipes.stage("sft", "smoke", sys.argv[1:]), executor=executor, name="sft")
"""


@pytest.mark.slow
def test_a_local_executor_with_torchrun_trains_a_stage(run, tmp_path):
    few = [f"cascade.demo_data.{kind}_rows=16" for kind in ("train", "validation", "sft")]
    overrides = [f"cascade.run_dir={tmp_path}/run", "cascade.order=[sft]", "cascade.validation.num_prompts=0", *few]
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, str(tmp_path / "driver.py"), *overrides, "~cascade.demo_data.rows_of", "~cascade.judge", "~data.validation.preference"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    assert (tmp_path / "run" / "cascade_manifest.json").is_file(), done.stdout + done.stderr
    record = json.loads((tmp_path / "run" / "cascade_manifest.json").read_text())["stages"]["sft"]
    assert record["status"] == "done" and record["checkpoint"].endswith("/step_2"), done.stdout + done.stderr
    assert len((tmp_path / "run" / record["directory"] / "metrics.jsonl").read_text().splitlines()) == 2
