"""No process that writes a checkpoint outlives its rank."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

RANK = """
import multiprocessing, os, signal, time
from nemo_cascade.engine.writes import writers_end_with_this


def writes_for_ever():
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,)).start()
    time.sleep(600)


with writers_end_with_this():
    multiprocessing.get_context("fork").Process(target=writes_for_ever).start()
after = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
after.start()
print(after.pid, flush=True)
time.sleep(600)
"""


def test_what_a_killed_rank_forked_to_write_is_gone_and_nothing_else():
    rank = subprocess.Popen([sys.executable, "-c", RANK], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    other = psutil.Process(int(rank.stdout.readline()))
    try:
        deadline = time.monotonic() + 60
        while len(writers := [p for p in psutil.Process(rank.pid).children(recursive=True) if p != other]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        rank.kill()
        rank.wait()
        _, left = psutil.wait_procs(writers, timeout=60)
        assert left == [] and other.is_running()
    finally:
        other.kill()
