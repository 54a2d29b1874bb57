"""The tools that a conversation may be given, by their names on the command line: those of our environments."""

from collections.abc import Callable

from nemo_cascade import sandbox
from nemo_cascade.data.rows import tools_of
from nemo_cascade.environments import math_with_python
from nemo_cascade.environments.python_tool import DEFINITION
from nemo_cascade.rollout.agent import Session

TOOLS: dict[str, Callable[[], Session]] = {"python": lambda: math_with_python.Session([DEFINITION])}


def trouble(name: str) -> str | None:
    """What keeps a tool from being used here."""
    if name not in TOOLS:
        return f"no tool {name!r}; there is {', '.join(TOOLS)}"
    try:
        sandbox.get().interpreter()
    except sandbox.SandboxError as error:
        return f"the tool {name} cannot be run: {error}"
    return None


def definitions(session: Session) -> list[dict] | None:
    """Its tools as the chat-completions API has them."""
    return tools_of({"tools": session.tools})
