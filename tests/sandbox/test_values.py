"""What passes the wall is what was said, and no work of a program's choosing."""

import json
import math

import pytest

from nemo_cascade.sandbox.inside import values

MODULUS = 2**61 - 1
PLAIN = [None, True, 0, -(10**30), 0.5, math.inf, "a", b"\x00", 1 + 2j, [], (), {}, set(), [1, (2, {3})], {1: "a", "1": {"b": [None]}}]
PLAIN += [set(range(10_000)), {(n, "x"): n for n in range(10_000)}, {-1, -2}, {MODULUS * n for n in range(60)}]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:20])
def test_a_value_comes_back_as_it_was(value):
    decoded = values.decode(values.encode(value))
    assert decoded == value and type(decoded) is type(value)


@pytest.mark.parametrize(
    "attack",
    [
        {"set": [MODULUS * n for n in range(20_000)]},
        {"dict": [[MODULUS * n, 0] for n in range(20_000)]},
        [{"tuple": [{"set": [{"tuple": [MODULUS * n, 7]} for n in range(20_000)]}]}],
        {"set": [{"complex": [n * 1000003, -n]} for n in range(20_000)]},
        {"set": [{"set": [1]}]},
        {"set": 7},
        {"dict": [[1]]},
        {"dict": [1]},
        {"other": []},
        {},
    ],
    ids=lambda attack: str(attack)[:40],
)  # fmt: skip
def test_keys_of_one_hash_and_what_was_never_encoded_are_refused(attack):
    with pytest.raises(ValueError, match="not a value"):
        values.decode(json.dumps(attack))
