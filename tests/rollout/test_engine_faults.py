"""An engine that cannot go on, whichever it is, ends the sampling of all ranks with its cause, and none waits for another."""

import json
import os
from types import SimpleNamespace

import pytest

from nemo_cascade.data.rows import DataError
from nemo_cascade.rollout.engine import EngineError
from nemo_cascade.sandbox import SandboxError, SandboxUnavailable
from tests.helpers import run_distributed


def sampled(broken: int, error: Exception, together: bool = False) -> str:
    """What a rank hears where the engine of rank `broken` raises in its second step; together: ranks wait for one another in a step."""
    import torch.distributed as dist

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.rollout.engine import generate_global
    from nemo_cascade.rollout.types import Request, Rollout, SamplingParams

    class Engine:
        def __init__(self):
            self.waiting: list[Request] = []

        def sharing(self):
            return dist.group.WORLD

        def holders(self):
            return None

        def stepping(self):
            return dist.group.WORLD if together else None

        def add(self, requests, params):
            self.waiting = list(requests)
            self.steps = 0

        def busy(self):
            return bool(self.waiting)

        def step(self):
            self.steps += 1
            if parallel.rank() == broken and self.steps == 2:
                raise error
            if together:
                dist.barrier()
            asked = self.waiting.pop(0)
            return [Rollout(asked.prompt_id, asked.sample, list(asked.prompt), [2], [-0.5], "stop")]

        def rest(self):
            pass

    parallel.init(MegatronConfig())
    requests = [Request(f"{number:02x}", sample, (5,)) for number in range(2) for sample in range(2)]
    if together:
        generate_global(Engine(), requests, SamplingParams())
    try:
        return ", ".join(f"{r.prompt_id} {r.sample}" for r in generate_global(Engine(), requests, SamplingParams()))
    except (EngineError, DataError, SandboxError) as heard:
        return f"{type(heard).__name__}: {heard}"


OUT_OF_CACHE = RuntimeError("out of cache")
TOLD = "EngineError: Engine on rank 1 failed at request 01/0 and 1 more: RuntimeError: out of cache"


def test_an_engine_that_raises_stops_every_rank_with_the_cause():
    assert run_distributed(sampled, 2, 1, OUT_OF_CACHE) == [TOLD] * 2
    for error in (EngineError("vLLM on rank 1 failed"), DataError("row 3: no tools"), SandboxUnavailable("no isolation")):
        assert run_distributed(sampled, 2, 1, error) == [f"{type(error).__name__}: {error}"] * 2
    assert run_distributed(sampled, 2, 2, OUT_OF_CACHE) == ["00 0, 00 1, 01 0, 01 1"] * 2, "no rank of that number"


def last_said(folder) -> list[str]:
    """What is left for whoever starts the processes, of a run that an engine ends and of one that something else does."""
    from nemo_cascade import heartbeat, last_words
    from nemo_cascade.cascade.operation import attended
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig

    parallel.init(MegatronConfig())
    stage = SimpleNamespace(cluster=SimpleNamespace(collective_timeout_minutes=9.0))
    said = []
    for number, error in enumerate((EngineError("vLLM on rank 0 failed"), KeyError("mine"))):
        os.environ[last_words.ERROR_FILE] = str(folder / f"{number}.json")
        with pytest.raises(type(error)), attended(SimpleNamespace(run_dir=folder, stages={"if_rl": stage})):
            heartbeat.at("rollouts", stage="if_rl", step=3)
            raise error
        path = folder / f"{number}.json"
        said.append(json.loads(path.read_text())["message"]["message"] if path.exists() else "")
    return said


def test_what_ended_an_engine_is_the_last_that_a_run_says(tmp_path):
    assert run_distributed(last_said, 1, tmp_path) == [["nemo-cascade: stage if_rl, step 3, rollouts: vLLM on rank 0 failed", ""]]


def test_where_ranks_step_together_the_one_that_fails_does_not_wait_for_those_that_wait_for_it():
    with pytest.raises(AssertionError) as ended:
        run_distributed(sampled, 2, 1, OUT_OF_CACHE, True)
    of_first, of_second = str(ended.value).split("rank 1: ", 1)
    assert TOLD in of_second and "RuntimeError: out of cache\n\nThe above exception was the direct cause" in of_second
    assert "no answer within" not in of_first
