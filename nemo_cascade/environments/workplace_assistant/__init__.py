"""Workplace assistant: a request in plain English, 27 tools on five databases, right when the databases end as they should.

After NeMo Gym's environment of that name, itself after WorkBench. Row: `ground_truth` [{"name", "arguments" (JSON text)}, ...],
`responses_create_params.tools`, and `workplace_data`, which names the data that the calls are for ("generated", or a folder
of CSV files laid out as Gym's csv_data). Gym's own rows do not name theirs: set NEMO_CASCADE_WORKPLACE_DATA for them.

`verify` judges a whole rollout; `session` lets an agent loop make calls and see what they say.
"""

import json
from dataclasses import dataclass, field

from nemo_cascade.data.chat import render_tool_call
from nemo_cascade.data.rows import DataError, tools_of
from nemo_cascade.environments.tool_calls import calls_of
from nemo_cascade.environments.workplace_assistant.data import GENERATED, ROW_KEY, VARIABLE, databases, source_of
from nemo_cascade.environments.workplace_assistant.definitions import DEFINITIONS
from nemo_cascade.environments.workplace_assistant.office import TOOLS, Office

REWARD_RANGE = (0.0, 1.0)
# Times a model may speak in one session [NeMo Gym, configs/workplace_assistant.yaml].
MAX_STEPS = 6
# No request needs so many calls; a reply of thousands would only take time.
MAX_CALLS = 128
# Of what a call says, so much is kept with a verdict: a search may give a whole database.
MAX_RESULT = 1000

__all__ = ["DEFINITIONS", "EXAMPLES", "MAX_CALLS", "MAX_STEPS", "REWARD_RANGE", "Session", "problem", "session", "verify"]


@dataclass
class Session:
    """A model at work on a row's request, in an office of its own."""

    office: Office
    tools: list[dict]
    max_steps: int = MAX_STEPS
    calls: int = field(default=0, init=False)

    def call(self, name: str, arguments: dict | str) -> str:
        """What a tool says (JSON text, "output" in it); errors are said too, so that the model can try again. Never raises."""
        self.calls += 1
        if self.calls > MAX_CALLS:
            return json.dumps({"output": f"Error: a session ends after {MAX_CALLS} calls"})
        # A parameter given as null is one not given. Only here, because only in a session does Gym read it so.
        return self.office.answer(name, arguments, null_is_absent=True)[0]


def session(row: dict) -> Session:
    """A fresh session on the row's data, with the tools that the row offers. Raises DataError when the data cannot be read."""
    return Session(fresh_office(row), row.get("responses_create_params", {}).get("tools") or DEFINITIONS)


def verify(row: dict, response: dict) -> dict:
    """{"reward": 1.0 or 0.0, "results": [what each call said]}: whether the calls leave the state that the expected ones leave.

    A response without an answer earns 0 even where there is nothing to do, and so does one of too many calls.
    """
    calls = calls_of(response, tools_of(row) or DEFINITIONS)
    if calls is None:
        return {"reward": 0.0, "results": []}
    if len(calls) > MAX_CALLS:
        return {"reward": 0.0, "results": [f"Error: {len(calls)} calls, but at most {MAX_CALLS} are made"]}
    state, results = replay(row, calls)
    expected, _ = replay(row, row["ground_truth"])
    return {"reward": float(state.same(expected)), "results": [text[:MAX_RESULT] for text, _ in results]}


def replay(row: dict, calls: list[dict]) -> tuple[Office, list[tuple[str, bool]]]:
    """The office after calls ({"name", "arguments"}), and of each what it said and whether it was done."""
    office = fresh_office(row)
    return office, [office.answer(call["name"], call["arguments"]) for call in calls]


def fresh_office(row: dict) -> Office:
    return Office(databases(source_of(row) or GENERATED))


