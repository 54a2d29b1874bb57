"""What became of a row: it is kept, as mended, or it is dropped for a reason that can be counted, with the words for it."""

from collections import Counter
from dataclasses import dataclass, field


class Unusable(ValueError):
    """A row that is dropped. reason: a word that reports count by; the message: what is wrong with this one."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass
class Dropped:
    """A line of `dropped.jsonl`."""

    subset: str
    file: str
    row: int
    reason: str
    detail: str


@dataclass
class Counts:
    """Of a subset: rows that were read, those that went out, dropped ones by reason, and what was mended."""

    rows_in: int = 0
    rows_out: int = 0
    dropped: Counter = field(default_factory=Counter)
    mended: Counter = field(default_factory=Counter)
    documents: int = 0
    tokens: int = 0

    def add(self, other: "Counts") -> None:
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.dropped += other.dropped
        self.mended += other.mended
        self.documents += other.documents
        self.tokens += other.tokens

    def as_dict(self) -> dict:
        """For JSON; asdict of dataclasses cannot copy a Counter before Python 3.12."""
        own = vars(self).items()
        return {key: dict(sorted(value.items())) if isinstance(value, Counter) else value for key, value in own}

    @classmethod
    def of(cls, values: dict) -> "Counts":
        """What `as_dict` made."""
        return cls(**{key: Counter(value) if isinstance(value, dict) else value for key, value in values.items()})
