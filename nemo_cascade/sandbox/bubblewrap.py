"""The command that starts a fork-server inside bubblewrap, and the code that travels into it.

The outer wall: no network, no file of the host's but its programs and libraries (/usr, read-only), nothing that can be
written. Each run gets a second one inside (`inside.namespaces`).
"""

import io
import os
import shutil
import sys
import zipfile
from functools import cache
from importlib.resources import files
from pathlib import Path

from nemo_cascade.sandbox.packages import INSIDE

# Who root becomes: the kernel does not hold root to a number of processes.
NOBODY = 65534
DEVICES = ("null", "zero", "full", "random", "urandom")


def command(executable: str, python: str, control: int, code: int, packages: Path | None = None) -> list[str]:
    """bubblewrap's arguments. control and code: numbers of the open files with the socket and the zip; packages: `packages.folder`.

    Everything but a run's own disk is read-only, also bubblewrap's `/` and `/dev`, which are a disk of half the memory else.
    """
    arguments = [executable, "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    arguments += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--as-pid-1", "--hostname", "sandbox"]
    arguments += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--cap-drop", "ALL", *system(), *prefix(python)]
    arguments += ["--ro-bind", str(packages), INSIDE] if packages is not None else []
    arguments += ["--proc", "/proc", "--tmpfs", "/dev"]
    for name in DEVICES:
        arguments += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        arguments += ["--symlink", f"/proc/self/fd{target}", f"/dev/{name}"]
    arguments += ["--symlink", "/box/shm", "/dev/shm", "--remount-ro", "/dev", "--dir", "/box"]
    arguments += ["--symlink", "/box/tmp", "/tmp", "--symlink", "/box/tmp", "/var/tmp", "--remount-ro", "/", "--chdir", "/"]
    return [*arguments, python, "-s", "-S", "-B", "-X", "utf8", f"/proc/self/fd/{code}", str(control)]


def system() -> list[str]:
    """/usr, with /bin, /lib and the like as this distribution has them: links into it, or folders beside it."""
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    # awk, cc and others are links through here.
    return [*arguments, "--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]


def prefix(python: str) -> list[str]:
    """The folder of a Python that is not under /usr, such as conda's."""
    folder = Path(python).parents[1]
    return [] if folder.is_relative_to("/usr") or folder == Path("/") else ["--ro-bind", str(folder), str(folder)]


def find_python() -> str | None:
    """The Python for programs: the one that runs this, without its packages, or, where others may not read it, the system's."""
    own = os.path.realpath(Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}"))
    readable = os.geteuid() != 0 or all(os.stat(folder).st_mode & 0o001 for folder in Path(own).parents)
    if os.access(own, os.X_OK) and readable:
        return own
    return shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin")


@cache
def code() -> bytes:
    """`inside` as a zip that Python can run."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("__main__.py", "from nemo_cascade_inside import server\nserver.main()\n")
        for file in files("nemo_cascade.sandbox.inside").iterdir():
            if file.name.endswith(".py"):
                archive.writestr(f"nemo_cascade_inside/{file.name}", file.read_bytes())
    return out.getvalue()
