"""Two runs never share a run directory, and one that was killed is in nobody's way."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from nemo_cascade.cascade import cli, lock
from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import load_config
from nemo_cascade.cascade.lock import FILE, RunLock
from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.cascade.runner import run
from nemo_cascade.engine import parallel
from test_teachers import facts_of, manifest_of, stage_of

# A rank 0 with a process that it forked, as those that verify are.
HOLDER = """
import os, sys, time
from pathlib import Path
from nemo_cascade.cascade.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.take()
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """(a process that has the lock of tmp_path / "run", the id of its child)."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    yield process, child
    process.kill()
    process.wait()
    os.kill(child, signal.SIGKILL)


def test_a_second_run_is_refused_by_name_and_touches_nothing_while_what_only_reads_goes_on(holder, tmp_path, monkeypatch, capsys):
    process, _ = holder
    manifest = manifest_of(tmp_path / "run", {"sft": 50, "math_rl": 80, "multi_rl": 60})
    manifest.stages["mopd"].teacher_facts = facts_of(manifest, stage_of(math=dict(stage="math_rl")))
    manifest.save()
    monkeypatch.setattr(lock, "PATIENCE", 0.3)
    settings = [f"cascade.run_dir={tmp_path / 'run'}", f"cascade.demo_data.path={tmp_path / 'data'}"]
    config = load_config(compose_config("smoke", settings), world_size=1)
    try:
        with pytest.raises(SystemExit) as refused:
            cli.started(lambda: run(config))
    finally:
        parallel.shutdown()
    told = capsys.readouterr().err
    assert refused.value.code == 2 and told.count("\n") == 1
    assert f"{tmp_path / 'run'}: another run is going on in it, process {process.pid} on " in told and ", since 20" in told
    assert not (tmp_path / "data").exists(), "the run that goes on reads its rows"

    cli.status(tmp_path / "run")
    cli.teachers(tmp_path / "run")
    cli.report(tmp_path / "run", 100_000)
    cli.check(settings, "smoke", None, None, offline=True)
    assert "ok: 12 stages" in capsys.readouterr().out
    with pytest.raises(RunRefused, match="another run is going on"):
        RunLock(tmp_path / "run").take()


def test_a_killed_run_is_in_nobodys_way_even_while_what_it_forked_lives(holder, tmp_path, monkeypatch):
    process, child = holder
    # The kill comes while somebody waits already.
    waiting = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    time.sleep(0.2)
    process.kill()
    process.wait()
    os.kill(child, 0)
    grandchild = int(waiting.stdout.readline())
    assert json.loads((tmp_path / "run" / FILE).read_text())["pid"] == waiting.pid
    waiting.kill()
    waiting.wait()
    os.kill(grandchild, signal.SIGKILL)
    ours = RunLock(tmp_path / "run")
    ours.take()
    ours.release()
    assert list((tmp_path / "run").iterdir()) == [], "a run that came to its end leaves no lock"


def test_a_lock_that_was_removed_while_it_was_taken_is_taken_anew(tmp_path, monkeypatch):
    """Its owner ended between the opening of the file and its locking."""
    lockf = fcntl.lockf

    def removed_first(*arguments):
        monkeypatch.setattr(fcntl, "lockf", lockf)
        (tmp_path / FILE).unlink()
        return lockf(*arguments)

    monkeypatch.setattr(fcntl, "lockf", removed_first)
    ours = RunLock(tmp_path)
    ours.take()
    assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    ours.release()


def test_where_there_are_no_locks_a_run_says_so_and_goes_on(tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "lockf", none)
    RunLock(tmp_path / "run").take()
    assert "this file system has no locks (Function not implemented)" in caplog.text
