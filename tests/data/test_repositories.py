"""The demo's repositories are real: their tests fail and pass as their rows say, and git has their past."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nemo_cascade.data import repositories
from nemo_cascade.data.rows import rl_problem
from nemo_cascade.environments import swe_agentic
from nemo_cascade.environments.swe_agentic.tools import ROOT
from nemo_cascade.environments.swe_repair import hidden_tests, patches
from nemo_cascade.environments.swe_repair.repository import files_of

ROWS = {name: row for name, row in zip(repositories.names(), repositories.rows())}


def prompt(row: dict) -> str:
    return row["responses_create_params"]["input"][0]["content"]


def mend(work, change: patches.Change) -> str:
    """A hunk of a patch by the agent's editor."""
    old, new = ("".join(f"{line}\n" for line in lines) for lines in (change.old, change.new))
    return work.call("str_replace_editor", {"command": "str_replace", "path": f"{ROOT}/{change.path}", "old_str": old, "new_str": new})


def mended(name: str):
    """A session in which the golden patch was made."""
    work = swe_agentic.session(ROWS[name])
    said = [mend(work, change) for change in patches.diff_of(ROWS[name]["golden_patch"])]
    assert said and all("is edited" in one for one in said), (name, said)
    return work


def of_each(call) -> dict:
    """{name: what the call says of it}; sandboxes side by side."""
    with ThreadPoolExecutor(2) as threads:
        return dict(zip(ROWS, threads.map(call, ROWS)))


def test_there_are_enough_of_them_and_each_row_can_be_worked_on():
    assert len(ROWS) >= 12 and len({row["instance_id"] for row in ROWS.values()}) == len(ROWS)
    for name, row in ROWS.items():
        assert rl_problem(row, {"swe_agentic"}) is None and swe_agentic.problem(row) is None, name
        assert row["fail_to_pass"] and row["pass_to_pass"] and "README.md" in row["files"], name
        modules = [path for path in row["files"] if path.endswith(".py") and not path.startswith("tests/")]
        assert len(modules) >= 4 and all(path.startswith(f"{name}/") for path in modules), name


def test_hidden_tests_and_the_golden_patch_are_nowhere_an_agent_looks():
    for name, row in ROWS.items():
        seen = json.dumps([row["responses_create_params"], row["files"]])
        changes = patches.diff_of(row["golden_patch"])
        mending = [line for change in changes for line in change.new if line not in change.old and line.strip()]
        hidden = [test.partition("::")[2] for test in row["fail_to_pass"]]
        assert hidden and not any(test in seen for test in hidden), name
        assert all(line.strip() not in prompt(row) for line in mending), name


def test_untouched_exactly_those_tests_fail_that_should():
    failed = of_each(lambda name: hidden_tests.failed(ROWS[name], ROWS[name]["files"], ROWS[name]["files"]))
    assert failed == {name: row["fail_to_pass"] for name, row in ROWS.items()}
    nothing = swe_agentic.verify(ROWS["cents"], {"outcome": swe_agentic.session(ROWS["cents"]).outcome()})
    assert nothing["reward"] == 0.0


def test_the_golden_patch_made_by_an_agents_editor_earns_the_reward():
    told = of_each(lambda name: swe_agentic.verify(ROWS[name], {"outcome": mended(name).outcome()}))
    assert told == {name: {"reward": 1.0, "changed": True, "failed_tests": []} for name in ROWS}
    for name in ROWS:
        assert mended(name).files == repositories.healthy(name), name


def test_an_agent_sees_the_tests_pass_and_can_apply_a_patch_in_its_shell():
    work = swe_agentic.session(ROWS["intervals"])
    assert "7 passed" in work.call("execute_bash", {"command": "python -m pytest -q -p no:cacheprovider"})
    said = work.call("execute_bash", {"command": f"git apply - <<'END'\n{ROWS['intervals']['golden_patch']}END"})
    assert said.startswith("[exit status 0]") and work.files == repositories.healthy("intervals")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("swe")
    # What a host sets has no part in it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_AUTHOR_NAME", "somebody")
        patch.setenv("GIT_DIR", str(folder / "elsewhere"))
        repositories.main(["--out", str(folder / "out")])
    return folder / "out"


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True).stdout.strip()


