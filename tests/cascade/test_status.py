"""`nemo-cascade status`: what a run is doing, from its files alone."""

import json
import os
import socket
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from nemo_cascade import heartbeat
from nemo_cascade.cascade import live, lock
from nemo_cascade.cascade.manifest import DONE, PENDING, RUNNING, FILE, Manifest
from nemo_cascade.stages import interruption
from nemo_cascade.stages.metrics import MetricsLog

ROOT = Path(__file__).parents[2]
NOW = 10_000.0


@pytest.fixture
def run(tmp_path) -> Manifest:
    """A run of three stages in its second one, whose last of 11 steps was just logged, two seconds and 512 tokens each."""
    manifest = Manifest(tmp_path)
    for name, status in (("sft", DONE), ("math_rl", RUNNING), ("mopd", PENDING)):
        manifest.add(name).status = status
    manifest.stages["sft"].gate = {"action": "rollback", "failed": [["max_drop", "math"]]}
    manifest.save()
    folder = manifest.directory("math_rl")
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"grpo": {"num_prompts_per_step": 4, "num_generations_per_prompt": 8}}))
    entries = [
        {"step": step, "time": NOW - 2 * (11 - step), "train/reward": step / 100, "timing/train/total_step_time": 2.0}
        | {"train/mean_gen_tokens_per_sample": 16.0}
        for step in range(1, 12)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return manifest


def beats(manifest: Manifest, *ages: float, **more) -> None:
    """Heartbeats of as many ranks, so many seconds old."""
    for rank, age in enumerate(ages):
        beat = dict(stage="math_rl", number=2, stages=3, step=12, steps=30, part="rollouts", passed=9, rank=rank, host="node3")
        beat |= dict(ranks=len(ages), pid=70 + rank, seconds=5.0, still_for=1.0, line="", waits=False, over=False) | more
        path = heartbeat.path_of(manifest.run_dir, rank)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(beat | {"time": NOW - age}))


def test_a_run_that_ended_between_stages_tells_what_is_left_and_whether_a_gate_stopped_it(run):
    run.stages["math_rl"].status = DONE
    beats(run, 100, 100, over=True)
    assert live.lines(run, NOW)[0] == "ended after math_rl; not done: mopd"
    run.stages["math_rl"].gate = {"action": "stop", "failed": [["max_drop", "mcqa"]]}
    assert live.lines(run, NOW)[0] == "stopped by the gate of math_rl; not done: mopd"


def test_a_running_stage_tells_its_step_reward_pace_and_end(run):
    beats(run, 1, 2)
    assert live.lines(run, NOW) == [
        "stage 2/3 math_rl: step 12/30, rollouts",
        "reward 0.11, 256 generated tokens/s, 2 s/step, the stage trains for about 38 s more, with 1 stage after it",
        "2 of 2 ranks alive, the last sign 1 s ago",
        "gate of sft: rollback, failed math (max_drop)",
    ]
    assert live.going_on(run, NOW)


def test_an_sft_stage_tells_its_loss_and_trained_tokens(run):
    log = MetricsLog(run.directory("math_rl") / "metrics.jsonl")
    entries = [
        {"step": n, "time": NOW + n, "train/loss": 2.0, "train/tokens": 100.0, "timing/train/total_step_time": 0.5}
        for n in (1, 2)
    ]
    log.path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    beats(run, 1)
    assert live.lines(run, NOW)[1] == "loss 2, 200 tokens/s, 1 s/step, the stage trains for about 28 s more, with 1 stage after it"


def test_a_silent_rank_is_named(run):
    beats(run, 1, 90)
    told = "1 of 2 ranks alive, the last sign 1 s ago; rank 1 gives no sign of life for 1 min 30 s (process 71 on node3)"
    assert told in live.lines(run, NOW)


def test_what_a_run_does_before_its_first_stage_is_told(run):
    beats(run, 1, stage="", number=0, step=0, steps=0, part="reading rows")
    assert live.lines(run, NOW)[0] == "before the first stage: reading rows" and live.going_on(run, NOW)
    beats(run, 300, stage="", number=0, step=0, steps=0, part="reading rows")
    assert live.lines(run, NOW)[0].startswith("before the first stage, reading rows: its processes are gone")


