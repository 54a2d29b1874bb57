"""Plain mappings into dataclasses, strictly: every unknown key and wrong type is collected, none is guessed away.

Knows nothing of any particular config. OmegaConf's own structured merge is not used because it stops at the first
problem.
"""

import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

MISSING = "???"
# What a name that becomes a folder or a part of a metric's name may be.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class ConfigErrors(ValueError):
    """All problems of a config, one line each; `problems` has them as a list."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(dict.fromkeys(one_line(problem) for problem in problems))
        super().__init__("\n".join(self.problems))


def one_line(text: object) -> str:
    """A message of any number of lines as one."""
    return " ".join(str(text).split())


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" for the nearest known word, else the list of known ones."""
    known = list(known)
    near = nearest(str(word), known)
    if near is not None:
        return f"; did you mean {near}?"
    return f"; known: {', '.join(known)}" if known else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is one slip of the finger away, else the one most alike if it is alike at all."""
    known = list(known)
    one_slip = [other for other in known if is_slip(word, other)]
    return next(iter(one_slip or difflib.get_close_matches(word, known, n=1, cutoff=0.6)), None)


def is_slip(word: str, other: str) -> bool:
    """Whether two words differ by one letter left out, put in or replaced, or by two neighbours swapped."""
    start = len(os.path.commonprefix([word, other]))
    a, b = word[start:], other[start:]
    swapped = a[1::-1] == b[:2] and a[2:] == b[2:]
    return word != other and (a[1:] == b or a == b[1:] or a[1:] == b[1:] or swapped)


def join(path: str, key: object) -> str:
    """A dotted key."""
    return f"{path}.{key}" if path else str(key)


def to_plain(node: Any, path: str, problems: list[str]) -> Any:
    """A DictConfig with all interpolations resolved, as plain Python values; `???` stays."""
    if isinstance(node, DictConfig):
        return {key: _resolved(node, key, join(path, key), problems) for key in node}
    if isinstance(node, ListConfig):
        return [_resolved(node, i, f"{path}[{i}]", problems) for i in range(len(node))]
    return node


def _resolved(node, key, path: str, problems: list[str]) -> Any:
    if OmegaConf.is_missing(node, key):
        return MISSING
    try:
        return to_plain(node[key], path, problems)
    except OmegaConfBaseException as error:
        problems.append(f"{path}: {str(error).splitlines()[0]}")
        return MISSING


def clean(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """`value` with everything that does not fit type `kind` left out and reported; `???` is let through anywhere.

    kind: a dataclass, dict[str, T], list[T], T | None, Any, bool, int, float or str, or bool | str. Defaults are not filled in, so
    that an override stays an override.
    """
    if is_missing(value):
        return MISSING
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _clean_dataclass(kind, value, path, problems)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not types.NoneType]
        if value is None and types.NoneType in arguments:
            return None
        fitting = next((argument for argument in inner if type(value) is argument), inner[0])
        return clean(fitting, value, path, problems)
    if origin is dict or kind is dict:
        if not isinstance(value, Mapping):
            return _wrong_type("a mapping", value, path, problems)
        inner = arguments[1] if arguments else Any
        return _kept({k: clean(inner, v, join(path, k), problems) for k, v in value.items()})
    if origin is list or kind is list:
        if not isinstance(value, list):
            return _wrong_type("a list", value, path, problems)
        entries = [clean(arguments[0], v, f"{path}[{i}]", problems) for i, v in enumerate(value)]
        return [entry for entry in entries if entry is not DROPPED]
    return _clean_scalar(kind, value, path, problems)


def make(kind: Any, value: Any) -> Any:
    """A dataclass (and the dataclasses inside it) from what `clean` let through."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{key: make(hints[key], entry) for key, entry in value.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not types.NoneType]
        return make(inner[0], value) if value is not None and len(inner) == 1 else value
    if origin is dict:
        return {key: make(arguments[1], entry) for key, entry in value.items()}
    return value


def merge(base: Any, override: Any) -> Any:
    """Mappings merged key by key, anything else replaced."""
    if isinstance(base, Mapping) and isinstance(override, Mapping):
        return {**base, **{key: merge(base.get(key), value) for key, value in override.items()}}
    return override


def without_missing(value: Any) -> Any:
    """Mappings without their `???` entries."""
    if not isinstance(value, Mapping):
        return value
    return {key: without_missing(entry) for key, entry in value.items() if not is_missing(entry)}


def is_missing(value: Any) -> bool:
    """Whether a value is still the `???` of a config file."""
    return isinstance(value, str) and value == MISSING


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted key -> leaf; empty mappings are leaves."""
    if isinstance(value, Mapping) and value:
        return {k: v for key, entry in value.items() for k, v in flatten(entry, join(path, key)).items()}
    return {path: value}


class _Dropped:
    """Stands for a value that was reported and must not be used."""


DROPPED = _Dropped()


def _kept(values: dict) -> dict:
    return {key: value for key, value in values.items() if value is not DROPPED}


def _clean_dataclass(kind, value, path, problems):
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return _wrong_type("a mapping", value, path, problems)
    hints = typing.get_type_hints(kind)
    cleaned = {}
    for key, entry in value.items():
        if key in hints:
            cleaned[key] = clean(hints[key], entry, join(path, key), problems)
        else:
            problems.append(f"{join(path, key)}: unknown key{_elsewhere(kind, str(key), hints)}")
    return _kept(cleaned)


def _elsewhere(kind, key: str, hints: Mapping) -> str:
    """A suggestion: a sibling that looks alike, else the same name deeper down, else the siblings."""
    if nearest(key, hints) is not None:
        return did_you_mean(key, hints)
    for _, name in _dataclass_fields(kind):
        if name.rsplit(".", 1)[-1] == key:
            return f"; did you mean {name}?"
    return did_you_mean(key, hints)


def _dataclass_fields(kind, path: str = "") -> Iterable[tuple[Any, str]]:
    for name, hint in typing.get_type_hints(kind).items():
        yield hint, join(path, name)
        if dataclasses.is_dataclass(hint):
            yield from _dataclass_fields(hint, join(path, name))
        elif typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1]):
            yield from _dataclass_fields(typing.get_args(hint)[1], join(path, f"{name}.<name>"))


NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def _clean_scalar(kind, value, path, problems):
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        return _wrong_type(NAMES[kind], value, path, problems)
    if kind is float and not math.isfinite(value):
        return _wrong_type("a finite number", value, path, problems)
    return value


def _wrong_type(expected: str, value, path, problems):
    problems.append(f"{path}: expected {expected}, got {value!r}")
    return DROPPED
