"""Random rows and replies of the environments that are compared with NeMo Gym's: ours, drawn from a seed, nothing of Gym's."""

import csv
import io
import json
import random

import xmltodict
import yaml

from nemo_cascade.data import reasoning_gym
from nemo_cascade.environments.mcqa import MODES

WORDS = "river stone apple North light Oslo seven green quick bird 12 x2 glass".split()


def words(rng: random.Random, most: int = 3) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


# Multiple choice.

PATTERNS = [
    r"\\boxed\{\s*([A-Za-z])\s*\}",
    r"option selected:\s*([A-Za-z])\s*",
    r"Answer\s*:\s*(?!Answer)\s*([A-Za-z])\s*",
    r"final choice:\s*(.+)",
    r"choose (?:the |an )?(\w+)",
    [r"option selected:\s*([A-J])", r"choose (.*)"],
    "nothing ever (matches)",
]


def mcqa(rng: random.Random) -> tuple[dict, str]:
    letters = "ABCDEFGHIJ"[: rng.randint(2, 10)]
    options = [{letter: None if rng.random() < 0.05 else words(rng)} for letter in letters]
    row = {"options": options, "expected_answer": rng.choice([letters[0], letters[0], letters[1].lower(), rng.choice(letters)])}
    row["grading_mode"] = rng.choice(list(MODES))
    if rng.random() < 0.4:
        row["template_metadata"] = {"output_regex": rng.choice(PATTERNS)}
    return row, rng.choice([" ", "\n", ". ", "", " or "]).join(
        _choice(rng, rng.choice(options[:1] * 6 + options)) for _ in range(rng.randint(1, 3))
    )


def _choice(rng: random.Random, option: dict) -> str:
    letter, text = next(iter(option.items()))
    one = rng.choice(
        [letter, letter, letter, letter.lower(), text or "", f"{letter}: {text}", f"\\text{{{letter}}}", f"\\text{{{text}}}"]
    )
    one = rng.choice([one, one, one, f"({one})", f" {one}. ", f"{one} {rng.choice('ABZ')}", "Ａ", "ب", "Z", ""])
    forms = [
        "\\boxed{%s}",
        "\\boxed{%s}",
        "\\boxed{ (%s)}",
        "\\boxed{%s",
        "Answer: %s",
        "answer : %s\n",
        "**Answer: %s**",
        "__Answer__:%s",
    ]
    forms += ["Option Selected: %s", "Final choice:  %s ", "I choose the %s", "%s", words(rng) + " %s", "\\boxed{}, 3} %s}"]
    return rng.choice(forms) % one


# Structured outputs.


def structured_outputs(rng: random.Random) -> tuple[dict, str]:
    kind = rng.choice(["json", "json", "yaml", "xml", "toml", "csv"])
    if kind == "csv":
        columns = {name: _scalar(rng) for name in rng.sample(WORDS[:9], rng.randint(1, 4))}
        schema = {"type": "array", "items": {"type": "object", "properties": columns}}
    elif kind == "xml":
        schema = {"type": "object", "properties": {"root": _schema(rng, 2, "object")}}
    else:
        schema = _schema(rng, 2, "object")
    document = _document(rng, schema)
    text = _spoiled(rng, _write(rng, kind, document))
    row = {"schema_str": json.dumps(schema), "schema_type": kind}
    return (row if kind != "json" or rng.random() < 0.5 else {"schema_str": row["schema_str"]}), text


def _scalar(rng: random.Random) -> dict:
    kinds = ["string", "integer", "number", "boolean", "null", ["string", "null"], ["integer", "null"], ["number", "string"]]
    schema = {"type": rng.choice(kinds)}
    if schema["type"] == "string" and rng.random() < 0.3:
        schema |= rng.choice(
            [{"enum": WORDS[:3]}, {"minLength": 4}, {"pattern": "^[a-z]+$"}, {"format": "date"}, {"description": "d"}]
        )
    if schema["type"] == "integer" and rng.random() < 0.3:
        schema |= rng.choice([{"minimum": 3}, {"maximum": 3}, {"multipleOf": 2}, {"const": 2}, {"nullable": True}])
    return schema


