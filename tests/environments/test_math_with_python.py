"""Agents that compute with a Python of their own: what they are told, what they earn, and that nothing of them is left."""

import dataclasses
import time

import psutil
import pytest

from nemo_cascade import environments, sandbox
from nemo_cascade.data.chat import render_tool_call
from nemo_cascade.data.rows import environment_of
from nemo_cascade.environments import math_with_python, python_tool
from nemo_cascade.environments.python_tool import DEFINITION, NAME
from tests.helpers import run_distributed

ROW = {
    "agent_ref": {"type": "responses_api_agents", "name": "ns_tools_simple_agent"},
    "responses_create_params": {"input": [{"role": "user", "content": "How much is 2 to the power of 40?"}], "tools": [DEFINITION]},
    "question": "How much is 2 to the power of 40?",
    "expected_answer": str(2**40),
    "verifier_type": "math_with_judge",
}


def code(text: str) -> str:
    return f"</think>{render_tool_call({'name': NAME, 'arguments': {'code': text}})}"


# What an agent does, turn by turn, what it is told, and what it earns.
AGENTS = {
    "computes": ([code("x = 2 ** 20"), code("x * x"), f"</think>\\boxed{{{2**40}}}"], ["", "1099511627776"], 1.0),
    "computes wrongly": ([code("x = 2 ** 20"), code("x + x"), "</think>\\boxed{2097152}"], ["", "2097152"], 0.0),
    "knows nothing of the others": ([code("x"), "</think>\\boxed{1}"], ["NameError: name 'x' is not defined"], 0.0),
    "needs no tool": ([f"</think>\\boxed{{{2**40}}}"], [], 1.0),
    "prints the answer": ([code(f"print(r'\\boxed{{{2**40}}}')"), "</think>There."], [f"\\boxed{{{2**40}}}"], 0.0),
    "mends its mistake": ([code("2 ** 'a'"), code("2 ** 40"), f"</think>\\boxed{{{2**40}}}"], ["TypeError", "1099511627776"], 1.0),
    "prints without end": ([code("print('x' * 10_000_000)"), f"</think>\\boxed{{{2**40}}}"], ["characters left out"], 1.0),
    "loops": ([code("y = 1\nwhile True: pass"), code("y"), "</think>\\boxed{0}"], ["at its limit of", "NameError: name 'y'"], 0.0),
    "leaves": ([code("y = 1\nexit()"), code("y"), "</think>\\boxed{0}"], ["has ended (exit status 0); all its names are lost", "NameError"], 0.0),
    "calls what there is not": (["</think>" + render_tool_call({"name": "bash", "arguments": {}}), "</think>\\boxed{0}"], ["no tool 'bash'"], 0.0),
    "says no code": (["</think>" + render_tool_call({"name": NAME, "arguments": {"text": "1"}}), "</think>\\boxed{0}"], ["needs code, a text"], 0.0),
    "speaks too often": ([code("1")], ["1"], 0.0),
}


def at_work():
    """Of each agent its rollout's end, its reward by the trainer's way, and what it was told; and the processes that are left."""
    from nemo_cascade.rollout.types import Group
    from nemo_cascade.sandbox import interpreter
    from nemo_cascade.stages.rewards import response_pair, said, verify_all
    from tests.rollout.test_agent import TOKENIZER, talked

    # Fewer are alive than conversations want to be.
    box = sandbox.get()
    box.probe()
    box.close()
    box._places.free = 3
    said_by = {f"{number:02x}": turns for number, (turns, *_) in enumerate(AGENTS.values())}
    sessions = {name: environments.session(ROW) for name in said_by}
    # Who loops without end is ended soon.
    looping = sessions[f"{list(AGENTS).index('loops'):02x}"].python
    looping._interpreter = box.interpreter(dataclasses.replace(interpreter.LIMITS, seconds=4.0))
    before = psutil.Process().children(recursive=True)
    turns = {(name, 0): said for name, said in said_by.items()}
    rollouts, _ = talked(turns, sessions, turns=4, tokens=40_000, timeout=600.0, max_new_tokens=400)
    told = verify_all([Group(ROW, "math", [rollout]) for rollout in rollouts], TOKENIZER)
    left = [process for process in psutil.Process().children(recursive=True) if process not in before and process.name() == "bwrap"]
    return [
        (
            rollout.finish_reason,
            verdict["reward"],
            [i["output"] for i in response_pair(ROW, *said(rollout, TOKENIZER))[1]["output"] if i["type"] == "function_call_output"],
        )
        for rollout, (verdict,) in zip(rollouts, told)
    ], (len(left), box._places.free, len(box._workers))


