"""Every key of a config, from the dataclasses that read it: its path, its type, its default and what the source says of it."""

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass

from nemo_cascade.cascade import checks

# What ends a sentence of a docstring: a full stop before a capital letter, a backtick, a word with _ or a key and its colon.
SENTENCE = re.compile(r"(?<=[.)])\s+(?=[A-Z`]|[a-z\d]+_\w+|[a-z_]+(?:, [a-z_]+)*(?: and [a-z_]+)?[,:] )")


@dataclass(frozen=True)
class Key:
    """path: dotted, <name> where the user chooses the name. meaning: empty where the source says nothing of it."""

    path: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Block:
    """The keys of one dataclass below `path`, which is empty at the top; doc: the dataclass's docstring."""

    path: str
    doc: str
    keys: tuple[Key, ...]


def blocks(kind: type, path: str = "", skip: tuple[str, ...] = ()) -> Iterator[Block]:
    """`kind` and every dataclass inside it, depth first; without the fields in `skip`, by their paths."""
    kinds = [each for each in kind.__mro__ if dataclasses.is_dataclass(each)]
    hints, own, inner = typing.get_type_hints(kind), [], []
    comments = {name: text for each in reversed(kinds) for name, text in field_comments(each).items()}
    doc = " ".join(inspect.getdoc(each) or "" for each in kinds)
    for field in dataclasses.fields(kind):
        below = f"{path}.{field.name}" if path else field.name
        if below in skip:
            continue
        nested, name = nested_dataclass(hints[field.name])
        if nested is not None:
            inner.append((nested, below + name))
        if nested is None or name or optional(hints[field.name]):
            meaning = comments.get(field.name) or said_of(field.name, doc)
            own.append(Key(below, type_name(hints[field.name]), default_of(field), meaning + choices_of(below)))
    yield Block(path, inspect.getdoc(kind) or "", tuple(own))
    for nested, below in inner:
        yield from blocks(nested, below, skip)


def nested_dataclass(hint) -> tuple[type | None, str]:
    """(the dataclass that a field has, what stands for the name that the user gives it in a mapping)."""
    if dataclasses.is_dataclass(hint):
        return hint, ""
    arguments = [argument for argument in typing.get_args(hint) if argument is not types.NoneType]
    if typing.get_origin(hint) is dict:
        return (arguments[1], ".<name>") if dataclasses.is_dataclass(arguments[1]) else (None, "")
    return nested_dataclass(arguments[0]) if optional(hint) else (None, "")


def optional(hint) -> bool:
    """Whether null is a value of it."""
    return types.NoneType in typing.get_args(hint)


def type_name(hint) -> str:
    """The type as a reader of YAML knows it."""
    if optional(hint):
        (inner,) = (argument for argument in typing.get_args(hint) if argument is not types.NoneType)
        return f"{type_name(inner)} or null"
    if typing.get_origin(hint) is dict or hint is dict:
        inner = typing.get_args(hint)[1:]
        return f"mapping of {type_name(inner[0])}" if inner and inner[0] is not typing.Any else "mapping"
    if typing.get_origin(hint) is list:
        return f"list of {type_name(typing.get_args(hint)[0])}"
    if dataclasses.is_dataclass(hint):
        return "block"
    return getattr(hint, "__name__", str(hint))


def default_of(field: dataclasses.Field) -> str:
    """The default in YAML's words; "required" where a config must set it."""
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value in ("???", MISSING):
        return "required"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return repr(value) if isinstance(value, (dict, list, str)) and not value else str(value)


def field_comments(kind: type) -> dict[str, str]:
    """{field: its comment} of the comments at the ends of a dataclass's lines."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines = {node.lineno: node.target.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.AnnAssign)}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [(token.start[0], token.string.lstrip("# ")) for token in tokens if token.type == tokenize.COMMENT]
    return {lines[number]: text for number, text in comments if number in lines}


def said_of(name: str, doc: str) -> str:
    """The sentence of a docstring that begins with a field's name and a colon, else those that have the name in them."""
    sentences = SENTENCE.split(" ".join(doc.split()))
    begun = [sentence for sentence in sentences if re.match(rf"`?{name}`?: ", sentence)]
    chosen = begun or [sentence for sentence in sentences if any(named(name, word) for word in re.findall(r"\w+\*?", sentence))]
    return " ".join(re.sub(rf"^`?{name}`?: ", "", sentence) for sentence in chosen)


def choices_of(path: str) -> str:
    """What a key must be one of, in words; empty where it may be more than a few things."""
    said = next((choices for key, choices in checks.CHOICES.items() if path == key or path.endswith(f".{key}")), ())
    words = ", ".join(f"`{'null' if choice is None else choice}`" for choice in said)
    return f" ({words})" if len(said) > 1 else ""


def named(name: str, word: str) -> bool:
    """Whether a word of a docstring is the field's name, or with a star stands for several of which it is one, as ratio_clip_*."""
    return word == name or (word.endswith("*") and name.startswith(word[:-1]))


def page(kind: type, path: str = "", skip: tuple[str, ...] = (), level: int = 3) -> str:
    """Markdown: a heading and a table a block."""
    parts = []
    for block in blocks(kind, path, skip):
        title = f"`{block.path}`" if block.path else "The top level"
        if block.keys:
            parts.append("\n".join([f"{'#' * level} {title}", "", prose(block.doc), "", *table(block.keys), ""]))
    return "\n".join(parts)


def table(keys: tuple[Key, ...]) -> list[str]:
    """Rows of a Markdown table."""
    rows = [f"| {code_of(key.path)} | {key.type} | `{key.default}` | {cell(key.meaning)} |" for key in keys]
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows]


def code_of(path: str) -> str:
    """The last word of a path, which the heading above begins; the whole path is its anchor."""
    return f'<code id="{path.replace("<name>", "NAME")}">{path.rsplit(".", 1)[-1]}</code>'


def cell(text: str) -> str:
    """Text that ends no cell and makes no emphasis, outside of code."""
    return prose(text).replace("|", "\\|")


def prose(text: str) -> str:
    """Docstring as Markdown: what Markdown would read as emphasis, a tag or a link stays as it is written."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<\[])", r"\\\1", part) for part in parts)