def problem(row: dict) -> str | None:
    """What keeps the row from being verified, or makes its reward mean nothing."""
    calls = row.get("ground_truth")
    if not isinstance(calls, list) or not all(map(_is_call, calls)):
        return "no ground_truth (a list of {name, arguments}, empty when nothing is to be done)"
    if len(calls) > MAX_CALLS:
        return f"ground_truth has {len(calls)} calls; at most {MAX_CALLS} are made"
    unknown = [name for name in _offered(row) if name not in TOOLS]
    if unknown or not _offered(row):
        offered = ", ".join(map(repr, unknown)) if unknown else "no tool"
        some = ", ".join(sorted(TOOLS)[:3])
        return f"responses_create_params.tools offers {offered}; it must offer some of the {len(TOOLS)} tools there are: {some}, ..."
    if source_of(row) is None:
        return f"nothing says which data its calls are for: set {VARIABLE} to their folder, or the row's {ROW_KEY}"
    try:
        office, results = replay(row, calls)
    except DataError as error:
        return str(error)
    failed = [(call, said) for call, (said, done) in zip(calls, results) if not done]
    if failed:
        (call, said), *_ = failed
        return (
            f"a call of ground_truth fails, {call['name']}: {said[:200]}; are {source_of(row)} its data ({ROW_KEY}, {VARIABLE})?"
        )
    if calls and office.same(fresh_office(row)):
        return "the calls of ground_truth change nothing, so that silence would be right; leave it empty if that is meant"
    return None


def _is_call(value) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("arguments"), (str, dict))


def _offered(row: dict) -> list:
    return [tool["function"].get("name") for tool in tools_of(row) or []]


# ----------------------------------------------------------------------------------------------------- examples


def _call(name: str, /, **arguments) -> str:
    return render_tool_call({"name": name, "arguments": arguments})


def _row(*calls: tuple[str, dict]) -> dict:
    expected = [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in calls]
    return {"responses_create_params": {"tools": DEFINITIONS}, "ground_truth": expected, ROW_KEY: GENERATED}


_LUNCH = {"recipient": "ines.bergqvist@fernhill.example", "subject": "Lunch", "body": "At noon?"}
_SEND = _row(("email_send_email", _LUNCH))
_TASK = {"list_name": "Backlog", "due_date": "2023-12-04", "board": "Design"}
_CREATE = _row(
    (
        "project_management_create_task",
        {"task_name": "Draw icons", "assigned_to_email": "hana.kowalczyk@fernhill.example"} | _TASK,
    )
)
_NOTHING = _row()
_SENT = _call("email_send_email", **_LUNCH)
_LOOKED_UP = _call("company_directory_find_email_address", name="Ines")
EXAMPLES = [
    (_SEND, _SENT, 1.0),
    (_SEND, _LOOKED_UP + "\n" + _SENT, 1.0),
    (_SEND, _call("email_send_email", **_LUNCH | {"recipient": "Ines.Bergqvist@fernhill.example", "body": "at NOON?"}), 1.0),
    (_SEND, _call("email_send_email", recipient="Ines", subject="Lunch", body="At noon?") + _SENT, 1.0),
    (_SEND, _SENT + "\n<tool_call>\nnot a call", 1.0),
    (_SEND, _SENT + _SENT, 0.0),
    (_SEND, _call("email_send_email", **_LUNCH | {"body": "At noon"}), 0.0),
    (_SEND, _LOOKED_UP, 0.0),
    (_SEND, "The e-mail is sent.", 0.0),
    (
        _CREATE,
        _call(
            "project_management_create_task", task_name="draw icons", assigned_to_email="Hana.Kowalczyk@fernhill.example", **_TASK
        ),
        1.0,
    ),
    (
        _CREATE,
        _call("project_management_create_task", task_name="Draw icons", assigned_to_email="hana@fernhill.example", **_TASK),
        0.0,
    ),
    (_NOTHING, "There is nothing to do.", 1.0),
    (_NOTHING, _LOOKED_UP, 1.0),
    (_NOTHING, _SENT, 0.0),
]
