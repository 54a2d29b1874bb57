"""pytest is there for the programs that ask for it, here and on another host, and nobody can change it."""

import os
import threading
from importlib import metadata

import pytest

from nemo_cascade.sandbox import Limits, Program, RemoteSandbox, Sandbox, SandboxUnavailable, http_server, packages

PATIENT = Limits(seconds=60.0)
VERSION = "import pytest\nprint(pytest.__version__, pytest.__file__)"


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1) as made:
        yield made


def run(sandbox, source, asks=True):
    return sandbox.run(Program("python", source, packages=asks), PATIENT)


def test_who_asks_has_the_hosts_pytest_and_who_does_not_has_none(sandbox):
    said = f"{metadata.version('pytest')} {packages.INSIDE}/pytest/__init__.py\n"
    assert run(sandbox, VERSION).stdout == said
    # By the same worker, which still has them mounted.
    assert "No module named 'pytest'" in run(sandbox, VERSION, asks=False).stderr
    assert run(sandbox, VERSION).stdout == said


def test_no_other_package_of_the_hosts_comes_with_it(sandbox):
    assert "No module named 'torch'" in run(sandbox, "import torch").stderr


@pytest.mark.parametrize(
    "change",
    [
        f"open('{packages.INSIDE}/conftest.py', 'w')",
        f"open('{packages.INSIDE}/pytest/__init__.py', 'a')",
        f"import os; os.remove('{packages.INSIDE}/pytest/__init__.py')",
        f"import os; os.rename('{packages.INSIDE}/pytest', '{packages.INSIDE}/other')",
        f"import os; os.chmod('{packages.INSIDE}/pytest', 0o777)",
    ],
    ids="new-file append remove rename chmod".split(),
)
def test_a_program_cannot_change_them(sandbox, change):
    result = run(sandbox, change)
    assert result.returncode == 1 and ("PermissionError" in result.stderr or "Read-only file system" in result.stderr)
    assert run(sandbox, VERSION).returncode == 0


def test_their_mount_is_read_only_whoever_owns_the_copy(sandbox):
    # The copy may belong to the very user that programs run as: where the trainer is not root, permissions stop nobody.
    asked = f"import os\nprint(bool(os.statvfs('{packages.INSIDE}').f_flag & os.ST_RDONLY))"
    assert run(sandbox, asked).stdout == "True\n"


def test_over_http_they_are_the_serving_hosts(sandbox):
    with http_server.SandboxServer(sandbox, "token") as serving, RemoteSandbox(serving.url, "token") as client:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            assert run(client, VERSION).stdout == run(sandbox, VERSION).stdout
            assert run(client, VERSION, asks=False).returncode == 1
        finally:
            serving.shutdown()
            thread.join()


def test_a_host_without_pytest_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(packages, "TESTS", ("no-such-distribution",))
    packages.folder.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match="pip install no-such-distribution"):
            with Sandbox(workers=1) as bare:
                run(bare, VERSION)
    finally:
        packages.folder.cache_clear()


def test_a_folder_that_others_could_have_made_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(packages.tempfile, "gettempdir", lambda: str(tmp_path))
    theirs = tmp_path / f"nemo_cascade-{os.getuid()}"
    theirs.mkdir()
    theirs.chmod(0o777)
    packages.folder.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match="can be written by others; remove it or set TMPDIR"):
            packages.folder("python3", packages.TESTS)
    finally:
        packages.folder.cache_clear()
