"""Asked to stop, by signals or by the clock: a stage saves and leaves with code 75, and the same command goes on bit-identically."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_cascade import heartbeat
from nemo_cascade.stages.interruption import FILE, Interrupted, Interruption, seconds_of
from tests.helpers import run_distributed

ROOT = Path(__file__).parents[2]
STEPS = 4


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Demonstrations of arithmetic."""
    from nemo_cascade.data.demo import DOMAINS

    path = tmp_path_factory.mktemp("rows") / "sft.jsonl"
    made = DOMAINS["math"].rows(24, "train", level="demo")
    path.write_text("".join(json.dumps(DOMAINS["math"].demonstration(row, n)) + "\n" for n, row in enumerate(made)))
    return path


@pytest.fixture(scope="module")
def unbroken(rows, tmp_path_factory):
    """The same stage in one go: its folder and what `trained` says of it on both ranks."""
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run_distributed(trained, 2, folder, rows)


def trained(folder, rows, signalled=None, step=0, limit=None):
    """An SFT stage, on its way to STEPS: (why it left, its checkpoints, the hash of the newest).

    Rank `signalled` gets SIGUSR1 in the midst of a step, so that only it knows.
    """
    import torch.distributed as dist

    from nemo_cascade.engine import checkpoint, parallel
    from nemo_cascade.engine.config import MegatronConfig, OptimizerConfig, PolicyConfig
    from nemo_cascade.stages import sft
    from nemo_cascade.stages.config import CheckpointingConfig, DataConfig, DatasetConfig, SFTConfig
    from nemo_cascade.stages.context import LoopConfig, StageRun

    class Stage(StageRun):
        def log(self, metrics, at):
            super().log(metrics, at)
            if self.rank == signalled and at == step:
                os.kill(os.getpid(), signal.SIGUSR1)

    megatron = MegatronConfig(optimizer=OptimizerConfig(lr=1e-3))
    parallel.init(megatron)
    config = LoopConfig(
        policy=PolicyConfig(model_name="micro", train_global_batch_size=2, megatron_cfg=megatron),
        sft=SFTConfig(max_num_steps=STEPS),
        data=DataConfig(train={"math": DatasetConfig(data_path=str(rows))}),
        checkpointing=CheckpointingConfig(checkpoint_must_save_by=limit),
    )
    folder.mkdir(exist_ok=True)
    with Interruption(folder, dist.get_rank()) as interruption:
        interruption.must_save_by(limit)
        stage = Stage(name="sft", config=config, dir=folder, seed=1, rank=dist.get_rank(), interruption=interruption)
        try:
            sft.run(stage)
            why = None
        except Interrupted as stopped:
            assert stopped.code == 75
            why = str(stopped)
    newest = checkpoint.latest(folder)
    return why, checkpoint.steps(folder), checkpoint.read_info(newest)["weights_hash"]


def test_a_signal_to_one_rank_stops_all_after_the_step_and_the_stage_goes_on_bit_identically(unbroken, rows, tmp_path):
    folder, whole = unbroken
    assert [(why, steps) for why, steps, _ in whole] == [(None, [STEPS])] * 2
    left = run_distributed(trained, 2, tmp_path, rows, 1, 2)
    told = "SIGUSR1: saved step 2 of stage sft; the same command goes on from there"
    assert [(why, steps) for why, steps, _ in left] == [(told, [2])] * 2
    assert run_distributed(trained, 2, tmp_path, rows) == whole
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (folder, tmp_path)]
    losses = [[(entry["step"], entry["train/loss"]) for entry in map(json.loads, run)] for run in lines]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS


def test_a_stage_leaves_in_time_for_its_checkpoint_and_makes_a_step_each_time(unbroken, rows, tmp_path):
    """The limit is past from the beginning, so every step is the last one for which there is time."""
    limit, reached = "00:00:00:01", []
    for _ in range(STEPS - 1):
        (why, steps, _), _ = run_distributed(late, 2, tmp_path, rows, limit)
        assert why.startswith(f"checkpointing.checkpoint_must_save_by={limit}: saved step ")
        reached += steps
    assert reached == [1, 2, 3]
    assert run_distributed(late, 2, tmp_path, rows, None) == unbroken[1]


