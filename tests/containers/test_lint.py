"""Dockerfiles and shell scripts are as hadolint and shellcheck would have them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), *sorted((ROOT / "containers").glob("*.sh"))]
DOCKERFILES = sorted((ROOT / "containers").glob("Dockerfile*"))


@pytest.mark.parametrize(("program", "files"), [("shellcheck", SCRIPTS), ("hadolint", DOCKERFILES)])
def test_nothing_is_objected_to(program, files):
    beside = Path(sys.executable).parent / program
    path = str(beside) if beside.exists() else shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    assert len(files) >= 2
    done = subprocess.run([path, *map(str, files)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
