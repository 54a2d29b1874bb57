"""The system calls that a program may not make, as a filter for the kernel (classic BPF), built here without a library.

A list of what is refused, not of what is allowed: a program has no capability, no network and no file of the host, so
what is refused is what could give those back (namespaces, mounts), reach another process, outlive a limit (memory
without a name, shared memory and queues that stay, larger buffers, watches on files), or what is seldom needed and has often had holes in the kernel.
What a newer kernel adds is refused too.
"""

import ctypes
import errno
import platform
import struct

# Number on x86_64, on aarch64 (None: it has none). From 424 on they are the same everywhere.
DENIED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "finit_module": (313, 273),
    "init_module": (175, 105),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "memfd_create": (319, 279),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semget": (64, 190),
    "set_mempolicy": (238, 237),
    "sethostname": (170, 161),
    "setsockopt": (54, 208),
    "setns": (308, 268),
    "shmget": (29, 194),
    "socket": (41, 198),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
    "vmsplice": (278, 75),
}
# Of the calls from 424 on, those that may be made; the rest are, for the program, those of a newer kernel. Among them
# are clone3, whose flags a filter cannot see (the C library takes clone instead), io_uring, pidfd_getfd and fsmount.
SHARED, ALLOWED = 424, {"pidfd_send_signal": 424, "pidfd_open": 434, "close_range": 436, "openat2": 437, "faccessat2": 439,
                        "epoll_pwait2": 441, "futex_waitv": 449, "fchmodat2": 452}  # fmt: skip
CLONE, SOCKETPAIR, PRLIMIT = (56, 220), (53, 199), (302, 261)
# CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. NEWTIME's bit is part of the exit signal in clone.
NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

# Where the kernel puts the call (struct seccomp_data): number, architecture, first argument (its low half).
NUMBER, ARCHITECTURE, ARGUMENT = 0, 4, 16
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
AF_UNIX = 1


def build(machine: str = "") -> bytes:
    """The filter for `platform.machine()`. Raises OSError for a processor that the table does not have."""
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(f"no table of system calls for {machine}; {' and '.join(ARCHITECTURES)} have one")
    column, architecture = ARCHITECTURES[machine]
    program = [
        load(ARCHITECTURE),
        skip_if_equal(architecture, 1),
        end(KILL),
        load(NUMBER),
    ]
    # Of the 32-bit pointer calls of x86_64 (their numbers have this bit) none is allowed; they would pass the table.
    program += [skip_unless_at_least(0x40000000, 1), end(KILL)]
    for number in sorted(ALLOWED.values()):
        program += [skip_unless_equal(number, 1), end(ALLOW)]
    program += [skip_unless_at_least(SHARED, 1), end(REFUSE | errno.ENOSYS)]
    for numbers in DENIED.values():
        if numbers[column] is not None:
            program += [skip_unless_equal(numbers[column], 1), end(REFUSE | errno.EPERM)]
    # New namespaces by clone; pairs of sockets of any family but AF_UNIX; limits of another process, such as pid 1.
    program += when(CLONE[column], [skip_unless_any(NEW_NAMESPACES, 1), end(REFUSE | errno.EPERM)])
    program += when(SOCKETPAIR[column], [skip_if_equal(AF_UNIX, 1), end(REFUSE | errno.EPERM)])
    program += when(PRLIMIT[column], [skip_if_equal(0, 1), end(REFUSE | errno.EPERM)])
    return b"".join([*program, end(ALLOW)])


class Filter:
    """A filter ready to be installed; made once, because each run installs it."""

    def __init__(self, machine: str = ""):
        code = build(machine)
        self._code = ctypes.create_string_buffer(code, len(code))
        self._program = struct.pack("HP", len(code) // 8, ctypes.addressof(self._code))
        self._prctl = ctypes.PyDLL(None, use_errno=True).prctl

    def install(self) -> None:
        """It holds for this process and all that it starts, for ever. Needs no_new_privs or CAP_SYS_ADMIN."""
        if self._prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, self._program, 0, 0):
            raise OSError(ctypes.get_errno(), "the kernel refused the seccomp filter")


PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2


def instruction(code: int, yes: int, no: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def load(offset: int) -> bytes:
    return instruction(0x20, 0, 0, offset)


def end(verdict: int) -> bytes:
    return instruction(0x06, 0, 0, verdict)


def skip_if_equal(value: int, count: int) -> bytes:
    return instruction(0x15, count, 0, value)


def skip_unless_equal(value: int, count: int) -> bytes:
    return instruction(0x15, 0, count, value)


def skip_unless_at_least(value: int, count: int) -> bytes:
    return instruction(0x35, 0, count, value)


def skip_unless_any(bits: int, count: int) -> bytes:
    return instruction(0x45, 0, count, bits)


def when(number: int, rules: list) -> list:
    """Rules about the first argument of one call; the number is in the register again afterwards."""
    return [skip_unless_equal(number, len(rules) + 2), load(ARGUMENT), *rules, load(NUMBER)]
