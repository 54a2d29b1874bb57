"""Where a step's time goes: seconds of its parts, under the names that NeMo RL gives to its own, on this rank.

`idle` is waiting for other ranks to end their sampling, `logging` what is written, and agreed on, between two steps. What ranks wait for
each other inside a part is in it, as verifying is in `generation` as long as sampling hides it.

On a GPU a part ends when the host is through with it; what is still queued there counts for the part that waits for it.
"""

import time
from collections import Counter
from collections.abc import Callable

TOTAL = "total_step_time"


class Stopwatch:
    """`start`, then a `lap` after each part, then `read`. A lap is the time since the one before, so parts add up."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        """clock: seconds from anywhere."""
        self.clock = clock
        self.parts: Counter[str] = Counter()
        self.start()

    def start(self) -> None:
        """Begins a step, or whatever else is timed; parts that were not read yet stay."""
        self.begun = self.last = self.clock()

    def lap(self, part: str) -> None:
        """Books the time since the last lap to a part."""
        now = self.clock()
        self.parts[part] += now - self.last
        self.last = now

    def read(self) -> dict[str, float]:
        """Seconds by part since they were last read, with what was booked between then and the start, and `total_step_time`
        since the start alone."""
        seconds = {**self.parts, TOTAL: self.clock() - self.begun}
        self.parts.clear()
        return seconds
