"""One fork-server as its host sees it: starts it, hands it a program at a time, and closes it."""

import json
import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nemo_cascade.sandbox import bubblewrap
from nemo_cascade.sandbox.programs import SandboxError

# Seconds that a server has to start, and to answer beyond a program's own; on a busy machine, too.
PATIENCE = 60.0


class Starter:
    """A thread that lives as long as this process, to start servers from.

    The kernel ends a server (--die-with-parent) when the thread that started it ends, and threads of a pool come and go.
    """

    def __init__(self):
        self.forget()
        # The thread is its parent's; a fork has none.
        os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        self.pool = ThreadPoolExecutor(1, "sandbox-starter")

    def start(self, *args, **options) -> subprocess.Popen:
        return self.pool.submit(subprocess.Popen, *args, **options).result()


_starter = Starter()


class WorkerDied(SandboxError):
    """The server ended, or does not answer."""


class Worker:
    """A warm server; raises WorkerDied when it does not start, with what bubblewrap said.

    packages: those that its programs see.
    """

    def __init__(self, executable: str, python: str, packages: Path | None = None):
        self.packages = packages
        self.control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # As root nobody else, or the kernel would not count processes.
        user = {"user": bubblewrap.NOBODY, "group": bubblewrap.NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        self.process: subprocess.Popen | None = None
        said = memory_file(b"")
        code = memory_file(bubblewrap.code())
        try:
            try:
                with other:
                    command = bubblewrap.command(executable, python, other.fileno(), code, packages)
                    self.process = _starter.start(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=said,
                        # bubblewrap's own process keeps its environment for all to read, whatever it clears for its child.
                        # Each fork would look up the functions of libraries again that it calls first.
                        env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "LD_BIND_NOW": "1"},
                        cwd="/",
                        pass_fds=[other.fileno(), code],
                        # Ctrl-C is for the host, which ends its servers itself.
                        start_new_session=True,
                        **user,
                    )
                self._receive(PATIENCE)
            except (WorkerDied, OSError, subprocess.SubprocessError) as error:
                self.close()
                raise WorkerDied(f"{error}: {contents(said).decode(errors='replace').strip() or 'without a word'}") from None
        finally:
            os.close(said)
            os.close(code)

    def run(self, limits: dict, files: dict[str, int]) -> dict:
        """How the program whose files (name -> number) these are ended: `status` and `limit`.

        Raises WorkerDied when the server did, or when the host ended the program.
        """
        self._send({"limits": limits, "files": list(files)}, files)
        return self._answer(limits["seconds"])

    def interpret(self, limits: dict, files: dict[str, int]) -> None:
        """Begins an interpreter, whose calls come next. Raises WorkerDied when the server did."""
        self._send({"limits": limits, "files": list(files), "interpreter": True}, files)

    def call(self, seconds: float) -> dict:
        """Has the interpreter make the next call: {"seconds"}, or how it ended at it, as of `run`, and then it is no more."""
        self._send({})
        return self._answer(seconds)

    def _send(self, message: dict, files: dict[str, int] = {}) -> None:
        try:
            socket.send_fds(self.control, [json.dumps(message).encode()], list(files.values()))
        except OSError as error:
            raise WorkerDied(f"the sandbox's server has ended: {error}") from None

    def _answer(self, seconds: float) -> dict:
        answer = self._receive(seconds + PATIENCE)
        if "broken" in answer:
            raise SandboxError(f"the sandbox could not begin a run: {answer['broken']}")
        if "lost" in answer:
            raise WorkerDied(answer["lost"])
        return answer

    def _receive(self, seconds: float) -> dict:
        self.control.settimeout(seconds)
        try:
            message = self.control.recv(65_536)
        except TimeoutError:
            raise WorkerDied(f"the sandbox's server did not answer within {seconds:.0f} seconds") from None
        except OSError as error:
            raise WorkerDied(f"the sandbox's server has ended: {error}") from None
        if not message:
            raise WorkerDied("the sandbox's server has ended")
        return json.loads(message)

    def kill(self) -> None:
        """Ends the server; another thread that waits for it raises WorkerDied."""
        if self.process is not None:
            self.process.kill()

    def close(self) -> None:
        """Ends the server and all that runs in it, and waits for that."""
        self.control.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def abandon(self) -> None:
        """In a fork of the process that started it: lets go of it, without ending it."""
        self.control.close()
        self.process.returncode = 0  # or Popen would warn that it was not waited for


def memory_file(data: bytes) -> int:
    """The number of an open file in memory with these bytes, which can be read from its start."""
    number = os.memfd_create("sandbox")
    view = memoryview(data)
    while view:
        view = view[os.write(number, view) :]
    os.lseek(number, 0, os.SEEK_SET)
    return number


def contents(number: int, most: int | None = None) -> bytes:
    """The first bytes of an open file, at most that many."""
    size = os.fstat(number).st_size
    return os.pread(number, size if most is None else min(size, most), 0)