def _schema(rng: random.Random, depth: int, kind: str | None = None) -> dict:
    kind = kind or rng.choice(["object", "array", "scalar", "scalar", "scalar", "any", "reference"] if depth else ["scalar"])
    if kind == "object":
        names = rng.sample(WORDS[:9] + ["required", "properties"] * (rng.random() < 0.02), rng.randint(1, 4))
        schema = {"type": "object", "properties": {name: _schema(rng, depth - 1) for name in names}}
        schema |= rng.choice(
            [{}, {}, {"required": names[:1]}, {"additionalProperties": True}, {"additionalProperties": "false"}]
        )
        return schema | rng.choice([{}, {}, {}, {"required": {"item": names}}, {"minProperties": 1}])
    if kind == "array":
        return {"type": "array", "items": _schema(rng, depth - 1)} | rng.choice([{}, {"minItems": 1}, {"uniqueItems": True}])
    if kind == "any":
        return {rng.choice(["anyOf", "oneOf"]): [_schema(rng, depth - 1), _scalar(rng)]}
    if kind == "reference":
        return {"$ref": "#/$defs/a", "$defs": {"a": _scalar(rng)}} if rng.random() < 0.1 else _scalar(rng)
    return _scalar(rng) | ({"required": False} if rng.random() < 0.02 else {})


def _document(rng: random.Random, schema: dict):
    """Something that the schema probably allows."""
    if "anyOf" in schema or "oneOf" in schema:
        return _document(rng, rng.choice(schema.get("anyOf") or schema["oneOf"]))
    if "enum" in schema or "const" in schema:
        return schema.get("const", rng.choice(schema.get("enum", [2])))
    kind = schema.get("type", "string")
    kind = rng.choice(kind) if isinstance(kind, list) else kind
    if rng.random() < 0.03:
        kind = rng.choice(["string", "integer", "number", "boolean", "null"])
    if kind == "object":
        found = {name: _document(rng, part) for name, part in schema.get("properties", {}).items() if rng.random() > 0.04}
        return found | ({"more": 1} if rng.random() < 0.04 else {})
    if kind == "array":
        return [_document(rng, schema.get("items", {})) for _ in range(rng.randint(0, 3))]
    plain = {
        "string": words(rng),
        "integer": rng.randint(-3, 9),
        "number": rng.choice([1.5, 2, -0.25]),
        "boolean": rng.random() < 0.5,
    }
    return plain.get(kind)


