"""IFBench's ten types that each come with a prompt of their own (for evaluation only, see ifbench.py)."""

import csv
import io
import re
import unicodedata
from functools import partial
from itertools import pairwise

from nemo_cascade.environments.instruction_following import rules
from nemo_cascade.environments.instruction_following.texts import split_sentences, stripped, without_punctuation
from nemo_cascade.environments.instruction_following.word_lists import NORTHERN_CAPITALS

rule = partial(rules.rule, evaluation_only=True)

AFRICAN_COUNTRIES = 52
DAYS = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}
NAPOLEON = range(1769, 1822)


@rule("custom:multiples")
def multiples(text: str) -> bool:
    return re.findall(r"\d+", text) == ["14", "21", "28", "35", "42", "49"]


@rule("custom:mcq_count_length")
def mcq_count_length(text: str) -> bool:
    """Four questions, each longer than the one before, of five options each."""
    if not text.startswith("Question"):
        return False
    questions = [found.strip() for found in re.split(r"Question \d+[.|):;]?", text) if found.strip()]
    asked = [_question(question) for question in questions]
    lengths = [length for length, _ in asked]
    return (
        len(asked) == 4
        and all(options == 5 for _, options in asked)
        and all(one < two for one, two in pairwise(lengths))
    )


def _question(text: str) -> tuple[int, int]:
    """Length of the question itself, and how many options it has."""
    lines = [line.strip() for line in text.split("\n")]
    options = [re.match(r"[A-Ea-e][.|)]\s*\w", line) is not None for line in lines]
    first = options.index(True) if True in options else len(lines)
    return len(" ".join(lines[:first]).strip()), sum(options)


@rule("custom:reverse_newline")
def reverse_newline(text: str) -> bool:
    """From Zimbabwe on as many lines as Africa has countries, in reverse order; which they are is not looked at."""
    lines = [line for line in map(stripped, text.split("\n")) if line]
    first = next((place for place, line in enumerate(lines) if "Zimbabwe" in line), len(lines))
    countries = [_plain(line) for line in lines[first:]]
    return len(countries) >= AFRICAN_COUNTRIES and all(one >= two for one, two in pairwise(countries))


def _plain(text: str) -> str:
    """Without accents, and without what then is not ASCII."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


@rule("custom:word_reverse")
def word_reverse(text: str) -> bool:
    """The reply, without marks and read from its last word, is one sentence about the bald eagle."""
    sentence = " ".join(reversed(without_punctuation(text.lower()).split()))
    return "bald eagle" in sentence and split_sentences(sentence) == [sentence]


@rule("custom:character_reverse")
def character_reverse(text: str) -> bool:
    return "elgae dlab" in text.lower()


@rule("custom:sentence_alphabet")
def sentence_alphabet(text: str) -> bool:
    first = [sentence[:1].lower() for sentence in split_sentences(text)]
    return first == list("abcdefghijklmnopqrstuvwxyz")


@rule("custom:european_capitals_sort")
def european_capitals_sort(text: str) -> bool:
    return [capital.strip() for capital in _plain(text).split(",") if capital.strip()] == NORTHERN_CAPITALS


@rule("custom:csv_city")
def csv_city(text: str) -> bool:
    rows = _table(text, ",")
    return (
        len(rows) == 8 and rows[0] == ["ID", "Country", "City", "Year", "Count"] and all(len(row) == 5 for row in rows)
    )


@rule("custom:csv_special_character")
def csv_special_character(text: str) -> bool:
    """14 rows; before the first that is not of five fields one has a field in quotes with something special in it."""
    if not _has_header(text, ",[ \t]*", ["ProductID", "Category", "Brand", "Price", "Stock"]):
        return False
    rows = _table(_with_quotes(text), ",")
    for row in rows[1:] if len(rows) == 15 else ():
        if len(row) != 5:
            return False
        if any(map(_is_special, row)):
            return True
    return False


def _is_special(field: str) -> bool:
    """Quoted, with something special. No pattern: one would look for the closing mark from every special character."""
    line = field.split("\n", 1)[0]
    return line.startswith('"') and re.search(r"[^\w\s]", line[1 : max(1, line.rfind('"'))]) is not None


@rule("custom:csv_quotes")
def csv_quotes(text: str) -> bool:
    if not _has_header(text, "\t *", ["StudentID", "Subject", "Grade", "Semester", "Score"]):
        return False
    rows = _table(_with_quotes(text), "\t")
    return len(rows) == 4 and all(
        len(row) == 5 and all(field.strip()[:1] == field.strip()[-1:] == '"' for field in row) for row in rows
    )


def _has_header(text: str, separator: str, names: list[str]) -> bool:
    header = separator.join(f'(?:{name}|"{name}")' for name in names)
    return re.fullmatch(header, text.split("\n", 1)[0].strip()) is not None


def _with_quotes(text: str) -> str:
    """So written that the quotation marks are still there when the table has been read."""
    return text.replace('"', '"""')


def _table(text: str, delimiter: str) -> list[list[str]]:
    """No rows where the text is no table."""
    try:
        return list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error:
        return []


@rule("custom:date_format_list")
def date_format_list(text: str) -> bool:
    """Dates of Napoleon's lifetime between commas; that there was a battle is not looked at."""
    return all(map(_is_date, text.split(",")))


def _is_date(text: str) -> bool:
    found = re.fullmatch(r"(\d{4})-(\d{2})-(\d{2})", text.strip())
    if not found:
        return False
    year, month, day = map(int, found.groups())
    return year in NAPOLEON and month <= 12 and (day <= DAYS.get(month, 31) or month == 0)
