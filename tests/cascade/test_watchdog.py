"""A run in which nothing moves any more ends by itself and names who is behind, where and at what."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_cascade import heartbeat
from nemo_cascade.cascade import watchdog
from nemo_cascade.cascade.watchdog import report
from tests.helpers import _free_port

ROOT = Path(__file__).parents[2]

# Two ranks of a gloo world that meet once, then rank 1 does something else than to come.
RANK = """
import os, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from nemo_cascade import heartbeat
from nemo_cascade.cascade.watchdog import Watchdog


def verify_for_ever():
    time.sleep(600)

dist.init_process_group("gloo")
rank = dist.get_rank()
dist.barrier()
with Watchdog(Path(sys.argv[1]), rank, 2, minutes=3 / 60):
    heartbeat.at("start", stage="math_rl", number=2, stages=3, steps=9)
    for step in (1, 2):
        heartbeat.at("rollouts", step=step)
        # Longer than the timeout, with a beat now and then: slow is not hung.
        for _ in range(5 if step == 1 else 0):
            time.sleep(1)
            heartbeat.beat()
        dist.barrier()
    if rank == 0:
        heartbeat.at("rewards")
    {body}
print("came through")
"""


def world(tmp_path, body):
    """The two processes, started."""
    environment = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()), WORLD_SIZE="2", OMP_NUM_THREADS="1")
    program = RANK.replace("{body}", body)
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            env={**os.environ, **environment, "RANK": str(rank)},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


def test_a_rank_that_never_comes_is_named_with_its_step_and_every_rank_shows_its_stacks(tmp_path):
    both = world(tmp_path, "dist.barrier() if rank == 0 else verify_for_ever()")
    ended = [(*process.communicate(timeout=200), process.returncode) for process in both]
    assert [(out, code) for out, _, code in ended] == [("", 70), ("", 70)]
    said = "".join(err for _, err, _ in ended)
    assert said.count("this run hangs: no rank has moved for 0.05 minutes; rank 1 is behind") == 1
    assert "  rank 1: stage math_rl, step 2, rollouts, at " in said and "  rank 0: stage math_rl, step 2, rewards, at " in said
    assert "in verify_for_ever" in ended[1][1] and "barrier" in ended[0][1], "the stacks"


def test_a_rank_that_is_stopped_is_told_from_one_that_waits(tmp_path):
    same_place = "heartbeat.at('rewards') if rank == 1 else None; print('here', flush=True); dist.barrier() if rank == 0 else time.sleep(600)"
    both = world(tmp_path, same_place)
    try:
        for process in both:
            assert process.stdout.readline() == "here\n"
        both[1].send_signal(signal.SIGSTOP)
        _, said = both[0].communicate(timeout=200)
        assert both[0].returncode == 70
        assert "rank 1 is behind" in said and "step 2, rewards" in said
        assert f"no sign of life any more (process {both[1].pid} on " in said
    finally:
        for process in both:
            process.kill()
            process.communicate()


# A run, or its pre-flight, in which nothing comes back of what reads the rows.
BEFORE_A_STAGE = """
import sys, time
from nemo_cascade.cascade import preflight, runner
from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import load_config


def never_read(*_):
    time.sleep(600)

