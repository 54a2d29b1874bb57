"""Whatever a model writes: a verdict comes, in time, and never a reward, where nothing of it is the answer."""

import json
import random

import pytest

from nemo_cascade import environments
from nemo_cascade.data.chat import render_tool_call
from nemo_cascade.environments import code_gen, equivalence, genrm_compare
from nemo_cascade.environments.outputs import same_output
from nemo_cascade.environments.swe_agentic import ROOT
from nemo_cascade.environments.swe_repair import judge, patches
from nemo_cascade.environments.workers import Verifiers
from tests.environments.test_swe_patches import block

# Nothing below makes this number or that letter.
NUMBER, LETTER = "17389", "J"
_SCHEMA = json.dumps(
    {"type": "object", "properties": {"a": {"const": int(NUMBER)}, "b": {"type": "array", "items": {"$ref": "#"}}}}
)
_CHOICE = {"options": [{"A": "x"}, {LETTER: NUMBER}], "expected_answer": LETTER}
_PUZZLE = {"question": "?", "answer": NUMBER}
ROWS = {
    "mcqa": [
        *({**_CHOICE, "grading_mode": mode} for mode in environments.get("mcqa").MODES),
        {**_CHOICE, "template_metadata": {"output_regex": r"answer\s*:\s*\**\s*(?!no)(.*) *\."}},
    ],
    "structured_outputs": [{"schema_str": _SCHEMA, "schema_type": kind} for kind in ("json", "yaml", "xml", "toml")],
    "math": [{"expected_answer": NUMBER}, {"expected_answer": f"\\frac{{{NUMBER}}}{{x}}"}],
    "reasoning_gym": [
        _PUZZLE | {"metadata": {"source_dataset": "chain_sum"}},
        _PUZZLE | {"metadata": {"source_dataset": "simple_integration", "variable": "x", "integrand": f"{NUMBER}*x"}},
        _PUZZLE | {"metadata": {"source_dataset": "string_insertion"}},
    ],
    "code_gen": [{"verifier_metadata": {"unit_tests": {"inputs": ["1"], "outputs": [NUMBER]}}}],
    "tool_use": [environments.get("tool_use").EXAMPLES[0][0]],
    "genrm": [{"expected_scores": {"score_1": 5, "score_2": 1, "ranking": 1}}],
    "swe_repair": [
        {"files": {"a.py": "x = 1\n"}, "golden_patch": block("x = 1\n", f"x = {NUMBER}\n"), "reward_mode": mode}
        for mode in ("similarity", "judge")
    ],
    "swe_agentic": [
        environments.get("swe_agentic").EXAMPLES[0][0]
        | {
            "files": {"a.py": "x = 1\n", "b.py": "y = 2\n"},
            "tests": {"test_a.py": f"from a import x\nfrom b import y\ndef test_x():\n    assert x == {NUMBER}\ndef test_y():\n    assert y == 2\n"},
            "fail_to_pass": ["test_a.py::test_x"],
            "pass_to_pass": ["test_a.py::test_y"],
        }
    ],
}

OPENINGS = [
    "(",
    "[",
    "{",
    "<",
    "\\boxed{",
    "\\boxed ",
    "\\frac{",
    "$",
    "$$",
    "\\(",
    "\\[",
    "<answer>",
    "<think>",
    "```",
    '{"a":',
    "[[",
    "a: [",
    "- ",
]
OPENINGS += ["a.py\n<<<<<<< SEARCH\n", "=======\n", ">>>>>>> REPLACE\n", "```diff\n", "--- a/a.py\n+++ b/a.py\n", "@@ -1 +1 @@\n"]
OPENINGS += [
    "<a>",
    "<!DOCTYPE a [",
    "a = {",
    "&a [*a, ",
    "? ",
    "'''",
    '"',
    "Answer: ",
    "final answer is ",
    "\\begin{matrix}",
    "\\left(",
    "\\sqrt[",
    "^{",
    "!",
]
CLOSINGS = [
    ")",
    "]",
    "}",
    ">",
    "$",
    "\\)",
    "\\]",
    "</answer>",
    "</think>",
    "```",
    "</a>",
    "\\end{matrix}",
    "\\right)",
    "%",
    "!",
    "*/",
    "\n",
    ".",
]
ATOMS = [
    "9^{9^{9}}",
    "9**9**9",
    "100000000!",
    "((9!)!)!",
    "1e999",
    "-0",
    "NaN",
    "Infinity",
    "0x" + "f" * 99,
    "9" * 5000,
    "1/0",
    "\\frac{1}{0}",
    "i^i",
]
ATOMS += [
    "\\infty",
    "x",
    "B",
    "a",
    "A or B",
    "null",
    "true",
    "\x00",
    "\x1b[2J",
    "\ud800",
    "\udfff",
    "\u202e",
    "\ufeff",
    "ﷺ",
    "\u0301" * 50,
    "𝟗",
    "²",
    "\u2028",
]
ATOMS += [
    "\\int_0^1 e^{x^x} dx",
    "\\sum_{n=1}^{\\infty} n^{-n}",
    "\\prod_{k=1}^{99} k^k",
    "x^{9999}",
    "(x+y)^{99}",
    "\\sqrt{" * 20,
    "__import__('os')",
    "1 " * 30,
]
ATOMS += [
    "{'a': 1}",
    '{"a": 1, "a": 1}',
    "!!python/name:os.system",
    "%YAML 9",
    "<?xml?>",
    "a,b\n1",
    "=1+1",
    "\\def\\a{\\a\\a}\\a",
    "\\input{/etc/passwd}",
    "{{7*7}}",
]


