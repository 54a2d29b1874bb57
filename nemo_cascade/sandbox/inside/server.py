"""The process that programs are forked from, because to start Python takes several times as long as they do.

It is the first process of a sandbox of bubblewrap's and does one program at a time: a clone in new namespaces (`init`)
forks the program, which sets up what it may see (`begin`), waits for it and reports; when it ends, so does all that is left
in its namespaces. No program sees this process, which has the clock and adds up the memory. It ends when its host does.

A message on the socket whose number is argv[1] is {"limits", "files"}; `files` names what comes with it: stdin, stdout,
stderr, payload (JSON: what `program.execute` is asked, and files to write) and perhaps channel and binary.

With "interpreter" it is one that answers calls until it ends (`interpret`), and only then another program's turn.
"""

import json
import os
import select
import signal
import socket
import sys
import time
import traceback

from . import interpreter, namespaces, program, seccomp

# Seconds between two looks at memory and output.
TICK = 0.02
FILES = ("stdin", "stdout", "stderr", "channel")
OUTPUTS = FILES[1:]
CONTROL, MANY_FILES = 3, 1024
# Bytes of a message of which not more matters.
MESSAGE = 64
ANSWERED = "answered"
FOREVER = 10.0**6


def main() -> None:
    """Runs programs until the host is gone."""
    # At a number of its own, so that nothing else ever has one that a program's files get.
    os.dup2(int(sys.argv[1]), CONTROL)
    os.closerange(CONTROL + 1, MANY_FILES)
    control = socket.socket(fileno=CONTROL)
    sys.path[:] = [path for path in sys.path if not path.startswith("/proc/")]
    os.environ.clear()
    os.environ.update(program.ENVIRONMENT)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    filter_ = seccomp.Filter()
    program.warm_up()
    namespaces.hide()
    control.send(json.dumps({"version": list(sys.version_info[:3])}).encode())
    while True:
        message, numbers, _, _ = socket.recv_fds(control, 65_536, 8)
        if not message:
            return
        asked = json.loads(message)
        how = interpret if asked.get("interpreter") else run
        answer = how(asked["limits"], dict(zip(asked["files"], numbers)), filter_, control)
        for number in numbers:
            os.close(number)
        control.send(json.dumps(answer).encode())


def run(limits: dict, files: dict, filter_: seccomp.Filter, control: socket.socket) -> dict:
    """How a program ended, as `finish` says it."""
    started = start(limits, files, filter_)
    child, begun, *_ = started
    return finish(*started, watch(child, limits, begun + limits["seconds"], files, control))


def interpret(limits: dict, files: dict, filter_: seccomp.Filter, control: socket.socket) -> dict:
    """Lets a program answer calls, one for each message of the host's, which hears {"seconds"} after each.

    Returns how it ended, at a call, as `finish` says it. limits["seconds"] is of each call. Between them all of its processes
    stand still, so that nothing of it takes time, or more memory, while nobody looks.
    """
    answers, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    answers.setblocking(False)
    # Of all calls together there is no limit of time, and no limit of the processor's.
    started = start({**limits, "seconds": FOREVER}, {**files, "channel": channel.fileno()}, filter_)
    channel.close()
    child = started[0]
    with answers:
        while True:
            if not control.recv(MESSAGE):
                os._exit(0)
            # Not to be known before, so that nothing which the program writes there by itself is an answer.
            token, begun = os.urandom(interpreter.TOKEN), time.monotonic()
            try:
                os.kill(-1, signal.SIGCONT)
                answers.send(token)
                ended = watch(child, limits, begun + limits["seconds"], files, control, answers, token)
                if ended == ANSWERED:
                    os.kill(-1, signal.SIGSTOP)
            # The host ended it while it stood still.
            except OSError:
                ended = None
            if ended != ANSWERED:
                return finish(child, begun, *started[2:], ended)
            control.send(json.dumps({"seconds": time.monotonic() - begun}).encode())


def start(limits: dict, files: dict, filter_: seccomp.Filter) -> tuple[int, float, int, int]:
    """Makes the namespaces of a program and begins it: their first process, the time, a pipe for its report, `oom_kills`."""
    begun, killed = time.monotonic(), oom_kills()
    reading, writing = os.pipe()
    child = namespaces.clone()
    if child == 0:
        try:
            init(limits, files, filter_, writing)
        except BaseException:
            os.write(writing, b"broken:" + traceback.format_exc()[-4000:].encode())
        finally:
            os._exit(1)
    os.close(writing)
    return child, begun, reading, killed


