"""Real gloo worlds for tests: `run_distributed(function, world_size, *args)` runs it on every rank and returns all results.

The worker processes stay alive between calls; each call gets a process group of its own, torn down at its end. A call that
fails or hangs takes its workers with it.
"""

import atexit
import multiprocessing
import multiprocessing.util  # noqa: F401 - waits for its children at exit; imported later it would do so before _stop_workers
import os
import socket
import traceback

import psutil

_TIMEOUT = 240
_MAX_THREADS = 150
# A server imports torch, megatron-core and ours once; every worker is a fork of it, made before it has any thread or group.
_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(["nemo_cascade.cascade.runner", "nemo_cascade.stages.rl", "tests.preload"])
_workers: list["_Worker"] = []


def run_distributed(function, world_size: int, *args, timeout: float = _TIMEOUT) -> list:
    """[function(*args) of rank 0, of rank 1, ...]; function must be importable. Raises AssertionError with the traceback of a
    failing rank, TimeoutError when one does not answer."""
    while len(_workers) < world_size:
        _workers.append(_Worker())
    port = _free_port()
    for rank, worker in enumerate(_workers[:world_size]):
        worker.send(function, args, rank, world_size, port)
    results, failures = [], []
    for rank, worker in enumerate(_workers[:world_size]):
        kind, value = worker.receive(5 if failures else timeout)
        (results if kind == "result" else failures).append(value if kind == "result" else f"rank {rank}: {value}")
    if failures:
        _stop_workers()
        raise AssertionError("\n".join(failures))
    # gloo does not give back all threads of a group that ended, and those left over wake up again and again.
    if any(psutil.Process(worker.process.pid).num_threads() > _MAX_THREADS for worker in _workers):
        _stop_workers()
    return results


class _Worker:
    def __init__(self):
        self.pipe, other = _fork.Pipe()
        self.process = _fork.Process(target=_serve, args=(other,), daemon=False)
        self.process.start()

    def send(self, function, args, rank, world_size, port):
        self.pipe.send((function, args, rank, world_size, port))

    def receive(self, timeout: float):
        if not self.pipe.poll(timeout):
            return "failure", f"no answer within {timeout:.0f} s"
        try:
            return self.pipe.recv()
        except EOFError:
            return "failure", f"died with exit code {self.process.exitcode}"


def _serve(pipe) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    while True:
        try:
            function, args, rank, world_size, port = pipe.recv()
        except EOFError:
            return
        address = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), RANK=str(rank))
        os.environ.update(address, WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size))
        try:
            from nemo_cascade.engine import parallel

            result = function(*args)
            parallel.shutdown()
            pipe.send(("result", result))
        except BaseException:
            pipe.send(("failure", traceback.format_exc()))
            return


@atexit.register
def _stop_workers() -> None:
    for worker in _workers:
        try:
            family = [*psutil.Process(worker.process.pid).children(recursive=True), worker.process]
        except psutil.NoSuchProcess:
            family = []
        for member in family:
            member.kill()
        worker.process.join()
    _workers.clear()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
