"""What a hostile program may try, each as a small program that prints ESCAPED when it gets what it wants.

Standard library only, because a plain user runs it too, whose Python may have nothing else: `python attacks.py` prints one JSON line with what
became of each. What an attack is after on the host (a file, a variable, a port, a process) is laid out by `Bait`.
"""

import json
import os
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from nemo_cascade.sandbox import Call, Limits, Program, Result, Sandbox

MIB = 2**20
SECRET = "a-secret-of-the-host"
QUICK = Limits(seconds=2.0)
# What a hidden test would expect; no attack may print it.
HIDDEN = "the hidden answer"
CONTROL = Program(
    "python",
    "import os\nprint(input(), *[sorted(os.listdir(f)) for f in ('/box/work', '/tmp', '/dev/shm')], len(os.listdir('/proc/self/fd')))\n"
    "print(bytes(50 * 2**20)[0])",
    stdin="still here",
)
# Standard input, output and error, and the folder that is being listed.
UNTOUCHED = "still here [] [] [] 4\n0\n"


@dataclass(frozen=True)
class Attack:
    program: Program
    limits: Limits = QUICK
    # The limit that must have ended it, if one must.
    limit: str | None = None


def python(source: str, limits: Limits = QUICK, limit: str | None = None, **more) -> Attack:
    return Attack(Program("python", TOOLS + source, **more), limits, limit)


def shell(source: str, limits: Limits = QUICK, limit: str | None = None) -> Attack:
    return Attack(Program("shell", source), limits, limit)


TOOLS = """
import ctypes, errno, os, resource, signal, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    result = libc.syscall(ctypes.c_long(number), *[a if isinstance(a, bytes) else ctypes.c_long(a) for a in args])
    return result if result >= 0 else -ctypes.get_errno()
def refused(number, *args):
    result = call(number, *args)
    if result not in (-errno.EPERM, -errno.ENOSYS, -errno.EACCES): print("ESCAPED: system call", number, "gives", result)
def must_fail(what, *args, **kwargs):
    try: result = what(*args, **kwargs)
    except (OSError, ValueError): return
    print("ESCAPED:", what, args, result)
"""
FORK_AND_LIVE_ON = """
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        if os.fork(): os._exit(0)
        while True: time.sleep(1)
"""


