"""Ends a run that hangs, and says which rank is behind, in which step and at what; a collective alone would wait in silence.

Every rank looks at its own heartbeat and, only when that has not moved for the timeout, at those of the others: where none of
them has either, nothing can come any more. Long rollouts, verifications and microbatches beat all the time, so a slow run is no
hanging one. The groups of torch.distributed give up after twice the timeout, for what still beats and yet never meets the others.
"""

import faulthandler
import itertools
import os
import sys
import time
from pathlib import Path

from nemo_cascade import heartbeat, last_words

EXIT_HANGS = os.EX_SOFTWARE


class Watchdog:
    """Inside `with` this process ends with code 70 when no rank has moved for `minutes`, after its threads' stacks on standard error."""

    def __init__(self, run_dir: Path, rank: int, ranks: int, minutes: float):
        self.run_dir, self.timeout = Path(run_dir), 60 * minutes
        self.claim = self.run_dir / heartbeat.FOLDER / "hangs.txt"
        self.heart = heartbeat.Heart(run_dir, rank, ranks, min(heartbeat.SECONDS, self.timeout / 10), self.look)
        self._hung_before = False

    def __enter__(self) -> "Watchdog":
        if self.heart.rank == 0:
            self.claim.unlink(missing_ok=True)
        self.heart.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self.heart.__exit__(*exception)

    def look(self) -> None:
        """In the heartbeat's thread. Only what hangs at two looks in a row does: a run that is suspended while it writes its heartbeat
        has not moved at the first look after, and the heartbeat tells the suspension before the second."""
        beats, now = heartbeat.read(self.run_dir), time.time()
        before, self._hung_before = self._hung_before, self._hangs(beats, now)
        if not (before and self._hung_before):
            return
        told = "\n".join(report(beats, now, self.timeout))
        if self._is_first(told):
            print(told, file=sys.stderr, flush=True)
            last_words.leave(told)
        print(f"rank {self.heart.rank}, {heartbeat.where()}: the stacks of all threads", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        # Whoever starts the processes ends all of them with the first; the others must get their stacks out before.
        time.sleep(3 * self.heart.seconds)
        os._exit(EXIT_HANGS)

    def _hangs(self, beats: list[dict | None], now: float) -> bool:
        if heartbeat.still_for() < self.timeout or not beats:
            return False
        return min(heartbeat.unmoved(beat, now) for beat in beats) >= self.timeout

    def _is_first(self, told: str) -> bool:
        """One rank speaks for all, the first to write this file."""
        try:
            with open(self.claim, "x") as file:
                file.write(told + "\n")
        except FileExistsError:
            return False
        except OSError:
            pass
        return True


def report(beats: list[dict | None], now: float, timeout: float) -> list[str]:
    """Lines on a run in which nothing moves: who is behind first, then all ranks, those at the same place together.

    beats: by rank, None for one that never gave a sign. Behind are those that never did; else those that have begun the fewest parts,
    of these those that give no sign of life any more, then those that wait in no collective, then those where few others are.
    """
    behind = _behind(beats, now)
    who = f"{_ranks(behind)} {'is' if len(behind) == 1 else 'are'} behind" if behind else "all ranks are at the same place"
    lines = [f"nemo-cascade: this run hangs: no rank has moved for {timeout / 60:g} minutes; {who}"]
    groups: dict[tuple[bool, str], list[int]] = {}
    for rank in sorted(range(len(beats)), key=lambda rank: (rank not in behind, rank)):
        groups.setdefault((rank in behind, _state(beats[rank], now)), []).append(rank)
    return lines + [f"nemo-cascade:   {_ranks(ranks)}: {state}" for (_, state), ranks in groups.items()]


def _behind(beats: list[dict | None], now: float) -> list[int]:
    known = {rank: beat for rank, beat in enumerate(beats) if beat is not None}
    if len(known) < len(beats):
        return [rank for rank in range(len(beats)) if rank not in known]
    first, lines = min(beat["passed"] for beat in known.values()), [beat["line"] for beat in known.values()]
    rarest = min(map(lines.count, lines))
    found = list(known)
    for is_behind in (
        lambda beat: beat["passed"] == first,
        lambda beat: not heartbeat.alive(beat, now),
        lambda beat: not beat["waits"],
        lambda beat: lines.count(beat["line"]) == rarest,
    ):
        found = [rank for rank in found if is_behind(known[rank])] or found
    return found if len(found) < len(beats) else []


def _state(beat: dict | None, now: float) -> str:
    if beat is None:
        return "never gave a sign of life"
    text = f"{heartbeat.words(beat)}, at {beat['line'] or 'no line of ours'}"
    return text if heartbeat.alive(beat, now) else f"{text}; no sign of life any more (process {beat['pid']} on {beat['host']})"


def _ranks(ranks: list[int]) -> str:
    """ "rank 3" or "ranks 0-2, 5"."""
    runs = []
    for _, group in itertools.groupby(enumerate(ranks), key=lambda pair: pair[1] - pair[0]):
        run = [rank for _, rank in group]
        runs.append(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(runs)}"
