"""The five databases and the address book as they are before anybody does anything.

A folder of them is laid out as Gym's `csv_data` is, so that its data serve here and ours there.
"""

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nemo_cascade.data.rows import DataError
from nemo_cascade.environments.workplace_assistant import customers, emails, events, tasks, visits
from nemo_cascade.environments.workplace_assistant.generated import generate
from nemo_cascade.environments.workplace_assistant.table import Row

# Which data a row's calls are for: the row's own key, else this variable of the environment, else what we generate.
ROW_KEY, VARIABLE, GENERATED = "workplace_data", "NEMO_CASCADE_WORKPLACE_DATA", "generated"
DIRECTORY_FILE = "raw/email_addresses.csv"
FILES = {
    "emails": ("processed/emails.csv", emails.COLUMNS),
    "events": ("processed/calendar_events.csv", events.COLUMNS),
    "visits": ("processed/analytics_data.csv", visits.COLUMNS),
    "tasks": ("processed/project_tasks.csv", tasks.COLUMNS),
    "customers": ("processed/customer_relationship_manager_data.csv", customers.COLUMNS),
}


@dataclass(frozen=True, eq=False)
class Databases:
    """The address book, and the records of each database in the order of their file."""

    directory: tuple[str, ...]
    emails: tuple[Row, ...]
    events: tuple[Row, ...]
    visits: tuple[Row, ...]
    tasks: tuple[Row, ...]
    customers: tuple[Row, ...]


def source_of(row: dict) -> str | None:
    """What the row, or else the environment, says its data are: GENERATED or a folder; None when neither says."""
    return row.get(ROW_KEY) or os.environ.get(VARIABLE) or None


@cache
def databases(source: str) -> Databases:
    """The data of a source, the same object every time. Raises DataError naming a file that is missing or not as it should be."""
    if source == GENERATED:
        directory, records = generate()
        return Databases(tuple(directory), **{name: _rows(name, records[name]) for name in FILES})
    folder = Path(source)
    return Databases(_addresses(folder), **{name: _rows(name, _read(folder, name)) for name in FILES})


def write(folder: Path) -> None:
    """Writes the generated data as a folder that `databases` and Gym read."""
    directory, records = generate()
    for part in ("raw", "processed"):
        (Path(folder) / part).mkdir(parents=True, exist_ok=True)
    (Path(folder) / DIRECTORY_FILE).write_text("".join(f"{address}\n" for address in directory), encoding="utf-8")
    for name, (file_name, columns) in FILES.items():
        with open(Path(folder) / file_name, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(records[name])


def _rows(name: str, records: Iterable[dict]) -> tuple[Row, ...]:
    """Records of texts as rows: no text is no value, and whether a visitor was engaged is true or false."""
    engaged = {"user_engaged": {"True": True}} if name == "visits" else {}
    return tuple(
        Row({key: engaged[key].get(text, False) if key in engaged else text or None for key, text in record.items()})
        for record in records
    )


def _read(folder: Path, name: str) -> list[dict]:
    file_name, columns = FILES[name]
    with _open(folder, file_name) as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{folder / file_name}: no column {', '.join(missing)}; {_REMEDY}")
        records = [{column: record[column] for column in columns} for record in reader]
    if not records or any(None in record.values() for record in records):
        raise DataError(f"{folder / file_name}: no records, or one with fewer fields than columns; {_REMEDY}")
    return records


def _addresses(folder: Path) -> tuple[str, ...]:
    with _open(folder, DIRECTORY_FILE) as file:
        return tuple(line.strip() for line in file if line.strip())


_REMEDY = f"{ROW_KEY} and {VARIABLE} name a folder laid out as NeMo Gym's workplace_assistant/csv_data, or {GENERATED!r}"


def _open(folder: Path, file_name: str):
    path = folder / file_name
    if not path.is_file():
        raise DataError(f"{path}: no such file; {_REMEDY}")
    return open(path, encoding="utf-8", newline="")
