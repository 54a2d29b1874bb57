"""Verifies many replies: in worker processes, because a reply may hang a verifier, or take all its memory; in threads where
a verifier waits for the sandbox, whose limits are hard ones.

A worker that takes longer over a reply than its environment's TIME_LIMIT is killed and the reply has no verdict. Nor has one
at which a verifier fails: what a model writes must not end a run. Both are told in its place (`faults.py`), and logged.
"""

import contextlib
import itertools
import logging
import multiprocessing
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from concurrent.futures.process import BrokenProcessPool
from weakref import WeakKeyDictionary

from pebble import ProcessExpired, ProcessPool

from nemo_cascade import environments, heartbeat, sandbox
from nemo_cascade.environments.faults import no_verdict

logger = logging.getLogger(__name__)

# So many replies go to a worker at a time where one takes much less than to hand it over.
BATCH = 32
# What asks a run to stop.
ASKING = (signal.SIGTERM, signal.SIGUSR1)
# Bytes of address space of a worker; sandboxed programs have their own, smaller limits.
MEMORY = 8 * 2**30
# Seconds between looks whether a pool that owes a verdict is still there.
LOOK = 5.0

Asked = tuple[str, dict, dict]


class Verifiers:
    """Worker processes, started with the first reply; `close` ends them, as does the end of this process.

    workers: how many; one a core of this process's share of the machine (LOCAL_WORLD_SIZE) when 0. seconds: by environment, what
    verdicts took so far, those that were given up left out.
    """

    def __init__(self, workers: int = 0):
        shares = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.workers = workers or max(1, len(os.sched_getaffinity(0)) // shares)
        self.seconds: Counter[str] = Counter()
        self._pool: ProcessPool | None = None
        self._pool_of: WeakKeyDictionary[Future, ProcessPool] = WeakKeyDictionary()
        self._threads: dict[int, ThreadPoolExecutor] = {}

    def verify(self, asked: Iterable[tuple[dict, dict]]) -> list[dict]:
        """The verdicts on (row, response) pairs, in their order. Raises SandboxError where programs cannot be run at all."""
        return self.begin(asked)()

    def begin(self, asked: Iterable[tuple[dict, dict]]) -> Callable[[], list[dict]]:
        """The same, begun: what waits for the verdicts and gives them."""
        named = [(environments.environment_of(row), row, response) for row, response in asked]
        batches = _batches(named)
        futures = [self._submit(batch) for batch in batches]
        return lambda: [verdict for batch, future in zip(batches, futures) for verdict in self._verdicts(batch, future)]

    def submit(self, row: dict, response: dict) -> Future:
        """A future verdict, as `verify` gives it."""
        asked = (environments.environment_of(row), row, response)
        verdict: Future = Future()

        def pass_on(done: Future) -> None:
            try:
                verdict.set_result(self._verdict(asked, done))
            except BaseException as error:
                verdict.set_exception(error)

        self._submit([asked]).add_done_callback(pass_on)
        return verdict

    def close(self) -> None:
        """Ends the workers, whatever they are doing."""
        self._end_pool()
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)
        self._threads.clear()

    def __enter__(self) -> "Verifiers":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _submit(self, batch: list[Asked]) -> Future:
        if environments.in_threads(batch[0][0]):
            at_a_time = sandbox.get().workers
            if at_a_time not in self._threads:
                self._threads[at_a_time] = ThreadPoolExecutor(at_a_time)
            return self._threads[at_a_time].submit(_verify, batch)
        limit = environments.time_limit(batch[0][0])
        if self._pool is not None:
            # A worker that the host ends while it has nothing to do, or before it has said what it is at, breaks the whole pool.
            with contextlib.suppress(RuntimeError):
                return self._schedule(batch, limit)
            logger.warning("the verifiers' processes were ended from outside; others take their place")
            self._end_pool()
        with _deaf():
            # Not a fork: this process has threads of torch and of gloo. The pool starts with the first batch.
            self._pool = ProcessPool(self.workers, initializer=_start, context=multiprocessing.get_context("spawn"))
            return self._schedule(batch, limit)

    def _schedule(self, batch: list[Asked], limit: float) -> Future:
        future = self._pool.schedule(_verify, args=[batch], timeout=limit)
        self._pool_of[future] = self._pool
        return future

    def _error(self, future: Future) -> BaseException | None:
        """What `future.exception` gives; a pool that broke forgets what it had not yet handed to a worker, and would never tell."""
        pool = self._pool_of.get(future)
        while True:
            try:
                return future.exception(None if pool is None else LOOK)
            except TookTooLong:
                if not pool.active and not future.done():
                    return BrokenProcessPool("forgotten")

    def _end_pool(self) -> None:
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def _verdicts(self, batch: list[Asked], future: Future) -> list[dict]:
        heartbeat.beat()
        if self._error(future) is None:
            return self._told(batch[0][0], future)
        # One of them is to blame, and the others must not pay for it.
        singles = [[asked] for asked in batch]
        futures = [self._submit(single) for single in singles] if len(batch) > 1 else [future]
        return [self._verdict(single[0], self._unbroken(single, future)) for single, future in zip(singles, futures)]

    def _unbroken(self, single: list[Asked], future: Future) -> Future:
        """The same, or where the whole pool broke, whoever is to blame, once more and alone."""
        return self._submit(single) if isinstance(self._error(future), BrokenProcessPool) else future

    def _verdict(self, asked: Asked, future: Future) -> dict:
        name, row, _ = asked
        error = self._error(future)
        if error is None:
            return self._told(name, future)[0]
        if isinstance(error, TookTooLong):
            return failed(name, row, "verifier_timeout", f"took longer than {environments.time_limit(name):g} s")
        if isinstance(error, ProcessExpired):
            return failed(name, row, "verifier_died", f"ended its process (exit status {error.exitcode})")
        if isinstance(error, BrokenProcessPool):
            return failed(name, row, "verifier_died", "ended its process before it said what it was at")
        raise error

    def _told(self, name: str, future: Future) -> list[dict]:
        verdicts, seconds = future.result()
        self.seconds[name] += seconds
        return verdicts


