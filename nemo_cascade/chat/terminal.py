"""A conversation in a terminal, or over a pipe with a line for each turn.

Thoughts are dim, answers plain. Ctrl-C ends an answer, and at the prompt the program; so does Ctrl-D.
"""

import contextlib
import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from nemo_cascade.chat.conversation import Conversation
from nemo_cascade.chat.tools import TOOLS, definitions, trouble
from nemo_cascade.chat.turns import Called, ChatError, Ended, Event, Model, Said, Settings, Thought, Told
from nemo_cascade.data.files import write_atomically

PROMPT = "> "
# What would move the cursor or change its colours, were it printed as a model wrote it.
CONTROL = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], "\N{REPLACEMENT CHARACTER}") | {ord("\n"): "\n", ord("\t"): "\t"}
TOOL_LINES = 20
ENDINGS = {"length": "cut off at its longest", "turns": "it may make no more calls"}


class Terminal:
    """`run` until the user ends it."""

    def __init__(self, model: Model, settings: Settings, tools: str | None, system: str, console: Console):
        self.settings, self.tools, self.system, self.console = settings, tools, system, console
        self.model = model
        self._begin()
        self.commands = {
            "think": (self._think, "on|off"),
            "budget": (self._budget, "N|off"),
            "tools": (self._tools, f"[{'|'.join(TOOLS)}|off]"),
            "system": (self._system, "[TEXT]"),
            "reset": (self._reset, ""),
            "save": (self._save, "FILE"),
            "help": (self._help, ""),
            "quit": (self._quit, ""),
        }

    def run(self) -> None:
        """Raises nothing: whatever ends it was the user's wish."""
        self.going = True
        asked = PROMPT if sys.stdin.isatty() else ""
        try:
            while self.going:
                line = input(asked).strip()
                if line.startswith("/"):
                    self._command(line)
                elif line:
                    self._answer(line)
        except (KeyboardInterrupt, EOFError):
            self.console.print()
        finally:
            self.talk.close()

    def _answer(self, text: str) -> None:
        shown: type | None = None
        try:
            with contextlib.closing(self.talk.answer(text, self.settings)) as events:
                for event in events:
                    self._show(event, shown)
                    shown = type(event)
        except KeyboardInterrupt:
            self._note("\n(broken off)")
        except ChatError as error:
            self._note(f"\n{error}", "red")

    def _show(self, event: Event, before: type | None) -> None:
        gap = "" if before in (None, type(event)) else "\n"
        match event:
            case Thought(text):
                self._print(gap + text, "dim")
            case Said(text):
                self._print(gap + text)
            case Called(_, name, arguments):
                self._note(f"{gap}{name}({shown(arguments)})", "cyan")
            case Told(_, text):
                lines = text.splitlines()
                more = [f"... {len(lines) - TOOL_LINES} lines more"] if len(lines) > TOOL_LINES else []
                self._note("\n".join([*lines[:TOOL_LINES], *more]), "green")
            case Ended(reason):
                self._note(f"\n({ENDINGS[reason]})" if reason in ENDINGS else "")

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text.translate(CONTROL), style=style, end="", markup=False, highlight=False, soft_wrap=True)

    def _note(self, text: str, style: str | None = "dim") -> None:
        self._print(text + "\n", style)

    # ------------------------------------------------------------------------------------------------ commands

    def _command(self, line: str) -> None:
        name, _, rest = line[1:].partition(" ")
        if name not in self.commands:
            self._note(f"no command /{name}; /help lists them", "red")
            return
        try:
            self.commands[name][0](rest.strip())
        except (ValueError, OSError) as error:
            self._note(f"/{name}: {error}", "red")

    def _think(self, given: str) -> None:
        if given not in ("on", "off"):
            raise ValueError("on or off")
        self._change(thinking=given == "on")

    def _budget(self, given: str) -> None:
        if given != "off" and not given.isdecimal():
            raise ValueError("a number of tokens, or off")
        self._change(budget=None if given == "off" else int(given))

    def _change(self, **changes) -> None:
        self.settings = dataclasses.replace(self.settings, **changes)
        self._note(", ".join(f"{name}: {value}" for name, value in changes.items()))

    def _tools(self, given: str) -> None:
        if given:
            problem = None if given == "off" else trouble(given)
            if problem:
                raise ValueError(problem)
            self.tools = None if given == "off" else given
            self.talk.close()
            self.talk.open_tools = TOOLS.get(self.tools)
        self._note(f"tools: {self.tools or 'off'}")

    def _system(self, given: str) -> None:
        """The conversation goes on under it."""
        had = bool(self.system)
        self.system = given
        self.talk.messages[: int(had)] = self._opening()
        self._note(f"system prompt: {given or 'none'}")

    def _reset(self, given: str) -> None:
        self.talk.close()
        self._begin()
        self._note("a new conversation")

    def _save(self, given: str) -> None:
        if not given:
            raise ValueError("name a file")
        session = TOOLS[self.tools]() if self.tools else None
        kept = [{key: value for key, value in message.items() if key != "tokens"} for message in self.talk.messages]
        row = {"messages": kept} | ({"tools": definitions(session)} if session else {})
        write_atomically(Path(given).expanduser(), json.dumps(row, ensure_ascii=False) + "\n")
        self._note(f"written: {given}, a row as SFT takes it")

    def _help(self, given: str) -> None:
        self._note("\n".join(f"/{name} {arguments}".rstrip() for name, (_, arguments) in self.commands.items()))

    def _quit(self, given: str) -> None:
        self.going = False

    def _begin(self) -> None:
        self.talk = Conversation(self.model, TOOLS.get(self.tools), self._opening())

    def _opening(self) -> list[dict]:
        return [{"role": "system", "content": self.system}] if self.system else []