def late(folder, rows, limit):
    """A job that Slurm started an hour ago; the alarm itself, which rings at once where there are no steps, is left out."""
    os.environ["SLURM_JOB_START_TIME"] = str(int(time.time()) - 3600)
    ring, Interruption._ring = Interruption._ring, lambda self: None
    try:
        return trained(folder, rows, limit=limit)
    finally:
        Interruption._ring = ring
        del os.environ["SLURM_JOB_START_TIME"]


WAITING = """
import os, signal, sys, time
from pathlib import Path
from nemo_cascade.stages import interruption as ours
with ours.Interruption(Path(sys.argv[1])) as interruption:
    {setup}
    {body}
print("came through")
"""
WAIT = "print('ready', flush=True); time.sleep(600)"
IN_STEPS = """
    with interruption.in_steps():
        print("ready", flush=True)
        while interruption.why is None:
            time.sleep(0.01)
        print("asked", flush=True)
        {then}
"""


BEFORE_STAGES = """
import sys, time
from nemo_cascade.cascade import runner
from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import load_config
def reading(*_):
    print("ready", flush=True)
    time.sleep(600)
runner.check_rows = reading
paths = [f"cascade.run_dir={sys.argv[1]}", f"cascade.demo_data.path={sys.argv[1]}/data"]
runner.run(load_config(compose_config("smoke", paths), 1))
"""


def left(tmp_path, body, *signals, setup=""):
    """(exit code, output, standard error) of a process that gets these signals, each after a line it writes."""
    return left_by(WAITING.format(setup=setup, body=body.strip()), tmp_path, *signals)


def left_by(program, tmp_path, *signals):
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    said = ""
    for number in signals:
        said += process.stdout.readline()
        process.send_signal(number)
    out, err = process.communicate(timeout=120)
    return process.returncode, said + out, err


def test_a_signal_between_stages_ends_at_once_with_code_75_and_a_note(tmp_path):
    code, out, err = left(tmp_path, WAIT, signal.SIGTERM)
    assert (code, out) == (75, "ready\n")
    assert err == "nemo-cascade: SIGTERM: stopped; the same command goes on from what is on disk\n"
    assert json.loads((tmp_path / FILE).read_text())["why"] == "SIGTERM"


def test_a_run_that_still_reads_its_rows_ends_so_too_and_its_last_place_is_forgotten(tmp_path):
    (tmp_path / "heartbeats").mkdir()
    (tmp_path / "heartbeats" / "rank_0.json").write_text('{"stage": "an earlier start\'s"}')
    code, out, err = left_by(BEFORE_STAGES, tmp_path, signal.SIGTERM)
    assert (code, out) == (75, "ready\n") and err.endswith("SIGTERM: stopped; the same command goes on from what is on disk\n")
    assert json.loads((tmp_path / FILE).read_text())["why"] == "SIGTERM"
    (beat,) = heartbeat.read(tmp_path)
    assert beat["stage"] == "" and beat["pid"] != os.getpid()


def test_a_second_signal_ends_at_once(tmp_path):
    stuck, long_ago = IN_STEPS.format(then="time.sleep(600)"), "ours.ECHO_SECONDS = 0.0"
    code, out, err = left(tmp_path, stuck, signal.SIGUSR1, signal.SIGTERM, setup=long_ago)
    assert (code, out) == (75, "ready\nasked\n")
    assert "SIGUSR1: stopping after this step" in err and "SIGTERM: stopped" in err


def test_the_same_request_by_two_ways_is_one(tmp_path):
    body = IN_STEPS.format(then="time.sleep(1); print('step over', flush=True)")
    code, out, err = left(tmp_path, body, signal.SIGTERM, signal.SIGTERM, setup="ours.ECHO_SECONDS = 600.0")
    assert (code, out) == (75, "ready\nasked\nstep over\n") and err.count("stopping after this step") == 1


def test_what_came_too_late_for_the_last_step_is_met_when_the_stage_is_saved(tmp_path):
    code, out, _ = left(tmp_path, IN_STEPS.format(then="pass"), signal.SIGUSR1)
    assert (code, out) == (75, "ready\nasked\n")


