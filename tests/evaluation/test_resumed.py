"""The command, killed at any sample, goes on without a second request for any that was answered."""

import json
import os
import signal
import subprocess
import sys
import time

from nemo_cascade.evaluation import run
from nemo_cascade.evaluation.benchmarks import BENCHMARKS
from tests.environments.test_endpoint import served
from tests.evaluation.scripted import Scripted

PROMPTS, SAMPLES, UNTIL = 4, 5, 9
COMMAND = ["--suite", "structured_outputs", "--model", "scripted", "--limit", str(PROMPTS), "--samples", str(SAMPLES)]


def started(url: str, out) -> subprocess.Popen:
    command = [sys.executable, "-m", "nemo_cascade", "evaluate", *COMMAND, "--endpoint", url, "--out", str(out), "--concurrency", "3"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def lines(out) -> int:
    path = out / "structured_outputs" / "replies_0.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_and_started_again_it_asks_for_no_answered_sample_twice(tmp_path):
    (part,) = run.asked([BENCHMARKS["structured_outputs"]], None, PROMPTS, {}, judge=False)
    model = Scripted(part.rows, right=[0, 1, 5, 4], until=UNTIL)
    with served(model) as url:
        process = started(url, tmp_path)
        try:
            while lines(tmp_path) < UNTIL and process.poll() is None:
                time.sleep(0.02)
        finally:
            process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL and sum(model.answered.values()) == UNTIL
        with open(tmp_path / "structured_outputs" / "replies_0.jsonl", "a") as file:
            file.write('{"key": "torn", "value": {"respo')
        # At another address the same model is the same.
    model.until = 10**9
    with served(model) as url:
        process = started(url, tmp_path)
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert list(model.answered.values()) == [SAMPLES] * PROMPTS
    (told,) = json.loads((tmp_path / "results.json").read_text())
    assert told["score"] == 50.0 and told["samples"] == PROMPTS * SAMPLES and told["without_reply"] == 0
    assert "Structured output (demo rows)" in said and "50.0" in said
