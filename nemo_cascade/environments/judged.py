"""Replies that a verifier alone cannot decide about: a judge model is asked, in rounds, and has the last word.

What an environment asks is `question`, `usable` and `judged` (environments/__init__.py); who is asked is `env.judges`.
"""

from nemo_cascade import environments
from nemo_cascade.data.rows import environment_of
from nemo_cascade.environments.endpoint import Endpoint, Said, Silence
from nemo_cascade.environments.faults import KINDS, no_verdict

Verified = tuple[dict, dict, dict]
ROUNDS = 8


def judge_all(verified: list[Verified], endpoint: Endpoint) -> list[dict]:
    """The last verdicts on (row, response, verdict of `verify`) of one environment, in their order.

    A verdict about which the judge was asked has `judge_readable`: whether all of its answers could be read; where not, it is none
    (`faults.py`), with the reward that the environment gives for a missing answer. Raises EndpointError.
    """
    if not verified:
        return []
    environment = environments.get(environment_of(verified[0][0]))
    answers: list[list[Said | None]] = [[] for _ in verified]
    silent: dict[int, Silence] = {}
    open_ones = list(range(len(verified)))
    for _ in range(ROUNDS):
        # Once an answer has not come there is nothing to go on with.
        questions = {
            number: environment.question(*verified[number], answers[number])
            for number in open_ones
            if None not in answers[number]
        }
        open_ones = [number for number, question in questions.items() if question is not None]
        if not open_ones:
            break
        for number, said in zip(open_ones, endpoint.ask([questions[number] for number in open_ones], environment.usable)):
            answers[number].append(said if isinstance(said, Said) else None)
            if isinstance(said, Silence):
                silent[number] = said
    return [_verdict(environment, *of_reply, answers[n], silent.get(n)) for n, of_reply in enumerate(verified)]


def _verdict(environment, row: dict, response: dict, verdict: dict, answers: list[Said | None], silence: Silence | None) -> dict:
    if not answers:
        return verdict
    last = {**environment.judged(row, response, verdict, answers), "judge_readable": silence is None}
    return last if silence is None else last | no_verdict(silence.fault, KINDS[silence.fault], last["reward"])
