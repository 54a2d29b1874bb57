"""Makes a process that sees nothing but itself: new user, pid, mount, ipc and uts namespaces, a small disk, no capability.

The server is single-threaded and has no network namespace to spare: it is in one without a network already, and a
program may make no socket.
"""

import ctypes
import os
import platform
import resource
import signal
import struct

from . import seccomp

BOX = "/box"
# The program's folder, what /tmp and /dev/shm point to: all on the one small disk.
WORK, TEMPORARY, SHARED_MEMORY = BOX + "/work", BOX + "/tmp", BOX + "/shm"

NEW = 0x00020000 | 0x08000000 | 0x04000000 | 0x10000000 | 0x20000000  # mount, ipc, uts, user, pid
CLONE = {"x86_64": 56, "aarch64": 220}
NOSUID, NODEV, NOEXEC = 2, 4, 8
PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 24, 38
MAX_TIMERS = 256
STACK_SHARE = 4  # a quarter of the memory may be stack

# It holds the interpreter's lock through a call, so that the clone begins as its parent was.
libc = ctypes.PyDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
CLONES = [tuple(map(ctypes.c_long, (CLONE.get(platform.machine(), -1), flags | signal.SIGCHLD, 0, 0, 0, 0))) for flags in (NEW, 0)]
libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def clone() -> int:
    """Like os.fork(), into new namespaces of which the child is the first process. It must not outlive what it forks.

    os.fork() and unshare() would take a third process.
    """
    return _made("clone", *CLONES[0])


def fork() -> int:
    """Like os.fork(), without its preparations and repairs, which write to a hundred pages before and after.

    In either child Python does not know that it is one: there must be no other thread, and what is drawn by `random` is what its
    parent would draw next.
    """
    return _made("fork", *CLONES[1])


def _made(what: str, *arguments) -> int:
    child = libc.syscall(*arguments)
    if child < 0:
        raise failure(what)
    return child


def hide() -> None:
    """In the server, for its clones too: no program may look into them, nor win rights by what it starts."""
    check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def settle(disk: int, inodes: int) -> None:
    """In the clone's child: takes their user number, a disk of that many bytes and files, and a /proc with no process but their own."""
    # Its own files in /proc are its again; those of pid 1 are not.
    check(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")
    user, group = USER
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        write(f"/proc/self/{name}", text)
    # Where memory runs out on the host, the kernel ends a program and not its host.
    write("/proc/self/oom_score_adj", "1000")
    options = f"size={disk},nr_inodes={inodes},mode=0700".encode()
    check(libc.mount(b"box", BOX.encode(), b"tmpfs", NOSUID | NODEV, options), "mount the disk")
    check(libc.mount(b"proc", b"/proc", b"proc", NOSUID | NODEV | NOEXEC, b"subset=pid"), "mount /proc")
    for folder in (WORK, TEMPORARY, SHARED_MEMORY):
        os.mkdir(folder)
    os.chdir(WORK)


def renounce(limits: dict, filter_: seccomp.Filter) -> None:
    """In the program's process, before the program: limits, no capability, fewer system calls. None can be taken back."""
    for limit, value in (
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_STACK, limits["memory"] // STACK_SHARE),
        # stdout, stderr and the channel are files too.
        (resource.RLIMIT_FSIZE, max(limits["disk"], limits["output"])),
        # The first process of the namespace counts as well.
        (resource.RLIMIT_NPROC, limits["processes"] + 1),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        # Timers count as pending signals.
        (resource.RLIMIT_SIGPENDING, MAX_TIMERS),
        (resource.RLIMIT_CPU, int(limits["seconds"] * limits["processes"]) + 1),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    for capability in range(CAPABILITIES):
        check(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "capability")
    check(libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)), "capset")
    filter_.install()


def count_capabilities() -> int:
    """How many capabilities this kernel has."""
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read()) + 1


def write(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY)
    os.write(file, text.encode())
    os.close(file)


def check(result: int, what: str) -> None:
    if result:
        raise failure(what)


def failure(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


USER = (os.getuid(), os.getgid())
CAPABILITIES = count_capabilities() if os.path.exists("/proc/sys/kernel/cap_last_cap") else 0
