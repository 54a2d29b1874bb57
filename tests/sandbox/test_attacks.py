"""Every attack is contained, passes no hidden test and leaves the next run as it would have been; as root and as a plain user."""

import os
import tempfile
from functools import cache
from pathlib import Path

import attacks
import plain_user
import pytest

from nemo_cascade import sandbox
from nemo_cascade.environments import code_gen, response_of
from nemo_cascade.sandbox import bubblewrap

NAMES = sorted(attacks.attacks(attacks.Bait(Path(tempfile.mkdtemp()))))


@cache
def as_this_user() -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        return attacks.outcomes(Path(folder))


@cache
def as_a_plain_user() -> dict[str, str]:
    # Not in pytest's own folder, which nobody else may enter.
    with tempfile.TemporaryDirectory() as folder:
        report = plain_user.run(Path(attacks.__file__), Path(folder))
    assert report["user"] == plain_user.USER
    return report["outcomes"]


def test_there_are_enough():
    assert len(NAMES) >= 40


@pytest.mark.parametrize("name", NAMES)
def test_it_holds(name):
    assert as_this_user()[name] == "held"


@pytest.mark.skipif(os.geteuid() != 0, reason="this is a plain user, as whom the test above has run")
@pytest.mark.parametrize("name", NAMES)
def test_it_holds_for_a_plain_user(name):
    assert as_a_plain_user()[name] == "held"


def test_none_earns_anything(tmp_path, monkeypatch):
    """Through the environment, with a hidden test that asks for what no attack knows."""
    monkeypatch.setattr(code_gen, "SECONDS_PER_TEST", 1.0)
    for name, attack in attacks.attacks(attacks.Bait(tmp_path)).items():
        tests = {"inputs": [""], "outputs": [attacks.HIDDEN]}
        if attack.program.call is not None:
            tests = {"inputs": [[]], "outputs": [[attacks.HIDDEN]], "fn_name": attack.program.call.function}
        row = {"verifier_metadata": {"unit_tests": tests}}
        if attack.program.language == "shell":
            continue
        reply = f"```{attack.program.language}\n{attack.program.source}\n```"
        assert code_gen.verify(row, response_of(reply, thinking=False))["reward"] == 0.0, name


@pytest.mark.parametrize(
    "removed, escaping",
    [
        ("    filter_.install()\n", ["memory without a name", "sockets of every kind", "a user namespace", "keys"]),
        ("        (resource.RLIMIT_NPROC, limits[\"processes\"] + 1),\n", ["thread bomb"]),
        ("        (resource.RLIMIT_NOFILE, limits[\"open_files\"]),\n", ["files without end"]),
        (",nr_inodes={inodes}", ["a million files"]),
    ],
    ids=["seccomp", "processes", "open files", "inodes"],
)
def test_where_a_wall_is_missing_attacks_do_get_through(removed, escaping, tmp_path, monkeypatch):
    """Else that they are held would prove nothing."""
    source = Path(bubblewrap.__file__).parent / "inside" / "namespaces.py"
    assert removed in source.read_text()
    broken = tmp_path / "inside"
    broken.mkdir()
    for file in source.parent.glob("*.py"):
        (broken / file.name).write_text(file.read_text().replace(removed, ""))
    monkeypatch.setattr(bubblewrap, "files", lambda package: broken)
    bubblewrap.code.cache_clear()
    try:
        bait = attacks.Bait(tmp_path)
        with sandbox.Sandbox(workers=1) as open_one:
            open_one._probed = {}
            found = attacks.attacks(bait)
            for name in escaping:
                assert "ESCAPED" in open_one.run(found[name].program, found[name].limits).stdout, name
    finally:
        bubblewrap.code.cache_clear()


def test_without_the_filter_the_probe_refuses_the_sandbox(tmp_path, monkeypatch):
    source = Path(bubblewrap.__file__).parent / "inside"
    for file in source.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text().replace("    filter_.install()\n", ""))
    monkeypatch.setattr(bubblewrap, "files", lambda package: tmp_path)
    bubblewrap.code.cache_clear()
    try:
        with sandbox.Sandbox(workers=1) as open_one:
            with pytest.raises(sandbox.SandboxUnavailable, match="no system call is refused, a socket can be made"):
                open_one.run(sandbox.Program("python", ""))
    finally:
        bubblewrap.code.cache_clear()