def test_scripted_agents_earn_exactly_their_reward_are_told_what_happened_and_leave_nothing():
    ((ended, left),) = run_distributed(at_work, 1)
    for (name, (_, told, reward)), (end, earned, heard) in zip(AGENTS.items(), ended, strict=True):
        assert earned == reward, (name, heard)
        assert end == ("turns" if name == "speaks too often" else "stop"), name
        if name == "speaks too often":
            told = told * 3
        assert len(heard) == len(told) and all(part in whole for part, whole in zip(told, heard)), (name, heard)
        assert max(map(len, heard), default=0) < 21_000
    assert left == (0, 3, 0)


def broken_off():
    """An engine that fails while one agent computes, one waits for its turn and one has done so: what is left."""
    from nemo_cascade.rollout.engine import EngineError
    from tests.rollout import test_agent

    class Failing(test_agent.Scripted):
        def step(self):
            if "03" in [request.prompt_id for request, _ in self.queue] and len(self.asked) > 4:
                raise EngineError("rank 0: out of memory")
            return super().step()

    box = sandbox.get()
    box.probe()
    box.close()
    box._places.free = 2
    test_agent.Scripted, scripted = Failing, test_agent.Scripted
    said = {("01", 0): [code("while True: pass")], ("02", 0): [code("1")], ("03", 0): [code("1"), code("2")]}
    try:
        test_agent.talked(said, {name: environments.session(ROW) for name, _ in said}, max_new_tokens=400)
    except EngineError as error:
        deadline = time.monotonic() + 30
        # A thread that was about to start one ends it itself.
        while box._workers and time.monotonic() < deadline:
            time.sleep(0.01)
        return str(error), box._places.free, len(box._workers)
    finally:
        test_agent.Scripted = scripted


def test_conversations_that_are_broken_off_end_their_interpreters():
    assert run_distributed(broken_off, 1) == [("rank 0: out of memory", 2, 0)]


def test_rows_of_gyms_ns_tools_are_taken_as_they_are_and_others_told():
    assert environment_of(ROW) == "math_with_python" and environments.row_problem(ROW) is None
    session = environments.session(ROW)
    assert session.tools == [DEFINITION] and session.max_steps == 50
    assert environments.reference(ROW) == f"\\boxed{{{2**40}}}"
    for row, told in (
        ({**ROW, "responses_create_params": {"input": "?"}}, "offers no tool; it must offer stateful_python_code_exec"),
        ({**ROW, "responses_create_params": {"input": "?", "tools": [DEFINITION, {**DEFINITION, "name": "search"}]}}, "'search'"),
        ({**ROW, "expected_answer": ""}, "no expected_answer"),
    ):
        assert told in environments.row_problem(row)
    assert environments.self_test("math_with_python") == []


def test_the_tool_has_the_name_the_parameter_and_the_limit_of_the_paper():
    assert NAME == "stateful_python_code_exec" and DEFINITION["name"] == NAME
    parameters = DEFINITION["parameters"]
    assert parameters["required"] == ["code"] and parameters["properties"]["code"]["type"] == "string"
    assert python_tool.LIMITS.seconds == 120.0 and "120 seconds" in DEFINITION["description"]


def test_where_programs_cannot_run_the_conversation_is_no_fault_of_its_model(monkeypatch):
    def none():
        raise sandbox.SandboxUnavailable("no isolation")

    monkeypatch.setattr(sandbox, "get", none)
    with pytest.raises(sandbox.SandboxError):
        math_with_python.session(ROW).call(NAME, {"code": "1"})
    monkeypatch.setattr(sandbox, "get", lambda: sandbox.RemoteSandbox("http://elsewhere:8700", token="secret"))
    with pytest.raises(sandbox.SandboxError, match="the sandbox at http://elsewhere:8700 cannot be reached"):
        environments.row_problem(ROW)


def test_gym_agents_have_an_interpreter_a_session_until_it_is_verified():
    from starlette.testclient import TestClient

    from nemo_cascade.environments.serve import application

    box = sandbox.get()
    with TestClient(application(["math_with_python"], workers=1)) as one:
        free = box._places.free
        other = TestClient(one.app)
        for client, value in ((one, 3), (other, 4)):
            assert client.post("/seed_session", json=ROW).status_code == 200
            client.post(f"/{NAME}", json={"code": f"x = {value}"})
        assert [client.post(f"/{NAME}", json={"code": "x"}).text for client in (one, other)] == ["3", "4"]
        assert box._places.free == free - 2
        reply = environments.response_of(f"\\boxed{{{2**40}}}", thinking=False)
        assert one.post("/verify", json={**ROW, "response": reply}).json()["reward"] == 1.0
        assert box._places.free == free - 1
    assert box._places.free == free, "the others end with the server"
