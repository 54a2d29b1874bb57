"""A whole step in which every part that judges fails once is, to the bit, the step without the replies that it failed at."""

import json
import sys
import threading
from unittest import mock

import pytest

from nemo_cascade.data.chat import render_tool_call
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.environments import swe_agentic
from nemo_cascade.environments.endpoint import EndpointConfig
from nemo_cascade.engine.config import OptimizerConfig, PolicyConfig
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.types import Rollout
from nemo_cascade.sandbox.worker import Worker, contents
from nemo_cascade.stages.config import DataConfig, DatasetConfig, EnvConfig, GRPOConfig
from nemo_cascade.stages.context import LoopConfig, StageRun
from nemo_cascade.stages.metrics import MetricsLog
from tests.environments.plugin import write_plugin
from tests.environments.test_endpoint import served
from tests.environments.test_equivalence import Equal
from tests.helpers import run_distributed

TOKENIZER = load_tokenizer("tiny")
END = 11
# In a program's source or a command: the host kills the sandbox that runs it.
DOOMED = "the host kills this"
MIB = 2**20
run_by_worker = Worker.run


def shell(command: str) -> str:
    return render_tool_call({"name": "execute_bash", "arguments": {"command": command}})


def row(name: str, **values) -> dict:
    asked = {"input": f"Prompt {values.pop('number', 0)} of {name}.", **values.pop("asked", {})}
    return {"responses_create_params": asked, "agent_ref": {"name": f"{name}_simple_agent"}, "enable_thinking": False, **values}


MEND = "sed -i 's/a - b/a + b/' sums.py"
PRINTS = {"unit_tests": {"inputs": [""], "outputs": ["1"]}, "limits": {"seconds_per_test": 30.0}}
FAR = {"question": "How far?", "expected_answer": "3 km"}
REPAIR = {key: value for key, value in swe_agentic.EXAMPLES[0][0].items() if key != "responses_create_params"}
# (row, the kind of the fault of the last reply, what is said turn by turn: replies that pay for what they do, then one that must not).
STEP = [
    (row("obedient", number=1), "verifier_timeout", [["fine"], ["bad"], ["fine 2"], ["hang"]]),
    (row("obedient", number=2), "verifier_raised", [["fine"], ["bad"], ["bad 2"], ["raise"]]),
    (row("obedient", number=3), "verifier_died", [["fine"], ["bad"], ["fine 2"], ["exit"]]),
    (
        row("code_gen", verifier_metadata=PRINTS),
        "sandbox_lost",
        [["print(1)"], ["import os\nwhile True: os.write(1, bytes(2**20))"], ["import os\nwhile True: os.fork()"], [f"import time; time.sleep(20) # {DOOMED}"]],
    ),
    (row("math", number=1, **FAR), "judge_unreachable", [["3 km"], ["1 km"], ["\\boxed{9}"], ["dropped"]]),
    (row("math", number=2, **FAR), "judge_unreadable", [["3 km"], ["1 km"], ["\\boxed{9}"], ["garbage"]]),
    (row("genrm_compare", reference_reply="Come."), "judge_unreachable", [["a"], ["aaaa"], ["aa"], ["dropped"]]),
    (
        row("swe_agentic", asked={"tools": swe_agentic.DEFINITIONS}, **REPAIR),
        "tool_failed",
        [[shell(MEND), "Done."], [shell("yes | head -c 1000000000"), "Done."], ["Nothing to do."], [shell(f"sleep 20 # {DOOMED}"), "Done."]],
    ),
]  # fmt: skip


class Answering(Equal):
    """A judge of answers and of letters. What it is asked about tells it to fail."""

    def respond(self, handler):
        if b"dropped" in handler.rfile.peek(1 << 16):
            handler.close_connection = True
            return handler.connection.close()
        super().respond(handler)

    def said(self, messages):
        if "garbage" in messages[-1]["content"]:
            return "I had rather not say."
        if messages[-1]["role"] == "response_2":
            first, second = (min(5, len(message["content"])) for message in messages[-2:])
            return json.dumps({"score_1": first, "score_2": second, "ranking": 3})
        return super().said(messages)


class Scripted:
    """An engine whose replies are written: `said` has them by (prompt, sample), turn by turn."""

    beside = False

    def __init__(self, said: dict):
        self.said, self.queue = said, []

    def sharing(self):
        import torch.distributed as dist

        return dist.group.WORLD

    def holders(self):
        return None

    stepping = holders

    def add(self, requests, params):
        self.queue += requests

    def busy(self):
        return bool(self.queue)

    def step(self):
        queue, self.queue = self.queue, []
        return [self._turn(request) for request in queue]

    def _turn(self, request):
        text = self.said[request.prompt_id, request.sample].pop(0)
        tokens = [*TOKENIZER.encode(text, add_special_tokens=False), END]
        return Rollout(request.prompt_id, request.sample, list(request.prompt), tokens, [-0.5] * len(tokens), "stop")

    def sync(self, policy):
        pass

    def rest(self):
        pass