def attacks(bait: "Bait") -> dict[str, Attack]:
    """name -> attack."""
    numbers = NUMBERS[os.uname().machine]
    many = replace(QUICK, seconds=3.0, memory=256 * MIB)
    return {
        # ------------------------------------------------------------------ time and processes
        "endless loop": python("while True: pass", limit="seconds"),
        "endless sleep": python("time.sleep(1000)", limit="seconds"),
        "endless wait for input": python("signal.pause()", limit="seconds"),
        "deaf to signals": python(
            "for n in range(1, 65):\n try: signal.signal(n, signal.SIG_IGN)\n except (OSError, ValueError): pass\nwhile True: pass",
            limit="seconds",
        ),
        "stops itself": python("os.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(1000)", limit="seconds"),
        "descendants in sessions of their own": python(FORK_AND_LIVE_ON + "time.sleep(1000)", limit="seconds"),
        "orphans left behind": python(FORK_AND_LIVE_ON),
        "orphans hold the output open": shell("(trap '' HUP TERM; sleep 1000) & exit 0"),
        "fork bomb": python(
            "n = 1\nwhile n < 40:\n try:\n  if os.fork() == 0: time.sleep(1000)\n  n += 1\n except OSError: break\n"
            "if n > 16: print('ESCAPED:', n, 'processes')"
        ),
        "fork bomb in bash": shell(":(){ :|:& };:; sleep 1000", limit="seconds"),
        "fork chain": python("while True:\n try:\n  if os.fork(): os._exit(0)\n except OSError: pass", limit=None),
        "thread bomb": python(
            "n = 1\nthreading.stack_size(65536)\nwhile n < 40:\n try: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
            " except RuntimeError: break\n n += 1\nif n > 16: print('ESCAPED:', n, 'threads')"
        ),
        "more than its limits": python(
            "for n in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_CPU):\n"
            " must_fail(resource.setrlimit, n, (-1, -1))"
        ),
        "priority over others": python(
            "must_fail(os.nice, -5)\nmust_fail(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))"
        ),
        # ------------------------------------------------------------------ memory
        "memory": python(
            "kept = []\ntry:\n while True: kept.append(bytes(10 * 2**20))\nexcept MemoryError: pass\n"
            "if len(kept) > 60: print('ESCAPED:', len(kept))"
        ),
        "memory in many processes": python(
            "for _ in range(9):\n if os.fork() == 0: break\nkept = []\nwhile len(kept) < 200: kept.append(b'x' * 2**20)\ntime.sleep(1000)",
            many,
            "memory",
        ),
        "shared memory in many processes": python(
            "import mmap\nfor _ in range(9):\n if os.fork() == 0: break\nm = mmap.mmap(-1, 200 * 2**20)\n"
            "for i in range(0, len(m), 4096): m[i] = 1\ntime.sleep(1000)",
            many,
            "memory",
        ),
        "memory without a name": python(f"refused({numbers['memfd_create']}, b'x', 0)"),
        "memory that stays": python(
            f"refused({numbers['shmget']}, 1234, 1 << 20, 0o1666)\nrefused({numbers['msgget']}, 1234, 0o1666)\n"
            f"refused({numbers['semget']}, 1234, 1, 0o1666)\nrefused({numbers['mq_open']}, b'/x', 0o102, 0o666, 0)"
        ),
        "memory in pipes": python(
            "import fcntl\nkept, size = [], 0\ntry:\n while True:\n  r, w = os.pipe(); kept += [r, w]; os.set_blocking(w, False)\n"
            "  try: fcntl.fcntl(w, 1031, 2**20)\n  except OSError: pass\n"
            "  try:\n   while True: size += os.write(w, bytes(65536))\n  except BlockingIOError: pass\nexcept OSError: pass\n"
            "if size > 64 * 2**20: print('ESCAPED:', size)"
        ),
        "memory in sockets": python(
            "size = 0\nkept = []\ntry:\n while True:\n  pair = socket.socketpair(); kept += pair\n  for s in pair:\n   s.setblocking(False)\n"
            "   must_fail(s.setsockopt, socket.SOL_SOCKET, socket.SO_SNDBUF, 2**30)\n"
            "   try:\n    while True: size += s.send(bytes(60000))\n   except BlockingIOError: pass\nexcept OSError: pass\n"
            "if size > 16 * 2**20: print('ESCAPED:', size)"
        ),
        "memory in timers and watches": python(
            f"n = 0\nwhile n < 1000 and call({numbers['timer_create']}, 0, 0, ctypes.addressof((ctypes.c_int * 1)())) >= 0: n += 1\n"
            f"if n >= 1000: print('ESCAPED:', n)\nrefused({numbers['inotify_init1']}, 0)"
        ),
        "locked memory": python(
            "b = ctypes.create_string_buffer(2**22)\nif libc.mlock(b, 2**22) == 0: print('ESCAPED')"
        ),
        "deep recursion": python("sys.setrecursionlimit(10**9)\ndef f(): return [f()]\nf()"),
        # ------------------------------------------------------------------ output
        "endless output": python("while True: print('x' * 10**4)"),
        "endless errors": python("while True: os.write(2, b'x' * 10**4)"),
        "endless output from bash": shell("yes"),
        "output with a hole": python("os.ftruncate(1, 8 * 2**20)", limit="output"),
        "output of a terabyte": python("must_fail(os.ftruncate, 1, 2**40)"),
        "no text": python("os.write(1, bytes(range(256)) * 100)"),
        # ------------------------------------------------------------------ disk
        "disk full": python(FILL.format(folder="."), replace(QUICK, seconds=10.0)),
        "temporary folder full": python(FILL.format(folder="/tmp"), replace(QUICK, seconds=10.0)),
        "shared memory folder full": python(FILL.format(folder="/dev/shm"), replace(QUICK, seconds=10.0)),
        "every writable folder": python(
            "for folder, _, _ in os.walk('/'):\n"
            " if not folder.startswith(('/box', '/proc')) and os.access(folder, os.W_OK): print('ESCAPED:', folder)",
            replace(QUICK, seconds=20.0),
        ),
        "a million files": python(
            "n = 0\ntry:\n while n < 2000: os.close(os.open(f'f{n}', os.O_CREAT)); n += 1\nexcept OSError: pass\n"
            "if n > 1100: print('ESCAPED:', n, 'files')"
        ),
        "folders without a bottom": python(
            "n = 0\ntry:\n while n < 2000: os.mkdir('d'); os.chdir('d'); n += 1\nexcept OSError: pass\nif n > 1100: print('ESCAPED:', n)"
        ),
        "a file of a terabyte": python("f = os.open('f', os.O_CREAT | os.O_WRONLY)\nmust_fail(os.ftruncate, f, 2**40)"),
        "something for the next run": python(
            "for n in ('x', '/tmp/x', '/dev/shm/x', '/box/x'): open(n, 'w').write('left')"
        ),
        "a device": python(
            f"must_fail(os.mknod, 'sda', 0o60666, os.makedev(254, 0))\nmust_fail(os.open, '{bait.device}', os.O_RDONLY)"
        ),
        # ------------------------------------------------------------------ network
        "a server of the host": python(f"must_fail(lambda: socket.create_connection(('127.0.0.1', {bait.port}), 1))"),
        "a server of the host from bash": shell(f"exec 9<>/dev/tcp/127.0.0.1/{bait.port} && echo ESCAPED"),
        "an abstract socket of the host": python(
            f"must_fail(lambda: socket.socket(socket.AF_UNIX).connect('\\0{bait.abstract}'))"
        ),
        "sockets of every kind": python(
            "for family in range(1, 46):\n for kind in (1, 2, 3):\n  must_fail(lambda: socket.socket(family, kind))"
        ),
        "pairs of other sockets": python("must_fail(socket.socketpair, socket.AF_INET)"),
        "sockets by io_uring": python("for n in (425, 426, 427): refused(n, 4, 0)"),
        # ------------------------------------------------------------------ host
        "a file of the host": python(
            f"for n in ({str(bait.file)!r}, '/etc/passwd', '/etc/shadow', '/root', '/home', '/work', '/run', '/sys', '/var/lib'):\n"
            " if os.path.exists(n): print('ESCAPED:', n)"
        ),
        "a file of the host by ..": shell(f"cat ../../../../../../..{bait.file} && echo ESCAPED"),
        "a file of the host by a process's root": python(
            f"for p in os.listdir('/proc'):\n for n in ('root', 'cwd'):\n  if os.path.exists(f'/proc/{{p}}/{{n}}{bait.file}'): print('ESCAPED')"
        ),
        "a file of the host by its handle": python(
            f"refused({numbers['open_by_handle_at']}, -100, 0, 0)\nrefused({numbers['name_to_handle_at']}, -100, b'/', 0, 0, 0)"
        ),
        "a file of the host by the compiler": Attack(
            Program("cpp", f'#include "{bait.file}"\nint main() {{ return 0; }}'), QUICK
        ),
        "a file of the host by the assembler": Attack(
            Program("cpp", f'asm(".incbin \\"{bait.file}\\"");\nint main() {{ return 0; }}'), QUICK
        ),
        "the environment of the host": python(
            "texts = [repr(os.environ)]\nfor p in os.listdir('/proc'):\n try: texts.append(open(f'/proc/{p}/environ').read())\n"
            f" except OSError: pass\nif any({SECRET!r} in text for text in texts): print('ESCAPED')"
        ),
        "other processes": python(
            "seen = [p for p in os.listdir('/proc') if p.isdigit() and p not in ('1', str(os.getpid()))]\n"
            f"if seen: print('ESCAPED:', seen)\nmust_fail(os.kill, {os.getpid()}, 0)\n"
            "for p in range(3, 5000):\n try: os.kill(p, 9); print('ESCAPED:', p)\n except OSError: pass"
        ),
        "the kernel's switches": python(
            "for n in ('/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/proc/sys/user/max_user_namespaces', '/proc/kcore'):\n"
            " must_fail(open, n, 'w')\n must_fail(open, n)"
        ),
        "spared when memory runs out": python("must_fail(lambda: os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-1000'))"),
        "the clock": python("must_fail(time.clock_settime, time.CLOCK_REALTIME, 0)"),
        "the host's name": python(f"must_fail(socket.sethostname, 'x')\nrefused({numbers['setdomainname']}, b'x', 1)"),
        # ------------------------------------------------------------------ judge
        "kills its first process": python("for n in range(1, 65):\n try: os.kill(1, n)\n except OSError: pass\ntime.sleep(0.1)"),
        "kills its parent": python("os.kill(os.getppid(), 9)\nos.kill(os.getppid(), signal.SIGSTOP)"),
        "kills all it may": python("if os.fork() == 0: os.kill(-1, 9)\ntime.sleep(0.2)"),
        "lowers its first process's limits": python(
            f"refused({numbers['prlimit64']}, 1, 0, ctypes.addressof((ctypes.c_long * 2)(0, 0)), 0)"
        ),
        "reads its first process": python(
            "must_fail(os.listdir, '/proc/1/fd')\nmust_fail(open, '/proc/1/mem', 'rb')\nmust_fail(open, '/proc/1/maps')\n"
            "must_fail(os.readlink, '/proc/1/exe')"
        ),
        "writes to every file it was left": python(
            "for n in range(3, 1024):\n"
            " try: os.write(n, b'0'); print('ESCAPED:', n)\n except OSError: pass"
        ),
        "takes a file of its first process": python(
            "p = os.pidfd_open(1)\n[refused(438, p, n, 0) for n in range(20)]\n"
            f"refused({numbers['kcmp']}, 1, os.getpid(), 0, 0, 0)"
        ),
        "says that it passed": python("print('PASSED', 'accepted', '1.0', '0', flush=True)\nos._exit(0)"),
        "looks for the tests": python(
            "import gc\nfound, frame = repr(gc.get_objects()) + repr(list(sys.modules)), sys._getframe()\n"
            "while frame: found += repr(frame.f_locals) + repr(frame.f_globals); frame = frame.f_back\n"
            "print(*[w for w in (''.join(['the hidden', ' answer']),) if found.count(w)])"
        ),
        "looks for the tests in memory": python(
            "word = b'the hid' + b'den answer'; mine = 0\nwith open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb') as mem:\n"
            " for line in maps:\n  a, b = (int(n, 16) for n in line.split()[0].split('-'))\n"
            "  if 'r' in line.split()[1] and 'v' not in line[-8:]:\n   try: mem.seek(a); mine += word in mem.read(b - a)\n"
            "   except (OSError, ValueError, OverflowError): pass\nif mine > 3: print('the hid' + 'den answer')"
        ),
        "an object that equals everything": python(
            "class Yes(str):\n def __eq__(self, other): return True\n __hash__ = str.__hash__\ndef f(): return Yes('no')",
            call=Call("f"),
        ),
        "a value of its own making": python(
            "def f():\n os.write(3, b'{\"tuple\": {\"__class__\": 1}}'); os._exit(0)", call=Call("f")
        ),
        "a value without a bottom": python("def f():\n os.write(3, b'[' * 10**6); os._exit(0)", call=Call("f")),
        # ------------------------------------------------------------------ walls
        "a user namespace": python(f"refused({numbers['unshare']}, 0x10000000)\nif libc.unshare(0x10000000) == 0: print('ESCAPED')"),
        "every namespace": python(f"for n in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000): refused({numbers['unshare']}, n)"),
        "a namespace by clone": python(f"for n in (0x20000, 0x10000000, 0x20000000, 0x40000000): refused({numbers['clone']}, n | 17, 0, 0, 0, 0)"),
        "a namespace by clone3": python("refused(435, ctypes.addressof((ctypes.c_ulong * 11)(0x10000000, *[0] * 10)), 88)"),
        "another's namespace": python(f"n = os.open('/proc/self/ns/user', os.O_RDONLY)\nrefused({numbers['setns']}, n, 0)"),
        "a mount": python(
            f"refused({numbers['mount']}, b'x', b'/box', b'tmpfs', 0, 0)\nrefused({numbers['umount2']}, b'/proc', 2)\n"
            "for n in (428, 429, 430, 431, 432, 433, 442): refused(n, 0, 0, 0, 0, 0)"
        ),
        "another root": python(f"must_fail(os.chroot, '/box')\nrefused({numbers['pivot_root']}, b'/box', b'/box')"),
        "ptrace": python(f"refused({numbers['ptrace']}, 16, 1, 0, 0)\nrefused({numbers['ptrace']}, 0, 0, 0, 0)"),
        "another's memory": python(
            f"refused({numbers['process_vm_readv']}, 1, 0, 0, 0, 0, 0)\nrefused({numbers['process_vm_writev']}, 1, 0, 0, 0, 0, 0)"
        ),
        "root again": python(
            "must_fail(os.setuid, 0)\nmust_fail(os.setresuid, 0, 0, 0)\nmust_fail(os.setgroups, [0])\nmust_fail(os.chown, '.', 0, 0)"
        ),
        "root by a program of root's": shell("for p in su mount passwd; do p=$(command -v $p) && $p -c id </dev/null 2>&1; done; [ $(id -u) = 0 ] && echo ESCAPED"),
        "capabilities": python(
            "libc.prctl(47, 2, 21, 0, 0)\n"
            "if any(line.startswith('Cap') and int(line.split()[1], 16) for line in open('/proc/self/status')): print('ESCAPED')"
        ),
        "keys": python(f"refused({numbers['add_key']}, b'user', b'x', b'x', 1, -3)\nrefused({numbers['keyctl']}, 0, -3, 1)\nrefused({numbers['request_key']}, b'user', b'x', 0, 0)"),
        "the kernel's machines": python(
            f"for n in ({numbers['bpf']}, {numbers['perf_event_open']}, {numbers['userfaultfd']}, {numbers['fanotify_init']}): refused(n, 0, 0, 0, 0, 0)"
        ),
        "modules and reboots": python(
            f"for n in ({numbers['init_module']}, {numbers['finit_module']}, {numbers['kexec_load']}, {numbers['reboot']}, {numbers['swapon']}): refused(n, 0, 0, 0, 0)"
        ),
        "the system calls of 32 bits": python(
            "import platform\nif platform.machine() == 'x86_64':\n if os.fork() == 0:\n  call(0x40000000 + 39); print('ESCAPED', flush=True)\n else: os.wait()"
        ),
        "the system calls of tomorrow": python("for n in range(453, 1000): refused(n, 0, 0, 0, 0, 0)"),
        "files without end": python(
            "n = 0\ntry:\n while True: os.open('/dev/null', os.O_RDONLY); n += 1\nexcept OSError: pass\nif n > 64: print('ESCAPED:', n)"
        ),
    }  # fmt: skip