def failed(name: str, row: dict, kind: str, reason: str) -> dict:
    """What stands for the verdict on a reply that an environment could not verify."""
    logger.warning("%s: a reply has no verdict: its verifier %s", name, reason)
    return no_verdict(kind, reason, environments.least(name, row))


def _batches(asked: list[Asked]) -> list[list[Asked]]:
    """Neighbours of one environment together, as many as it lets a worker have."""
    batches = []
    for name, same in itertools.groupby(asked, key=lambda one: one[0]):
        same = list(same)
        size = 1 if environments.in_threads(name) else BATCH
        batches += [same[start : start + size] for start in range(0, len(same), size)]
    return batches


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """What starts inside, processes and threads, is not reached by requests to stop."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start() -> None:
    # torchrun sends a request to stop to the whole group of a rank's processes; the rank ends its step first, for which it needs
    # its workers. The pool ends one by its number.
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # What is imported with the first reply would count as time that the reply took.
    for name in environments.names():
        getattr(environments.get(name), "warm_up", lambda: None)()


def _verify(batch: list[Asked]) -> tuple[list[dict], float]:
    """The verdicts, and the seconds that they took; in a worker or a thread."""
    started = time.perf_counter()
    return [_verify_one(*asked) for asked in batch], time.perf_counter() - started


def _verify_one(name: str, row: dict, response: dict) -> dict:
    try:
        return environments.get(name).verify(row, response)
    except sandbox.HostFailed as error:
        return failed(name, row, "sandbox_lost", f"has no result of its program: {error}")
    except sandbox.SandboxError:
        raise  # not the reply's fault, so it must not pay for it
    except Exception as error:
        return failed(name, row, "verifier_raised", f"raised {type(error).__name__}: {error}"[:500])
