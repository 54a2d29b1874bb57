"""Checkpoint files that other processes write while training goes on: megatron-core's queue of asynchronous saves, and what it lacks.

A process that is forked off each rank has its tensors as they were then: those of a GPU copied to host memory first, those of a CPU
page by page as training changes them. It ends with its rank, however that ends, so that no writer of a killed run is left to write into
what the next one does; and it hears nothing of requests to stop, which its rank answers by waiting for it. Left out: NVRx, which
megatron-core will ask for where it has asynchronous saves of its own no more.
"""

import contextlib
import ctypes
import inspect
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

from nemo_cascade.engine.gather import leaves

PR_SET_PDEATHSIG = 1
# Later versions of megatron-core would take NVRx if they were not told.
STRATEGY = {"async_strategy": "mcore"} if "async_strategy" in inspect.signature(dist_checkpointing.save).parameters else {}


class Writes:
    """What a policy has other processes write. All ranks call its methods together."""

    def __init__(self):
        self._queue = AsyncCallsQueue()
        self._results: list[_Results] = []

    def begin(self, state: dict, directory: Path) -> None:
        """Has a sharded state dict written into a folder that is there and empty, as it is now."""
        # Pinned memory is not copied by a fork: the writer would see what training makes of it.
        for part in leaves(state):
            if isinstance(part, (ShardedTensor, ShardedTensorFactory)) and part.data is not None and part.data.is_pinned():
                part.data = part.data.clone()
        filesystem_async._results_queue = _Results()
        self._results.append(filesystem_async._results_queue)
        request = dist_checkpointing.save(state, str(directory), async_sharded_save=True, **STRATEGY)
        if request.async_fn is not None:
            request = request._replace(async_fn=partial(_write, os.getpid(), request.async_fn))
        self._queue.schedule_async_request(request)

    def ended(self, wait: bool) -> bool:
        """Whether all that was begun is written and its metadata too. Raises, on all ranks, CheckpointException when a write failed."""
        self._queue.maybe_finalize_async_calls(blocking=wait)
        return self._queue.get_num_unfinalized_calls() == 0

    def last_ended(self) -> float:
        """When this rank's own were over, by time.monotonic(); 0 where it had nothing to write."""
        return max(results.ended for results in self._results)


class _Results:
    """In place of megatron-core's queue between writer and rank, whose manager is a process that takes seconds to start and outlives a
    killed rank: a file without a name, open in both, which holds more than a pipe."""

    def __init__(self):
        self._file = tempfile.TemporaryFile()
        self.ended = 0.0

    def put(self, value) -> None:
        """In the writer."""
        pickle.dump((value, time.monotonic()), self._file)
        self._file.flush()

    def get_nowait(self):
        """In the rank, when the writer is gone."""
        self._file.seek(0)
        try:
            value, self.ended = pickle.load(self._file)
        except EOFError:
            return RuntimeError("the process that wrote its part died")
        return value


def _write(parent: int, write, *args, **kwargs) -> None:
    """Runs in the forked process."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    _end_with(parent)
    with writers_end_with_this():
        write(*args, **kwargs)


_parent: int | None = None


@contextlib.contextmanager
def writers_end_with_this() -> Iterator[None]:
    """Inside, what this thread forks, as megatron-core does a process for each file, ends with it, however it ends.

    A writer left alone would wait for its rank for ever, and with it all that reads from a pipe of the rank's."""
    global _parent
    _parent = os.getpid()
    try:
        yield
    finally:
        _parent = None


def _forked() -> None:
    global _parent
    if _parent is not None:
        _end_with(_parent)
        _parent = os.getpid()


os.register_at_fork(after_in_child=_forked)


def _end_with(parent: int) -> None:
    """Has the kernel kill this process when the one that forked it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)
