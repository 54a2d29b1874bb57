"""Runs one program in the process that was made for it, after all that it may not do has been taken from it."""

import atexit
import builtins
import gc
import os
import signal
import site
import sys
import types

from . import values
from .namespaces import BOX, TEMPORARY, WORK

PROGRAM = BOX + "/program"
CHANNEL = 3
ENVIRONMENT = {
    "HOME": WORK,
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    # The order of a set of texts is the same in every run.
    "PYTHONHASHSEED": "0",
    "TMPDIR": TEMPORARY,
}
SHELLS = ("/bin/bash", "/bin/sh")
# What contest programs and exercises import is there already when one begins; they still have to import it.
WARM = (
    "abc array bisect cmath collections copy dataclasses datetime decimal enum fractions functools hashlib heapq io itertools "
    "json math operator os queue random re statistics string struct sys textwrap threading time typing"
).split()


# What contest sites have imported, all names of these and the modules themselves; replies rely on it.
CONTEST = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json typing"
).split()
CONTEST_RECURSION = 50_000
contest_names: dict = {}


def warm_up() -> None:
    """What is touched before the fork is there for all programs; what they touch first is copied, page by page."""
    for name in WARM:
        __import__(name)
    # Python was started without its site module, which also gives exit() and quit().
    site.setquit()
    site.sethelper()
    for name in CONTEST:
        module = sys.modules[name]
        public = getattr(module, "__all__", [key for key in vars(module) if not key.startswith("_")])
        contest_names.update({key: getattr(module, key) for key in public})
    contest_names.update({name: sys.modules[name] for name in CONTEST})
    # Python's own come last: pow is not that of math.
    contest_names.update(vars(builtins))
    exec(compile("for i in [1]:\n    pass", "program.py", "exec"), {})
    gc.collect()
    gc.freeze()


def execute(asked: dict) -> int:
    """Runs `asked` {"language", "source", "args", "contest", "call", "packages"}; returns the exit status, or never."""
    if asked["language"] == "python":
        sys.path += [asked["packages"]] if asked["packages"] else []
        return python(asked["source"], asked["args"], asked["contest"], asked.get("call"))
    # Python ignores these, and who is ignored stays so in the next program.
    for name in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(name, signal.SIG_DFL)
    command = [PROGRAM, *asked["args"]]
    if asked["language"] == "shell":
        command = [next(shell for shell in SHELLS if os.path.exists(shell)), *command]
    os.execve(command[0], command, ENVIRONMENT)


def python(source: str, args: list, contest: bool, call: dict) -> int:
    """Runs a Python program to its exit status as the interpreter does, but takes down its own objects only.

    To take down the interpreter touches every page of the process, and takes ten times as long as all the rest.
    """
    names = main_names(args)
    if contest:
        # As built-in names, so that those of the program stay its own.
        names["__builtins__"] = contest_names
        contest_names["argv"] = sys.argv
        sys.setrecursionlimit(CONTEST_RECURSION)
    status = 0
    try:
        exec(compile(source, "program.py", "exec"), names)
        if call:
            answer(names, call)
    except SystemExit as error:
        status = exit_status(error.code)
    except BaseException as error:
        # Without the frame of this function.
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
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


def main_names(args: list) -> dict:
    """The names of a new __main__, with all that a process which was not made by os.fork() has to be told."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv, sys.path[:0] = ["program.py", *args], [""]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What os.fork() would have seen to.
    sys.modules["random"].seed()
    sys.modules["threading"].main_thread()._set_native_id()
    return main.__dict__


def answer(names: dict, call: dict) -> None:
    """Calls the function, or the method of the class Solution where it has it, and writes its value to the channel."""
    name, (args, kwargs) = call["function"], values.decode(call["arguments"])
    solution = names.get("Solution")
    if hasattr(solution, name):
        function = getattr(solution(), name)
    elif name in names:
        function = names[name]
    else:
        raise NameError(f"the program has no function {name!r}")
    text = values.encode(function(*args, **kwargs)).encode()
    while text:
        text = text[os.write(CHANNEL, text) :]


def exit_status(code) -> int:
    """What sys.exit(code) makes of its argument: a text is an error and printed."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1
