"""The process that `trusted_run` forks programs from, because to start Python takes several times as long as they do.

Run as a script, by path and without site-packages; it must import the standard library only. Each message on the socket
whose number is argv[1] is {"folder", "limits" {name: value}, "timeout"} with the files of stdin, stdout, stderr and
program. The answer is {"returncode", "timed_out"}.
"""

import atexit
import gc
import json
import os
import resource
import select
import signal
import socket
import sys


def serve(control: socket.socket) -> None:
    """Runs one program after the other, until the host is gone."""
    # What is touched before the fork is there for all programs; what they touch first is copied, page by page.
    exec(compile("for i in [1]:\n    pass", "program.py", "exec"), {})
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(control, 65_536, 4)
        if not message:
            return
        asked = json.loads(message)
        child = os.fork()
        if child == 0:
            control.close()
            os._exit(run(begin(asked, files)))
        for file in files:
            os.close(file)
        control.send(json.dumps(wait(child, asked["timeout"])).encode())


def begin(asked: dict, files: list[int]) -> str:
    """Makes this process the program's, with its folder, files and limits; returns the program."""
    os.setsid()
    os.chdir(asked["folder"])
    with open(files[3], encoding="utf-8") as file:
        source = file.read()
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
        os.close(file)
    for name, value in asked["limits"].items():
        limit = getattr(resource, name)
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, 2 * (value if hard == resource.RLIM_INFINITY else min(value, hard),))
    sys.argv, sys.path[:0] = ["program.py"], [""]
    return source


def run(source: str) -> int:
    """Runs a program to its exit status as the interpreter does, but takes down its own objects only.

    To take down the interpreter touches every page of the process, and takes ten times as long as all the rest.
    """
    status, names = 0, {"__name__": "__main__"}
    try:
        exec(compile(source, "program.py", "exec"), names)
    except SystemExit as error:
        status = exit_status(error.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    names.clear()
    gc.collect()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # closed, replaced, or beyond the limit
            status = status or 120
    return status


def exit_status(code) -> int:
    """What sys.exit(code) makes of its argument: a text is an error and printed."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def wait(child: int, timeout: float) -> dict:
    """How the program ended. Its process group is killed when it did, or when the time is up."""
    handle = os.pidfd_open(child)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    timed_out = not poll.poll(timeout * 1000)
    os.close(handle)
    # Before it is reaped: until then nobody else can have its number. It may not have made its group yet.
    os.kill(child, signal.SIGKILL)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    return {"returncode": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "timed_out": timed_out}


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
