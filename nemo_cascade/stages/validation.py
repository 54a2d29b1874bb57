"""Scores of a checkpoint: average reward on fixed validation prompts with fixed noise, so that two checkpoints are paired."""

import hashlib
import logging

from nemo_cascade import heartbeat
from nemo_cascade.engine.policy import Policy
from nemo_cascade.rollout.types import Group
from nemo_cascade.stages.context import StageRun
from nemo_cascade.stages.judge import make_rewards
from nemo_cascade.stages.prompts import render
from nemo_cascade.stages.data import Domain
from nemo_cascade.stages.rollouts import make_engine, mean, sample_groups
from nemo_cascade.stages.usable import faults_of, refuse_faults, told

logger = logging.getLogger(__name__)

# One seed for all stages and runs: a difference between two checkpoints is then theirs, not the noise's.
VALIDATION_SEED = 20_260_319
# Inside a stage another, so that a checkpoint which is chosen for its luck in sampling does not keep it when it is scored.
IN_STAGE_SEED = VALIDATION_SEED + 1


def score_policy(
    stage: StageRun, policy: Policy, domains: dict[str, Domain], num_samples: int, seed: int = VALIDATION_SEED
) -> dict[str, dict]:
    """domain -> {mean, n, per_prompt: mean reward of each prompt, prompts: their hash}, of a policy's weights as they are.

    Sampled as the stage's config says, whatever the policy trains with. Replies without a verdict count in no score, and are counted
    by kind as `faults` where there are any: a prompt without another has None, and n is of the others. Raises DataError where a
    domain has more of them than `env.max_faults`.
    """
    heartbeat.at("validation")
    prompts = [prompt for domain in domains.values() for prompt in render(domain, policy.tokenizer, policy.config)]
    engine = make_engine(policy)
    rewards = make_rewards(stage, policy, engine, alone=True)
    groups = sample_groups(
        policy,
        engine,
        prompts,
        num_samples,
        seed=seed,
        generation=stage.config.policy.generation,
        turns=stage.config.grpo.max_rollout_turns,
        ended=rewards.begin({prompt.id: prompt.row for prompt in prompts}),
    )
    rewards.fill(groups)
    scores = {}
    for name in domains:
        mine = [group for group in groups if group.domain == name]
        refuse_faults(mine, stage.config.env.max_faults, f"stage {stage.name}, validation of {name}")
        faults = faults_of(rollout for group in mine for rollout in group.rollouts)
        if faults and stage.rank == 0:
            logger.warning("validation of %s: replies without a verdict count in no score: %s", name, told(faults))
        per_prompt = [score(group) for group in mine]
        scored = [value for value in per_prompt if value is not None]
        ids = " ".join(prompt.id for prompt in prompts if prompt.domain == name)
        digest = hashlib.sha256(ids.encode()).hexdigest()
        scores[name] = {"mean": mean(scored), "n": len(scored), "per_prompt": per_prompt, "prompts": digest}
        scores[name] |= {"faults": dict(faults)} if faults else {}
    return scores


def score(group: Group) -> float | None:
    """The mean reward of a prompt's replies that have a verdict; None where none has."""
    rewards = [rollout.reward for rollout in group.rollouts if rollout.fault is None]
    return mean(rewards) if rewards else None
