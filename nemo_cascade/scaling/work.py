"""The work on one problem: replies and verdicts, within a budget, none of them twice.

What is spent does not depend on when replies come, so that a run that was killed ends as one that was not. The i-th reply that a loop
asks for may have as many tokens as the budget has left after those before it; where that is less than a whole reply may have, the
replies before it are waited for.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from nemo_cascade.scaling.journal import Journal
from nemo_cascade.scaling.types import Ask, Case, Grader, Proposer, Reply, ScalingRefused, digest

# Where more than this share of a batch gets no answer, those who answer are to blame, and the run stops before it goes on without.
MOST_FAULTS = 0.5


@dataclass
class Budget:
    """`budget`: what one problem may cost, each without bound where null.

    max_generations: replies, verifications of proofs among them. max_tokens: generated ones; the last reply is cut to fit. seconds: of
    work, over all starts; after them nothing is begun, and replies under way are given up.
    """

    max_generations: int | None = None
    max_tokens: int | None = None
    seconds: float | None = None


@dataclass
class Spent:
    """What a problem has cost so far. faults: replies that never came, which count as generations."""

    generations: int = 0
    tokens: int = 0
    verdicts: int = 0
    faults: int = 0
    seconds: float = 0.0


class Work:
    """`generate` and `grade` for one problem. stopped: what is used up, a key of `budget`, None while nothing is.

    identity: tells this problem from others that had its name, for the journal. changed: called whenever something is spent.
    """

    def __init__(
        self,
        problem: str,
        proposer: Proposer,
        grader: Grader,
        budget: Budget,
        journal: Journal,
        identity: str = "",
        clock: Callable[[], float] = time.monotonic,
        changed: Callable[[], None] = lambda: None,
    ):
        self.problem, self.proposer, self.grader, self.budget, self.journal = problem, proposer, grader, budget, journal
        self.identity, self.clock, self.changed = identity, clock, changed
        self.spent, self.stopped = Spent(), None
        self._before, self._began = journal.elapsed(problem), clock()

    @property
    def elapsed(self) -> float:
        """Seconds of work on this problem, those of earlier starts up to their last record among them."""
        return self._before + self.clock() - self._began

    def generate(self, asks: list[Ask]) -> list[Reply | None]:
        """The replies, in this order; None where the budget was used up before, or no answer came.

        Raises ScalingRefused where more than half of what was asked at once got no answer.
        """
        keys = [f"{self.problem}/{ask.key}" for ask in asks]
        digests = {key: digest([self.identity, ask.messages]) for key, ask in zip(keys, asks)}
        replies: dict[str, Reply] = {}
        for key in keys:
            record = self.journal.get("generation", key, digests[key])
            if record is not None:
                replies[key] = Reply(*(record[name] for name in ("text", "tokens", "finish")), fault=record["fault"])
                self._count(replies[key])
        waiting = [(key, ask.messages) for key, ask in zip(keys, asks) if key not in replies]
        while waiting and (caps := self._admitted(len(waiting))):
            self._ask([Ask(*one, cap) for one, cap in zip(waiting, caps)], digests, replies)
            waiting = waiting[len(caps) :]
        found = [replies.get(key) for key in keys]
        return [None if reply is None or reply.fault else reply for reply in found]

    def grade(self, cases: list[Case]) -> list[dict | None]:
        """The verdicts, in this order, each with `elapsed`, when it was told; None where the time was up before."""
        cases = [Case(f"{self.problem}/{case.key}", case.row, case.text) for case in cases]
        # The row is the problem's, and may have megabytes of tests.
        digests = {case.key: digest([self.identity, case.text]) for case in cases}
        verdicts: dict[str, dict] = {}
        for case in cases:
            record = self.journal.get("verdict", case.key, digests[case.key])
            if record is not None:
                verdicts[case.key] = {**record["verdict"], "elapsed": record["elapsed"]}
        waiting = [case for case in cases if case.key not in verdicts]

        def told(case: Case, verdict: dict) -> None:
            elapsed = round(self.elapsed, 3)
            self.journal.put("verdict", case.key, digests[case.key], self.problem, elapsed, verdict=verdict)
            verdicts[case.key] = {**verdict, "elapsed": elapsed}
            self.changed()

        if waiting and not self._late():
            self.grader.grade(waiting, told)
        self.spent.verdicts += len(verdicts)
        return [verdicts.get(case.key) for case in cases]

    def summary(self) -> dict:
        """What was spent, of what, and what stopped it."""
        self.spent.seconds = round(self.elapsed, 3)
        return {"spent": asdict(self.spent), "budget": asdict(self.budget), "stopped": self.stopped}

    def _admitted(self, count: int) -> list[int]:
        """How many tokens each of the next replies, at most `count`, may have; none where something is used up, which is then `stopped`."""
        most, budget = self.proposer.max_tokens, self.budget
        if self._late():
            return []
        if budget.max_generations is not None:
            count = min(count, budget.max_generations - self.spent.generations)
            if count <= 0:
                self.stopped = "max_generations"
                return []
        if budget.max_tokens is None:
            return [most] * count
        left = budget.max_tokens - self.spent.tokens
        if left <= 0:
            self.stopped = "max_tokens"
            return []
        return [most] * min(count, left // most) or [left]

    def _late(self) -> bool:
        """Whether the time is up."""
        if self.budget.seconds is None or self.elapsed < self.budget.seconds:
            return False
        self._out_of_time(self.budget.seconds)
        return True

    def _out_of_time(self, seconds: float) -> None:
        """Notes it, and the first time writes it down, so that the next start has no time left either."""
        if self.stopped != "seconds":
            self.stopped = "seconds"
            self.journal.put("late", f"{self.problem}/late", "", self.problem, max(seconds, self.elapsed))

    def _ask(self, asks: list[Ask], digests: dict[str, str], replies: dict[str, Reply]) -> None:
        lost: list[tuple[Ask, Reply]] = []

        def keep(ask: Ask, reply: Reply) -> None:
            values = {name: getattr(reply, name) for name in ("text", "tokens", "finish", "fault", "thought")}
            self.journal.put(
                "generation", ask.key, digests[ask.key], self.problem, self.elapsed, max_tokens=ask.max_tokens, **values
            )
            replies[ask.key] = reply
            self._count(reply)

        def told(ask: Ask, reply: Reply) -> None:
            lost.append((ask, reply)) if reply.fault else keep(ask, reply)

        left = None if self.budget.seconds is None else self.budget.seconds - self.elapsed
        self.proposer.propose(asks, told, left)
        if len(lost) > MOST_FAULTS * len(asks):
            raise ScalingRefused(
                f"{self.problem}: {len(lost)} of {len(asks)} replies asked for at once did not come ({lost[0][1].fault}); see to "
                "the model's server, and the same command goes on"
            )
        for ask, reply in lost:
            keep(ask, reply)
        if self.budget.seconds is not None and any(ask.key not in replies for ask in asks):
            self._out_of_time(self.budget.seconds)

    def _count(self, reply: Reply) -> None:
        self.spent.generations += 1
        self.spent.tokens += reply.tokens
        self.spent.faults += reply.fault is not None
        if reply.finish == "length" and self.budget.max_tokens is not None and self.spent.tokens >= self.budget.max_tokens:
            self.stopped = "max_tokens"
        self.changed()
