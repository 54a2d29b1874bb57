"""Multiple choice: the letter that a reply chooses, read in one of the ways that NeMo Gym has.

Row: `options` [{letter: text}, ...], `expected_answer` a letter, and how to read a reply:
- `template_metadata.output_regex`, one pattern or a list of them, comes first: any case, the last match, whose letter
  counts even when it is no option. Where none of them finds anything, the reply is read by
- `grading_mode`, one of MODES.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

from nemo_cascade.environments.pattern import Pattern, beginning, compiled, last_captured
from nemo_cascade.environments.response import answer_of

# A row's own pattern sees so much of a reply's end: a pattern may take time that grows with the square of it.
MAX_SEARCHED = 20_000
# A longer line after "Answer:" is the text of no option.
MAX_OPTION = 10_000

# One capital in the box, and no other letter up to the brace that follows. In one pass: nothing is scanned twice.
_BOXED = re.compile(r"\\boxed\{[^A-Za-z]*+([A-Z])[^A-Za-z}]*+\}")
_COLON = re.compile(r"answer\s*:\s*(.+)", re.IGNORECASE)
_COLON_MARKDOWN = re.compile(r"answer[*_]{0,2}\s*:[*_\s]{0,2}\s*([A-Z])(?![A-Z0-9])", re.IGNORECASE)
# What stands for a letter in Arabic, in Bengali, and as a full-width form.
_LETTERS = str.maketrans(dict(zip("أبجدঅবডঢＡＢＣＤ", [f" {letter}" for letter in "ABCD" * 3])))

_OPTIONS = [{"A": "Oslo"}, {"B": "New  York"}, {"C": None}]
_STRICT = {"options": _OPTIONS, "expected_answer": "B"}
_BOX = _STRICT | {"grading_mode": "lenient_boxed"}
_LINE = _STRICT | {"grading_mode": "lenient_answer_colon"}
_MARKDOWN = _STRICT | {"grading_mode": "lenient_answer_colon_md"}
_OWN = _STRICT | {"template_metadata": {"output_regex": r"option selected:\s*(\w+)"}}
REWARD_RANGE = (0.0, 1.0)
EXAMPLES = [
    (_STRICT, "\\boxed{B}", 1.0),
    (_STRICT, "So \\boxed{ (B). } it is", 1.0),
    (_STRICT, "\\boxed{A}", 0.0),
    (_STRICT, "\\boxed{A} or rather \\boxed{B}", 0.0),
    (_STRICT, "\\boxed{b}", 0.0),
    (_STRICT, "B", 0.0),
    (_BOX, "\\boxed{It is new york}", 1.0),
    (_BOX, "\\boxed{Oslo, New York}", 0.0),
    (_LINE, "Answer: b", 1.0),
    (_LINE, "answer : \\text{new york}", 1.0),
    (_LINE, "Answer: B because", 0.0),
    (_MARKDOWN, "**Answer**: _B_", 1.0),
    (_MARKDOWN, "**Answer**: Both", 0.0),
    (_OWN, "Option selected: A ... OPTION SELECTED: b", 1.0),
    (_OWN, "nothing selected, \\boxed{B}", 1.0),
    (_OWN, "Option selected: A, \\boxed{B}", 0.0),
]


def problem(row: dict) -> str | None:
    """What keeps the row from being verified."""
    try:
        own = _patterns(row)
    except ValueError as error:
        return f"template_metadata.output_regex {error}"
    options = row.get("options")
    if options is None and own:
        options = []
    elif not isinstance(options, list) or not options or not all(isinstance(option, dict) for option in options):
        return "no options (a list of {letter: text})"
    elif not all(text is None or isinstance(text, str) for option in options for text in option.values()):
        return "the text of an option is no text; options are a list of {letter: text}"
    mode = _mode(row)
    if mode not in MODES:
        return f"grading_mode {mode!r} is none of {', '.join(MODES)}"
    expected, letters = row.get("expected_answer"), sorted({letter for letter, _ in _lettered(options)})
    letter = expected.strip().upper() if isinstance(expected, str) else ""
    if letter not in letters and not (own and len(letter) == 1):
        return f"expected_answer {expected!r} is none of the options' letters {', '.join(letters)}"
    return None


def reference(row: dict) -> str | None:
    """The expected letter, as the row's mode reads it; a row's own patterns may read another way."""
    if _patterns(row):
        return None
    letter = row["expected_answer"].strip().upper()
    return f"\\boxed{{{letter}}}" if "boxed" in _mode(row) else f"Answer: {letter}"


def verify(row: dict, response: dict) -> dict:
    """{"reward": 1.0 or 0.0, "expected_answer": letter, "extracted_answer": letter or None}."""
    text, expected = answer_of(response), row["expected_answer"].strip().upper()
    options = row.get("options") or []
    chosen = _own(_patterns(row), text, options) or MODES[_mode(row)](text, options)
    return {"reward": float(chosen == expected), "expected_answer": expected, "extracted_answer": chosen}


def _mode(row: dict) -> str:
    return row.get("grading_mode") or "strict_single_letter_boxed"


def _lettered(options: list[dict]) -> Iterator[tuple[str, str]]:
    """(capital letter, text) of all that can be chosen, one by one; an option without a text cannot."""
    for option in options:
        for name, text in option.items():
            if text is not None and len(name) == 1 and name.isalpha():
                yield name.upper(), text


def _patterns(row: dict) -> list[tuple[Pattern, str]]:
    """The row's own patterns, each with the text that what it finds begins with."""
    own = (row.get("template_metadata") or {}).get("output_regex")
    return [] if own is None else _compiled(tuple(own) if isinstance(own, list) else own)


