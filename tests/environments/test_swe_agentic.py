"""An agent with a shell and an editor earns exactly what its hidden tests say, and never sees them."""

import json

import pytest

from nemo_cascade import environments
from nemo_cascade.data.chat import render_tool_call
from nemo_cascade.data.rows import DataError
from nemo_cascade.environments.swe_agentic import ROOT, problem, session, verify
from nemo_cascade.environments.swe_agentic.editor import relative
from nemo_cascade.environments.swe_agentic.tools import DEFINITIONS
from tests.helpers import run_distributed

FILES = {
    "shop/__init__.py": "",
    "shop/prices.py": "def total(prices):\n    return sum(prices[1:])\n\n\ndef cheapest(prices):\n    return min(prices)\n",
    "tests/test_prices.py": "from shop.prices import cheapest\n\n\ndef test_cheapest():\n    assert cheapest([3, 2]) == 2\n",
    "README.md": "A shop.\n",
}
SECRET = "test_total_of_everything"
ROW = {
    "agent_ref": {"name": "swe_agentic_simple_agent"},
    "responses_create_params": {"input": "total leaves out the first price.", "tools": DEFINITIONS},
    "files": FILES,
    "runner": "pytest",
    "test_patch": "--- a/tests/test_prices.py\n+++ b/tests/test_prices.py\n@@ -1,5 +1,9 @@\n-from shop.prices import cheapest\n"
    f"+from shop.prices import cheapest, total\n+\n+\n+def {SECRET}():\n+    assert total([1, 2]) == 3\n \n \n def test_cheapest():\n"
    "     assert cheapest([3, 2]) == 2\n",
    "fail_to_pass": [f"tests/test_prices.py::{SECRET}"],
    "pass_to_pass": ["tests/test_prices.py::test_cheapest"],
}


def bash(command: str) -> tuple[str, dict]:
    return "execute_bash", {"command": command}


def edit(command: str, path: str = f"{ROOT}/shop/prices.py", **more) -> tuple[str, dict]:
    return "str_replace_editor", {"command": command, "path": path, **more}


RIGHT = edit("str_replace", old_str="prices[1:]", new_str="prices")
# What an agent does, turn by turn, and what it earns.
AGENTS = {
    "by the editor": ([bash("cat shop/prices.py && pytest -q"), RIGHT, ("finish", {"message": "done"})], 1.0),
    "by the shell, from another folder": ([bash("cd shop"), bash("sed -i 's/prices.1:./prices/' prices.py"), bash("git diff")], 1.0),
    "undone and done again": ([RIGHT, edit("undo_edit"), RIGHT], 1.0),
    "a new file beside it": ([bash("mkdir -p notes && echo x > notes/a.txt"), RIGHT], 1.0),
    "wrong": ([edit("str_replace", old_str="prices[1:]", new_str="prices[:-1]")], 0.0),
    "what passed fails": ([RIGHT, edit("str_replace", old_str="min(prices)", new_str="max(prices)")], 0.0),
    "only looks": ([bash("ls -R && cat tests/test_prices.py"), edit("view", path=ROOT)], 0.0),
    "undone": ([RIGHT, edit("undo_edit")], 0.0),
    "weakens the tests": ([bash("rm -r tests && mkdir tests && echo 'def test_total_of_everything(): pass' > tests/test_prices.py")], 0.0),
    "steers pytest": ([bash("printf 'def pytest_runtest_call(item):\\n    item.obj = lambda: None\\n' > conftest.py")], 0.0),
    "deletes all": ([bash(f"rm -rf {ROOT}/* ; ls")], 0.0),
    "calls what there is not": ([("open_browser", {}), ("execute_bash", {}), edit("grep"), edit("view", path="/etc/passwd")], 0.0),
    "says it is done": ([("finish", {}), RIGHT], 0.0),
}


def at_work():
    """Of each agent its rollout's end, its reward by the trainer's way, and all that it was ever shown."""
    from nemo_cascade.rollout.types import Group
    from nemo_cascade.stages.rewards import verify_all
    from tests.rollout.test_agent import TOKENIZER, talked

    said, sessions = {}, {}
    for number, (calls, _) in enumerate(AGENTS.values()):
        name = f"{number:02x}"
        turns = [f"</think>{render_tool_call({'name': tool, 'arguments': given})}" for tool, given in calls]
        said[name, 0], sessions[name] = [*turns, "</think>done"], environments.session(ROW)
    rollouts, _ = talked(said, sessions, tokens=50_000, max_new_tokens=2000)
    told = verify_all([Group(ROW, "swe", [rollout]) for rollout in rollouts], TOKENIZER)
    return [
        (rollout.finish_reason, rollout.info["turns"], verdict["reward"], TOKENIZER.decode(rollout.response))
        for rollout, (verdict,) in zip(rollouts, told)
    ]


