"""What this process of a run is doing, said by whoever does it: for `nemo-cascade status`, and for the watchdog.

`at` names a new part of the work, `beat` says that it goes on. Both only note a time, so they may be called anywhere and often.
`Heart` writes it to `<run_dir>/heartbeats/rank_N.json` every few seconds, from a thread of its own. Imports nothing of ours.
"""

import dataclasses
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FOLDER = "heartbeats"
SECONDS = 5.0
COLLECTIVES = os.path.join("torch", "distributed", "distributed_c10d.py")
PACKAGE = str(Path(__file__).parent) + os.sep


@dataclass
class Doing:
    """part of the work on `step` of `steps` of a stage, which is the number-th of `stages`. passed: parts begun so far, the same on
    all ranks at the same place."""

    stage: str = ""
    number: int = 0
    stages: int = 0
    step: int = 0
    steps: int = 0
    part: str = ""
    passed: int = 0


_doing = Doing()
_moved = time.monotonic()


def at(part: str, **more) -> None:
    """From now on this process is at `part`; more: other fields of `Doing` that change."""
    global _doing
    _doing = dataclasses.replace(_doing, part=part, passed=_doing.passed + 1, **more)
    beat()


def beat() -> None:
    """Something came to its end: a token of all sequences, a verdict, a microbatch."""
    global _moved
    _moved = time.monotonic()


def forget(run_dir: Path) -> None:
    """Removes what an earlier start of a run has written: where that was is not where this one is."""
    shutil.rmtree(Path(run_dir) / FOLDER, ignore_errors=True)


def still_for() -> float:
    """Seconds since this process last moved."""
    return time.monotonic() - _moved


def where() -> str:
    """ "stage math_rl, step 5, rewards", or "before the first stage, reading rows"."""
    return words(dataclasses.asdict(_doing))


def words(doing: dict) -> str:
    """The same of a heartbeat that was read."""
    step = f", step {doing['step']}" if doing["step"] else ""
    stage = f"stage {doing['stage']}" if doing["stage"] else "before the first stage"
    return f"{stage}{step}, {doing['part']}"


class Heart:
    """Inside `with` this rank's heartbeat is written every `seconds`; `also` is called then, with nothing."""

    def __init__(
        self, run_dir: Path, rank: int, ranks: int, seconds: float = SECONDS, also: Callable[[], None] = lambda: None
    ):
        self.path, self.rank, self.ranks, self.seconds, self.also = path_of(run_dir, rank), rank, ranks, seconds, also
        self._main = threading.main_thread().ident
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heart":
        beat()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.write()
        self._thread.start()
        return self

    def __exit__(self, *_exception) -> None:
        self._over.set()
        self._thread.join()
        self.write(over=True)

    def write(self, over: bool = False) -> None:
        """Writes the heartbeat now. A disk that is full must not end a run."""
        beat = {
            **dataclasses.asdict(_doing),
            "rank": self.rank,
            "ranks": self.ranks,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "seconds": self.seconds,
            "still_for": round(still_for(), 3),
            **place_of(self._main),
            "over": over,
            "time": round(time.time(), 3),
        }
        try:
            temporary = self.path.with_name(f"tmp_{self.path.name}")
            temporary.write_text(json.dumps(beat) + "\n")
            temporary.replace(self.path)
        except OSError as error:
            print(f"nemo-cascade: no heartbeat is written: {error}", file=sys.stderr, flush=True)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._over.wait(self.seconds):
            if time.monotonic() - last > 4 * self.seconds + 5:
                beat()  # stopped as a whole, as Slurm suspends jobs: that is no time in which it did not get on
            last = time.monotonic()
            self.write()
            self.also()


def path_of(run_dir: Path, rank: int) -> Path:
    return Path(run_dir) / FOLDER / f"rank_{rank}.json"


def read(run_dir: Path) -> list[dict | None]:
    """The heartbeats of a run's ranks, None for one that has left none; empty without one of rank 0, which knows how many there are."""
    first = _read(path_of(run_dir, 0))
    return [first, *(_read(path_of(run_dir, rank)) for rank in range(1, first["ranks"]))] if first else []


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def unmoved(beat: dict | None, now: float) -> float:
    """Seconds since its process last moved, as far as its file tells; `now`: time.time()."""
    return float("inf") if beat is None else beat["still_for"] + max(0.0, now - beat["time"])


def alive(beat: dict, now: float) -> bool:
    """Whether its thread still writes, which neither a stopped process does nor one whose Python is stuck in one call."""
    return now - beat["time"] < 4 * beat["seconds"]


def place_of(thread: int) -> dict:
    """line: "stages/rewards.py:72 _verify", where in this package a thread is; waits: whether it waits in a collective there."""
    frame, waits = sys._current_frames().get(thread), False
    while frame is not None and (not frame.f_code.co_filename.startswith(PACKAGE) or frame.f_code.co_filename == __file__):
        waits |= frame.f_code.co_filename.endswith(COLLECTIVES)
        frame = frame.f_back
    line = f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno} {frame.f_code.co_name}" if frame else ""
    return {"line": line, "waits": waits}
