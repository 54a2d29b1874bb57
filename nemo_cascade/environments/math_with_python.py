"""Math with a stateful Python to compute with [Nemotron-Cascade 2, appendix]: rows and rewards of `math`, and the tool.

Row: `expected_answer` and `responses_create_params.tools`, which offers `stateful_python_code_exec`, as rows of NeMo Gym's ns_tools do.
As there, all that the model says to its user counts, what its code prints does not.
"""

from nemo_cascade import sandbox
from nemo_cascade.data.chat import parse_reply, render_tool_call
from nemo_cascade.data.rows import tools_of
from nemo_cascade.environments import math
from nemo_cascade.environments.math import judged, question, reference, usable, warm_up
from nemo_cascade.environments.python_tool import DEFINITION, NAME, PythonTool
from nemo_cascade.environments.response import response_of, text_of

__all__ = [
    "EXAMPLES",
    "MAX_STEPS",
    "REWARD_RANGE",
    "Session",
    "judged",
    "problem",
    "question",
    "reference",
    "session",
    "usable",
    "verify",
    "warm_up",
]

REWARD_RANGE = math.REWARD_RANGE
# Times a model may speak in one session [NeMo Gym, configs/ns_tools.yaml].
MAX_STEPS = 50


class Session:
    """A conversation with a Python of its own."""

    def __init__(self, tools: list[dict], max_steps: int = MAX_STEPS):
        self.tools, self.max_steps, self.python = tools, max_steps, PythonTool()

    def prepare(self, wait: bool = True) -> bool:
        return self.python.prepare(wait)

    def call(self, name: str, arguments: dict | str) -> str:
        """What the tool says; errors are said too. Raises SandboxError where the sandbox fails."""
        return self.python.call(arguments) if name == NAME else f"Error: there is no tool {name!r}; there is {NAME}"

    def close(self) -> None:
        self.python.close()


def session(row: dict) -> Session:
    """A fresh session, with the tool as the row describes it."""
    return Session(row.get("responses_create_params", {}).get("tools") or [DEFINITION])


def verify(row: dict, response: dict) -> dict:
    """As `math.verify`. A call that stands in a message, because nobody made it, is no answer either."""
    text = text_of(response)
    if "<tool_call>" in text:
        response = response_of(parse_reply(text)["content"], thinking=False)
    return math.verify(row, response)


def problem(row: dict) -> str | None:
    """What keeps the row from being verified. Raises SandboxUnavailable where no program can be run."""
    offered = [tool["function"].get("name") for tool in tools_of(row) or []]
    if offered != [NAME]:
        return f"responses_create_params.tools offers {', '.join(map(repr, offered)) or 'no tool'}; it must offer {NAME} and nothing else"
    told = math.problem(row)
    if told is None:
        sandbox.get().interpreter()
    return told


# ----------------------------------------------------------------------------------------------------- examples

_ROW = {
    "responses_create_params": {"tools": [DEFINITION]},
    "question": "How much is 2 to the power of 40?",
    "expected_answer": "1099511627776",
}
_CALL = render_tool_call({"name": NAME, "arguments": {"code": "2 ** 40"}})
EXAMPLES = [
    (_ROW, "It is \\boxed{1099511627776}.", 1.0),
    (_ROW, "\\boxed{1099511627775}", 0.0),
    # A call is no answer.
    (_ROW, _CALL, 0.0),
]
