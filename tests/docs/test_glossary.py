"""The glossary has every metric that can be logged, and none that cannot."""

import ast
import re
from pathlib import Path

import pytest
import torch

from nemo_cascade.algorithms import mismatch_metrics, ratio_metrics, weight_metrics
from tests.docs.glossary import NAMES, unexplained

ROOT = Path(__file__).parents[2]
# Modules that put a name into what is logged.
SOURCES = [path for folder in ("stages", "engine", "algorithms", "cascade") for path in (ROOT / "nemo_cascade" / folder).rglob("*.py")]
STRINGS = {
    node.value
    for path in SOURCES
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
}


def test_no_name_is_explained_twice():
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_glossary_is_one_that_the_source_gives(name):
    last = re.sub(r"<\w+>", "", name).removeprefix("train/").removeprefix("timing/train/").strip("/")
    parts = [part for part in last.split("/") if part]
    known = {word for text in STRINGS for word in re.split(r"[/{}]", text)}
    ends = {f"{stem}_{end}" for stem in STRINGS for end in ("min", "max")} | {f"{end}_seq_mult_prob_error" for end in ("min", "max")}
    assert [part for part in parts if part not in known and part not in ends] == []


def test_what_losses_measure_is_explained():
    tokens = torch.zeros(4)
    mask, segments = torch.ones(4), torch.zeros(4, dtype=torch.long)
    measured = {**mismatch_metrics(tokens, tokens, mask, segments), **ratio_metrics(tokens, tokens, mask, segments)}
    for mode in ("none", "icepop", "seq-mask-tis"):
        measured |= weight_metrics(tokens, tokens, mask, segments, mode=mode)
    assert unexplained(f"train/{name}" for name in measured) == set()


def test_laps_and_literal_names_in_the_loops_are_explained():
    text = "".join(path.read_text() for path in (ROOT / "nemo_cascade" / "stages").glob("*.py"))
    laps = re.findall(r'watch\.lap\("(\w+)"\)', text)
    literal = re.findall(r'metrics\["(\w+)"\]', text)
    assert laps and literal
    assert unexplained([*(f"timing/train/{lap}" for lap in laps), *(f"train/{name}" for name in literal)]) == set()
    shown = (ROOT / "nemo_cascade" / "cascade" / "report_page" / "curves.py").read_text()
    of_page = {re.sub(r"\(|\)", "", name).replace("[^/]+", "x") for name in re.findall(r'r"(train/[^"]+)"', shown)}
    assert of_page and unexplained(of_page) == set()
