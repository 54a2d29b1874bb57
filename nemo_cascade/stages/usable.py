"""What no step may be trained on: log-probs that are no numbers, rewards that their environment cannot give,
replies that have none to be compared with, a batch of which too much has no verdict."""

import math
from collections import Counter
from collections.abc import Iterable

from nemo_cascade import environments
from nemo_cascade.data.rows import DataError, environment_of
from nemo_cascade.data.sample import Sample
from nemo_cascade.models.config import ModelConfig
from nemo_cascade.rollout.types import Group, Rollout
from nemo_cascade.stages.prompts import Prompt


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
            odd = first_odd(rollout.logprobs)
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


def faults_of(rollouts: Iterable[Rollout]) -> Counter[str]:
    """How many rollouts have no verdict, by what kept them from it."""
    return Counter(rollout.fault for rollout in rollouts if rollout.fault is not None)


def refuse_faults(groups: list[Group], most: float, where: str) -> None:
    """Raises DataError naming `where` (stage and step), kinds and counts where a larger share than `most` of the rollouts has no verdict.

    Those few that are left would be trained on, or scored, as if they were all.
    """
    rollouts = [(group.domain, rollout) for group in groups for rollout in group.rollouts]
    faults = faults_of(rollout for _, rollout in rollouts)
    if faults.total() <= most * len(rollouts):
        return
    domain, one = next((domain, rollout) for domain, rollout in rollouts if rollout.fault is not None)
    raise DataError(
        f"{where}: {faults.total()} of {len(rollouts)} replies have no verdict ({told(faults)}), more than env.max_faults={most:g} allows; "
        f"the first, prompt {one.prompt_id} of {domain}, reply {one.sample}: {one.info.get('verifier_error')}; mend what verifies "
        "them, then the same command goes on"
    )


def told(faults: Counter[str]) -> str:
    """ "3 verifier_timeout, 1 sandbox_lost"."""
    return ", ".join(f"{count} {kind}" for kind, count in faults.most_common())


def refuse_unusable_experts(groups: list[Group], preset: ModelConfig, where: str) -> None:
    """Raises DataError naming `where` (stage and step), prompt and reply for a rollout whose experts are not reported, or are none of the
    network's."""
    layers, topk = preset.pattern.count("E"), preset.moe_router_topk
    for group in groups:
        for rollout in group.rollouts:
            place, experts = f"{where}, prompt {rollout.prompt_id} of {group.domain}, reply {rollout.sample}", rollout.experts
            if experts is None:
                raise DataError(
                    f"{place}: it has no experts to replay, because its engine reports none or router replay was off when it was drawn; "
                    "set policy.router_replay.enabled=false, or repeat the stage with --from-stage"
                )
            expected = (len(rollout.prompt) + len(rollout.response) - 1, layers, topk)
            if tuple(experts.shape) != expected or not 0 <= int(experts.min()) <= int(experts.max()) < preset.num_moe_experts:
                raise DataError(
                    f"{place}: its experts {tuple(experts.shape)}, {experts.min()} to {experts.max()}, are not the {expected} of "
                    f"{preset.num_moe_experts} that policy.model_name={preset.name} has; the engine samples with another network"
                )


def refuse_unusable_logprobs(samples: list[Sample], field: str, source: object, where: str) -> None:
    """Raises DataError naming `where` (stage and step), the sample and its token for a log-prob of `field` that is not finite on a
    trained token; source: whose weights they are of."""
    for sample in samples:
        values = sample.fields[field]
        place = first_odd([value if on else 0.0 for on, value in zip(sample.loss_mask, values)])
        if place is not None:
            raise DataError(
                f"{where}, {sample.name}: {field} is {values[place]} at token {place}; the weights of {source} or their sums "
                "overflow: look at that checkpoint's own scores, or take another one"
            )


def first_odd(values: list[float]) -> int | None:
    """The place of the first value that is not finite."""
    # A sum of finite values is finite, and much sooner made than each is asked.
    return None if math.isfinite(sum(values)) else next((i for i, value in enumerate(values) if not math.isfinite(value)), None)


def group_of_one(prompt: Prompt, where: str) -> DataError:
    """What is wrong with one reply to a prompt, where replies are compared; where: stage and step."""
    return DataError(
        f"{where}, prompt {prompt.id} of {prompt.domain}: a group of one reply has no baseline and no deviation to divide by, so "
        "nothing can be learned from it; set grpo.num_generations_per_prompt to 2 or more"
    )
