"""A vLLM server as the engine: pushed to through a folder, asked over HTTP, and not believed once its weights are another's.

Run by `make test-vllm` in the environment that has vLLM; skipped elsewhere.
"""

import os
import subprocess
import sys
import time
from importlib.util import find_spec

import httpx
import pytest

from nemo_cascade.rollout.config import VllmServerConfig
from nemo_cascade.rollout.types import SamplingParams
from tests.helpers import run_distributed
from tests.rollout.test_vllm import differences, figures, left_after_an_abort, policy_of, requests

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here: make test-vllm has an environment with it"),
]

FLAGS = "--dtype float32 --max-model-len 1024 --max-num-batched-tokens 4096 --max-num-seqs 64"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of vLLM's own server, in a process of its own, as a user starts it; and the process."""
    from tests.helpers import _free_port

    log, port = tmp_path_factory.mktemp("server") / "log", _free_port()
    url, environment = f"http://127.0.0.1:{port}", os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nemo_cascade.rollout.vllm_serve", "tiny", "--port", str(port), *FLAGS.split()]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        until = time.monotonic() + 600
        while not answers(url):
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(1)
        yield url
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


def sampled(url: str) -> dict:
    from nemo_cascade.rollout import vllm_server
    from nemo_cascade.rollout.engine import EngineError, generate_global
    from nemo_cascade.stages.rl import rollout_sample
    from nemo_cascade.stages.prompts import Prompt
    from nemo_cascade.stages.rollouts import begin_groups, make_engine, sample_groups

    def loss(logprobs, pack):
        kept = pack.mask > 0
        return -(logprobs * kept).sum(), kept.sum(), {}

    def told(action) -> str:
        try:
            action()
        except EngineError as error:
            return str(error)
        return ""

    policy = policy_of(4, dict(backend="vllm_server", vllm_server=VllmServerConfig([url])))
    engine, seen = make_engine(policy), {}
    seen["before a push"] = told(engine.rest)
    engine.sync(policy)
    params = SamplingParams(max_new_tokens=32, stop_ids=tuple(range(0, 40)), seed=3)
    rollouts = seen["rollouts"] = generate_global(engine, requests(12, 4), params)
    seen["again"] = generate_global(engine, requests(12, 4), params)
    seen["start"] = differences(policy, rollouts)
    asked = [Prompt(request.prompt_id, "math", {}, list(request.prompt)) for request in requests(6, 1)]
    seen["waited for"] = sample_groups(policy, engine, asked, 2, seed=5)
    finish = begin_groups(policy, engine, asked, 2, seed=5)
    policy.train_step([rollout_sample(r, True) for r in rollouts[3::4]], loss)
    seen["ahead"] = finish()
    for step in range(3):
        policy.train_step([rollout_sample(r, True) for r in rollouts[step % 4 :: 4]], loss)
        engine.sync(policy)
    rollouts = generate_global(engine, requests(12, 4), SamplingParams(max_new_tokens=12, stop_ids=(), seed=9))
    seen["end"] = differences(policy, rollouts)
    samples = [rollouts[0].prompt + rollouts[0].response]
    seen["scored"] = engine.score(samples)[0], policy.logprobs([rollout_sample(rollouts[0], True)])[0]
    seen["left"] = left_after_an_abort(engine, params)

    summed = vllm_server.summed

    def other(weights, sums):
        yield from summed(weights, sums)
        sums["backbone.layers.5.mixer.experts.5.up_proj.weight"] += 1

    vllm_server.summed = other
    seen["corrupt"] = told(lambda: engine.sync(policy))
    vllm_server.summed = summed
    seen["after it"] = told(engine.rest)
    engine.sync(policy)
    second = make_engine(policy)
    second.sync(policy)  # as another run that was given the same server
    seen["another's"] = told(lambda: generate_global(engine, requests(2, 1), params))
    return seen


def said(group) -> list[list[int]]:
    return [rollout.response for rollout in group.rollouts]


def test_a_server_samples_with_the_trainers_log_probs_and_what_is_not_the_trainers_is_refused(server):
    first, second = run_distributed(sampled, 2, server, timeout=1200)
    for when in ("start", "end"):
        near, mean, ratio = figures(first[when])
        print(f"{when}: {len(first[when])} tokens, {near:.4f} within 2e-3, mean {mean:.2e}, ratio {ratio:.6f}")
        assert near >= 0.99 and mean <= 2e-4 and abs(ratio - 1) <= 1e-3
    assert first["rollouts"] == second["rollouts"]
    assert [r.response for r in first["rollouts"]] == [r.response for r in first["again"]]
    assert {r.finish_reason for r in first["rollouts"]} == {"stop", "length"}
    assert first["ahead"] == second["ahead"]
    assert [said(group) for group in first["ahead"]] == [said(group) for group in first["waited for"]], "of the weights before the update"
    served, trained = first["scored"]
    assert served == pytest.approx(trained, abs=2e-3)
    assert first["left"] == [requests(3, 1)[2].prompt_id]
    for seen in (first, second):
        told = {when: seen[when] for when in ("before a push", "after it", "another's")}
        assert "experts.5.up_proj.weight is not what the trainer wrote" in seen["corrupt"] and server in seen["corrupt"]
        assert all("its weights are no longer this run's" in said for said in told.values()), told