def test_a_rank_that_does_not_get_on_is_told(run):
    beats(run, 1, still_for=700.0)
    assert live.lines(run, NOW)[0] == "stage 2/3 math_rl: step 12/30, rollouts, still for 11 min 40 s"


def test_a_killed_run_is_told_from_one_that_ended_and_one_that_was_asked_to(run):
    beats(run, 300, 300)
    assert live.lines(run, NOW)[0].endswith("step 12, rollouts: its processes are gone; the same command goes on")
    assert not live.going_on(run, NOW) and not any("trains for" in line for line in live.lines(run, NOW))
    beats(run, 300, 300, over=True)
    assert "ended before all stages were done" in live.lines(run, NOW)[0]
    (run.run_dir / interruption.FILE).write_text(json.dumps({"why": "SIGUSR1: saved step 11", "time": NOW - 3720}))
    assert live.lines(run, NOW)[0] == "stopped 1 h 2 min ago: SIGUSR1: saved step 11"


def test_a_finished_run_and_one_without_heartbeats_say_so(run):
    assert live.lines(run, NOW)[0] == "no process has left a heartbeat here"
    for record in run.stages.values():
        record.status = DONE
    assert live.lines(run, NOW)[0] == "all stages are done"


def test_a_run_that_still_reads_its_rows_says_so_while_its_process_lives(run):
    began = datetime.fromtimestamp(NOW - 90).astimezone().isoformat(" ", "seconds")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "began": began}
    (run.run_dir / lock.FILE).write_text(json.dumps(holder) + "\n")
    told = "began 1 min 30 s ago and is in no stage yet: rows are read and checked first"
    assert live.lines(run, NOW)[0] == f"process {os.getpid()} on {socket.gethostname()} {told}" and live.going_on(run, NOW)
    # No process has this number, which is above the kernel's highest; of another host's nothing can be known.
    (run.run_dir / lock.FILE).write_text(json.dumps(holder | {"pid": 2**22 + 1}))
    assert live.lines(run, NOW)[0] == "no process has left a heartbeat here" and not live.going_on(run, NOW)
    (run.run_dir / lock.FILE).write_text(json.dumps(holder | {"pid": 2**22 + 1, "host": "node3"}))
    assert live.going_on(run, NOW)
    (run.run_dir / lock.FILE).write_text("{")
    assert not live.going_on(run, NOW)


def test_the_command_shows_the_table_and_the_lines_and_watches_to_the_end(run):
    with heartbeat.Heart(run.run_dir, 0, 1, seconds=0.2):
        heartbeat.at("rollouts", stage="math_rl", number=2, stages=3, step=12, steps=30)
        time.sleep(0.5)
        command = [sys.executable, "-m", "nemo_cascade", "status", str(run.run_dir)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "stage 2/3 math_rl: step 12/30, rollouts" in done.stdout, done.stderr
        assert "running, step 11" in done.stdout and "1 of 1 ranks alive" in done.stdout
        watching = subprocess.Popen([*command, "--watch"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for record in run.stages.values():
        record.status = DONE
    run.save()
    told, _ = watching.communicate(timeout=120)
    assert watching.returncode == 0 and "math_rl" in told


@pytest.mark.parametrize(
    "seconds, told", [(0.4, "0 s"), (59.6, "1 min"), (245, "4 min 5 s"), (11_520, "3 h 12 min"), (183_600, "2 d 3 h"), (3605, "1 h")]
)
def test_spans_are_two_units_at_most(seconds, told):
    assert live.span(seconds) == told


def test_a_terminal_too_narrow_for_the_lines_loses_nothing(run):
    beats(run, *[NOW - time.time()] * 2)  # as old as this moment, whose lines are shown
    console = Console(width=40, record=True, file=open(os.devnull, "w"))
    live.show(run.run_dir, console)
    assert "reward 0.11, 256 generated tokens/s" in console.export_text()
    assert (run.run_dir / FILE).is_file()
