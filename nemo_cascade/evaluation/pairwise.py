"""Pairwise judging in ArenaHard's manner: a judge reads a request, a reply and the row's reference answer, in both orders, and says which
is better and whether by much.

A win, a draw or a loss counts 1, 1/2 or 0, and three times where the judge says "much better", so that a prompt's weight differs.
Style is told beside the rate and taken out of nothing, as in the paper [section 7.2: no style control]: how long and how marked up replies
and reference answers are, and the rate among replies that are longer. The words that the judge is asked with are ours: rates are
comparable where judge, reference answers and this module are the same.
"""

import re

from nemo_cascade.data.rows import messages_of
from nemo_cascade.environments.endpoint import Endpoint, Said, Silence
from nemo_cascade.environments.faults import KINDS, no_verdict
from nemo_cascade.environments.response import END_OF_THOUGHT, answer_of

# label -> (what the first answer wins, how often it counts).
LABELS = {"A>>B": (1.0, 3), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, 3)}
_LABEL = re.compile(r"\[\[(A>>B|A>B|A=B|B>A|B>>A)\]\]")
_MARKS = {
    "headers": re.compile(r"^#{1,6} ", re.MULTILINE),
    "list items": re.compile(r"^ *(?:[-*+]|\d+[.)]) ", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*"),
}
_ASK = (
    "You compare two answers to the same request. Work out first what a good answer has to do. Then weigh both: is what they say right, do "
    "they do what was asked and leave out what was not, are they clear. Length and layout are no merit of their own, nor is the "
    "place an answer stands in. Point out what is wrong or missing in either. End with exactly one of these labels: [[A>>B]] A is much "
    "better, [[A>B]] A is better, [[A=B]] there is nothing between them, [[B>A]] B is better, [[B>>A]] B is much better."
)


def compare(asked: list[tuple[dict, dict]], judge: Endpoint) -> list[dict]:
    """The verdict on each (row, response): {"reward": in [0, 1], "weight": how often it counts, "labels": of both orders, "style"}."""
    texts = [(row, answer_of(response).strip()) for row, response in asked]
    questions = [
        question(row, *pair) for row, answer in texts for pair in ((answer, row["reference_reply"]), (row["reference_reply"], answer))
    ]
    said = iter(judge.ask(questions, usable=lambda text: label(text) is not None))
    return [verdict(row, answer, next(said), next(said)) for row, answer in texts]


def verdict(row: dict, answer: str, as_first: Said | Silence, as_second: Said | Silence) -> dict:
    """Of the judge's two answers; none where one of them did not come."""
    for heard in (as_first, as_second):
        if isinstance(heard, Silence):
            return no_verdict(heard.fault, KINDS[heard.fault], 0.0)
    labels = [label(as_first.text), label(as_second.text)]
    (first, times), (second, others) = LABELS[labels[0]], LABELS[labels[1]]
    reward = (times * first + others * (1.0 - second)) / (times + others)
    style = {"reply": style_of(answer), "reference": style_of(row["reference_reply"])}
    return {"reward": reward, "weight": times + others, "labels": labels, "style": style}


def question(row: dict, first: str, second: str) -> list[dict]:
    """What a judge is asked."""
    request = "\n\n".join(f"<{message['role']}>\n{message['content']}" for message in messages_of(row) if message["role"] != "system")
    text = f"<|request|>\n{request}\n<|answer A|>\n{first}\n<|end of answer A|>\n<|answer B|>\n{second}\n<|end of answer B|>"
    return [{"role": "system", "content": _ASK}, {"role": "user", "content": text}]


def label(text: str) -> str | None:
    """The last label of a judge's answer, without its thought."""
    found = _LABEL.findall(text.rpartition(END_OF_THOUGHT)[2])
    return found[-1] if found else None


def style_of(text: str) -> dict[str, int]:
    """{"characters", and how many "headers", "list items" and "bold" passages there are}."""
    return {"characters": len(text), **{name: len(pattern.findall(text)) for name, pattern in _MARKS.items()}}


def style(verdicts: list[dict]) -> dict[str, float]:
    """Means over replies and reference answers, and the win rate in percent of replies that are longer than the reference answer."""
    judged = [verdict for verdict in verdicts if "style" in verdict]
    if not judged:
        return {}
    told = {}
    for kind in ("characters", *_MARKS):
        for side in ("reply", "reference"):
            told[f"{kind} of a {side}"] = sum(verdict["style"][side][kind] for verdict in judged) / len(judged)
    longer = [v for v in judged if v["style"]["reply"]["characters"] > v["style"]["reference"]["characters"]]
    told["longer than the reference, percent"] = 100 * len(longer) / len(judged)
    for name, some in (("longer", longer), ("not longer", [verdict for verdict in judged if verdict not in longer])):
        if some:
            weight = sum(verdict["weight"] for verdict in some)
            told[f"win rate where {name}"] = 100 * sum(verdict["weight"] * verdict["reward"] for verdict in some) / weight
    return told