def test_scripted_agents_of_known_skill_earn_exactly_their_reward_and_never_see_a_hidden_test():
    (told,) = run_distributed(at_work, 1)
    assert {name: reward for name, (_, _, reward, _) in zip(AGENTS, told)} == {name: reward for name, (_, reward) in AGENTS.items()}
    assert not any(SECRET in seen for name, (*_, seen) in zip(AGENTS, told) if name != "weakens the tests")
    ends = {name: turns for name, (_, turns, *_) in zip(AGENTS, told)}
    assert ends["by the editor"] == 3 and ends["says it is done"] == 1, "finish is the end"
    assert ends["undone and done again"] == 4


def test_a_reply_without_its_session_has_its_calls_made_again():
    calls = "\n".join(render_tool_call({"name": tool, "arguments": given}) for tool, given in (bash("ls"), RIGHT))
    assert verify(ROW, environments.response_of(calls, False))["reward"] == 1.0
    items = [{"type": "function_call", "name": RIGHT[0], "arguments": json.dumps(RIGHT[1])}]
    assert verify(ROW, {"output": items}) == {"reward": 1.0, "changed": True, "failed_tests": []}


def test_a_command_keeps_files_and_its_folder_and_nothing_else():
    work = session(ROW)

    def run(command):
        return work.call(*bash(command))

    assert run("cd shop && x=1 && echo $x") == "[exit status 0]\n1\n"
    assert run("pwd; echo [$x]; exit 3") == f"[exit status 3]\n{ROOT}/shop\n[]\n"
    assert run("sleep 100 & echo started").endswith("started\n")
    assert "cat: /etc/shadow" in run("cat /etc/shadow") and "test_cheapest" not in run("echo; ls ..")
    before = dict(work.files)
    assert run("head -c 300000000 /dev/zero > big").startswith("Error: nothing of what the command did to files is kept")
    # Together they have more than is allowed, while none is refused more: what is refused ends otherwise.
    large = "python -c 'x = bytearray(b\"x\") * 600_000_000; import time; time.sleep(100)' &"
    assert run(f"rm ../README.md; {large} {large} wait").startswith("Error: the command was ended at its limit of memory")
    assert work.files == before
    assert run("rm ../README.md; ln -s /etc/passwd link; printf '\\377' > bytes").startswith("[exit status 0]")
    assert work.outcome() == {"changed": {}, "deleted": ["README.md"]}


def test_the_editor_names_every_mistake():
    work = session(ROW)
    for (_, given), said in [
        (edit("view", path="../x"), "is not below"),
        (edit("view", path="shop"), f"{ROOT}/shop/prices.py"),
        (edit("view", path="nowhere"), "there is no"),
        (edit("view", view_range=[5, 6]), "     5\tdef cheapest(prices):\n     6\t    return min(prices)"),
        (edit("view", view_range="[2, -1]"), "     2\t"),
        (edit("view", view_range=[0, 1]), "view_range must be"),
        (edit("view", view_range=[90, 99]), "view_range must be"),
        (edit("create", path="shop", file_text=""), "is the folder of another"),
        (edit("create", path="README.md/a.py", file_text=""), "is the folder of another"),
        (edit("create", path="n" * 256, file_text=""), "no file can have this name"),
        (edit("create", path="\ud800.py", file_text=""), "no file can have this name"),
        (edit("create"), "needs a path of a file and file_text"),
        (edit("str_replace", old_str="prices", new_str=""), "4 times"),
        (edit("str_replace", old_str="absent", new_str=""), "0 times"),
        (edit("str_replace", old_str="", new_str=""), "needs old_str"),
        (edit("insert", insert_line=99, new_str="x"), "from 0 to 6"),
        (edit("insert", insert_line=0, new_str="# Prices."), "     1\t# Prices."),
        (edit("undo_edit"), "is as before"),
        (edit("undo_edit"), "no edit"),
        (edit("dance"), "none of view, create"),
    ]:
        assert said in work.call("str_replace_editor", given), given
    assert work.outcome() == {"changed": {}, "deleted": []}
    assert "no object" in work.call("str_replace_editor", "[1") and "no tool 'vim'" in work.call("vim", "{}")


@pytest.mark.parametrize(
    "path, inside",
    [(ROOT, ""), (f"{ROOT}/a/b", "a/b"), ("a//./b", "a/b"), ("/a", None), ("a/../../b", None), (f"{ROOT}x/a", None), (3, None), ("a\0", None)],
)
def test_a_path_of_the_editor_is_below_the_shells_folder_or_refused(path, inside):
    assert relative(path) == inside


@pytest.mark.parametrize(
    "without, said",
    [("files", "no files"), ("fail_to_pass", "no fail_to_pass"), ("responses_create_params", "offers no tool; it must offer some of execute_bash")],
)
def test_a_row_that_cannot_be_worked_on_is_told(without, said):
    assert problem(ROW) is None
    assert said in problem({key: value for key, value in ROW.items() if key != without})
    if without == "files":
        with pytest.raises((ValueError, DataError)):
            session({key: value for key, value in ROW.items() if key != without})