def test_the_clock_ends_what_is_no_step_and_only_asks_a_step_to_end(tmp_path):
    past = 'os.environ["SLURM_JOB_START_TIME"] = "1"; interruption.must_save_by("00:00:00:01")'
    code, _, err = left(tmp_path, WAIT, setup=past)
    assert code == 75 and err.startswith("nemo-cascade: checkpointing.checkpoint_must_save_by=00:00:00:01: stopped")
    stepping = f"with interruption.in_steps():\n        {past}\n        time.sleep(1)\n        print('step', interruption.why)"
    code, out, _ = left(tmp_path, stepping)
    assert code == 75 and "step checkpointing.checkpoint_must_save_by=00:00:00:01" in out


def test_the_clock_after_a_signal_is_no_second_signal(tmp_path):
    body = IN_STEPS.format(then='interruption.must_save_by("00:00:00:01"); time.sleep(1); print(interruption.why)')
    code, out, _ = left(tmp_path, body, signal.SIGTERM, setup='os.environ["SLURM_JOB_START_TIME"] = "1"')
    assert code == 75 and "asked\nSIGTERM\n" in out


def test_the_next_start_removes_the_note_and_signals_mean_what_they_did_when_it_is_over(tmp_path):
    (tmp_path / FILE).write_text("{}")
    before = signal.getsignal(signal.SIGTERM)
    with Interruption(tmp_path, rank=0):
        assert not (tmp_path / FILE).exists() and signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("text, seconds", [("00:03:45:00", 13_500), ("02:00:00:01", 172_801), ("0:0:0:5", 5)])
def test_a_limit_is_days_hours_minutes_and_seconds(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["3600", "03:45:00", "00:03:45:-1", "00:03:45:", "a:b:c:d", "00:00:00:00"])
def test_another_limit_is_refused_with_its_key(text):
    from nemo_cascade.cascade.compose import compose_config
    from nemo_cascade.cascade.config import ConfigErrors, load_config

    config = compose_config("smoke", [f"++checkpointing.checkpoint_must_save_by='{text}'"])
    with pytest.raises(ConfigErrors, match="^checkpointing.checkpoint_must_save_by: "):
        load_config(config)


def started(run_dir: Path) -> subprocess.Popen:
    """Two processes of torchrun on SFT and a short RL stage; torchrun hears of SIGUSR1 too."""
    few = [f"cascade.demo_data.{kind}={n}" for kind, n in (("train_rows", 16), ("validation_rows", 2), ("sft_rows", 32))]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", "--shutdown-timeout=600", "examples/cascade.py", "--config-name=smoke"),
        *(f"cascade.run_dir={run_dir}", "cascade.order=[sft,math_rl]", "~cascade.judge", "~data.validation.preference", *few),
        *("~cascade.demo_data.rows_of", "cascade.validation.num_prompts=1", "cascade.stages.sft.sft.max_num_steps=6"),
        *("cascade.stages.sft.policy.megatron_cfg.scheduler.lr_warmup_iters=2", "cascade.stages.math_rl.grpo.max_num_steps=3"),
    ]
    log = open(run_dir.with_suffix(".log"), "a")
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_a_run_under_torchrun_that_is_signalled_in_two_stages_ends_with_bit_identical_weights(tmp_path):
    def hashes(run):
        stages = json.loads((run / "cascade_manifest.json").read_text())["stages"]
        return [stage["checkpoint_hash"] for stage in stages.values()]

    assert started(tmp_path / "unbroken").wait(1800) == 0, (tmp_path / "unbroken.log").read_text()[-4000:]
    run, log = tmp_path / "broken", tmp_path / "broken.log"
    for number, folder in ((signal.SIGTERM, "01-sft"), (signal.SIGUSR1, "02-math_rl")):
        process, metrics = started(run), run / folder / "metrics.jsonl"
        while not metrics.exists() or not metrics.read_text():
            assert process.poll() is None, log.read_text()[-4000:]
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(1800) == 1, "torchrun's own code"
        assert json.loads((run / FILE).read_text())["why"].startswith(f"{number.name}: saved step "), log.read_text()[-4000:]
        assert list((run / folder).glob("step_*"))
    assert started(run).wait(1800) == 0, log.read_text()[-4000:]
    assert hashes(run) == hashes(tmp_path / "unbroken") and not (run / FILE).exists()