HASHES = {
    "buildorder": "7ac1dabf8c",
    "cents": "24d6ced6fc",
    "csvguess": "c448fc8747",
    "formula": "d6d8c5ab5b",
    "intervals": "a321499ab3",
    "jsondelta": "cf6acd319e",
    "lrucache": "59db485e09",
    "matrices": "c31a38ab28",
    "measures": "9edb711223",
    "prefixes": "9fc6215dc0",
    "recurring": "c54f912dea",
    "retries": "9e58a7c7dc",
    "textfold": "fd1f59a505",
    "undotext": "6a0fce5c37",
}


def test_git_repositories_are_the_same_each_time_and_have_a_healthy_past(written):
    rows = [json.loads(line) for line in (written / "train.jsonl").read_text().splitlines()]
    assert {row["repository"]: row["base_commit"][:10] for row in rows} == HASHES
    for row in rows:
        folder = written / "repositories" / row["repository"]
        said = git(folder, "log", "--format=%H %an <%ae> %cd", "--date=iso").splitlines()
        assert said[0] == f"{row['base_commit']} nemo_cascade <nobody@example.com> 2024-02-12 15:30:00 +0000" and len(said) == 2
        assert git(folder, "status", "--porcelain") == ""
        past = repositories.healthy(row["repository"])
        assert git(folder, "ls-files").splitlines() == sorted(past)
        assert git(folder, "show", *(f"HEAD~:{path}" for path in sorted(past))) == "".join(past[path] for path in sorted(past)).strip()


def test_written_rows_are_worked_on_as_those_with_their_files(written, monkeypatch):
    monkeypatch.setenv("NEMO_CASCADE_REPOSITORIES", str(written / "repositories"))
    for line in (written / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        same = ROWS[row["repository"]]
        assert files_of(row) == same["files"] and swe_agentic.problem(row) is None
        del row["base_commit"]
        assert files_of(row) == same["files"], "what is checked out is the same"
        own = {key: value for key, value in row.items() if key != "repository"}
        assert {**own, "files": same["files"]} == same



def test_a_row_has_the_files_of_its_commit_whatever_is_checked_out(tmp_path, monkeypatch):
    monkeypatch.setenv("NEMO_CASCADE_REPOSITORIES", str(tmp_path))
    row = {"repository": "cents", "base_commit": repositories.make("cents", tmp_path / "cents")}
    # What `git archive` would leave out, and what is no plain file.
    (tmp_path / "cents/.gitattributes").write_text("tests export-ignore\n")
    (tmp_path / "cents/link").symlink_to("README.md")
    (tmp_path / "cents/cents/rounding.py").write_text("changed = 1\n")
    git(tmp_path / "cents", "add", "--all")
    git(tmp_path / "cents", "-c", "user.name=a", "-c", "user.email=b", "commit", "--quiet", "--message=later")
    later = {**row, "base_commit": git(tmp_path / "cents", "rev-parse", "HEAD")}
    git(tmp_path / "cents", "checkout", "--quiet", "HEAD~2")
    assert files_of(row) == repositories.files("cents")
    assert files_of({"repository": "cents"}) == repositories.healthy("cents")
    changed = {".gitattributes": "tests export-ignore\n", "cents/rounding.py": "changed = 1\n"}
    assert files_of(later) == repositories.files("cents") | changed
    for wrong, said in (("--help", "is no hash of a commit"), ("0" * 40, "git ls-tree in")):
        assert said in swe_agentic.problem({**ROWS["cents"], **row, "base_commit": wrong})


def test_what_was_written_is_not_written_over(written, capsys):
    with pytest.raises(SystemExit) as stopped:
        repositories.main(["--out", str(written)])
    assert stopped.value.code == 2 and "is there already; remove it" in capsys.readouterr().err
