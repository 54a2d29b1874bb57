"""The editor: commands on files in memory, with words for every mistake. Never raises for what a model gives."""

import json

from nemo_cascade.environments.swe_agentic.tools import ROOT
from nemo_cascade.environments.swe_repair.patches import Files
from nemo_cascade.sandbox.programs import misplaced

# Lines around an edit that are shown after it.
AROUND = 4


class Editor:
    """`edit` does a command on `files` in place; undo goes back one edit at a time, of each file."""

    def __init__(self, files: Files):
        self.files = files
        self._before: dict[str, list[str | None]] = {}

    def edit(self, arguments: dict) -> str:
        command, path = arguments.get("command"), relative(arguments.get("path"))
        if path is None:
            return f"Error: path {arguments.get('path')!r} is not below {ROOT}"
        if command not in _COMMANDS:
            return f"Error: command {command!r} is none of {', '.join(_COMMANDS)}"
        return _COMMANDS[command](self, path, arguments)

    def _view(self, path: str, arguments: dict) -> str:
        if path in self.files:
            lines = self.files[path].splitlines()
            first, last = _range(arguments.get("view_range"), len(lines))
            if first is None:
                return f"Error: view_range must be [first, last] within 1 and {len(lines)}"
            return numbered(lines[first - 1 : last], first)
        inside = sorted(name for name in self.files if name.startswith(f"{path}/" if path else ""))
        return "\n".join(f"{ROOT}/{name}" for name in inside) if inside else self._missing(path)

    def _create(self, path: str, arguments: dict) -> str:
        text = arguments.get("file_text")
        if not isinstance(text, str) or not path:
            return "Error: create needs a path of a file and file_text, a text"
        told = misplaced([*self.files, path])
        if told is not None:
            return f"Error: {told}"
        self._set(path, text)
        return f"{ROOT}/{path} is written"

    def _str_replace(self, path: str, arguments: dict) -> str:
        old, new = arguments.get("old_str"), arguments.get("new_str", "")
        if path not in self.files:
            return self._missing(path)
        if not isinstance(old, str) or not old or not isinstance(new, str):
            return "Error: str_replace needs old_str and new_str, texts"
        text, count = self.files[path], self.files[path].count(old)
        if count != 1:
            return f"Error: old_str stands in {ROOT}/{path} {count} times; it must stand there exactly once"
        self._set(path, text.replace(old, new))
        return self._around(path, text[: text.index(old)].count("\n"), new.count("\n") + 1)

    def _insert(self, path: str, arguments: dict) -> str:
        line, new = arguments.get("insert_line"), arguments.get("new_str")
        if path not in self.files:
            return self._missing(path)
        lines = self.files[path].splitlines(keepends=True)
        if not isinstance(new, str) or type(line) is not int or not 0 <= line <= len(lines):
            return f"Error: insert needs new_str, a text, and insert_line, a number from 0 to {len(lines)}"
        if line and not lines[line - 1].endswith("\n"):
            lines[line - 1] += "\n"
        self._set(path, "".join([*lines[:line], new if new.endswith("\n") else f"{new}\n", *lines[line:]]))
        return self._around(path, line, new.count("\n") + 1)

    def _undo_edit(self, path: str, arguments: dict) -> str:
        if not self._before.get(path):
            return f"Error: no edit of {ROOT}/{path} to undo"
        before = self._before[path].pop()
        if before is None:
            self.files.pop(path, None)
        else:
            self.files[path] = before
        return f"{ROOT}/{path} is as before the last edit"

    def _set(self, path: str, text: str) -> None:
        self._before.setdefault(path, []).append(self.files.get(path))
        self.files[path] = text

    def _around(self, path: str, line: int, count: int) -> str:
        first = max(0, line - AROUND)
        shown = self.files[path].splitlines()[first : line + count + AROUND]
        return f"{ROOT}/{path} is edited:\n{numbered(shown, first + 1)}"

    def _missing(self, path: str) -> str:
        return f"Error: there is no {ROOT}/{path}"


_COMMANDS = {
    "view": Editor._view,
    "create": Editor._create,
    "str_replace": Editor._str_replace,
    "insert": Editor._insert,
    "undo_edit": Editor._undo_edit,
}


def relative(path) -> str | None:
    """A path below ROOT without it, "" for ROOT itself; None for one that leads elsewhere."""
    if not isinstance(path, str) or "\0" in path:
        return None
    inside = path.removeprefix(ROOT) if path == ROOT or path.startswith(f"{ROOT}/") else path
    if inside.startswith("/") and inside == path:
        return None
    parts = [part for part in inside.split("/") if part not in ("", ".")]
    return None if ".." in parts else "/".join(parts)


def numbered(lines: list[str], first: int) -> str:
    return "\n".join(f"{number:6}\t{line}" for number, line in enumerate(lines, first))


def _range(given, lines: int) -> tuple[int | None, int]:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None, 0
    if given is None:
        return 1, lines
    if not isinstance(given, list) or len(given) != 2 or not all(type(value) is int for value in given):
        return None, 0
    first, last = given[0], lines if given[1] == -1 else min(given[1], lines)
    return (first, last) if 1 <= first <= max(last, 1) else (None, 0)