def _write(rng: random.Random, kind: str, document) -> str:
    if kind == "json":
        return json.dumps(document, indent=rng.choice([None, 2]), ensure_ascii=rng.random() < 0.5)
    if kind == "yaml":
        return yaml.safe_dump(document, sort_keys=False, default_flow_style=rng.choice([None, True, False]))
    if kind == "xml":
        document = document if isinstance(document, dict) and len(document) == 1 else {"root": document}
        return xmltodict.unparse(document, full_document=rng.random() < 0.5, pretty=rng.random() < 0.5)
    if kind == "toml":
        return "\n".join(f"{name} = {_inline(value)}" for name, value in document.items()) if isinstance(document, dict) else ""
    text, document = io.StringIO(), document if isinstance(document, list) else []
    names = list(document[0]) if document and isinstance(document[0], dict) else ["river"]
    writer = csv.DictWriter(text, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(line for line in document if isinstance(line, dict))
    return text.getvalue()


def _inline(value) -> str:
    """A value as TOML writes it; what TOML has not is left as JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_inline(part)}" for name, part in value.items()) + "}"
    return f"[{', '.join(map(_inline, value))}]" if isinstance(value, list) else json.dumps(value)


def _spoiled(rng: random.Random, text: str) -> str:
    if rng.random() < 0.7:
        return text
    place = rng.randint(0, len(text))
    spoiled = [
        text[:place],
        f"```\n{text}\n```",
        f"Here: {text}",
        text[:place] + rng.choice("{}[]<>:,\"'\n\t-") + text[place:],
        "",
        " ",
    ]
    return rng.choice([*spoiled, text + "\n", f" {text} ", text[:place] + text[place + 1 :], text.replace("true", "TRUE")])


# Math.

ANSWERS = """
42 -7 0 1000000 12345678901 3.14 0.5 -0.25 0.333333 1,234 1/2 \\frac{1}{2} \\frac{3}{4} -\\frac{5}{3} \\dfrac{7}{2}
\\sqrt{2} 2\\sqrt{3} \\frac{\\sqrt{2}}{2} \\pi 2\\pi e^{2} x^2+1 (x+1)^2 x^{2}+2x+1 \\{1,2\\} \\{2,1\\} (1,2) [1,2]
(0,\\infty) x=3 y=2x+1 50\\% 0.5 \\text{yes} \\text{no} A 2^{10} 1024 10^{-3} 0.001 3! 6 \\binom{4}{2}
\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix} 3+4i \\log(8) \\sin(x) 30^\\circ 5\\text{cm} 5 \\$20 20 x>2 \\infty -1 \\pm1 1,2
\\frac{333}{1997} (2-\\sqrt{3})^{16} 007 7.0 7.00 +7
""".split()


def math(rng: random.Random) -> tuple[dict, str]:
    expected, given = rng.choice(ANSWERS), rng.choice(ANSWERS)
    if rng.random() < 0.45:
        given = expected
    if rng.random() < 0.3:
        expected, given = (
            f"{rng.choice(['', '-'])}{rng.choice([rng.randint(0, 20), rng.randint(0, 20) / 4, 100])}" for _ in "ab"
        )
    wrapped = rng.choice([expected, expected, expected, f"${expected}$", f"\\({expected}\\)", f" {expected} "])
    forms = [
        "\\boxed{%s}",
        "$\\boxed{%s}$",
        "\\[\\boxed{%s}\\]",
        "The final answer is $%s$. I hope it is correct.",
        "Answer: %s",
        "\\boxed{%s}.",
    ]
    forms += [
        "So the answer is $%s$",
        "%s",
        "$x = \\boxed{%s}$",
        "\\boxed{1} and \\boxed{%s}",
        "$%s$",
        "\\boxed{ %s } units",
        "\\fbox{%s}",
        "\\boxed{%s",
    ]
    forms += ["\\boxed{%s}, the final answer is 3", "**Final Answer** \\(\\boxed{%s}\\)", "\\boxed{%s}\\%%", "it is %s percent"]
    before = rng.choice(
        ["", "", "We have $a=1$ and 17 ways.\n", "First \\(x^2 = 4\\), so 2. ", "Let f(x) = 3x, then ", "answer 5? No. "]
    )
    after = rng.choice(["", "", "", "\nDone.", " It {is} so.", " $q$"])
    return {"question": "?", "expected_answer": wrapped}, before + rng.choice(forms) % given + after


# Reasoning Gym.

DATA_SETS = """
ab basic_arithmetic binary_matrix bitwise_arithmetic chain_sum caesar_cipher coin_flip complex_arithmetic countdown
count_bits course_schedule dice family_relationships fraction_simplification gcd intermediate_integration knights_knaves
leg_counting lcm letter_counting maze mini_sudoku n_queens number_sorting palindrome_generation polynomial_equations
power_function simple_equations simple_geometry simple_integration spiral_matrix spell_backward string_insertion syllogism
word_sorting
""".split()
JUNK = [
    "",
    "junk",
    "0",
    "1",
    "[]",
    "[1, 2]",
    "x",
    "True",
    "yes",
    "(",
    "1/0",
    "x**2",
    "3*(4+1)",
    "[['Q']]",
    "a b c",
    "-5",
    "0x1f",
    "[[0, 1], [1, 0]]",
]


def puzzles() -> list[dict]:
    return [row for name in DATA_SETS for row in reasoning_gym.rows(name, "train", 4)]


def puzzle(rng: random.Random, rows: list[dict]) -> tuple[dict, str]:
    row = rng.choice(rows)
    same = [other for other in rows if other["metadata"]["source_dataset"] == row["metadata"]["source_dataset"]]
    answer = rng.choice(
        [
            row["answer"],
            row["answer"],
            rng.choice(same)["answer"],
            rng.choice(JUNK),
            row["answer"] + rng.choice(" .1x)"),
            row["answer"][1:],
        ]
    )
    forms = [
        "<answer>%s</answer>",
        "<answer> %s\n</answer> done",
        "<answer>1</answer> no <answer>%s</answer>",
        "%s",
        "\\boxed{%s}",
        "<answer>%s",
        "It is %s",
    ]
    return row, rng.choice(forms).replace("%s", answer)


def pairs(name: str, number: int, seed: int = 0) -> list[tuple[dict, str]]:
    """So many (row, reply) of an environment."""
    rng = random.Random(f"{name}-{seed}")
    if name == "reasoning_gym":
        rows = puzzles()
        return [puzzle(rng, rows) for _ in range(number)]
    draw = {"mcqa": mcqa, "structured_outputs": structured_outputs, "math": math}[name]
    return [draw(rng) for _ in range(number)]
