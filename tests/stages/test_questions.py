"""Teachers and reference are asked in one rotation, each checkpoint brought in once."""

import contextlib
from pathlib import Path

from nemo_cascade.data.sample import Sample
from nemo_cascade.stages.rl import add_teacher_logprobs


class Turning:
    """A policy whose log-probs are those of whose turn it is."""

    def __init__(self):
        self.turns = []

    @contextlib.contextmanager
    def rotation(self):
        self.turns.append([])
        yield self.turns[-1].append

    def logprobs(self, samples, trained_only):
        return [[-float(self.turns[-1][-1].parent.name)] * len(sample.tokens) for sample in samples]


def test_every_checkpoint_comes_in_once_whatever_it_is_asked_as():
    policy, samples = Turning(), [Sample([1, 2], [0, 1]) for _ in range(6)]
    one, two, start = (Path(f"{number}/policy") for number in (1, 2, 3))
    teachers = {"math": one, "mcqa": two, "held": start}
    add_teacher_logprobs(policy, samples, ["mcqa", "math", "held"], teachers, reference=start)
    (turns,) = policy.turns
    assert list(dict.fromkeys(turns)) == [one, two, start] and turns == sorted(turns)
    assert [sample.fields["teacher_logprobs"] for sample in samples] == [[-n, -n] for n in (2.0, 2.0, 1.0, 1.0, 3.0, 3.0)]
    assert all(sample.fields["reference_logprobs"] == [-3.0, -3.0] for sample in samples)
