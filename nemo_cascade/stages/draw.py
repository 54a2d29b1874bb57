"""The first half of an RL step alone: rollouts are drawn, verified and kept, and nothing is trained.

All of them with the weights that the stage starts from, so those of its first step are the stage's own and later ones are what it
would draw had it learned nothing. Where they are kept is as in a stage: `rollouts/` all of them, `traces/` some to read.
"""

from collections import Counter

from nemo_cascade.engine import parallel
from nemo_cascade.engine.policy import Policy
from nemo_cascade.rollout.types import Group
from nemo_cascade.stages.context import StageRun
from nemo_cascade.stages.metrics import train_metrics
from nemo_cascade.stages.prompts import PromptSource
from nemo_cascade.stages.rewards import verifiers
from nemo_cascade.stages.rl import distillation_samples, make_sampler, reward_samples
from nemo_cascade.stages.start import begin
from nemo_cascade.stages.stopwatch import Stopwatch
from nemo_cascade.stages.traces import Traces


def run(stage: StageRun, steps: int) -> tuple[list[Group], dict[str, float], dict[str, float]]:
    """Draws so many steps. Returns the groups that they would train on, the seconds of rank 0 by part, and those that verdicts of each
    environment took in the workers of all ranks; the same on every rank."""
    config = stage.config
    policy = Policy(config.policy, seed=stage.seed, max_num_steps=config.grpo.max_num_steps)
    prompts = PromptSource(config.data, policy.tokenizer, config.policy, seed=stage.seed, env=config.env)
    begin(policy, stage.parent, config.checkpointing.pretrained_checkpoint)
    watch, traces = Stopwatch(), Traces(stage, policy.tokenizer)
    sampler = make_sampler(stage, policy, watch)
    distil = config.grpo.adv_estimator.name == "opd"
    drawn, seconds, before = [], Counter(), Counter(verifiers(config.env.num_workers).seconds)
    with stage.progress(steps, f"{stage.name}, rollouts only") as bar:
        for step in range(1, steps + 1):
            watch.start()
            groups, seen = sampler.batch(step, prompts, config.grpo)
            traces.write(step, groups, distillation_samples(groups, config) if distil else reward_samples(groups, config.grpo))
            watch.lap("data_processing")
            taken = watch.read()
            stage.log(train_metrics(seen, taken), step)
            bar.advance(reward=seen["reward"])
            drawn += groups
            seconds.update(taken)
    verified: Counter[str] = Counter()
    for of_rank in parallel.gathered(verifiers(config.env.num_workers).seconds - before):
        verified.update(of_rank)
    return drawn, parallel.broadcast(dict(seconds)), dict(verified)
