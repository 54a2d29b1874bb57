"""What several tools share: patterns, pages, points in time, and how a tool says that it will not."""

import re
from collections.abc import Iterable
from datetime import datetime

# A pattern that a model wrote runs over hundreds of records. Plain text may be longer.
MAX_PATTERN = 200
_SPECIAL = re.compile(r"[*+?{(|\[\\]")
# Of a cell so much is searched, in time that can grow with the square of it: a record may be the model's own.
MAX_SEARCHED = 200
_ESCAPED = re.compile(r"\\.", re.DOTALL)
# Tried when a time is not in ISO 8601.
_FORMATS = [
    f"{date}{time}"
    for date in ("%Y-%m-%d", "%Y/%m/%d", "%m/%d/%Y", "%B %d, %Y", "%B %d %Y", "%d %B %Y", "%b %d, %Y", "%d %b %Y")
    for time in ("", " %H:%M:%S", " %H:%M", " %I:%M %p", " %I:%M%p", " %I %p", " %I%p")
] + ["%Y-%m", "%Y"]
_LONGEST_TIME = 40


class Refused(Exception):
    """What a tool answers when it does not do what it was asked; the text is for the model."""


def containing(rows: Iterable[dict], pattern: str, *fields: str) -> list:
    """The rows that have the pattern in one of the fields, upper or lower case. A missing cell contains nothing.

    Patterns are regular expressions, because Gym's are. Raises ValueError for one that could take exponential time, and
    re.error for one that is none.
    """
    search = compiled(pattern).search
    # A loop, because this is where a session spends its time.
    found = []
    for row in rows:
        for field in fields:
            cell = row[field]
            if isinstance(cell, str) and search(cell, 0, MAX_SEARCHED):
                found.append(row)
                break
    return found


def compiled(pattern: str) -> re.Pattern:
    if (len(pattern) > MAX_PATTERN and _SPECIAL.search(pattern)) or _is_costly(pattern):
        raise ValueError("the search pattern is too complicated; search for a plain piece of text")
    return re.compile(pattern, re.IGNORECASE)


def _is_costly(pattern: str) -> bool:
    """At most one group and one repetition, and no alternatives where there are both: more can backtrack without end."""
    pattern = _ESCAPED.sub("", pattern)
    repeated, groups = sum(map(pattern.count, "*+?{")), pattern.count("(")
    return repeated > 1 or groups > 1 or bool(repeated and groups and "|" in pattern)


def page_of(kind: str, rows: list, page: int, page_size: int) -> dict:
    """One page of rows, and where it stands among the others; a page that is not there becomes the nearest."""
    if page_size < 1:
        raise ValueError("page_size must be at least 1")
    pages = -(-len(rows) // page_size)
    page = max(1, min(page, pages)) if rows else 1
    first = (page - 1) * page_size
    about = {f"total_{kind}": len(rows), "page": page, "page_size": page_size, "total_pages": pages}
    return {kind: rows[first : first + page_size] if rows else rows, "pagination": about}


def moment(text: str) -> datetime:
    """The point in time that a text names: ISO 8601 in whole or in part, or a date as it is commonly written.

    Raises ValueError for anything else. Gym takes what pandas takes, which is more.
    """
    text = text.strip()
    if len(text) <= _LONGEST_TIME:
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            pass
        for form in _FORMATS:
            try:
                return datetime.strptime(text, form)
            except ValueError:
                continue
    raise ValueError("not a point in time")
