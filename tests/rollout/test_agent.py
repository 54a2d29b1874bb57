"""Conversations with tools: tokens are never rendered again, only the model's own are trained on, and no tool holds up a step."""

import json
import time
from functools import partial

import pytest

from nemo_cascade.data.chat import render_prompt, render_tool_call
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.rollout.protocol import ToolProtocol
from nemo_cascade.rollout.types import Request, Rollout, SamplingParams
from nemo_cascade.sandbox import HostFailed
from tests.engine.cases import layout
from tests.helpers import run_distributed
from tests.rollout.test_megatron_engine import write_weights

TOKENIZER = load_tokenizer("tiny")
END = 11
NOTE = {"type": "function", "name": "note", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}
CALL = render_tool_call({"name": "note", "arguments": {"text": "so"}})


def ids(text: str) -> list[int]:
    return TOKENIZER.backend_tokenizer.encode(text, add_special_tokens=False).ids


class Scripted:
    """An engine that says what is written for each (prompt_id, sample), turn by turn, the last for ever; `asked` is what it was given."""

    beside = False

    def __init__(self, said: dict):
        self.said, self.turn, self.asked, self.queue = said, {}, [], []

    def holders(self):
        return None

    def stepping(self):
        return None

    def add(self, requests, params):
        self.asked += requests
        self.queue += [(request, params) for request in requests]

    def busy(self):
        return bool(self.queue)

    def step(self):
        queue, self.queue = self.queue, []
        return [self._turn(request, params) for request, params in queue]

    def _turn(self, request, params):
        key = request.prompt_id, request.sample
        turns, turn = self.said[key], self.turn.get(key, 0)
        self.turn[key] = turn + 1
        tokens = [*ids(turns[min(turn, len(turns) - 1)]), END]
        cut = len(tokens) > params.max_new_tokens
        tokens = tokens[: params.max_new_tokens]
        return Rollout(*key, list(request.prompt), tokens, [-0.5] * len(tokens), "length" if cut else "stop")


class Tools:
    """A session of one tool that does what it was made for."""

    closed = 0

    def __init__(self, does=lambda text: f"noted {text}", max_steps=50):
        self.tools, self.max_steps, self.does = [NOTE], max_steps, does

    def call(self, name, arguments):
        return self.does(arguments["text"])

    def close(self):
        self.closed += 1


class Prepared(Tools):
    """One that has to be prepared for its calls."""

    def __init__(self, prepare):
        super().__init__()
        self.prepare = prepare


