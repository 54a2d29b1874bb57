"""The names that docs/metrics.md explains."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
NAMES = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
PATTERNS = [re.compile(re.sub(r"<\w+>", r"[\\w-]+", name) + "$") for name in NAMES]


def unexplained(names) -> set[str]:
    """Those that the page does not have, domains and kinds of faults aside."""
    return {name for name in names if not any(pattern.match(name) for pattern in PATTERNS)}