def hostile(rng: random.Random) -> str:
    """A reply of pieces that are hard on one reader or another; one in a hundred is long."""
    pieces = [
        rng.choice(rng.choice([OPENINGS, OPENINGS, CLOSINGS, ATOMS, ATOMS, [" ", "\n", "so ", ", "]]))
        for _ in range(rng.randint(0, 12))
    ]
    kind = rng.random()
    if kind < 0.01:
        return rng.choice(pieces or ["x"]) * rng.choice([1000, 10_000, 100_000])
    if kind < 0.2:
        opening, depth = rng.choice(OPENINGS), rng.choice([20, 40, 200])
        return opening * depth + "".join(pieces) + rng.choice(CLOSINGS) * rng.choice([0, depth])
    if kind < 0.3:
        return "".join(
            chr(rng.choice([rng.randrange(32), rng.randrange(256), rng.randrange(0x110000)]))
            for _ in range(rng.randint(1, 200))
        )
    return "".join(pieces)


def hostile_call(rng: random.Random) -> str:
    """A call of an agent's tools that can be read, with what is hard in its arguments; a command or an edit of files."""

    def some(*usual: str) -> str:
        return rng.choice([*usual, hostile(rng), rng.choice(ATOMS)])

    if rng.random() < 0.5:
        given = {"command": hostile(rng) + rng.choice(["", " > a.py", "\nrm b.py"])}
        return render_tool_call({"name": "execute_bash", "arguments": given})
    given = {"command": some("create", "str_replace", "insert", "undo_edit", "view"), "path": some(f"{ROOT}/a.py", f"{ROOT}/b.py", "c.py")}
    given |= {"old_str": some("x = 1", "1"), "new_str": some(), "file_text": some(), "insert_line": some("1"), "view_range": some("[1, 2]")}
    return render_tool_call({"name": "str_replace_editor", "arguments": given})


