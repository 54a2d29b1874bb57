"""Values as they pass the wall: JSON, with what JSON cannot tell apart (tuples, sets, dicts, bytes) as tagged objects.

No class of either side passes: what comes out is built here from plain types, so that no `__eq__` of a program's making
is ever called on the host. Neither is a set or a dict built whose keys were chosen to have one hash, which takes time that grows
with the square of their number.
"""

import json
from itertools import groupby

# So many keys may have one hash; among keys of any use two rarely do.
SAME_HASH = 64


def encode(value) -> str:
    """Raises TypeError, ValueError or RecursionError for what is no plain value (a function, an object, a cycle)."""
    return json.dumps(tagged(value))


def decode(text: str):
    """What was encoded. Raises ValueError for anything that `encode` could not have written."""
    try:
        return untagged(json.loads(text))
    except (TypeError, KeyError, RecursionError, ValueError) as error:
        raise ValueError(f"not a value: {type(error).__name__}: {error}") from None


def tagged(value):
    if value is None or isinstance(value, (bool, str, float, int)):
        return value
    if isinstance(value, list):
        return [tagged(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[tagged(key), tagged(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [tagged(item) for item in value]}
    if isinstance(value, (set, frozenset)):
        return {"set": [tagged(item) for item in value]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    raise TypeError(f"a {type(value).__name__} is no plain value")


def untagged(value):
    if isinstance(value, list):
        return [untagged(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("an object without its one tag")
    ((tag, items),) = value.items()
    if tag == "bytes":
        return bytes.fromhex(items)
    items = untagged(items)
    if not isinstance(items, list):
        raise ValueError(f"a {tag} of {type(items).__name__}")
    if tag in ("set", "dict"):
        hashes = sorted(hash(key) for key in (items if tag == "set" else [key for key, _ in items]))
        if max((sum(1 for _ in equal) for _, equal in groupby(hashes)), default=0) > SAME_HASH:
            raise ValueError(f"a {tag} with more than {SAME_HASH} keys of one hash")
    return {"dict": dict, "tuple": tuple, "set": set, "complex": lambda parts: complex(*parts)}[tag](items)
