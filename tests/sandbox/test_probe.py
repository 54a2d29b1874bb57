"""Where isolation is not to be had the reason and the remedy are told, and nothing is run."""

import os
import stat
from pathlib import Path

import pytest

from nemo_cascade import sandbox
from nemo_cascade.sandbox import Program, Sandbox, SandboxUnavailable, bubblewrap, install, probe, worker


def host(tmp_path, **files):
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


BUBBLEWRAP = "bwrap: No permissions to create new namespace"


@pytest.mark.parametrize(
    "files, reason, remedy",
    [
        ({"proc__sys__user__max_user_namespaces": "0\n"}, "user namespaces are off", "sysctl -w user.max_user_namespaces="),
        ({"proc__sys__kernel__unprivileged_userns_clone": "0\n"}, "off for plain users", "unprivileged_userns_clone=1"),
        ({"proc__sys__kernel__apparmor_restrict_unprivileged_userns": "1"}, "Ubuntu's AppArmor", "give /usr/bin/bwrap a profile"),
        ({".dockerenv": ""}, "this is a container", "--security-opt seccomp=unconfined"),
        ({"run__.containerenv": ""}, "this is a container", "systempaths=unconfined"),
        ({"proc__self__status": "Name:\tx\nSeccomp:\t2\n"}, "Docker's default profiles do", "--security-opt"),
        ({}, "bubblewrap does not start here", "sandbox-serve"),
    ],
)
def test_the_hosts_settings_tell_why_bubblewrap_does_not_start(tmp_path, files, reason, remedy):
    said = probe.explain(BUBBLEWRAP, host(tmp_path, **files))
    assert reason in said and remedy in said and BUBBLEWRAP in said
    assert "nemo-cascade sandbox-serve there, sandbox.url here" in said, "the way that always works"


def test_what_was_not_bubblewraps_failure_is_not_explained_by_the_host(tmp_path):
    said = probe.explain("Traceback ...", host(tmp_path, **{".dockerenv": ""}))
    assert "container" not in said and "Traceback" in said


def test_without_bubblewrap_nothing_is_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="bubblewrap is not installed; apt-get install bubblewrap"):
        Sandbox().run(Program("python", f"open({str(tmp_path / 'ran')!r}, 'w')"))
    assert not (tmp_path / "ran").exists()


def test_a_bubblewrap_that_fails_runs_nothing(tmp_path, monkeypatch):
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\necho '{BUBBLEWRAP}' >&2\nexit 1\n")
    fake.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setattr(probe.shutil, "which", lambda name, path=None: str(fake))
    monkeypatch.setattr(bubblewrap, "NOBODY", os.geteuid())
    with pytest.raises(SandboxUnavailable, match="bwrap: No permissions"):
        Sandbox().run(Program("python", ""))


def test_a_bubblewrap_that_isolates_nothing_is_found_out(tmp_path, monkeypatch):
    """It leaves out the walls and starts what it was to start."""
    real = worker.bubblewrap.command

    def without_walls(executable, python, control, code, packages=None):
        return [python, *real(executable, python, control, code)[-7:]]

    command = without_walls("bwrap", "/usr/bin/python3", 1, 2)
    assert command[:2] == ["/usr/bin/python3", "-s"] and command[-2:] == ["/proc/self/fd/2", "1"]
    monkeypatch.setattr(worker.bubblewrap, "command", without_walls)
    with pytest.raises(sandbox.SandboxError):
        Sandbox().run(Program("python", ""))


def test_the_probe_looks_once(monkeypatch):
    looked = []
    verdict = probe.verdict
    monkeypatch.setattr(probe, "verdict", lambda result: looked.append(1) or verdict(result))
    with Sandbox(workers=1) as own:
        for _ in range(3):
            assert own.run(Program("python", "")).ok
    assert len(looked) == 1


def test_a_gap_that_the_first_program_finds_is_told():
    result = sandbox.Result(0, '{"found": ["/home can be seen"], "python": "3"}', "")
    with pytest.raises(SandboxUnavailable, match="not isolated here: /home can be seen"):
        probe.verdict(result)
    with pytest.raises(SandboxUnavailable, match="first program ended with 1"):
        probe.verdict(sandbox.Result(1, "", "Traceback"))


def test_the_python_for_programs_can_be_read_by_who_runs_them():
    path = Path(bubblewrap.find_python())
    assert path.exists() and all(os.stat(folder).st_mode & stat.S_IXOTH for folder in path.resolve().parents)


def test_the_installer_says_what_to_do_and_never_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    install.main()
    assert "no apt here: install it by hand" in capsys.readouterr().out
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho 'E: no such package' >&2\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setattr(install.os, "geteuid", lambda: 0)
    install.main()
    assert "could not be installed (E: no such package): install it by hand" in capsys.readouterr().out
    monkeypatch.setattr(install.os, "geteuid", lambda: 1000)
    install.main()
    assert "only root may: install it by hand" in capsys.readouterr().out
    (tmp_path / "bwrap").write_text("")
    (tmp_path / "bwrap").chmod(0o755)
    install.main()
    assert capsys.readouterr().out == ""