def killed_by_the_host(worker, limits, files):
    """`Worker.run`, but the host kills the server as soon as it runs what is DOOMED."""
    if DOOMED.encode() in contents(files["payload"]):
        threading.Timer(0.5, worker.process.kill).start()
    return run_by_worker(worker, limits, files)


def memory(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def stepped(folder, url, with_faults):
    """(metrics of the step, its rollouts, hash of the weights after it, bytes that the process took at most beyond what it had)."""
    sys.path.insert(0, str(folder / "plugin"))
    from nemo_cascade import environments, sandbox
    from nemo_cascade.data.rows import prompt_id
    from nemo_cascade.engine import parallel
    from nemo_cascade.rollout.store import RolloutStore
    from nemo_cascade.stages import rl

    environments._third_party.cache_clear()
    replies = 4 if with_faults else 3
    endpoint = EndpointConfig(url, "judge", tries=1)
    policy = PolicyConfig(
        model_name="micro", generation=GenerationConfig(max_new_tokens=256), max_total_sequence_length=4096
    )
    policy.megatron_cfg.optimizer = OptimizerConfig(lr=1e-2)
    config = LoopConfig(
        policy=policy,
        grpo=GRPOConfig(max_num_steps=1, num_prompts_per_step=len(STEP), num_generations_per_prompt=replies, max_rollout_turns=4),
        env=EnvConfig(num_workers=1, judges={"math": endpoint}),
        data=DataConfig(train={"mixed": DatasetConfig(str(folder / "mixed.jsonl"))}),
    )
    said = {(prompt_id(row), k): list(turns) for row, _, texts in STEP for k, turns in enumerate(texts)}
    policies = []
    make_policy = rl.Policy
    rl.Policy = lambda *args, **how: policies.append(make_policy(*args, **how)) or policies[-1]
    make_engine, rl.make_engine = rl.make_engine, lambda policy: Scripted(said)
    directory = folder / f"{with_faults}"
    directory.mkdir()
    parallel.init(policy.megatron_cfg)
    own = sandbox.Sandbox(workers=1)
    before, sandbox._current = sandbox._current, own
    own.probe()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    had = memory("VmRSS")
    try:
        with mock.patch.object(Worker, "run", killed_by_the_host):
            rl.run(StageRun(name="rl", config=config, dir=directory, seed=1, judge_endpoint=endpoint))
    finally:
        rl.Policy, rl.make_engine, sandbox._current = make_policy, make_engine, before
        own.close()
    (line,) = MetricsLog(directory / "metrics.jsonl").read()
    return line, RolloutStore(directory / "rollouts").load("1"), policies[0].weights_hash(), memory("VmHWM") - had


@pytest.mark.slow
def test_a_step_in_which_everything_fails_once_is_the_step_without_the_replies_that_it_failed_at(tmp_path):
    write_plugin(tmp_path / "plugin")
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row, _, _ in STEP))
    with served(Answering()) as url:
        ((line, groups, weights, took),) = run_distributed(stepped, 1, tmp_path, url, True)
        ((clean, fewer, expected, _),) = run_distributed(stepped, 1, tmp_path, url, False)
    kinds = [kind for _, kind, _ in STEP]
    found = {name.removeprefix("train/faults/"): count for name, count in line.items() if "/faults/" in name}
    assert found == {kind: kinds.count(kind) for kind in kinds} and line["train/verifier_errors"] == 1 / 4
    assert not any("/faults/" in name for name in clean) and clean["train/verifier_errors"] == 0.0
    by_prompt = {group.rollouts[0].prompt_id: group for group in fewer}
    kind_of = {row["responses_create_params"]["input"]: kind for row, kind, _ in STEP}
    for group in groups:
        *judged, failed = group.rollouts
        assert failed.fault == kind_of[group.row["responses_create_params"]["input"]] and failed.info["verifier_error"]
        assert failed.reward <= min(rollout.reward for rollout in judged), "the least is reported"
        assert [(r.reward, r.fault) for r in judged] == [(r.reward, None) for r in by_prompt[failed.prompt_id].rollouts]
        assert len({rollout.reward for rollout in judged}) > 1, "a group that teaches nothing would hide errors"
    same = ("train/loss", "train/grad_norm", "train/informative_groups", "train/groups_taught")
    assert weights == expected and [line[name] for name in same] == [clean[name] for name in same] and line["train/grad_norm"] > 0
    assert took < 500 * MIB, "a gigabyte that was printed is nowhere"
