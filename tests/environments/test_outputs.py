"""Outputs are compared as contest judges compare them: blanks do not count, digits do, decimals may be close."""

import math

import pytest

from nemo_cascade.environments.outputs import same_output, same_value


@pytest.mark.parametrize(
    "expected, printed, same",
    [
        ("1 2\n3\n", "1 2\n3", True),
        ("1 2\n3\n", "\n 1   2 \r\n3\t\n\n", True),
        ("1 2\n3\n", "1\n2\n3", False),
        ("1\n\n2", "1\n2", False),
        ("", "", True),
        ("", "0", False),
        ("a", "A", False),
        ("YES", "YES YES", False),
        # Decimals
        ("0.333333333", "0.33333334", True),
        ("1.0", "1.00000", True),
        ("1000000000.0", "1000000001.0", True),
        ("1.5", "1.50001", False),
        ("1e9", "1.0E9", True),
        ("-0.0", "0.0", True),
        (".5", "0.5", True),
        ("2.", "2.0", True),
        # Only where both are decimals
        ("3", "3.0", False),
        ("3.0", "3", False),
        ("50000000000000000", "50000000000000001", False),
        ("007", "7", False),
        ("nan", "0.5", False),
        ("inf", "1e999", False),
        ("1.0", "nan", False),
        ("1e5x", "1e5", False),
        ("0x1.8p0", "1.5", False),
        ("1_0.0", "10.0", False),
        ("١.0", "1.0", False),
    ],
)
def test_words_and_lines(expected, printed, same):
    assert same_output(expected, printed) is same


@pytest.mark.parametrize(
    "expected, value, same",
    [
        ([1, [2, "a"]], (1, [2, "a"]), True),
        ([1, 2], [1, 2, 3], False),
        (0.1 + 0.2, 0.3, True),
        (1.0, 1, False),
        (1, True, False),
        (None, None, True),
        (None, 0, False),
        ({"1": [2.0]}, {1: (2.0,)}, True),
        ({"a": 1}, {"b": 1}, False),
        ({"a": 1}, {"a": 1, (1, 2): 3}, False),
        ([1], {1}, False),
        ("a", b"a", False),
        (math.inf, math.inf, True),
        (math.nan, math.nan, False),
        (10**30, 10**30, True),
        (10**30, 1e30, False),
    ],
)
def test_values(expected, value, same):
    assert same_value(expected, value) is same
