"""Best of n: replies to one prompt, and the one that its environment rewards most, or whose answer most of them give."""

from collections import Counter
from dataclasses import dataclass

from nemo_cascade.data.rows import messages_of
from nemo_cascade.environments.response import last_boxed
from nemo_cascade.scaling.types import Ask, Case
from nemo_cascade.scaling.work import Work

SELECT = ("reward", "majority")


@dataclass
class BestOfNConfig:
    """`best_of_n`. n: replies. select: reward, the best by the row's environment, or majority, the first of those whose answer (in
    \\boxed{}, else all of it) is the most frequent, which needs no verifier; rewards are then only told."""

    n: int = 16
    select: str = "reward"


def best_of_n(row: dict, work: Work, config: BestOfNConfig) -> dict:
    """{"chosen": key, "text", "score": its reward, "mean": of all that were graded, "best", "tried"}; "chosen" None without any reply."""
    replies = work.generate([Ask(f"c{number}", messages_of(row)) for number in range(config.n)])
    answered = {f"c{number}": reply for number, reply in enumerate(replies) if reply is not None}
    verdicts = dict(zip(answered, work.grade([Case(key, row, reply.text) for key, reply in answered.items()])))
    # A reply without a verdict is not one that is wrong.
    rewards = {key: verdict["reward"] for key, verdict in verdicts.items() if verdict is not None and "fault" not in verdict}
    if config.select == "majority":
        chosen = majority({key: reply.text for key, reply in answered.items()})
    else:
        chosen = max(rewards, key=rewards.get, default=next(iter(answered), None))
    tried = [
        {"key": key, "reward": rewards.get(key), "tokens": reply.tokens, "finish": reply.finish} for key, reply in answered.items()
    ]
    return {
        "chosen": chosen,
        "text": answered[chosen].text if chosen else None,
        "score": rewards.get(chosen),
        "mean": sum(rewards.values()) / len(rewards) if rewards else None,
        "best": max(rewards.values(), default=None),
        "tried": tried,
    }


def majority(texts: dict[str, str]) -> str | None:
    """The first key whose text has the most frequent answer; texts without any answer count only where there are no others."""
    answers = {key: last_boxed(text) or text.strip() for key, text in texts.items()}
    counts = Counter(answer for answer in answers.values() if answer)
    if not counts:
        return next(iter(texts), None)
    most = max(counts, key=counts.get)
    return next(key for key, answer in answers.items() if answer == most)
