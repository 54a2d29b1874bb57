"""Outputs are compared as contest judges compare them: blanks do not count, digits do, decimals may be close.

A number is right in whichever form: programs print 3.0 where 3 is expected, and functions return True for 1. NeMo Gym rewards these,
and what it and we see differently is in test_code_gym.py.
"""

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
        # By value, and exactly, where one of them is whole
        ("3", "3.0", True),
        ("3.0", "3", True),
        ("3", "3.0000001", False),
        ("3.0000001", "3", False),
        ("50000000000000000", "50000000000000001", False),
        ("50000000000000000", "50000000000000001.0", False),
        ("50000000000000000", "5e16", True),
        ("007", "7", True),
        ("+7", "7", True),
        ("-0", "0", True),
        ("1e500", "1e600", False),
        ("1e500", "10e499", True),
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
        # By value: a whole number is right as a decimal, and a truth as 1
        (1.0, 1, True),
        (1, 1.0, True),
        (1, True, True),
        (True, 1, True),
        ([0, [1]], [False, (1.0,)], True),
        (1, 1.0000001, False),
        (1.0000001, 1, False),
        (0.5, True, False),
        (10**16, 10**16 + 1, False),
        (5 * 10**16 + 1, 5e16, False),
        (1, "1", False),
        (None, None, True),
        (None, 0, False),
        ({"1": [2.0]}, {1: (2.0,)}, True),
        ({"a": 1}, {"b": 1}, False),
        ({"a": 1}, {"a": 1, (1, 2): 3}, False),
        ({"1": 2}, {1: 3, "1": 2}, False),
        ([1], {1}, False),
        ("a", b"a", False),
        (math.inf, math.inf, True),
        (math.nan, math.nan, True),
        (math.nan, 1.0, False),
        (1.5, math.inf, False),
        (10**30, 10**30, True),
        (10**30, 1e30, False),
    ],
)
def test_values(expected, value, same):
    assert same_value(expected, value) is same