FILL = (
    "n = 0\ntry:\n for i in range(100):\n  f = open(f'{folder}/f{{i}}', 'wb')\n"
    "  while True:\n   f.write(bytes(2**16)); f.flush(); n += 2**16\n   if f.tell() > 2**23: break\nexcept OSError: pass\n"
    "if n > 20 * 2**20: print('ESCAPED:', n)"
)
NUMBERS = {
    "x86_64": {"timer_create": 222, "inotify_init1": 294, "memfd_create": 319, "shmget": 29, "msgget": 68, "semget": 64, "mq_open": 240, "open_by_handle_at": 304, "name_to_handle_at": 303, "setdomainname": 171,
               "prlimit64": 302, "kcmp": 312, "unshare": 272, "clone": 56, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "ptrace": 101,
               "process_vm_readv": 310, "process_vm_writev": 311, "add_key": 248, "keyctl": 250, "request_key": 249, "bpf": 321, "perf_event_open": 298,
               "userfaultfd": 323, "fanotify_init": 300, "init_module": 175, "finit_module": 313, "kexec_load": 246, "reboot": 169, "swapon": 167},
    "aarch64": {"timer_create": 107, "inotify_init1": 26, "memfd_create": 279, "shmget": 194, "msgget": 186, "semget": 190, "mq_open": 180, "open_by_handle_at": 265, "name_to_handle_at": 264, "setdomainname": 162,
                "prlimit64": 261, "kcmp": 272, "unshare": 97, "clone": 220, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "ptrace": 117,
                "process_vm_readv": 270, "process_vm_writev": 271, "add_key": 217, "keyctl": 219, "request_key": 218, "bpf": 280, "perf_event_open": 241,
                "userfaultfd": 282, "fanotify_init": 262, "init_module": 105, "finit_module": 273, "kexec_load": 104, "reboot": 142, "swapon": 224},
}  # fmt: skip


