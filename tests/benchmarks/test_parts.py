"""What the benchmarks put their clocks around is there, by the names that they have for it."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.mark.parametrize("script", ["cost", "overhead"])
def test_every_part_is_a_function_that_there_is(script, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, script, raising=False)
    parts = importlib.import_module(script).PARTS
    for module, _, name in (function.partition(":") for functions in parts.values() for function in functions):
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        assert callable(found)
