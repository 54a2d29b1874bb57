"""Asked to stop before the end: by SIGTERM or SIGUSR1, as Slurm sends them, or by `checkpointing.checkpoint_must_save_by`.

A request is met where it costs least. While a stage trains: at the end of a step, by all ranks together and with a checkpoint
(`step.finish_step`). Elsewhere (loading, scoring, between stages) at once, because everything that can be kept is on disk.
A second signal, seconds later, ends the process at once wherever it is, as a kill would, which costs the steps since the last checkpoint. Either
way the exit code is 75 (EX_TEMPFAIL: try again) and the same command goes on. Left out: stopping inside a rollout; its step ends
first, and where the time is too short for that, the rollouts that are on disk already are replayed.
"""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from nemo_cascade import last_words

FILE = "interrupted.json"
EXIT_AGAIN = os.EX_TEMPFAIL
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# One request may come twice: from Slurm to every process, and through torchrun.
ECHO_SECONDS = 3.0
UNITS = (86_400, 3_600, 60, 1)


class Interrupted(SystemExit):
    """Raised on all ranks together when the stage's state is on disk; ends the program with code 75. str() says why."""

    def __init__(self, why: str):
        super().__init__(EXIT_AGAIN)
        self.why = why

    def __str__(self) -> str:
        return self.why


class Interruption:
    """Requests to one process. Only inside `with` it hears of signals; a bare one is never asked anything."""

    def __init__(self, run_dir: Path | None = None, rank: int = 0):
        """run_dir: rank 0 leaves `interrupted.json` there, which the next start removes."""
        self.run_dir, self.rank = run_dir, rank
        self.why: str | None = None
        self._heard = 0.0
        self._stepping = False
        self._limit: float | None = None
        self._limit_text = ""
        self._alarm: threading.Timer | None = None
        self._alarmed = False
        self._step_began = 0.0
        self._longest_step = self._longest_save = 0.0

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        if self.run_dir is not None and self.rank == 0:
            (self.run_dir / FILE).unlink(missing_ok=True)
        return self

    def __exit__(self, *_exception) -> None:
        self.must_save_by(None)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def must_save_by(self, duration: str | None) -> None:
        """From now on this is the limit, DD:HH:MM:SS since the job started; None: no limit."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._limit = self._alarm = None
        if duration is not None:
            self._limit = seconds_of(duration)
            self._limit_text = f"checkpointing.checkpoint_must_save_by={duration}"
            # For what is no step. While steps go on, `time_is_up` speaks before it rings.
            self._alarm = threading.Timer(max(0.0, self._limit - since_job_start()), self._ring)
            self._alarm.daemon = True
            self._alarm.start()

    @contextlib.contextmanager
    def in_steps(self) -> Iterator[None]:
        """Around a training loop, whose steps look for a request themselves."""
        self._stepping, self._step_began = True, time.monotonic()
        self._longest_step = self._longest_save = 0.0
        try:
            yield
        finally:
            self._stepping = False
        if self.why is not None:
            self._end_now(self.why)

    def step_done(self) -> None:
        """A step and its validation came to their end; what follows is its checkpoint."""
        now = time.monotonic()
        self._longest_step = max(self._longest_step, now - self._step_began)
        self._step_began = now
        if self.why is None and self.time_is_up():
            self.why = self._limit_text

    def saved(self, seconds: float = 0.0) -> None:
        """What there was to save after the step is over. seconds: what a checkpoint took that is in its place now, if one is."""
        self._longest_save = max(self._longest_save, seconds)
        self._step_began = time.monotonic()

    def time_is_up(self) -> bool:
        """Whether another step as long as the longest so far, and a checkpoint, would end after the limit.

        Before the first checkpoint it is taken to last as long as a step.
        """
        if self._limit is None:
            return False
        return since_job_start() + self._longest_step + (self._longest_save or self._longest_step) >= self._limit

    def leave_a_note(self, why: str) -> None:
        """On rank 0 `interrupted.json`, for job scripts (torchrun's own exit code is 1, whatever its processes' was)."""
        if self.rank == 0 and self.run_dir is not None:
            last_words.leave(f"nemo-cascade: this run was asked to stop, and did: {why}")
            with contextlib.suppress(OSError):
                (self.run_dir / FILE).write_text(json.dumps({"why": why, "time": round(time.time(), 3)}) + "\n")

    def _ring(self) -> None:
        self._alarmed = True
        # Handlers run in the main thread only.
        os.kill(os.getpid(), signal.SIGUSR1)

    def _hear(self, number: int, _frame) -> None:
        alarmed, self._alarmed = self._alarmed, False
        why = self._limit_text if alarmed else signal.Signals(number).name
        echo = alarmed or time.monotonic() - self._heard < ECHO_SECONDS
        if not self._stepping or (self.why is not None and not echo):
            self._end_now(why)
        if self.why is None:
            self.why, self._heard = why, time.monotonic()
            self._say(f"{why}: stopping after this step, with a checkpoint; a second signal ends it at once")

    def _end_now(self, why: str) -> None:
        self.leave_a_note(why)
        self._say(f"{why}: stopped; the same command goes on from what is on disk")
        os._exit(EXIT_AGAIN)

    def _say(self, text: str) -> None:
        # Not print: a handler may interrupt one.
        if self.rank == 0:
            os.write(2, f"nemo-cascade: {text}\n".encode())


def seconds_of(duration: str) -> int:
    """ "00:03:45:00" (days, hours, minutes, seconds) in seconds. Raises ValueError."""
    parts = duration.split(":")
    if len(parts) != len(UNITS) or not all(part.isdecimal() for part in parts):
        raise ValueError(f"{duration!r} is not DD:HH:MM:SS")
    return sum(int(part) * unit for part, unit in zip(parts, UNITS))


def since_job_start() -> float:
    """Seconds since the Slurm job of this process started, or, without one, the process itself."""
    started = os.environ.get("SLURM_JOB_START_TIME", "")
    return time.time() - (float(started) if started.isdecimal() else psutil.Process().create_time())