class Bait:
    """What there is to get on the host: a readable file, a variable, a listening port, an abstract socket."""

    def __init__(self, folder: Path):
        self.file = folder / "secret.txt"
        self.file.write_text(SECRET)
        os.environ["NEMO_CASCADE_SECRET"] = SECRET
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.abstract = f"nemo-cascade-{os.getpid()}-{self.port}"
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind("\0" + self.abstract)
        self.unix.listen()
        self.device = "/dev/vda" if os.path.exists("/dev/vda") else "/dev/kmsg"

    def taken(self) -> bool:
        """Whether somebody connected."""
        for listening in (self.server, self.unix):
            listening.settimeout(0)
            try:
                listening.accept()
                return True
            except BlockingIOError:
                pass
        return False


def descendants() -> int:
    """How many processes this one has under it."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                text = Path(f"/proc/{name}/stat").read_text()
            except OSError:
                continue
            parents[int(name)] = int(text.rpartition(")")[2].split()[1])
    mine = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return len(mine) - 1


def outcome(sandbox: Sandbox, attack: Attack, bait: Bait) -> str:
    """"held", or what went wrong."""
    before = descendants()
    begun = time.monotonic()
    result = sandbox.run(attack.program, attack.limits)
    seconds = time.monotonic() - begun
    wrong = []
    if "ESCAPED" in result.stdout or SECRET in result.stdout + result.stderr or bait.taken():
        wrong.append(f"escaped: {result.stdout[:300]!r}")
    if attack.limit is not None and result.limit != attack.limit:
        wrong.append(f"ended by {result.limit} and not by {attack.limit}: {result.stderr[-300:]!r}")
    if passes(result, attack):
        wrong.append("passed the hidden test")
    if len(result.stdout) > attack.limits.output or len(result.stderr) > attack.limits.output:
        wrong.append("more output than its limit")
    # Far above the limit, which is no more than a few seconds: on a busy machine, too, it must end.
    if seconds > attack.limits.seconds + 30:
        wrong.append(f"took {seconds:.0f} s")
    if descendants() > before:
        wrong.append(f"{descendants() - before} processes are left")
    after = sandbox.run(CONTROL, Limits(seconds=30.0))
    if not after.ok or after.stdout != UNTOUCHED:
        wrong.append(f"the next run ended so: {after}")
    return "; ".join(wrong) or "held"


def passes(result: Result, attack: Attack) -> bool:
    """Whether a hidden test would be passed."""
    if attack.program.call is None:
        return result.ok and result.stdout.strip() == HIDDEN
    try:
        return result.ok and result.value() == HIDDEN
    except ValueError:
        return False


def outcomes(folder: Path) -> dict[str, str]:
    """name -> "held" or what went wrong, one after the other in one sandbox of one worker, so that each has the same next run."""
    bait = Bait(folder)
    with Sandbox(workers=1) as sandbox:
        sandbox.probe()
        return {name: outcome(sandbox, attack, bait) for name, attack in attacks(bait).items()}


if __name__ == "__main__":
    # The kernel ends what a thread started when the thread ends; nothing here may depend on the main one alone.
    found: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        runner = threading.Thread(target=lambda: found.update(outcomes(Path(folder))))
        runner.start()
        runner.join()
    print(json.dumps({"user": os.getuid(), "python": sys.executable, "outcomes": found}))
