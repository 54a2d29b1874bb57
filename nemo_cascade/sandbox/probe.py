"""Whether isolation is to be had on this host; if not, why, and what to do. Model-written code never runs without it."""

import json
import shutil
from pathlib import Path

from nemo_cascade.sandbox import bubblewrap
from nemo_cascade.sandbox.programs import Limits, Result, SandboxUnavailable

# Run as the first program of every sandbox: the walls must be there, not only the means to build them.
LOOK = """
import errno, json, os, socket, sys
found = []
if os.getuid() == 0 or os.geteuid() == 0:
    found.append("the program is root")
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
if int(status["CapEff"], 16) or int(status["CapBnd"], 16):
    found.append("the program has capabilities")
if status["Seccomp"].strip() != "2":
    found.append("no system call is refused")
if sorted(name for name in os.listdir("/proc") if name.isdigit()) != ["1", str(os.getpid())]:
    found.append("other processes can be seen")
for folder in ("/", "/usr", "/dev", "/etc"):
    if os.access(folder, os.W_OK):
        found.append(f"{folder} can be written")
for folder in ("/home", "/root", "/etc/passwd", "/sys", "/run"):
    if os.path.exists(folder):
        found.append(f"{folder} can be seen")
try:
    socket.socket()
    found.append("a socket can be made")
except PermissionError:
    pass
for thing in (lambda: os.listdir("/proc/1/fd"), lambda: os.open("/proc/1/mem", os.O_RDONLY)):
    try:
        thing()
        found.append("its first process can be read")
    except OSError:
        pass
print(json.dumps({"found": found, "python": ".".join(map(str, sys.version_info[:3]))}))
"""
LIMITS = Limits(seconds=60.0)

ELSEWHERE = "or run programs on another host: nemo-cascade sandbox-serve there, sandbox.url here (docs/sandbox.md)"
DOCKER = "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"


def requirements(python: str | None = None) -> tuple[str, str]:
    """Paths of bubblewrap and of the Python for programs. Raises SandboxUnavailable."""
    executable = shutil.which("bwrap")
    if executable is None:
        raise SandboxUnavailable(
            f"model-written code cannot be isolated: bubblewrap is not installed; apt-get install bubblewrap "
            f"(dnf and pacman know it by the same name), {ELSEWHERE}"
        )
    python = python or bubblewrap.find_python()
    if python is None:
        raise SandboxUnavailable(
            "model-written code cannot be isolated: this Python lies where no other user may read and there is no "
            f"/usr/bin/python3; apt-get install python3, {ELSEWHERE}"
        )
    return executable, python


def verdict(result: Result) -> dict:
    """{"python": version of the Python for programs}. Raises SandboxUnavailable when the first program found a gap."""
    if not result.ok:
        raise SandboxUnavailable(
            f"model-written code cannot be isolated: the first program ended with {result.returncode} "
            f"({result.limit or result.stderr.strip()[-500:]}); {ELSEWHERE}"
        )
    found = json.loads(result.stdout)
    if found["found"]:
        raise SandboxUnavailable(f"model-written code is not isolated here: {', '.join(found['found'])}; {ELSEWHERE}")
    return {"python": found["python"]}


def explain(said: str, root: Path = Path("/")) -> str:
    """Why bubblewrap does not start, as far as the host's settings tell, and what to do. root: for tests."""
    # Else it is not bubblewrap that failed, but what it started.
    for reason, remedy in causes(root) if "bwrap: " in said else ():
        return f"model-written code cannot be isolated: {reason}; {remedy}, {ELSEWHERE} (bubblewrap said: {said})"
    return f"model-written code cannot be isolated: bubblewrap does not start here; {ELSEWHERE} (it said: {said})"


def causes(root: Path):
    """(reason, remedy) of each setting that is known to forbid user namespaces and is set here."""
    if setting(root, "proc/sys/user/max_user_namespaces") == "0":
        yield "user namespaces are off (user.max_user_namespaces=0)", "sysctl -w user.max_user_namespaces=15000"
    if setting(root, "proc/sys/kernel/unprivileged_userns_clone") == "0":
        yield (
            "user namespaces are off for plain users (kernel.unprivileged_userns_clone=0)",
            "sysctl -w kernel.unprivileged_userns_clone=1",
        )
    if setting(root, "proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        yield (
            "Ubuntu's AppArmor forbids user namespaces to programs without a profile "
            "(kernel.apparmor_restrict_unprivileged_userns=1)",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give /usr/bin/bwrap a profile with `userns,`",
        )
    if any((root / name).exists() for name in (".dockerenv", "run/.containerenv")) or filtered(root):
        yield (
            "this is a container, and its run time forbids namespaces or mounts (Docker's default profiles do)",
            f"start it with {DOCKER}",
        )


def setting(root: Path, path: str) -> str | None:
    try:
        return (root / path).read_text().strip()
    except OSError:
        return None


def filtered(root: Path) -> bool:
    """Whether a seccomp filter holds for this process already."""
    status = setting(root, "proc/self/status") or ""
    return any(line.split() == ["Seccomp:", "2"] for line in status.splitlines())
