"""Repair of a few files: the reply's SEARCH/REPLACE patch is applied, then the hidden tests are run, in the sandbox.

Row: `files` {path: text}, `tests` {path: text} of plain functions with asserts, `fail_to_pass` and `pass_to_pass`
(lists of "path::function"). The reply holds blocks of whole lines

    path
    <<<<<<< SEARCH
    lines as they stand, which must occur exactly once in the file
    =======
    lines to put there
    >>>>>>> REPLACE

in a ```diff fence or without, within <solution> tags or without. A block that cannot be read or applied spoils the
whole patch.

A test has passed when its own random token is printed, which happens once it has returned: exiting early and printing
verdicts gain nothing, and the tests' text is on no disk by then. But patched code and tests share a process, as under
pytest: a patch made for it could find the tokens or the tests on the stack, or return values that equal everything.

Left out: new files, fixtures, tests that import each other, and the paper's judge for patches that cannot be run.
"""

import re
import secrets

from nemo_cascade import sandbox
from nemo_cascade.environments.response import answer_of
from nemo_cascade.sandbox import Limits, Program

REWARD_RANGE = (0.0, 1.0)
# Verifying waits for a process of its own.
IN_THREADS = True
# Seconds for all tests of a reply together; many times what they need, because the machine is shared.
TIMEOUT = 20.0

_SOLUTION = re.compile(r"<solution>(.*)</solution>", re.DOTALL)
_BLOCK = re.compile(
    r"^(?:### )?(\S+)[ \t]*\n<{7} SEARCH[ \t]*\n(.*?)^={7}[ \t]*\n(.*?)^>{7} REPLACE[ \t]*$", re.MULTILINE | re.DOTALL
)
# A test file is run once; if that fails, so do all of its tests.
_RUNNER = """
def run(tests, wanted):
    spaces = {}
    for path, function, token in wanted:
        try:
            if path not in spaces:
                spaces[path] = {"__name__": path}
                exec(compile(tests[path], path, "exec"), spaces[path])
            spaces[path][function]()
        except BaseException:
            continue
        print(token, flush=True)

"""

_ADD = {
    "files": {"sums.py": "def add(a, b):\n    return a - b\n\ndef one():\n    return 1\n"},
    "tests": {
        "test_sums.py": "from sums import add, one\n"
        "def test_add():\n    assert add(2, 3) == 5\ndef test_one():\n    assert one() == 1\n"
    },
    "fail_to_pass": ["test_sums.py::test_add"],
    "pass_to_pass": ["test_sums.py::test_one"],
}
_PATCH = "sums.py\n<<<<<<< SEARCH\n    return a - b\n=======\n    return a + b\n>>>>>>> REPLACE"
EXAMPLES = [
    (_ADD, _PATCH, 1.0),
    (_ADD, f"<solution>\n```diff\n### {_PATCH}\n```\n</solution>", 1.0),
    (_ADD, _PATCH.replace("a + b", "a * b"), 0.0),
    (_ADD, _PATCH.replace("a - b", "a-b"), 0.0),
    (_ADD, "return a + b", 0.0),
]


def problem(row: dict) -> str | None:
    """What keeps the row from being verified. Raises SandboxUnavailable where no program can be run."""
    for key in ("files", "tests"):
        if not isinstance(row.get(key), dict) or not row[key] or not all(isinstance(t, str) for t in row[key].values()):
            return f"no {key} (an object {{path: text}})"
    names = [row.get("fail_to_pass"), row.get("pass_to_pass", [])]
    if not all(isinstance(some, list) for some in names) or not names[0]:
        return 'no fail_to_pass (a list of "path::function"; pass_to_pass likewise, which may be empty)'
    for name in names[0] + names[1]:
        path, _, function = str(name).partition("::")
        if f"def {function}(" not in row["tests"].get(path, ""):
            return f"test {name!r} is in none of the tests' files {', '.join(row['tests'])}; write path::function"
    sandbox.get().probe()
    return None


def verify(row: dict, response: dict) -> dict:
    """{"reward": 1.0 when every test passes after the patch, else 0.0, "applied": bool, "failed_tests": [name, ...]}.

    Raises ValueError for a file whose path leads out of the folder.
    """
    names = [*row["fail_to_pass"], *row.get("pass_to_pass", [])]
    patched = apply(row["files"], blocks_of(answer_of(response)))
    if patched is None:
        return {"reward": 0.0, "applied": False, "failed_tests": names}
    failed = failed_tests(patched, row["tests"], names)
    return {"reward": float(not failed), "applied": True, "failed_tests": failed}


def blocks_of(answer: str) -> list[tuple[str, str, str]]:
    """(path, search, replace) of every block; none at all when one of them cannot be read."""
    solution = _SOLUTION.search(answer)
    text = solution[1] if solution else answer
    blocks = _BLOCK.findall(text)
    return blocks if len(blocks) == text.count("<<<<<<< SEARCH") else []


def apply(files: dict[str, str], blocks: list[tuple[str, str, str]]) -> dict[str, str] | None:
    """The files after all blocks, one after the other; None when there is no block or one does not apply."""
    patched = dict(files)
    for path, search, replace in blocks:
        lines, wanted = patched.get(path, "").split("\n"), search.split("\n")[:-1]
        places = [place for place in range(len(lines)) if lines[place : place + len(wanted)] == wanted]
        if path not in files or not wanted or len(places) != 1:
            return None
        lines[places[0] : places[0] + len(wanted)] = replace.split("\n")[:-1]
        patched[path] = "\n".join(lines)
    return patched if blocks else None


def failed_tests(files: dict[str, str], tests: dict[str, str], names: list[str]) -> list[str]:
    """Those of the named tests that do not pass with these files, in one process."""
    tokens = {name: secrets.token_hex(16) for name in names}
    wanted = [(*name.split("::", 1), token) for name, token in tokens.items()]
    source = f"{_RUNNER}run({tests!r}, {wanted!r})"
    result = sandbox.get().run(Program("python", source, files=files), Limits(seconds=TIMEOUT))
    return [name for name, token in tokens.items() if token not in result.stdout]