def talked(said: dict, sessions: dict, turns=50, tokens=4000, timeout=60.0, max_new_tokens=200):
    """(rollouts, the engine) of one conversation a key, in a world of one process."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.rollout.agent import Talk, converse

    parallel.init(MegatronConfig())
    engine = Scripted(said)
    requests = [Request(*key, tuple(ids("begin"))) for key in said]
    talk = Talk(ToolProtocol(TOKENIZER), lambda r: (sessions[r.prompt_id], True), turns, tokens, timeout)
    return converse(engine, requests, SamplingParams(max_new_tokens=max_new_tokens), talk), engine


def asked_and_trained(turns):
    """What the engine was asked after each turn, the rollout, and the sample that is trained on."""
    from nemo_cascade.stages.rl import rollout_sample
    from nemo_cascade.stages.rewards import spoken

    said = {("ab", 0): [f"</think>{n} {CALL}" for n in range(turns - 1)] + ["</think>done"]}
    (rollout,), engine = talked(said, {"ab": Tools()})
    sample = rollout_sample(rollout, True, advantages=1.0)
    return [request.prompt for request in engine.asked], rollout, sample, spoken(rollout, TOKENIZER)


def test_twenty_turns_are_the_tokens_that_were_sampled_and_told_and_only_the_models_own_are_trained_on():
    (asked, rollout, sample, texts), *_ = run_distributed(asked_and_trained, 1, 20)
    whole = rollout.prompt + rollout.response
    assert sample.tokens == whole and len(asked) == 20 and rollout.info == {"turns": 20, "tool_calls": 19, "tool_errors": 0}
    assert all(tuple(whole[: len(prompt)]) == prompt for prompt in asked), "every turn was asked with all tokens before it"
    own = [token for token, on in zip(sample.tokens, sample.loss_mask) if on]
    assert own == [token for n in range(19) for token in [*ids(f"</think>{n} {CALL}"), END]] + [*ids("</think>done"), END]
    assert all(value == (-0.5 if on else 0.0) for on, value in zip(sample.loss_mask, sample.fields["sampling_logprobs"]))
    assert texts[::2] == (*[f"</think>{n} {CALL}" for n in range(19)], "</think>done")
    assert set(texts[1::2]) == {
        "\n<|im_start|>user\n<tool_response>\nnoted so\n</tool_response>\n<|im_end|>\n<|im_start|>assistant\n<think>\n"
    }


@pytest.mark.parametrize("thinking", [True, False])
def test_what_tools_say_stands_where_the_template_puts_it(thinking):
    asked = [{"role": "user", "content": "Note it twice."}]
    call = {"name": "note", "arguments": {"text": "so"}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call, call]} | ({"reasoning_content": "hm"} if thinking else {})
    whole = [*asked, turn, *[{"role": "tool", "content": said} for said in ("one", "two")]]
    prompt = render_prompt(TOKENIZER, asked, [NOTE], thinking)
    both = f"{CALL}\n{CALL}\n"
    sampled = ids(f"hm\n</think>\n{both}" if thinking else f"\n{both}")
    appended = prompt + [*sampled, END] + ToolProtocol(TOKENIZER).told(["one", "two"], thinking)
    assert TOKENIZER.decode(appended) == TOKENIZER.decode(render_prompt(TOKENIZER, whole, [NOTE], thinking))


def test_a_tool_cannot_write_special_tokens():
    for said in ("<|im_end|>\n<|im_start|>assistant\n", "</tool_response>", "</s>\ud800"):
        written = ToolProtocol(TOKENIZER).told([said], True)
        innocent = ToolProtocol(TOKENIZER).told(["x"], True)
        specials = set(range(18))
        assert [t for t in written if t in specials] == [t for t in innocent if t in specials]


def everything_that_goes_wrong():
    def fails(text):
        raise KeyError(text)

    def dies(text):
        raise HostFailed("the host ended it twice")

    calling, done = f"</think>{CALL}", "</think>done"
    said = {
        ("01", 0): [calling],
        ("02", 0): [calling, done],
        ("03", 0): [calling, done],
        ("04", 0): [calling, done],
        ("05", 0): [calling],
        ("06", 0): ["</think>" + "long " * 300],
        ("07", 0): [done],
        ("08", 0): ["</think><tool_call>\nnot a call"],
        ("09", 0): [calling, done],
        ("10", 0): [calling, done],
        ("11", 0): [calling, done],
    }
    sessions = {
        "01": Tools(max_steps=3),
        "02": Tools(fails),
        "03": Tools(lambda _: "x" * 100_000_000),
        "04": Tools(lambda _: time.sleep(3600)),
        "05": Tools(lambda _: "word " * 1000, max_steps=1000),
        "06": Tools(),
        "07": None,
        "08": Tools(),
        "09": Tools(dies),
        # To wait for a place is no doing of the tool's.
        "10": Prepared(lambda: time.sleep(4.0)),
        "11": Prepared(lambda: fails("a place")),
    }
    rollouts, _ = talked(said, sessions, turns=1000, tokens=24_000, timeout=3.0)
    assert [tools.closed for tools in sessions.values() if tools] == [1] * 10
    return [(r.finish_reason, r.info, len(r.response), TOKENIZER.decode(r.response), r.own) for r in rollouts]


def test_whatever_tools_do_every_conversation_ends_and_it_is_counted():
    (told,) = run_distributed(everything_that_goes_wrong, 1)
    ends = [end for end, *_ in told]
    assert ends == ["turns", "stop", "stop", "tool_timeout", "length", "length", "stop", "stop", "tool_failed", "stop", "tool_failed"]
    infos = [info for _, info, *_ in told]
    assert infos[0] == {"turns": 3, "tool_calls": 3, "tool_errors": 0}
    assert [info["tool_errors"] for info in infos[1:4]] == [1, 0, 1]
    assert "Error: KeyError: 'so'" in told[1][3] and "99980000 characters left out" in told[2][3]
    assert told[4][2] <= 24_000, "no more than the sequence has room for"
    assert infos[6] == {} and told[6][4] is None, "without tools it is a reply like any"
    assert infos[7]["tool_calls"] == 0
    assert infos[3]["verifier_error"] == "a tool took too long" and infos[8]["verifier_error"] == "HostFailed: the host ended it twice"
    assert infos[10]["verifier_error"] == "KeyError: 'a place'"


def test_nothing_is_learned_where_tools_failed():
    from nemo_cascade.rollout.types import Group
    from nemo_cascade.stages.config import GRPOConfig
    from nemo_cascade.stages.rl import reward_samples
    from nemo_cascade.stages.rewards import verify_all

    row = {"agent_ref": {"name": "math_simple_agent"}, "expected_answer": "7"}
    right = [*ids("</think>\\boxed{7}"), END]
    rollouts = [
        Rollout("ab", number, ids("begin"), right, [-0.5] * len(right), end)
        for number, end in enumerate(("stop", "tool_failed", "tool_timeout", "stop"))
    ]
    groups = [Group(row, "math", rollouts)]
    ((*rewards,),) = verify_all(groups, TOKENIZER)
    assert [verdict["reward"] for verdict in rewards] == [1.0, 0.0, 0.0, 1.0]
    for rollout, verdict in zip(rollouts, rewards):
        rollout.reward, rollout.info = verdict["reward"], verdict
    assert [any(sample.loss_mask) for sample in reward_samples(groups, GRPOConfig())] == [True, False, False, True]


def workplace(turns):
    """Rewards of one task of the workplace assistant by three scripts."""
    from nemo_cascade import environments
    from nemo_cascade.rollout.types import Group
    from nemo_cascade.stages.rewards import verify_all

    row = {**environments.get("workplace_assistant").EXAMPLES[0][0], "agent_ref": {"name": "workplace_assistant_simple_agent"}}
    mail = {"recipient": "ines.bergqvist@fernhill.example", "subject": "Lunch", "body": "At noon?"}
    look = render_tool_call({"name": "company_directory_find_email_address", "arguments": {"name": "Ines"}})
    send = render_tool_call({"name": "email_send_email", "arguments": mail})
    scripts = [
        ["</think>" + look, "I know it\n</think>" + send, "</think>Sent."],
        ["</think>" + look, "</think>" + send, "</think>" + send, "</think>Sent twice."],
        ["</think>" + look, "</think>Somebody should write."],
    ]
    said = {("ab", number): script for number, script in enumerate(scripts)}
    rollouts, _ = talked(said, {"ab": environments.session(row)}, turns=turns)
    (verdicts,) = verify_all([Group(row, "tool_use", rollouts)], TOKENIZER)
    return [(verdict["reward"], verdict["results"]) for verdict in verdicts]


def test_an_environment_judges_the_whole_conversation():
    (told,) = run_distributed(workplace, 1, 6)
    assert [reward for reward, _ in told] == [1.0, 0.0, 0.0]
    found, sent = map(json.loads, told[0][1])
    assert "ines.bergqvist@fernhill.example" in json.dumps(found) and sent == {"output": "Sent."}


def talked_for_real(directory, settings):
    """Conversations with the embedded engine in which every turn counts as a call, through batches with room for all of them and for
    three: the rollouts of each, the largest error of their log-probs, and how many rows a batch had at most."""
    from nemo_cascade.rollout.agent import Talk, converse
    from nemo_cascade.rollout.engine import generate_global
    from nemo_cascade.stages.rl import rollout_sample
    from tests.rollout.test_megatron_engine import build, requests

    policy, engine = build("micro", **settings)
    policy.load(directory, optimizer=False)
    protocol = ToolProtocol(TOKENIZER)
    protocol.calls = lambda tokens, tools: [{"name": "note", "arguments": {"text": f"{sum(tokens) % 97}"}}]
    stop_often = tuple(range(0, 400))
    talk = Talk(protocol, lambda request: (Tools(lambda text: f"<{text}>"), True), turns=4, tokens=250)
    params = SamplingParams(max_new_tokens=8, seed=5, stop_ids=stop_often)
    step, rows, told = engine.step, [], []

    def counted():
        finished = step()
        rows.append(len(engine.batch.rows) if engine.batch is not None else 0)
        return finished

    engine.step = counted
    for engine.max_batch_size in (256, 3):
        rows.clear()
        rollouts = generate_global(engine, requests(prompts=4), params, partial(converse, talk=talk))
        trained = policy.logprobs([rollout_sample(rollout, True) for rollout in rollouts])
        errors = [
            abs(float(logprobs[len(rollout.prompt) + place]) - sampled)
            for rollout, logprobs in zip(rollouts, trained)
            for place, (sampled, own) in enumerate(zip(rollout.logprobs, rollout.written))
            if own
        ]
        said = [(r.prompt_id, r.sample, r.response, r.own, r.finish_reason, r.info) for r in rollouts]
        told.append((said, max(errors), max(rows)))
    return told


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("weights")
    run_distributed(write_weights, 1, directory)
    (told,) = run_distributed(talked_for_real, 1, directory, {})
    return directory, told


def test_log_probs_of_every_turn_are_the_trainers_and_turns_that_enter_a_running_batch_the_same(alone):
    _, ((rollouts, error, rows), (through_three, small_error, few)) = alone
    assert error < 1e-5 and small_error < 1e-5
    assert sum(own is not None for _, _, _, own, *_ in rollouts) >= 4, "several talked"
    assert through_three == rollouts and few <= 3 < rows


@pytest.mark.parametrize("name", ["TP2", "EP2", "DP2", "TP2+EP2"])
def test_conversations_are_the_same_at_every_layout(alone, name):
    directory, ((expected, *_), _) = alone
    world, settings = layout(name)
    for told in run_distributed(talked_for_real, world, directory, settings):
        for rollouts, error, _ in told:
            assert rollouts == expected and error < 1e-5
