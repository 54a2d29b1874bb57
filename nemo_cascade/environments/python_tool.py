"""A stateful Python as a tool: `stateful_python_code_exec`, by the name and the schema of Nemotron-Cascade 2 and of NeMo Gym's ns_tools.

An environment whose rows offer it hands calls on to `PythonTool`, one a conversation, and closes it at the end. No process is there
before the first call; all are in the sandbox (`sandbox.interpreter`).
"""

from nemo_cascade import sandbox
from nemo_cascade.environments.tool_calls import arguments_of
from nemo_cascade.sandbox.interpreter import LIMITS, Cell

NAME = "stateful_python_code_exec"
DEFINITION = {
    "type": "function",
    "name": NAME,
    "description": "Runs Python code in an interpreter that keeps its names from call to call, as a notebook does. Gives what the code "
    f"prints and what its last line comes to. A call may take {LIMITS.seconds:g} seconds. sympy is there, a network is not.",
    "parameters": {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "Code to execute"}},
        "required": ["code"],
    },
}


class PythonTool:
    """The tool of one conversation."""

    def __init__(self):
        self._interpreter, self._closed = None, False

    def prepare(self, wait: bool = True) -> bool:
        """Takes one of the places for interpreters, of which there are so many (`sandbox.interpreter.ALIVE`), or waits for it.

        False where it may not wait and there is none. Raises SandboxError where none can be run, and when it is closed."""
        if self._interpreter is None:
            self._interpreter = sandbox.get().interpreter()
        # Another thread may have been before it was there.
        if self._closed:
            self._interpreter.close()
        return self._interpreter.begin(wait)

    def call(self, arguments: dict | str) -> str:
        """What the tool says; errors are said too. Raises SandboxError where the sandbox fails, which is nothing of the code's doing."""
        code = (arguments_of(arguments) or {}).get("code")
        if not isinstance(code, str):
            return f"Error: {NAME} needs code, a text"
        self.prepare()
        return said(self._interpreter.run(code))

    def close(self) -> None:
        """Ends it, also in the middle of a call; nothing where it was never called."""
        self._closed = True
        if self._interpreter is not None:
            self._interpreter.close()


def said(cell: Cell) -> str:
    """What a model is told of a call."""
    output = cell.output.rstrip("\n")
    if cell.status is None:
        return output
    if cell.limit == "seconds":
        how = f"The call was ended at its limit of {LIMITS.seconds:g} seconds"
    elif cell.limit is not None:
        how = f"The call was ended at its limit of {cell.limit}"
    else:
        how = f"The interpreter has ended (exit status {cell.status})"
    return f"{output}\n{how}; all its names are lost, and the next call begins a new one".lstrip("\n")
