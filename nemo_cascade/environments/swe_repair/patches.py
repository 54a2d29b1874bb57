"""Patches in a reply, read and applied: SEARCH/REPLACE blocks or a unified diff.

Blocks of whole lines

    path
    <<<<<<< SEARCH
    lines as they stand, which must occur exactly once in the file; none for a file that is new
    =======
    lines to put there
    >>>>>>> REPLACE

or what `git diff` prints, with new, deleted and renamed files. Either stands in ```diff fences or without, within <solution>
tags or without. A diff's lines must occur to the letter, where its numbers say, or else in one place alone. What cannot be read or
applied spoils the whole patch.

Left out: binary files, changes of mode, and "fuzz", by which patch(1) lets context differ.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath

from unidiff import PatchedFile, PatchSet
from unidiff.errors import UnidiffParseError

from nemo_cascade.sandbox.programs import misplaced

Files = dict[str, str]
# Characters of a reply: no repair is longer, and to read one takes time.
LONGEST = 200_000

# Each is asked of one line: a pattern over all of a reply takes time that grows with the square of its length, or worse.
_PATH = re.compile(r"(?:### )?(\S+)[ \t]*")
_SEARCH, _MIDDLE, _REPLACE = (re.compile(mark + r"[ \t]*") for mark in ("<{7} SEARCH", "={7}", ">{7} REPLACE"))
_FENCE, _FENCE_ENDS = re.compile(r"```(?:diff|patch)[ \t]*"), re.compile(r"```[ \t]*")
# Where one of these begins a line that no hunk accounts for, a hunk is longer than it says.
_OF_A_HUNK = re.compile(r"[-+@]| .*\S")
_BEGINS = re.compile(r"^(?:diff --git |--- )", re.MULTILINE)
# Over lines that begin so unidiff's patterns take time that grows with the square of their length, or worse. Two paths are shorter.
_HEADERS, LONGEST_HEADER = ("diff --git ", "Binary file"), 512


@dataclass(frozen=True)
class Change:
    """Lines of a file to replace, none in one to be made. start: their first line's number from 0, where it is known. to: the
    file's new path, None to delete it."""

    path: str
    to: str | None
    old: tuple[str, ...]
    new: tuple[str, ...]
    start: int | None = None
    # Of the last line, before and after, where a diff says so.
    open_end: tuple[bool, bool] = (False, False)


def read(answer: str) -> list[Change]:
    """The changes of a reply's patch in their order; none when there is no patch or it cannot be read."""
    if len(answer) > LONGEST:
        return []
    _, begun, rest = answer.partition("<solution>")
    inside, ended, _ = rest.rpartition("</solution>")
    text = inside if begun and ended else answer
    return blocks_of(text) if "<<<<<<< SEARCH" in text else diff_of(text)


def blocks_of(text: str) -> list[Change]:
    """The SEARCH/REPLACE blocks; none at all when one of them cannot be read."""
    lines = iter(pairwise(text.split("\n")))
    blocks = []
    for above, line in lines:
        path = _PATH.fullmatch(above) if _SEARCH.fullmatch(line) else None
        if path is not None:
            search, replace = _until(lines, _MIDDLE), _until(lines, _REPLACE)
            if search is None or replace is None:
                return []
            blocks.append(Change(path[1], path[1], search, replace))
    return blocks if len(blocks) == text.count("<<<<<<< SEARCH") else []


def _until(lines: Iterator[tuple[str, str]], mark: re.Pattern) -> tuple[str, ...] | None:
    """The lines before the one that is the mark; None without one."""
    found = []
    for _, line in lines:
        if mark.fullmatch(line):
            return tuple(found)
        found.append(line)
    return None


def diff_of(text: str) -> list[Change]:
    """The hunks of a unified diff; none at all when one of them cannot be read."""
    fenced = _fenced(text)
    begin = _BEGINS.search(text)
    if not fenced and begin is None:
        return []
    text = "".join(fenced) if fenced else text[begin.start() :]
    if any(len(line) > LONGEST_HEADER and line.startswith(_HEADERS) for line in text.split("\n")):
        return []
    try:
        files = list(PatchSet(text))
    except (UnidiffParseError, ValueError):
        return []
    if _has_lines_left(text.split("\n"), files) or any(file.is_binary_file for file in files):
        return []
    changes = []
    for file in files:
        made, gone = file.source_file == "/dev/null", file.target_file == "/dev/null"
        path = _bare(file.target_file if made else file.source_file)
        to = None if gone else _bare(file.target_file)
        # Hunks are applied one after the other, so only the first finds the file by its old name.
        for number, hunk in enumerate(file):
            lines = [(line.line_type, line.value.removesuffix("\n")) for line in hunk if line.line_type != "\\"]
            old = tuple(value for kind, value in lines if kind in " -")
            new = tuple(value for kind, value in lines if kind in " +")
            start = None if made else max(hunk.source_start - 1, 0)
            changes.append(Change(to if number and to else path, to, old, new, start, _open_ends(hunk)))
        if not len(file):
            changes.append(Change(path, to, (), ()))
    return changes


