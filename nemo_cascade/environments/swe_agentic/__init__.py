"""Repair of a repository by an agent with a shell and an editor, right when the hidden tests pass on what it leaves behind.

Row: files or a `repository`, fail_to_pass, pass_to_pass, `tests` or `test_patch`, as rows of `swe_repair` with tests have them. The
hidden tests come in only after the agent's last turn: neither its prompt nor its files ever have them, and files that are tests' or
steer pytest are put back before. Tools are `tools.DEFINITIONS`, by OpenHands' names.
"""

from nemo_cascade import sandbox
from nemo_cascade.data.chat import render_tool_call
from nemo_cascade.data.rows import tools_of
from nemo_cascade.environments.swe_agentic.editor import Editor
from nemo_cascade.environments.swe_agentic.shell import Shell
from nemo_cascade.environments.swe_agentic.tools import DEFINITIONS, NAMES, ROOT
from nemo_cascade.environments.swe_repair import hidden_tests
from nemo_cascade.environments.swe_repair.patches import Files
from nemo_cascade.environments.swe_repair.repository import files_of
from nemo_cascade.environments.tool_calls import arguments_of, calls_of

__all__ = ["DEFINITIONS", "EXAMPLES", "IN_THREADS", "MAX_STEPS", "REWARD_RANGE", "TIME_LIMIT", "Session", "problem", "session", "verify"]

REWARD_RANGE = (0.0, 1.0)
# Verifying waits for the sandbox.
IN_THREADS = True
# Hidden tests by pytest, after commands that are made again.
TIME_LIMIT = 600.0
# Turns of a rollout [Nemotron-Cascade 2, section 4.8.2].
MAX_STEPS = 200
# Calls of a reply that is verified without its session.
MAX_CALLS = 50


class Session:
    """An agent at work on a row's files. finished: whether it has said that it is done."""

    def __init__(self, row: dict, max_steps: int = MAX_STEPS):
        self.tools, self.max_steps, self.finished = DEFINITIONS, max_steps, False
        self.before = files_of(row)
        self.files = dict(self.before)
        self.shell, self.editor = Shell(self.files), Editor(self.files)

    def call(self, name: str, arguments: dict | str) -> str:
        """What a tool says; errors are said too. Raises SandboxError where the sandbox fails."""
        given = arguments_of(arguments)
        if given is None:
            return "Error: the arguments are no object"
        if name == "execute_bash":
            command = given.get("command")
            return self.shell.run(command) if isinstance(command, str) else "Error: execute_bash needs a command, a text"
        if name == "str_replace_editor":
            return self.editor.edit(given)
        if name == "finish":
            self.finished = True
            return "finished"
        return f"Error: there is no tool {name!r}; there are {', '.join(NAMES)}"

    def outcome(self) -> dict:
        """What `verify` judges: {"changed": {path: text}, "deleted": [path, ...]}."""
        changed = {path: text for path, text in self.files.items() if self.before.get(path) != text}
        return {"changed": changed, "deleted": sorted(self.before.keys() - self.files.keys())}


def session(row: dict) -> Session:
    """A fresh session. Raises ValueError for a row without files."""
    return Session(row)


def problem(row: dict) -> str | None:
    """What keeps the row from being verified. Raises SandboxUnavailable where no program can be run."""
    try:
        told = hidden_tests.problem(row, files_of(row))
    except ValueError as error:
        return str(error)
    offered = [tool["function"].get("name") for tool in tools_of(row) or []]
    unknown = [name for name in offered if name not in NAMES]
    if told is None and (unknown or not offered):
        told = f"responses_create_params.tools offers {', '.join(map(repr, unknown)) or 'no tool'}; it must offer some of {', '.join(NAMES)}"
    if told is None:
        sandbox.get().probe()
    return told


def verify(row: dict, response: dict) -> dict:
    """{"reward": 1.0 or 0.0, "changed": bool, "failed_tests": [name, ...]}: whether all hidden tests pass on the files that were left.

    The files are those of the response's `outcome`, which a rollout with turns has; else the calls of the response are made.
    """
    outcome = response.get("outcome")
    if outcome is None:
        work = session(row)
        for call in (calls_of(response, DEFINITIONS) or [])[:MAX_CALLS]:
            work.call(call["name"], call["arguments"])
        outcome = work.outcome()
    before = files_of(row)
    if not outcome["changed"] and not outcome["deleted"]:
        return {"reward": 0.0, "changed": False, "failed_tests": hidden_tests.names_of(row)[0]}
    failed = hidden_tests.failed(row, before, _after(before, outcome))
    return {"reward": float(not failed), "changed": True, "failed_tests": failed}


def _after(before: Files, outcome: dict) -> Files:
    deleted = set(outcome["deleted"])
    return {path: text for path, text in before.items() if path not in deleted} | outcome["changed"]


# ----------------------------------------------------------------------------------------------------- examples

_ADD = {
    "responses_create_params": {"tools": DEFINITIONS},
    "files": {"sums.py": "def add(a, b):\n    return a - b\n\ndef one():\n    return 1\n"},
    "tests": {
        "test_sums.py": "from sums import add, one\n"
        "def test_add():\n    assert add(2, 3) == 5\ndef test_one():\n    assert one() == 1\n"
    },
    "fail_to_pass": ["test_sums.py::test_add"],
    "pass_to_pass": ["test_sums.py::test_one"],
}


def _edit(old: str, new: str) -> str:
    arguments = {"command": "str_replace", "path": f"{ROOT}/sums.py", "old_str": old, "new_str": new}
    return render_tool_call({"name": "str_replace_editor", "arguments": arguments})


def _bash(command: str) -> str:
    return render_tool_call({"name": "execute_bash", "arguments": {"command": command}})


EXAMPLES = [
    (_ADD, _edit("a - b", "a + b"), 1.0),
    (_ADD, _bash("sed -i 's/a - b/a + b/' sums.py && python -c 'import sums; print(sums.add(1, 1))'"), 1.0),
    (_ADD, _edit("a - b", "a * b"), 0.0),
    (_ADD, _bash("echo 'def test_add(): pass' > test_sums.py"), 0.0),
    (_ADD, "It is mended.", 0.0),
]
