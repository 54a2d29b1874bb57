"""Runs a script as a user without any right, when this process is root: with a Python, and a copy of the package, that user may read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nemo_cascade

# Not the one that root's own sandboxes use.
USER = 65533
SECONDS = 900


def run(script: Path, folder: Path, *args: str) -> dict:
    """The last line that the script printed, as JSON. folder: a new one, which that user may then read. Root only."""
    package = Path(nemo_cascade.__file__).parent
    for part in ("__init__.py", "sandbox"):
        source, target = package / part, folder / "nemo_cascade" / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir()
            shutil.copy(source, target)
    shutil.copy(script, folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    done = subprocess.run(
        [python(), str(folder / script.name), *args],
        user=USER, group=USER, extra_groups=[], cwd="/", capture_output=True, text=True, timeout=SECONDS,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "TMPDIR": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def python() -> str:
    """A Python that the user can start: this one, or the system's where this one lies in a home of root's."""
    for candidate in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        check = [candidate, "-c", "import sys, os, json; sys.exit(sys.version_info < (3, 11))"]
        try:
            if subprocess.run(check, user=USER, group=USER, extra_groups=[], cwd="/", capture_output=True).returncode == 0:
                return candidate
        except OSError:
            continue
    raise FileNotFoundError("no Python 3.11 that a plain user may start; apt-get install python3")
