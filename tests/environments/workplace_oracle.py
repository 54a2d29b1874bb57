"""Gym's side: python workplace_oracle.py WHEEL CSV_FOLDER < calls.json > answers.json, in a Python that has pandas.

Reads {"sequences": [[call, ...], ...], "pairs": [[predicted, expected], ...]}. Writes for each sequence the form of every
answer and of the final state, and for each pair Gym's verdict and whether the final states hold equal records.
"""

import json
import sys
import tempfile
import warnings
import zipfile
from functools import cache
from pathlib import Path

import pandas as pd

from workplace_calls import answer_form, state_form

TOOLKITS = ["email", "calendar", "analytics", "project_management", "customer_relationship_manager"]
HELD = {
    "emails": ("email", "_emails"),
    "events": ("calendar", "_calendar_events"),
    "tasks": ("project_management", "_project_tasks"),
    "customers": ("customer_relationship_manager", "_crm_data"),
    "plots": ("analytics", "_plots_data"),
}
# A cell left empty by the session's own new record makes a later search fail in Gym; there the two differ knowingly.
EMPTY_CELL = (
    "Cannot mask with non-boolean array",
    "'>=' not supported between instances of 'NoneType'",
    "'<=' not supported between instances of 'NoneType'",
)


def main(wheel: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    asked = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as code:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(
                code, [name for name in archive.namelist() if name.startswith("resources_servers/workplace_assistant/")]
            )
        sys.path.insert(0, code)
        read_from(Path(folder))
        from resources_servers.workplace_assistant import utils

        utils.print = lambda *_: None
        base = Base(utils.get_tools(TOOLKITS))
        sequences = [sequence(utils, calls, base) for calls in asked["sequences"]]
        pairs = [pair(utils, predicted, expected, base) for predicted, expected in asked["pairs"]]
    json.dump({"sequences": sequences, "pairs": pairs}, sys.stdout)


def read_from(folder: Path) -> None:
    """Makes Gym read its tables from the folder, once each, and sort by time in a way that does not depend on the machine."""
    read, sort = pd.read_csv, pd.DataFrame.sort_values

    @cache
    def table(name, options):
        return read(folder / name, **json.loads(options))

    def read_csv(path, dtype=None, **options):
        if dtype:
            options["dtype"] = "str"
        return table("/".join(Path(path).parts[-2:]), json.dumps(options)).copy()

    pd.read_csv = read_csv
    pd.DataFrame.sort_values = lambda self, *arguments, **options: sort(self, *arguments, **{**options, "kind": "stable"})


def records(frame) -> list[dict]:
    return frame.to_dict(orient="records")


class Base:
    """The tables before anything is done, and what another environment holds: the very same records where nothing was."""

    def __init__(self, env: dict):
        self.frames = {name: getattr(env["containers"][part], at).copy() for name, (part, at) in HELD.items()}
        self.records = {name: records(frame) for name, frame in self.frames.items()}

    def held(self, env: dict) -> dict[str, list[dict]]:
        now = {name: getattr(env["containers"][part], at) for name, (part, at) in HELD.items()}
        return {name: self.records[name] if frame.equals(self.frames[name]) else records(frame) for name, frame in now.items()}


def sequence(utils, calls: list[dict], base: Base) -> dict:
    """As its server answers an agent: a parameter given as null is left out, whatever is raised becomes a text."""
    env, forms = utils.get_tools(TOOLKITS), []
    for call in calls:
        try:
            given = {key: value for key, value in call["arguments"].items() if value is not None}
            output = env["functions"][call["name"]](**given)
        except Exception as error:
            output = f"Error: {error}"
        failed = isinstance(output, str) and output.startswith("Error")
        if failed:
            forms.append(["skipped" if any(text in output for text in EMPTY_CELL) else "error", output])
        else:
            forms.append(answer_form(output))
    return {"answers": forms, "state": state_form(base.held(env), base.records)}


def pair(utils, predicted: list[dict], expected: list[dict], base: Base) -> dict:
    texts = [[{**call, "arguments": json.dumps(call["arguments"])} for call in calls] for calls in (predicted, expected)]
    states = [state_form(base.held(utils.execute_actions_and_reset_state(calls)), base.records, compared=True) for calls in texts]
    return {"verdict": bool(utils.is_correct(*texts, None)), "equal": states[0] == states[1]}


if __name__ == "__main__":
    main(*sys.argv[1:])
