"""What no step may be trained on: log-probs that are no numbers, rewards that their environment cannot give."""

import math
from collections.abc import Iterable

from nemo_cascade import environments
from nemo_cascade.data.rows import DataError, environment_of
from nemo_cascade.data.sample import Sample
from nemo_cascade.rollout.types import Group


def refuse_unusable_rollouts(groups: list[Group], where: str, elsewhere: Iterable[str] = ()) -> None:
    """Raises DataError naming `where` (stage and step), prompt and reply for a sampled token whose log-prob is not finite and
    for a reward that is not, or that lies outside of the range its environment declares.

    elsewhere: environments that a server verifies, whose range nobody here knows. Comparisons have none either.
    """
    unknown = {"genrm_compare", *elsewhere}
    for group in groups:
        name = environment_of(group.row)
        least, most = (-math.inf, math.inf) if name in unknown else environments.reward_range(name)
        for rollout in group.rollouts:
            place = f"{where}, prompt {rollout.prompt_id} of {group.domain}, reply {rollout.sample}"
            odd = next((i for i, value in enumerate(rollout.logprobs) if not math.isfinite(value)), None)
            if odd is not None:
                raise DataError(
                    f"{place}: token {odd} was sampled with the log-prob {rollout.logprobs[odd]}; the weights or the engine's "
                    "sums overflowed: look at the metrics of the steps before"
                )
            if not (math.isfinite(rollout.reward) and least <= rollout.reward <= most):
                raise DataError(
                    f"{place}: its reward is {rollout.reward}, but {name} gives {least:g} to {most:g}; mend the verifier or its "
                    "REWARD_RANGE, then the same command goes on"
                )


def refuse_unusable_logprobs(samples: list[Sample], field: str, source: object) -> None:
    """Raises DataError for a log-prob of `field` that is not finite on a trained token; source: whose weights they are of."""
    for number, sample in enumerate(samples):
        for place, (on, value) in enumerate(zip(sample.loss_mask, sample.fields[field])):
            if on and not math.isfinite(value):
                raise DataError(
                    f"{field} of reply {number} of this step is {value} at token {place}; the weights of {source} or their sums "
                    "overflow: look at that checkpoint's own scores, or take another one"
                )