runner.check_rows = never_read
config = load_config(compose_config("smoke", ["cluster.collective_timeout_minutes=0.05", *sys.argv[2:]]), world_size=1)
{"run": runner.run, "preflight": preflight.run}[sys.argv[1]](config)
"""


@pytest.mark.parametrize("what", ["run", "preflight"])
def test_what_hangs_before_the_first_stage_ends_too(tmp_path, what):
    rows = [f"cascade.demo_data.{kind}_rows=2" for kind in ("train", "validation", "sft")]
    places = ["~cascade.demo_data.rows_of", f"cascade.run_dir={tmp_path}/run", f"cascade.demo_data.path={tmp_path}/data"]
    command = [sys.executable, "-c", BEFORE_A_STAGE, what, *places, *rows]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 70, done.stderr
    assert "this run hangs: no rank has moved for 0.05 minutes" in done.stderr and "in never_read" in done.stderr
    assert "rank 0: before the first stage, reading rows, at " in done.stderr


class Clock:
    """Time as it goes on for a process that may be suspended, of which its threads see nothing but a jump."""

    def __init__(self):
        self.suspended, self.time = 0.0, time.time

    def monotonic(self):
        return time.monotonic() + self.suspended


def test_a_run_that_was_suspended_as_a_whole_goes_on(tmp_path, monkeypatch):
    # By its clock: not every kernel keeps the timers of processes that are really stopped.
    clock, ended = Clock(), []
    monkeypatch.setattr(heartbeat, "time", clock)
    monkeypatch.setattr(watchdog.os, "_exit", ended.append)
    with watchdog.Watchdog(tmp_path, 0, 1, minutes=3 / 60):
        heartbeat.at("rollouts", stage="math_rl", step=3)
        for _ in range(4):
            time.sleep(0.5)
            clock.suspended += 3600
        time.sleep(1)
        assert heartbeat.still_for() < 3 and ended == []
        # At the moment of a look, between two heartbeats, it has not moved for an hour; only a second such look would count.
        beats = heartbeat.read(tmp_path)
        monkeypatch.setattr(heartbeat, "still_for", lambda: 3600.0)
        monkeypatch.setattr(heartbeat, "read", lambda run_dir: [beat | {"still_for": 3600.0} for beat in beats])
        time.sleep(4 * 0.3 + 3 * 0.3 + 0.5)
    assert ended and set(ended) == {watchdog.EXIT_HANGS}, "what has not moved at several looks hangs"


def beat(passed=7, line="stages/rewards.py:70 _verify", waits=True, age=0.0, **more) -> dict:
    known = dict(stage="math_rl", step=5, part="rewards", host="node3", pid=11, seconds=5.0, still_for=2000.0)
    return known | dict(passed=passed, line=line, waits=waits, time=1_000.0 - age) | more


@pytest.mark.parametrize(
    "beats, behind",
    [
        ([beat(), beat(passed=6), beat(), beat(passed=6)], "ranks 1, 3 are behind"),
        ([beat(), beat(), None], "rank 2 is behind"),
        ([beat(), beat(age=60), beat()], "rank 1 is behind"),
        ([beat(), beat(waits=False)], "rank 1 is behind"),
        ([beat(), beat(), beat(line="sandbox/local.py:3 _ask")], "rank 2 is behind"),
        ([beat(passed=6), beat(passed=6, age=60), beat()], "rank 1 is behind"),
        ([beat(), beat()], "all ranks are at the same place"),
    ],
    ids=["fewer parts", "never there", "silent", "in no collective", "elsewhere", "silent among the late", "nobody"],
)
def test_who_is_behind(beats, behind):
    told = report(beats, 1_000.0, 1800.0)
    assert told[0] == f"nemo-cascade: this run hangs: no rank has moved for 30 minutes; {behind}"


def test_many_ranks_at_one_place_are_one_line():
    lines = report([beat() if rank != 100 else beat(passed=3) for rank in range(256)], 1_000.0, 60.0)
    assert [line.split(": ")[1].strip() for line in lines[1:]] == ["rank 100", "ranks 0-99, 101-255"]


def test_a_heartbeat_says_where_it_is_and_stops_with_its_run(tmp_path):
    with heartbeat.Heart(tmp_path, 0, 1, seconds=0.05):
        heartbeat.at("rollouts", stage="math_rl", step=3)
        time.sleep(0.5)
        (alive,) = heartbeat.read(tmp_path)
        heartbeat.at("training")
    (last,) = heartbeat.read(tmp_path)
    assert (alive["stage"], alive["step"], alive["part"], alive["over"]) == ("math_rl", 3, "rollouts", False)
    assert (last["part"], last["over"], last["passed"]) == ("training", True, alive["passed"] + 1)
    assert alive["pid"] == os.getpid() and last["still_for"] <= alive["still_for"]


def test_a_heartbeat_counts_as_silent_when_its_writer_stopped():
    now = 1_000.0
    assert heartbeat.alive(beat(age=10), now) and not heartbeat.alive(beat(age=30), now)
    assert heartbeat.unmoved(beat(age=30), now) == 2030.0 and heartbeat.unmoved(None, now) == float("inf")