def finish(child: int, begun: float, reading: int, killed: int, limit: str | None) -> dict:
    """{"status": exit status or minus a signal, "limit": the one that ended it, or None, "seconds"}.

    Or {"broken": why it could not begin}, or {"lost": how the host ended it}.
    """
    # All of its namespace goes with it, and is gone when it can be waited for.
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    report = os.read(reading, 4096).decode()
    os.close(reading)
    if report.startswith("broken:"):
        return {"broken": report[len("broken:") :]}
    if not limit and not report:
        # No program reaches the first process of its namespace.
        return {"lost": "the host killed a program's first process"}
    ended = -signal.SIGKILL if limit else os.waitstatus_to_exitcode(int(report))
    if not limit and ended == -signal.SIGKILL and oom_kills() != killed:
        return {"lost": "the host ran out of memory and killed a program that was within its limits"}
    return {"status": ended, "limit": limit, "seconds": time.monotonic() - begun}


def init(limits: dict, files: dict, filter_: seccomp.Filter, report: int) -> None:
    """The first process of the namespaces: forks the program and waits for it and for what it leaves behind.

    It does nothing else, because each page that it writes to is copied twice: for itself, and for the program after it.
    """
    child = namespaces.fork()
    if child == 0:
        begin(limits, files, filter_, report)
    while True:
        ended, status = os.wait()
        if ended == child:
            os.write(report, str(status).encode())
            os._exit(0)


def begin(limits: dict, files: dict, filter_: seccomp.Filter, report: int) -> None:
    """The program's own process, which prepares all that it finds and gives up all it can before it begins. Never returns."""
    try:
        asked = json.loads(contents(files["payload"]))
        namespaces.settle(limits["disk"] + asked["size"], limits["inodes"] + asked["inodes"])
        for path, text in asked["files"].items():
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            put(path, text.encode(errors="replace"))
        if asked["language"] == "shell":
            put(program.PROGRAM, asked["source"].encode(errors="replace"))
        elif asked["language"] == "cpp":
            put(program.PROGRAM, contents(files["binary"]))
        os.setsid()
        for number, name in enumerate(FILES):
            if name in files:
                os.dup2(files[name], number)
        # The host's socket was number 3; everything else is above, also what others of the host's left open.
        for first, last in ((3 + ("channel" in files), report), (report + 1, MANY_FILES)):
            os.closerange(first, last)
        namespaces.renounce(limits, filter_)
    except BaseException:
        os.write(report, b"broken:" + traceback.format_exc()[-4000:].encode())
        os._exit(1)
    os.close(report)
    status = 1
    try:
        status = interpreter.serve(asked) if asked["language"] == "interpreter" else program.execute(asked)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def watch(child: int, limits: dict, end: float, files: dict, control: socket.socket, answers=None, token: bytes = b""):
    """Waits until the program ended (None), is past a limit (its name), or has answered a call with its token (ANSWERED)."""
    handle = os.pidfd_open(child)
    poll = select.poll()
    for number in (handle, control, *([answers] if answers else [])):
        poll.register(number, select.POLLIN)
    try:
        while True:
            left = end - time.monotonic()
            ready = {number for number, _ in poll.poll(max(0.0, min(left, TICK)) * 1000)}
            if control.fileno() in ready:
                os._exit(0)  # the host says nothing while a program runs; it has gone
            if handle in ready:
                return None
            if answers and answers.fileno() in ready and answers.recv(MESSAGE) == token:
                return ANSWERED
            if left <= 0:
                return "seconds"
            if any(os.fstat(files[name]).st_size > limits["output"] for name in OUTPUTS if name in files):
                return "output"
            if memory(limits["memory"]) > limits["memory"]:
                return "memory"
    finally:
        os.close(handle)


def oom_kills() -> int:
    """Processes that this host's kernel, or its container's limit, has killed for memory so far; 0 where it does not tell."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def memory(most: int) -> int:
    """Bytes of all processes but this one together, without those of files.

    What they share with one another and with this one counts for each in the first sum, which is quick, and once, in equal
    parts, in the second, which is only made when the first is above `most`.
    """
    processes = [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    total = sum(resident(f"/proc/{name}/status", "Rss") for name in processes)
    return total if total <= most else sum(resident(f"/proc/{name}/smaps_rollup", "Pss_") for name in processes)


def resident(path: str, prefix: str) -> int:
    """Bytes of anonymous and of shared memory of a process; 0 when it has ended."""
    wanted = (prefix + "Anon:").encode(), (prefix + "Shmem:").encode()
    try:
        with open(path, "rb") as file:
            return sum(int(line.split()[1]) * 1024 for line in file if line.startswith(wanted))
    except (OSError, ValueError):
        return 0


def contents(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def put(path: str, data: bytes) -> None:
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o755)) as file:
        file.write(data)
