"""Runs a row's hidden tests on patched files, in the sandbox.

Plain ones, `tests` {path: text} of functions with asserts, are given to a small runner and are in no file. Where a row has
`runner: pytest`, a `repository` or a `test_patch`, pytest runs the test files themselves, which lie beside the patched ones.

A test has passed when its own random token is written, which happens once it has returned: exiting early and printing
verdicts gain nothing. Beside each token lies a decoy that is never written, and what is printed is not looked at: who shows
all that is on the stack or in memory, by design or by chance, passes nothing. Files that are tests' (`_is_test`) or steer
pytest are as they were before the patch. But patched code and tests share a process, as they do wherever pytest runs, so that
nothing there can be a secret: a patch made for this very runner could take the right ones of the tokens, change pytest in
memory, or return values that equal everything. A second process would only have to believe what this one says.
"""

import json
import re
import secrets
from collections.abc import Iterable
from functools import lru_cache
from pathlib import PurePosixPath

from nemo_cascade import sandbox
from nemo_cascade.environments.swe_repair import patches
from nemo_cascade.environments.swe_repair.patches import Files
from nemo_cascade.sandbox import MIB, Limits, Program
from nemo_cascade.sandbox.programs import misplaced

# Seconds for all tests of a reply together; many times what they need, because the machine is shared.
TIMEOUT = 20.0
PYTEST = Limits(seconds=120.0, memory=1024 * MIB, output=4 * MIB, disk=64 * MIB, processes=64, inodes=20_000, open_files=256)
STEER_PYTEST = ("conftest.py", "pytest.ini", ".pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml", "pytest.py", "sitecustomize.py")

_TEST_FILE = re.compile(r"test_.*\.py|.*_test\.py")

# A test file is run once; if that fails, so do all of its tests. What is printed goes to stderr, which is not looked at.
_PLAIN = """
def run(tests, wanted):
    import os
    said, write = os.dup(1), os.write
    os.dup2(2, 1)
    spaces = {}
    for path, function, (token, decoy) in wanted:
        try:
            if path not in spaces:
                spaces[path] = {"__name__": path}
                exec(compile(tests[path], path, "exec"), spaces[path])
            spaces[path][function]()
        except BaseException:
            continue
        write(said, token.encode() + b"\\n")

"""
# addopts may name plugins that are not there. The token is written past pytest's capture once all three parts have passed.
_PYTEST = r"""
def run(wanted):
    import os, sys
    # No file of the repository comes in place of pytest or of what that imports.
    sys.path.remove("")
    import pytest
    sys.path[:0] = [path for path in (os.getcwd(), os.path.join(os.getcwd(), "src")) if os.path.isdir(path)]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    said, write = os.dup(1), os.write
    os.dup2(2, 1)

    class Tokens:
        def __init__(self):
            self.parts = {}

        def pytest_collection_modifyitems(self, items):
            items[:] = [item for item in items if item.nodeid in wanted]

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_logreport(self, report):
            parts = self.parts.setdefault(report.nodeid, [])
            # A subtest has a report of its own beside that of its test.
            if not report.passed or type(report) is pytest.TestReport:
                parts.append(report.when if report.passed else "failed")
            if parts == ["setup", "call", "teardown"]:
                token, decoy = wanted[report.nodeid]
                write(said, (token + "\\n").encode())

    files = sorted({name.partition("::")[0] for name in wanted})
    arguments = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "--rootdir=.", "--continue-on-collection-errors"]
    pytest.main([*arguments, *filter(os.path.exists, files)], plugins=[Tokens()])

"""


def names_of(row: dict) -> tuple[list[str], list[str]]:
    """(FAIL_TO_PASS, PASS_TO_PASS), in large letters as SWE-bench has them, perhaps as JSON in a text, or in small ones.

    Raises ValueError for what is no list of names.
    """
    found = []
    for key in ("fail_to_pass", "pass_to_pass"):
        names = row.get(key) if row.get(key) is not None else row.get(key.upper())
        if isinstance(names, str):
            try:
                names = json.loads(names)
            except ValueError:
                raise ValueError(f"{key} is a text that is no JSON; it must be a list of names of tests") from None
        if not isinstance(names, list | type(None)) or not all(isinstance(name, str) for name in names or []):
            raise ValueError(f'{key} must be a list of names of tests, "path::function"')
        found.append(names or [])
    return found[0], found[1]


def by_pytest(row: dict) -> bool:
    """Whether pytest runs the row's tests."""
    return row.get("runner") == "pytest" or any(row.get(key) is not None for key in ("repository", "test_patch"))