def shown(arguments: dict) -> str:
    """A call's arguments as they are read best: one text, such as code, alone."""
    match [*arguments.values()]:
        case [str(text)]:
            return text
    return json.dumps(arguments, ensure_ascii=False, indent=2)


def chat(
    weights: Annotated[Optional[Path], typer.Argument(help="A step_N of a stage, or a Hugging Face folder")] = None,
    overrides: Annotated[Optional[list[str]], typer.Argument(metavar="[KEY=VALUE]...", help="Keys of policy")] = None,
    endpoint: Annotated[Optional[str], typer.Option(help="An OpenAI-compatible URL instead; ends in /v1 as a rule")] = None,
    model: Annotated[Optional[str], typer.Option(help="The endpoint's name of the model, where it has several")] = None,
    key_env: Annotated[Optional[str], typer.Option(help="The variable that has the endpoint's key")] = None,
    think: Annotated[bool, typer.Option(help="Whether it thinks before it answers")] = True,
    budget: Annotated[Optional[int], typer.Option(min=0, help="Tokens of a thought, after which the answer follows")] = None,
    tools: Annotated[Optional[str], typer.Option(help=f"What it may use: {', '.join(TOOLS)}")] = None,
    system: Annotated[str, typer.Option(help="The system prompt")] = "",
    temperature: Annotated[float, typer.Option(min=0.0)] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.95,
    max_tokens: Annotated[Optional[int], typer.Option(min=1, help="Of a turn, its thought included")] = None,
    seed: Annotated[Optional[int], typer.Option(help="The same words to the same; without it others each time")] = None,
) -> None:
    """Talk to a model.

    Ctrl-C ends an answer; at the prompt it ends the program, as Ctrl-D does. /help lists commands.
    """
    from nemo_cascade.cascade.cli import quiet_logs, refuse
    from nemo_cascade.cascade.plan import RunRefused

    if (weights is None) == (endpoint is None):
        refuse(["name either a checkpoint or Hugging Face folder, or --endpoint URL"])
    if tools and (problem := trouble(tools)):
        refuse([f"--tools: {problem}"])
    quiet_logs()
    # A background job of a shell ignores it, and what a terminal starts from there does too.
    if sys.stdin.isatty():
        import readline  # noqa: F401 - input() edits lines and has a history with it

        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings = Settings(think, budget, temperature, top_p, max_tokens, seed)
    try:
        talker = _opened(weights, overrides or [], endpoint, model, key_env)
    except (RunRefused, ChatError) as error:
        refuse(str(error).splitlines())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    console = Console(highlight=False)
    console.print(f"{talker.name}. /help lists commands.", style="dim", markup=False)
    try:
        Terminal(talker, settings, tools, system, console).run()
    finally:
        talker.close()


def _opened(weights: Path | None, overrides: list[str], endpoint: str | None, model: str | None, key_env: str | None) -> Model:
    if endpoint is not None:
        from nemo_cascade.chat.endpoint import Served

        return Served(endpoint, model, key_env)
    # Imported late: megatron-core takes seconds, and a typo should not have to wait for it.
    from nemo_cascade.chat.embedded import opened

    return opened(weights, overrides)
