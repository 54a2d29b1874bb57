"""Writes small git repositories with a bug each, and rows of `swe_agentic` about them: python -m nemo_cascade.data.repositories --out DIR

Writes DIR/repositories/NAME, git repositories of two commits, a healthy one and the one that brought the bug, and DIR/train.jsonl, whose
rows have them as `repository` and `base_commit`. The same bytes and commits each time. `rows` are the same with their files in them.

The packages are ours, in demo/repositories: files as they are with the bug (with .txt behind their names, so that nobody takes
them for code or tests of this project), issue.md, golden.diff, and hidden.diff, which adds the tests that show the bug.
"""

import argparse
import json
import os
import re
from pathlib import Path

from nemo_cascade.data.files import new_folder, write_atomically
from nemo_cascade.environments.swe_agentic.tools import DEFINITIONS, ROOT
from nemo_cascade.environments.swe_repair import hidden_tests, patches
from nemo_cascade.environments.swe_repair.git import git
from nemo_cascade.environments.swe_repair.patches import Files

DATA = Path(__file__).parent / "demo" / "repositories"
AGENT = {"type": "responses_api_agents", "name": "swe_agentic_simple_agent"}
PROMPT = (
    f"In {ROOT} there is a repository in Python, and the issue below has been filed against it. Find the cause, mend it there, and "
    "see to it that the tests still pass. What is judged are the files that you leave behind, by tests of this issue that are not in "
    "the repository. Call finish when you are done.\n\n"
)
AUTHOR, EMAIL = "nemo_cascade", "nobody@example.com"
# Of the healthy commit, and of the one that brought the bug.
DATES = ("2024-01-08T09:00:00+0000", "2024-02-12T15:30:00+0000")
_TEST = re.compile(r"^def (test_\w+)\(", re.MULTILINE)


def names() -> list[str]:
    return sorted(path.name for path in DATA.iterdir() if path.is_dir())


def files(name: str) -> Files:
    """{path: text} of a repository with its bug."""
    folder = DATA / name / "files"
    found = sorted(folder.rglob("*.txt"))
    return {path.relative_to(folder).as_posix().removesuffix(".txt"): path.read_text(encoding="utf-8") for path in found}


def healthy(name: str) -> Files:
    """The same without the bug."""
    return patches.apply(files(name), patches.diff_of(_text(name, "golden.diff")))


def rows() -> list[dict]:
    """A row of each repository, with its `files`."""
    return [{**_row(name), "files": files(name)} for name in names()]


def write(directory: Path) -> None:
    """Writes repositories and rows. Raises ValueError where DIR/repositories is there already, or git fails."""
    folder = Path(directory) / "repositories"
    if folder.exists():
        raise ValueError(f"{folder} is there already; remove it or choose another folder")
    with new_folder(folder) as temporary:
        written = [{**_row(name), "repository": name, "base_commit": make(name, temporary / name)} for name in names()]
    write_atomically(Path(directory) / "train.jsonl", "".join(json.dumps(row) + "\n" for row in written))


def make(name: str, folder: Path) -> str:
    """Makes the repository; the hash of its last commit, which brought the bug."""
    folder.mkdir()
    _git(folder, "init", "--quiet", "--template=", "--initial-branch=main")
    past, now = healthy(name), files(name)
    changed = sorted(path for path in now if now[path] != past[path])
    for state, date, message in zip((past, now), DATES, (f"{name} 1.0", f"Simplify {', '.join(changed)}")):
        for path, text in state.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        _git(folder, "add", "--all")
        _git(folder, "commit", "--quiet", f"--message={message}", date=date)
    return _git(folder, "rev-parse", "HEAD").strip()


def _row(name: str) -> dict:
    before, test_patch = files(name), _text(name, "hidden.diff")
    tests = _tests(before)
    tested = hidden_tests.with_tests({"test_patch": test_patch}, before, before)
    return {
        "instance_id": f"nemo_cascade__{name}",
        "responses_create_params": {
            "input": [{"role": "user", "content": PROMPT + _text(name, "issue.md").rstrip("\n")}],
            "tools": DEFINITIONS,
        },
        "runner": "pytest",
        "test_patch": test_patch,
        "fail_to_pass": [test for test in _tests(tested) if test not in tests],
        "pass_to_pass": tests,
        "golden_patch": _text(name, "golden.diff"),
        "agent_ref": AGENT,
    }


def _text(name: str, file: str) -> str:
    return (DATA / name / file).read_text(encoding="utf-8")


def _tests(found: Files) -> list[str]:
    """pytest's names of all test functions."""
    return [f"{path}::{test}" for path, text in found.items() if path.startswith("tests/") for test in _TEST.findall(text)]


def _git(folder: Path, *arguments: str, date: str = "") -> str:
    """What git says. Nothing that is set on this host has a part in the commits."""
    fields = {"NAME": AUTHOR, "EMAIL": EMAIL, "DATE": date}
    who = {f"GIT_{role}_{field}": value for role in ("AUTHOR", "COMMITTER") for field, value in fields.items()}
    return git(folder, *arguments, GIT_CONFIG_NOSYSTEM="1", GIT_CONFIG_GLOBAL=os.devnull, **who).decode()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m nemo_cascade.data.repositories", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args(arguments).out
    try:
        write(out)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{out / 'train.jsonl'}: {len(names())} rows; set NEMO_CASCADE_REPOSITORIES={(out / 'repositories').absolute()} to use them")


if __name__ == "__main__":
    main()
