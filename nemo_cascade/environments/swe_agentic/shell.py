"""The shell: each command in a sandbox of its own, which is given the files as they are and tells which it changed.

So nothing of a command outlives it but files and the folder it ended in, and a conversation that waits for its model holds no
process. A command may forge what is told of the files; that is no more than writing them.
"""

import os

from nemo_cascade import sandbox
from nemo_cascade.environments.swe_repair.patches import Files
from nemo_cascade.environments.swe_repair.repository import LARGEST, LEFT_OUT
from nemo_cascade.sandbox import MIB, Call, Limits, Program

SECONDS = 120.0
LIMITS = Limits(
    seconds=SECONDS, memory=1024 * MIB, output=16 * MIB, disk=128 * MIB, processes=64, inodes=20_000, open_files=256
)
# Files that a command may change, of any number of them.
MOST_FILES = 5_000

# `python` and `pytest` are what the tests are run with. The command's own words end before what is told of the files begins.
_STEP = r"""
import os, subprocess, sys

def files():
    found = {}
    for folder, folders, names in os.walk("."):
        folders[:] = [name for name in folders if name not in LEFT_OUT and not os.path.islink(os.path.join(folder, name))]
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    found[os.path.relpath(path)] = file.read()
    return found

def step(command, folder):
    before, root = files(), os.getcwd()
    prelude = f'python() {{ {sys.executable} "$@"; }}; python3() {{ {sys.executable} "$@"; }}\n'
    prelude += 'pytest() { python -m pytest "$@"; }; export -f python python3 pytest\n'
    prelude += "trap 'pwd > /tmp/.folder' EXIT\n"
    environment = {**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p.startswith("/packages")), "HOME": root,
                   "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": "-p no:cacheprovider"}
    os.makedirs(folder, exist_ok=True)
    with open("/tmp/.output", "w+b") as output:
        code = subprocess.run(["bash", "-c", prelude + command], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                              stdout=output, stderr=subprocess.STDOUT).returncode
        output.seek(0)
        said = output.read(1_000_000).decode(errors="replace")
    try:
        folder = os.path.relpath(open("/tmp/.folder").read().strip(), root)
    except OSError:
        folder = "."
    after = files()
    changed = {}
    for path, data in after.items():
        if before.get(path) != data:
            try:
                changed[path] = data.decode()
            except UnicodeDecodeError:
                pass
    return code, said, folder, changed, [path for path in before if path not in after]
"""
_SOURCE = f"LEFT_OUT = {sorted(LEFT_OUT)!r}\n{_STEP}"


class Shell:
    """Commands over `files`, which they change in place."""

    def __init__(self, files: Files):
        self.files, self.folder = files, "."

    def run(self, command: str) -> str:
        """The exit status and what the command wrote; words, too, for what kept it from being run to its end.

        Raises SandboxError where the sandbox fails, which is nothing of the command's doing."""
        program = Program("python", _SOURCE, files=self.files, call=Call("step", (command, self.folder)), packages=True)
        result = sandbox.get().run(program, LIMITS)
        if result.limit is not None:
            return f"Error: the command was ended at its limit of {result.limit}; nothing of what it did to files is kept"
        try:
            code, said, folder, changed, gone = result.value()
            self._take(folder, changed, gone)
        except (ValueError, TypeError, AttributeError) as error:
            return f"Error: nothing of what the command did to files is kept ({error}) {result.stderr[-500:]}"
        return f"[exit status {code}]\n{said}"

    def _take(self, folder: str, changed: Files, gone: list[str]) -> None:
        """Raises ValueError, and changes nothing, for files that are too large, too many or lead elsewhere."""
        files = {path: text for path, text in self.files.items() if path not in set(gone)} | changed
        if len(files) > len(self.files) + MOST_FILES:
            raise ValueError(f"it made more than {MOST_FILES} files")
        if sum(map(len, files.values())) > LARGEST:
            raise ValueError(f"they are larger than {LARGEST >> 20} MiB")
        if not all(isinstance(path, str) and isinstance(text, str) for path, text in changed.items()):
            raise ValueError("they are no texts")
        # Raises ValueError for a path that leads out of the folder.
        Program("python", "", files=files)
        self.files.clear()
        self.files.update(files)
        inside = os.path.normpath(str(folder))
        self.folder = "." if inside.startswith(("..", "/")) else inside


