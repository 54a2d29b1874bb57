"""Scores of a checkpoint: average reward on fixed validation prompts with fixed noise, so that two checkpoints are paired."""

import hashlib

from nemo_cascade import heartbeat
from nemo_cascade.engine.policy import Policy
from nemo_cascade.stages.context import StageRun
from nemo_cascade.stages.judge import make_rewards
from nemo_cascade.stages.prompts import render
from nemo_cascade.stages.data import Domain
from nemo_cascade.stages.rollouts import make_engine, mean, sample_groups

# One seed for all stages and runs: a difference between two checkpoints is then theirs, not the noise's.
VALIDATION_SEED = 20_260_319
# Inside a stage another, so that a checkpoint which is chosen for its luck in sampling does not keep it when it is scored.
IN_STAGE_SEED = VALIDATION_SEED + 1


def score_policy(
    stage: StageRun, policy: Policy, domains: dict[str, Domain], num_samples: int, seed: int = VALIDATION_SEED
) -> dict[str, dict]:
    """domain -> {mean, n, per_prompt: mean reward of each prompt, prompts: their hash}, of a policy's weights as they are.

    Sampled as the stage's config says, whatever the policy trains with.
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
        per_prompt = [mean(r.reward for r in group.rollouts) for group in groups if group.domain == name]
        ids = " ".join(prompt.id for prompt in prompts if prompt.domain == name)
        digest = hashlib.sha256(ids.encode()).hexdigest()
        scores[name] = {"mean": mean(per_prompt), "n": len(per_prompt), "per_prompt": per_prompt, "prompts": digest}
    return scores
