"""Multiple choice: the letter in the last \\boxed{}, or whatever the row's own pattern captures.

Row: `options` [{letter: text}, ...], `expected_answer` a letter, optional `template_metadata.output_regex` (last match, any case).
"""

import re

from nemo_cascade.environments.response import answer_of, last_boxed

EXAMPLES = [
    ({"options": [{"A": "x"}, {"B": "y"}], "expected_answer": "B"}, "\\boxed{B}", 1.0),
    ({"options": [{"A": "x"}, {"B": "y"}], "expected_answer": "B"}, "\\boxed{A}", 0.0),
    ({"options": [{"A": "x"}, {"B": "y"}], "expected_answer": "B"}, "B", 0.0),
]


def problem(row: dict) -> str | None:
    """What keeps the row from being verified."""
    options = row.get("options")
    if not isinstance(options, list) or not options or not all(isinstance(option, dict) for option in options):
        return "no options (a list of {letter: text})"
    letters = [letter.upper() for option in options for letter in option]
    if str(row.get("expected_answer", "")).upper() not in letters:
        return f"expected_answer {row.get('expected_answer')!r} is none of the options' letters {', '.join(letters)}"
    return None


def verify(row: dict, response: dict) -> dict:
    """{"reward": 1.0 or 0.0, "extracted_answer": letter or None}."""
    text = answer_of(response)
    letters = {letter.upper() for option in row["options"] for letter in option}
    pattern = (row.get("template_metadata") or {}).get("output_regex")
    if pattern:
        found = re.findall(pattern, text, flags=re.IGNORECASE)
        chosen = found[-1] if found else None
        chosen = (chosen[0] if isinstance(chosen, tuple) else chosen) if chosen else None
        chosen = chosen.strip().upper() if chosen else None
    else:
        chosen = last_boxed(text)
    chosen = chosen if chosen in letters else None
    return {"reward": float(chosen == row["expected_answer"].upper()), "extracted_answer": chosen}
