"""What a Python program may import beside the standard library where it asks for it, with what that needs: pytest for tests, sympy for
interpreters.

A copy of what is installed for this Python, in a folder that programs can read wherever that is installed; made once. All of it is
Python, so that it suits whichever Python runs the programs.
"""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from importlib import metadata
from importlib.util import cache_from_source
from pathlib import Path

from nemo_cascade.sandbox.programs import SandboxUnavailable

TESTS, INTERPRETERS = ("pytest",), ("sympy",)
# Where they are seen inside.
INSIDE = "/packages"


@cache
def folder(python: str, wanted: tuple[str, ...]) -> Path:
    """The copy, compiled for the Python that runs the programs. Raises SandboxUnavailable where one of them is not installed."""
    found = _with_requirements(wanted)
    versions = [python, *((name, one.version) for name, one in found.items())]
    name = hashlib.sha256(repr(versions).encode()).hexdigest()[:16]
    # Nobody else may have put it there, who could change what tests say.
    parent = Path(tempfile.gettempdir(), f"nemo_cascade-{os.getuid()}")
    parent.mkdir(mode=0o755, exist_ok=True)
    status = parent.lstat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or not stat.S_ISDIR(status.st_mode):
        raise SandboxUnavailable(f"{parent} belongs to another user or can be written by others; remove it or set TMPDIR")
    final = parent / f"packages-{name}"
    if not final.is_dir():
        copy = Path(tempfile.mkdtemp(dir=parent))
        for distribution in found.values():
            _copy(distribution, copy)
        copy.chmod(0o755)
        # Programs cannot write there, and would compile all of it again and again.
        compiling = [python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(copy)]
        subprocess.run(compiling, check=True, stdin=subprocess.DEVNULL)
        try:
            copy.rename(final)
        # Another process was faster.
        except OSError:
            shutil.rmtree(copy)
    return final


def _with_requirements(names: tuple[str, ...]) -> dict[str, metadata.Distribution]:
    found: dict[str, metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise SandboxUnavailable(f"programs that need {name} cannot be run: pip install {name}") from None
        # What only other systems, older Pythons or extras need has a condition.
        waiting += [re.match(r"[\w.-]+", text)[0] for text in found[name].requires or [] if ";" not in text]
    return dict(sorted(found.items()))


def _copy(distribution: metadata.Distribution, to: Path) -> None:
    for file in distribution.files or []:
        if file.suffix == ".py" and ".." not in file.parts:
            # What is compiled already comes along; it is taken for a file of the same time only.
            for path in (Path(file.locate()), Path(cache_from_source(file.locate()))):
                if path.is_file():
                    copy = to / path.relative_to(distribution.locate_file(""))
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
                    os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
