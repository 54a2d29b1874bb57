"""Proposers and graders of known rates: what they say depends on the key alone, as a seeded model's replies do."""

import hashlib

from nemo_cascade.scaling.types import Ask, Case, Reply


def uniform(*parts) -> float:
    """A number in [0, 1) that is always the same for the same parts."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:7]) / 2**56


class Simulated:
    """Answers with `say(ask)`, in `length(ask)` tokens; `asked` has the keys of all that it was asked, `batches` how long
    each of those asked at once might be."""

    def __init__(self, say, max_tokens=100, length=lambda ask: 10):
        self.say, self.max_tokens, self.length = say, max_tokens, length
        self.asked: list[str] = []
        self.batches: list[list[int]] = []

    def propose(self, asks: list[Ask], told, seconds) -> None:
        self.batches.append([ask.max_tokens for ask in asks])
        for ask in asks:
            self.asked.append(ask.key)
            wanted = self.length(ask)
            told(ask, Reply(self.say(ask), min(wanted, ask.max_tokens), "stop" if wanted <= ask.max_tokens else "length"))


class Rates:
    """Grades with `reward(case)`; every verdict takes a minute."""

    def __init__(self, reward):
        self.reward, self.now, self.graded = reward, 0.0, []

    def clock(self) -> float:
        return self.now

    def grade(self, cases: list[Case], told) -> None:
        for case in cases:
            self.now += 60.0
            self.graded.append(case.key)
            reward = self.reward(case)
            told(case, {"reward": reward, "verdict": "accepted" if reward == 1 else "wrong answer"})