def _fenced(text: str) -> list[str]:
    """What stands in ```diff and ```patch fences that are closed."""
    found: list[str] = []
    inside: list[str] | None = None
    for line in text.split("\n"):
        if inside is None:
            inside = [] if _FENCE.fullmatch(line) else None
        elif _FENCE_ENDS.fullmatch(line):
            found.append("".join(inside))
            inside = None
        else:
            inside.append(line + "\n")
    return found


def _has_lines_left(lines: list[str], files: list[PatchedFile]) -> bool:
    """Whether lines that look like a hunk's are in none: unidiff passes over what a hunk has beyond its header's counts."""
    hunks = [list(hunk) for file in files for hunk in file]
    known = {line.diff_line_no for hunk in hunks for line in hunk} | {hunk[0].diff_line_no - 1 for hunk in hunks if hunk}
    for number, (line, following) in enumerate(pairwise(lines), start=1):
        if number not in known and line.startswith("--- ") and following.startswith("+++ "):
            known |= {number, number + 1}
    return any(_OF_A_HUNK.match(line) for number, line in enumerate(lines, start=1) if number not in known)


def apply(files: Files, changes: list[Change]) -> Files | None:
    """The files after all changes, one after the other; None when there is none or one does not apply."""
    patched, moved = dict(files), {}
    for change in changes:
        if not (_inside(change.path) and (change.to is None or _inside(change.to))):
            return None
        if change.path not in patched:
            # Only a file that was not there can be made, and what was moved or deleted was.
            if change.old or change.to != change.path or change.path in files:
                return None
            patched[change.path] = "\n".join([*change.new, *([] if change.open_end[1] else [""])])
            continue
        text = _replaced(patched[change.path], change, moved.get(change.path, 0))
        if text is None or change.to is None and text:
            return None
        del patched[change.path]
        if change.to is not None:
            if change.to in patched:
                return None
            patched[change.to] = text
            moved[change.to] = moved.pop(change.path, 0) + len(change.new) - len(change.old)
    # Most change what is there, which needs no look at all paths of a repository.
    if not changes or not patched.keys() <= files.keys() and misplaced(patched):
        return None
    return patched


def _replaced(text: str, change: Change, moved: int) -> str | None:
    """A file's text after a change; moved: by how many lines earlier changes have moved what follows."""
    lines, old = text.split("\n"), list(change.old)
    if not old:
        if change.start is None:
            # A block must say where; a file that is only renamed or deleted has nothing to replace.
            return None if change.new or change.to == change.path else text
        at = change.start + moved + 1 if change.start else 0
        place = at if 0 <= at <= len(lines) else None
    else:
        stated = None if change.start is None else change.start + moved
        place = stated if stated is not None and lines[stated : stated + len(old)] == old else _only_place(lines, old)
    if place is None:
        return None
    lines[place : place + len(old)] = change.new
    before, after = change.open_end
    if after and lines[-1] == "":
        lines.pop()
    elif before and not after:
        lines.append("")
    return "\n".join(lines)


def _only_place(lines: list[str], wanted: list[str]) -> int | None:
    places = [place for place in range(len(lines)) if lines[place : place + len(wanted)] == wanted]
    return places[0] if len(places) == 1 else None


def _open_ends(hunk) -> tuple[bool, bool]:
    """Whether the file's last line has no line break, before and after, by git's "\\ No newline at end of file"."""
    before = after = False
    lines = list(hunk)
    for line, following in zip(lines, lines[1:]):
        if following.line_type == "\\":
            before |= line.line_type in " -"
            after |= line.line_type in " +"
    return before, after


def _bare(path: str) -> str:
    return path[2:] if path.startswith(("a/", "b/")) else path


def _inside(path: str) -> bool:
    """Whether a path leads to a file below the folder, and is the only way to write it."""
    parts = PurePosixPath(path).parts
    return bool(parts) and ".." not in parts and parts[0] != "/" and "\0" not in path and str(PurePosixPath(path)) == path
