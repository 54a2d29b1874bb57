"""One database: records that never change, shared by all sessions, and a session's own view of which there are.

A change makes a new record and a new tuple of references, so that starting a session copies nothing and two states that
came from the same start are compared by identity wherever nobody wrote.
"""

from collections.abc import Callable, Iterable

# Columns in which upper and lower case are different states [NeMo Gym, workplace_assistant].
CASE_MATTERS = ("status", "list_name", "board")


class Row(dict):
    """One record, {column: text, or None where there is none}. As it never changes, what follows from it is worked out once."""

    __slots__ = ("_derived",)

    def derive(self, work: Callable):
        """work(self), remembered."""
        try:
            return self._derived[work]
        except AttributeError:
            self._derived = {}
        except KeyError:
            pass
        value = self._derived[work] = work(self)
        return value


class Table:
    """A session's view of one database; its first column is the key."""

    def __init__(self, columns: tuple[str, ...], rows: Iterable[Row] = ()):
        self.columns, self.rows = columns, tuple(rows)

    @property
    def key(self) -> str:
        return self.columns[0]

    def find(self, wanted) -> Row | None:
        """The first record of that key."""
        key = self.key
        return next((row for row in self.rows if row[key] == wanted), None)

    def add(self, **cells) -> None:
        self.rows = (*self.rows, Row(cells))

    def update(self, wanted, field: str, value) -> None:
        """Sets one field of every record of that key: an update may have given two of them the same one."""
        key = self.key
        self.rows = tuple(Row(row, **{field: value}) if row[key] == wanted else row for row in self.rows)

    def delete(self, wanted) -> None:
        key = self.key
        self.rows = tuple(row for row in self.rows if row[key] != wanted)

    def next_key(self) -> str:
        """One more than the last key in the order of texts, without leading zeros. Raises ValueError when that is no number."""
        return str(int(max(row[self.key] for row in self.rows)) + 1)

    def same(self, other: "Table") -> bool:
        """Whether both hold equal records in the same order."""
        if self.rows is other.rows:
            return True
        return len(self.rows) == len(other.rows) and all(
            mine is its or mine.derive(comparable) == its.derive(comparable) for mine, its in zip(self.rows, other.rows)
        )


def comparable(row: Row) -> dict:
    """What of a record counts. Cells that are not text are all alike, except where case matters: so Gym compares them."""
    return {
        column: value if column in CASE_MATTERS else value.lower() if isinstance(value, str) else None
        for column, value in row.items()
    }