@lru_cache(maxsize=1024)
def _compiled(own: str | tuple[str, ...]) -> list[tuple[Pattern, str]]:
    patterns = map(compiled, own if isinstance(own, tuple) else [own])
    return [(pattern, beginning(pattern)) for pattern in patterns]


def _own(patterns: list[tuple[Pattern, str]], text: str, options: list[dict]) -> str | None:
    """What the first of the row's patterns that finds something captures last: a letter, or an option's text."""
    for pattern, begins in patterns:
        captured = last_captured(pattern, begins, text, max(0, len(text) - MAX_SEARCHED))
        if captured is None:
            continue
        last = captured.strip().translate(_LETTERS).strip().upper()
        letter = last if len(last) == 1 and last.isalpha() else _equal(last, options)
        if letter is not None:
            return letter
    return None


def _strict_boxed(text: str, options: list[dict]) -> str | None:
    found = _BOXED.search(text)
    return _letter(found.group(1), options) if found else None


def _lenient_boxed(text: str, options: list[dict]) -> str | None:
    """The letter as above, or the one option whose text stands in the first box."""
    letter = _strict_boxed(text, options)
    start = text.find("\\boxed{") + len("\\boxed{")
    end = text.find("}", start)
    if letter is not None or start < len("\\boxed{") or end < 0:
        return letter
    inside = _plain(text[start:end])
    found = {letter for letter, option in _lettered(options) if _plain(option) and _plain(option) in inside}
    return found.pop() if len(found) == 1 else None


def _answer_colon(text: str, options: list[dict]) -> str | None:
    """What follows the first "Answer:" on its line: a letter or the text of an option."""
    found = _COLON.search(text)
    if not found or found.end(1) - found.start(1) > MAX_OPTION:
        return None
    line = found.group(1)
    while line.startswith("\\text{") and line.endswith("}"):
        line = line[len("\\text{") : -1].strip()
    line = line.strip()
    letter = _letter(line, options) if len(line) == 1 else None
    return letter or _equal(line, options)


def _answer_colon_markdown(text: str, options: list[dict]) -> str | None:
    found = _COLON_MARKDOWN.search(text)
    return _letter(found.group(1), options) if found else None


def _letter(letter: str, options: list[dict]) -> str | None:
    letter = letter.upper()
    return letter if any(letter == other for other, _ in _lettered(options)) else None


def _equal(text: str, options: list[dict]) -> str | None:
    plain = _plain(text)
    return next((letter for letter, option in _lettered(options) if _plain(option) == plain), None)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


# How to read a reply where no pattern of the row's own finds anything.
MODES = {
    "strict_single_letter_boxed": _strict_boxed,
    "lenient_boxed": _lenient_boxed,
    "lenient_answer_colon": _answer_colon,
    "lenient_answer_colon_md": _answer_colon_markdown,
}