def problem(row: dict, files: Files) -> str | None:
    """What keeps the row's tests from being run. Raises ValueError saying so, too."""
    failing, passing = names_of(row)
    if not failing:
        return 'no fail_to_pass (a list of "path::function"; pass_to_pass likewise, which may be empty)'
    tests = row.get("tests")
    if tests is not None and not (isinstance(tests, dict) and all(isinstance(text, str) for text in tests.values())):
        return "tests must be an object {path: text}"
    if not isinstance(row.get("test_patch"), str | None):
        return "test_patch must be a text"
    # Raises ValueError for a path that leads out of the folder.
    Program("python", "", files={**files, **(tests or {})})
    if not by_pytest(row):
        if not tests:
            return "no tests (an object {path: text})"
        for name in failing + passing:
            path, _, function = name.partition("::")
            if f"def {function}(" not in tests.get(path, ""):
                return f"test {name!r} is in none of the tests' files {', '.join(tests)}; write path::function"
        return None
    try:
        tested = with_tests(row, files, files)
    except ValueError as error:
        return str(error)
    missing = [name for name in failing + passing if name.partition("::")[0] not in tested]
    return f"test {missing[0]!r} is in no file of the repository, tests or test_patch" if missing else None


def with_tests(row: dict, before: Files, patched: Files) -> Files:
    """The patched files with tests, and what steers pytest, as they were, then with the row's `tests` and `test_patch`.

    Raises ValueError for a test_patch that does not apply.
    """
    own = {path for name in sum(names_of(row), []) if (path := name.partition("::")[0])}
    folders = _folders_of_tests(own)
    kept = {path for path in before.keys() | patched.keys() if path in own or _steers(path) or _is_test(path, folders)}
    files = {path: text for path, text in patched.items() if path not in kept}
    files |= {path: before[path] for path in kept if path in before}
    files |= row.get("tests") or {}
    if row.get("test_patch"):
        changes = _read(row["test_patch"])
        # What the patch of tests touches is as it was before the model's.
        for path in {path for change in changes for path in (change.path, change.to) if path is not None}:
            files.pop(path, None)
            files |= {path: before[path]} if path in before else {}
        applied = patches.apply(files, changes)
        if applied is None:
            raise ValueError("test_patch is no unified diff that applies to the repository's files")
        files = applied
    return files


def failed(row: dict, before: Files, patched: Files) -> list[str]:
    """Those of the row's tests that do not pass with the patched files."""
    names = sum(names_of(row), [])
    if not by_pytest(row):
        return failed_tests(patched, row["tests"], names)
    files, tokens = with_tests(row, before, patched), _tokens(names)
    if misplaced(files):
        # A file of the patch is where the tests' folder has to be, or the other way round.
        return names
    program = Program("python", f"{_PYTEST}run({tokens!r})", files=files, packages=True)
    return _without(tokens, sandbox.get().run(program, PYTEST).stdout)


def failed_tests(files: Files, tests: Files, names: list[str]) -> list[str]:
    """Those of the named plain tests that do not pass with these files, in one process."""
    tokens = _tokens(names)
    wanted = [(*name.split("::", 1), pair) for name, pair in tokens.items()]
    source = f"{_PLAIN}run({tests!r}, {wanted!r})"
    return _without(tokens, sandbox.get().run(Program("python", source, files=files), Limits(seconds=TIMEOUT)).stdout)


def _tokens(names: list[str]) -> dict[str, tuple[str, str]]:
    """Of each test what is written when it has passed, and a decoy."""
    return {name: (secrets.token_hex(16), secrets.token_hex(16)) for name in names}


def _without(tokens: dict[str, tuple[str, str]], written: str) -> list[str]:
    found = set(re.findall(r"[0-9a-f]{32}", written))
    forged = any(decoy in found for _, decoy in tokens.values())
    return [name for name, (token, _) in tokens.items() if forged or token not in found]


def _steers(path: str) -> bool:
    return PurePosixPath(path).name in STEER_PYTEST


def _is_test(path: str, folders: tuple[str, ...]) -> bool:
    """Whether a file is one of tests by its name, or lies beside them, as what they share."""
    return path.startswith(folders) or _TEST_FILE.fullmatch(PurePosixPath(path).name) is not None


def _folders_of_tests(files: Iterable[str]) -> tuple[str, ...]:
    """The outermost folder called test, tests or testing of each file, with its slash; a package `testing` elsewhere is none."""
    found = (re.match(r"(?:.*?/)??(?:tests?|testing)/", file) for file in files)
    return tuple({match[0] for match in found if match})


@lru_cache(maxsize=256)
def _read(patch: str) -> list[patches.Change]:
    return patches.diff_of(patch)
