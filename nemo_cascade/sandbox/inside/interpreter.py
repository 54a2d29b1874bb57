"""A Python whose names stay: runs one text of code after another in its process, which was made as one for a program is.

A call is a message on the channel, a token; the code lies in the file that was standard input. The same token goes back when the code
has ended. Errors of the code are printed and end nothing; SystemExit ends the interpreter.
"""

import ast
import io
import linecache
import os
import sys
import traceback

from . import program

# Bytes of a call's token.
TOKEN = 16


def serve(asked: dict) -> int:
    """Runs calls until one exits; its status. asked: {"packages", "room": bytes that the code of a call may print}."""
    code, mine = os.dup(0), os.getpid()
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.path.append(asked["packages"])
    names = program.main_names([])
    number = 0
    while True:
        number += 1
        token = os.read(program.CHANNEL, TOKEN)
        text = os.pread(code, os.fstat(code).st_size, 0).decode(errors="replace")
        output = Output(asked["room"])
        # New ones for each call, whatever the last one did to them.
        sys.stdin, sys.stdout, sys.stderr = io.StringIO(), output.as_text(), output.as_text()
        status = call(text, names, f"call {number}")
        output.end()
        # A fork of the code's own that came to its end.
        if status is not None or os.getpid() != mine:
            return status or 0
        os.write(program.CHANNEL, token)


def call(text: str, names: dict, name: str) -> int | None:
    """Runs the text; what its last line comes to is shown, as at a prompt. An exit status where it asks for one."""
    # Where tracebacks look for its lines.
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    try:
        tree = compile(text, name, "exec", ast.PyCF_ONLY_AST)
        shown = [tree.body.pop()] if tree.body and isinstance(tree.body[-1], ast.Expr) else []
        exec(compile(tree, name, "exec"), names)
        exec(compile(ast.Interactive(shown), name, "single"), names)
    except SystemExit as error:
        return program.exit_status(error.code)
    except BaseException as error:
        # Without the frame of this function.
        traceback.print_exception(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
    return None


class Output(io.RawIOBase):
    """What a call prints: the first bytes, as many as there is room for, and then how many were left out."""

    def __init__(self, room: int):
        self.room, self.dropped = room, 0

    def as_text(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(self, encoding="utf-8", errors="replace", newline="\n", write_through=True)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1

    def close(self) -> None:
        """Nothing: it is not the code's to close."""

    def write(self, data) -> int:
        kept = memoryview(data)[: self.room]
        self.room -= len(kept)
        self.dropped += len(data) - len(kept)
        while kept:
            kept = kept[os.write(1, kept) :]
        return len(data)

    def end(self) -> None:
        if self.dropped:
            os.write(1, f"\n... {self.dropped} more bytes left out\n".encode())
