"""A judge served by vLLM over a line that drops, delays and garbles: asked again, then undecided, never more at once than allowed.

vLLM has an environment of its own: NEMO_CASCADE_VLLM_PYTHON, or what `make test-vllm` makes. The model is random, its answers
held to the judge's JSON by vLLM's grammar.
"""

import os
import random
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from nemo_cascade import environments
from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.environments import response_of
from nemo_cascade.environments.endpoint import Endpoint, EndpointConfig
from nemo_cascade.environments.equivalence import DIFFERENT, EQUAL
from nemo_cascade.environments.genrm_compare import FIELDS, judge_messages, parse, readable
from nemo_cascade.environments.judged import judge_all
from nemo_cascade.environments.swe_repair import judge
from nemo_cascade.rollout.types import Group, Rollout
from nemo_cascade.stages.config import GenRMConfig
from nemo_cascade.stages.judge import EndpointJudge, Judge
from tests.environments.test_endpoint import served

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("NEMO_CASCADE_VLLM_PYTHON") or str(ROOT / ".venv-vllm" / "bin" / "python")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(PYTHON).is_file(), reason="no vLLM: make test-vllm makes its environment"),
]

TOKENIZER = load_tokenizer("tiny")
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "integer", "enum": list(allowed)} for name, allowed in FIELDS.items()},
    "required": list(FIELDS),
    "additionalProperties": False,
}
GUIDED = {"response_format": {"type": "json_schema", "json_schema": {"name": "verdict", "schema": SCHEMA}}}


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    """The address of a vLLM server with a random model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    sizes = dict(hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENIZER), max_position_embeddings=2048, **sizes)).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as probe:
        port = probe.server_port
    options = dict(model=folder, port=port, dtype="float32", max_model_len=2048, max_num_seqs=32, served_model_name="judge")
    options |= dict(kv_cache_memory_bytes=128 << 20, structured_outputs_config='{"backend": "xgrammar", "disable_any_whitespace": true}')
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager", "--host", "127.0.0.1"]
    command += [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": ""}
    log = open(folder / "log.txt", "w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while True:
            assert server.poll() is None and time.monotonic() < deadline, (folder / "log.txt").read_text()[-4000:]
            try:
                if httpx.get(f"{url}/health").is_success:
                    break
            except httpx.TransportError:
                time.sleep(1)
        yield f"{url}/v1"
    finally:
        os.killpg(server.pid, 9)
        server.wait()


class Line:
    """What lies between us and the server: of a hundred requests so many are dropped, garbled or late."""

    def __init__(self, url, dropped=0, garbled=0, late=0):
        self.url, self.random, self.lock = url, random.Random(0), threading.Lock()
        self.ways = ["drop"] * dropped + ["garble"] * garbled + ["delay"] * late
        self.ways += [""] * (100 - len(self.ways))
        self.requests, self.busy, self.most = 0, 0, 0

    def respond(self, handler):
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        with self.lock:
            way = self.random.choice(self.ways)
            self.requests, self.busy = self.requests + 1, self.busy + 1
            self.most = max(self.most, self.busy)
        try:
            if way == "drop":
                self._over()
                return handler.connection.close()
            if way == "delay":
                time.sleep(3)
            answer = httpx.post(f"{self.url}/chat/completions", content=body, headers={"Content-Type": "application/json"}, timeout=120)
            payload = answer.content[: len(answer.content) // 2] if way == "garble" else answer.content
            self._over()
            handler.send_response(answer.status_code)
            handler.send_header("Content-Length", str(len(payload)))
            handler.end_headers()
            handler.wfile.write(payload)
        except OSError:
            pass  # whoever asked is gone

    def _over(self):
        """Before whoever asked hears of it, and asks again."""
        with self.lock:
            self.busy -= 1


def config(url, **settings) -> EndpointConfig:
    return EndpointConfig(base_url=url, model="judge", max_tokens=64, extra_body=GUIDED, **settings)


def asked(count):
    rows = DOMAINS["preference"].rows(count, "train")
    return [judge_messages(row, f"Hello, {n}.", "Dear Anna, please come.") for n, row in enumerate(rows)]


def test_a_served_model_under_a_grammar_always_says_scores(vllm):
    said = Endpoint(config(vllm)).ask(asked(20))
    assert all(readable(one.text) for one in said)
    assert len({parse(one.text) for one in said}) > 5, "a model that says one thing would hide errors"


def test_a_bad_line_costs_no_verdict_while_there_are_tries(vllm):
    line = Line(vllm, dropped=30, garbled=10, late=10)
    with served(line) as url:
        said = Endpoint(config(url, tries=12, concurrency=8, timeout=60)).ask(asked(60), usable=readable)
    assert all(readable(one.text) for one in said)
    assert line.requests > 75 and 1 < line.most <= 8


def test_a_slow_reply_is_given_up_and_asked_for_again(vllm):
    line = Line(vllm, late=50)
    with served(line) as url:
        said = Endpoint(config(url, tries=12, concurrency=8, timeout=2)).ask(asked(20), usable=readable)
    assert all(readable(one.text) for one in said) and line.requests > 25


def test_what_is_never_answered_is_undecided_counted_and_told(vllm):
    rows = DOMAINS["preference"].rows(12, "train")

    def reply(k):
        tokens = [*TOKENIZER.encode(f"hm</think>Hello, {k}.", add_special_tokens=False), 11]
        return Rollout("ab" * 32, k, [10], tokens, [0.0] * len(tokens), "stop")

    groups = [Group(row, "preference", [reply(k) for k in range(4)]) for row in rows]
    with served(Line(vllm, dropped=40)) as url:
        judge = Judge(EndpointJudge(Endpoint(config(url, tries=1, concurrency=8))), TOKENIZER, GenRMConfig())
        judge.reward_groups(groups)
    told = [rollout.info["judge_readable"] for group in groups for rollout in group.rollouts]
    assert 0.3 < sum(told) / len(told) < 0.9
    # One about which nothing was said has no verdict, and is trained on by nobody.
    rewards = [(rollout.reward, rollout.fault) for group in groups for rollout in group.rollouts]
    # Where one comparison is all that was heard of a reply: scores 1 to 5, a tie broken by 3.5 - rank, bonuses of 0.5 for thought and answer.
    assert all(1 - 2.5 <= reward <= 5 + 2.5 + 1 or fault for reward, fault in rewards), rewards
    assert all(rollout.info["judge_readable"] == 0 for group in groups for rollout in group.rollouts if rollout.fault)


def test_free_answers_are_judged_in_both_orders_over_a_bad_line(vllm):
    row = {"expected_answer": "a boy", "needs_judge": True, "question": "Who?", "agent_ref": {"name": "long_context_simple_agent"}}
    replies = [response_of(f"hm</think>the child number {number}") for number in range(40)]
    verified = [(row, reply, environments.get("long_context").verify(row, reply)) for reply in replies]
    labels = {"structured_outputs": {"choice": [EQUAL, DIFFERENT]}}
    line = Line(vllm, dropped=30)
    with served(line) as url:
        settings = EndpointConfig(base_url=url, model="judge", max_tokens=64, tries=12, concurrency=8, timeout=60, extra_body=labels)
        verdicts = judge_all(verified, Endpoint(settings))
    assert all(verdict["judge_readable"] for verdict in verdicts) and line.most <= 8
    asked = [verdict["judge_evaluations"] for verdict in verdicts]
    assert {len(said) for said in asked} == {1, 2}, "who says no is not asked again"
    assert [verdict["reward"] for verdict in verdicts] == [float(said == [EQUAL, EQUAL]) for said in asked]


def test_probabilities_of_tokens_come_from_the_server(vllm):
    labels = {"structured_outputs": {"choice": ["<judgement>YES</judgement>", "<judgement>NO</judgement>"]}}
    settings = EndpointConfig(base_url=vllm, model="judge", max_tokens=64, logprobs=True, extra_body=labels)
    (said,) = Endpoint(settings).ask([[{"role": "user", "content": "Well?"}]], usable=judge.usable)
    assert "".join(token for token, _ in said.tokens).startswith("<judgement>")
    assert 0.0 <= judge.probability(said) <= 1.0
    assert all(0.0 <= chance <= 1.0 for _, likely in said.tokens for chance in likely.values())
