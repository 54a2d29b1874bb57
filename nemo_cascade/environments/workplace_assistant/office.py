"""One office at work: the databases as one session sees them, and the tools on them."""

import json

from nemo_cascade.environments.workplace_assistant import customers, directory, emails, events, tasks, visits
from nemo_cascade.environments.workplace_assistant.data import Databases
from nemo_cascade.environments.workplace_assistant.search import Refused
from nemo_cascade.environments.workplace_assistant.table import Table

TOOLS = directory.TOOLS | emails.TOOLS | events.TOOLS | visits.TOOLS | tasks.TOOLS | customers.TOOLS
# Longer than anything that people write into one field; a session keeps what it is given.
MAX_TEXT = 20_000


class CannotRun(Exception):
    """A call that is none of a tool's: no such tool, other parameters, values of another kind."""


class Office:
    """Five databases and an address book. What one office does, no other sees."""

    def __init__(self, data: Databases):
        self.directory, self.visits = data.directory, data.visits
        self.emails = Table(emails.COLUMNS, data.emails)
        self.events = Table(events.COLUMNS, data.events)
        self.tasks = Table(tasks.COLUMNS, data.tasks)
        self.customers = Table(customers.COLUMNS, data.customers)
        self.plots = Table(visits.PLOT_COLUMNS)

    def run(self, name, arguments, null_is_absent: bool = False):
        """What a tool gives for arguments ({parameter: value} or its JSON text): a text, a list or a dict.

        Raises Refused or CannotRun, and nothing else, whatever it is asked.
        """
        try:
            if not isinstance(name, str) or name not in TOOLS:
                raise CannotRun(f"there is no tool {str(name)[:100]!r}")
            given = read_arguments(name, arguments)
            if null_is_absent:
                given = {parameter: value for parameter, value in given.items() if value is not None}
            return TOOLS[name](self, **given)
        except (Refused, CannotRun):
            raise
        except Exception as error:  # A model may ask for anything, and one bad call must not end a training run.
            raise CannotRun(f"{name} cannot be run: {error}") from error

    def answer(self, name, arguments, null_is_absent: bool = False) -> tuple[str, bool]:
        """(what the model is told, whether the tool did it): JSON as Gym's server sends it. Never raises."""
        try:
            output, done = self.run(name, arguments, null_is_absent), True
        except Refused as refusal:
            output, done = str(refusal), False
        except CannotRun as error:
            output, done = f"Error: {error}", False
        text = json.dumps({"output": output}, ensure_ascii=False, separators=(",", ":"))
        # A lone surrogate in what the model wrote would break whoever encodes its tool's answer.
        return text.encode("utf-8", "replace").decode("utf-8"), done

    def same(self, other: "Office") -> bool:
        """Whether both are in the same state."""
        return all(getattr(self, name).same(getattr(other, name)) for name in ("emails", "events", "tasks", "customers", "plots"))


def read_arguments(name: str, arguments) -> dict:
    """Arguments as {parameter: text, number, true, false or None}. Raises CannotRun or ValueError for anything else."""
    if isinstance(arguments, str):
        if len(arguments) > 10 * MAX_TEXT:
            raise CannotRun(f"the arguments of {name} are too long")
        arguments = json.loads(arguments, parse_constant=_no_constant)
    if not isinstance(arguments, dict):
        raise CannotRun(f"{name} needs an object of named arguments")
    for parameter, value in arguments.items():
        if isinstance(value, (list, dict)) or len(str(value)) > MAX_TEXT:
            raise CannotRun(f"{str(parameter)[:100]} must be one value, at most {MAX_TEXT} characters long")
    return arguments


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON")