MEGABYTES = [
    piece * (10_000_000 // len(piece))
    for piece in ["x", "1 ", "[", "{", "\\boxed{", "<answer>", "Answer: ", "$", "answer", " ", "<a>", "- ", "\\boxed{9^"]
]


# What reads replies in the trainer's own process, where nothing ends it, and a million characters that were hard on one or another.
READERS = {
    "code": code_gen.code_of,
    "printed": lambda text: same_output(text, text + ".0"),
    "patch": lambda text: (patches.read(text), patches.diff_of(text[:200_000]), patches.blocks_of(text[:200_000])),
    "judgement": lambda text: (judge.usable(text), equivalence.usable(text), genrm_compare.parse(text)),
}
MILLION = 1_000_000
ADVERSARIES = ["```" + "a" * MILLION + "`", "```" + "a" * MILLION, " " * MILLION + "x", "\t" * MILLION + "```x"]
ADVERSARIES += [line * (MILLION // len(line)) for line in ("```\n", "```python\n", " " * 50 + "```\n", "x" * 50 + "`", "\n", "1 ", "1. ", "1\n")]
ADVERSARIES += ["".join(" " * place + "```\n" for place in range(1400)), "  ```python\n" + (" " * 50_000 + "x\n") * 20 + "  ```"]
ADVERSARIES += ["9" * MILLION, "9" * MILLION + ".5", "." * MILLION, "1e" + "9" * MILLION]
ADVERSARIES += ["--- a\n+++ b\n" + head + piece * (180_000 // len(piece)) for head, piece in (
    ("diff --git ://", " "), ("diff --git ", "://"), ("diff --git a/", ' "b'), ("Binary files", " and x"), ("Binary files x", " and\t1"),
    ("@@ -", "1"), ("@@ -1,9 +1,9 @@\n", " \n"), ("@@ -1 +1 @@\n-a\n+b\n", "@"), ("--- ", "\t"), ("", "--- a\n+++ b\n"))]  # fmt: skip
ADVERSARIES += ["a\n<<<<<<< SEARCH\n" + "\n" * 180_000, "### " + "a" * 90_000 + " " * 90_000 + "b\n<<<<<<< SEARCH\n"]
ADVERSARIES += ["<<<<<<< SEARCH\n" * 12_000, "<<<<<<< SEARCH" + " " * 180_000]
ADVERSARIES += [head + piece * (MILLION // len(piece)) for head, piece in (
    ("<judgement>", " "), ("", "<judgement> "), ("<judgement>YES", " "), ("", "[[A"), ("", "[[A=B]"), ("", "{"), ("", "{a"), ("{", "a"))]  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_no_reply_keeps_a_reader_in_the_trainers_process(reader):
    for text in ADVERSARIES:
        READERS[reader](text)


def asked(name: str, replies: list[str]) -> list[tuple[dict, dict]]:
    rows = [row | {"agent_ref": {"name": name}} for row in ROWS[name]]
    return [(rows[place % len(rows)], environments.response_of(reply, thinking=False)) for place, reply in enumerate(replies)]


def earn_nothing(name: str, replies: list[str]) -> list[dict]:
    assert not any(NUMBER in reply or LETTER in reply.upper() for reply in replies)
    pairs = asked(name, replies)
    if name == "math":
        with Verifiers(2) as verifiers:
            verdicts = verifiers.verify(pairs)
    else:
        # Here, where what takes too long or ends the process would be seen.
        verdicts = [environments.get(name).verify(*pair) for pair in pairs]
    assert [(reply, verdict) for reply, verdict in zip(replies, verdicts) if verdict["reward"] > 0.0] == []
    json.dumps(verdicts)
    return verdicts


def drawn(name: str, number: int, seed: int) -> list[str]:
    """Random replies, without those that could be the answer by chance."""
    rng = random.Random(f"{name}-{seed}")
    # Few of them call a tool: each command, and the tests after a change, are programs to run.
    share = 0.03 if name == "swe_agentic" else 0.0
    replies = ("".join(hostile_call(rng) for _ in range(3)) if rng.random() < share else hostile(rng) for _ in iter(int, 1))
    good = (reply for reply in replies if NUMBER not in reply and LETTER not in reply.upper())
    return [next(good) for _ in range(number)]


@pytest.mark.parametrize("name", ROWS)
def test_hostile_replies_earn_nothing(name):
    verdicts = earn_nothing(name, drawn(name, 300, seed=0))
    # What even a worker had to be ended for is rare: most is told from its text.
    assert sum("verifier_error" in verdict for verdict in verdicts) <= 3


@pytest.mark.parametrize("name", ROWS)
def test_ten_megabytes_earn_nothing(name):
    assert not any("verifier_error" in verdict for verdict in earn_nothing(name, MEGABYTES))


# JSON that no reader takes: nested thousands deep, with numbers of hundreds and thousands of digits or none.
_BRACKETS = "[" * 5000 + "4" + "]" * 5000
UNREADABLE = [
    f'{{"score_1": {value}, "score_2": 2, "ranking": 2, "a": {value}}}'
    for value in (_BRACKETS, "[" * 100_000, "1" + "0" * 400, "1" + "0" * 5000, "1e999", "-1e999", "NaN", '"\\ud800"', '{"a":' * 5000)
]


@pytest.mark.parametrize("name", ROWS)
def test_json_that_no_reader_takes_earns_nothing(name):
    assert not any("verifier_error" in verdict for verdict in earn_nothing(name, UNREADABLE))


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_ten_thousand_hostile_replies_earn_nothing(name):
    verdicts = earn_nothing(name, drawn(name, 10_000, seed=1))
    assert sum("verifier_error" in verdict for verdict in verdicts) <= 100
