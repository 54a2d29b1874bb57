"""One step's rollouts with their rewards: sampled and verified once, then on disk, so that a resumed run trains on the same ones."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from nemo_cascade import heartbeat
from nemo_cascade.data.rows import DataError
from nemo_cascade.engine.policy import Policy
from nemo_cascade.rollout.engine import RolloutEngine
from nemo_cascade.rollout.store import RolloutStore
from nemo_cascade.rollout.types import Group
from nemo_cascade.stages.config import GRPOConfig
from nemo_cascade.stages.prompts import Prompt, PromptSource
from nemo_cascade.stages.rewards import Rewards
from nemo_cascade.stages.rollouts import begin_groups, mean, rollout_metrics, teaching
from nemo_cascade.stages.stopwatch import Stopwatch
from nemo_cascade.stages.usable import group_of_one, refuse_faults, refuse_unusable_rollouts


class Ahead(NamedTuple):
    """What was begun before its step: what waits for the groups, and the state of the prompts' source before it."""

    groups: Callable[[], list[Group]]
    before: dict


class Sampler:
    """Draws groups with the policy's current weights and has them rewarded."""

    ahead: Ahead | None = None

    def __init__(
        self,
        policy: Policy,
        engine: RolloutEngine,
        rewards: Rewards,
        store: RolloutStore,
        seed: int,
        watch: Stopwatch | None = None,
        turns: int = 1,
    ):
        self.policy, self.engine, self.rewards, self.seed, self.turns = policy, engine, rewards, seed, turns
        self.store, self.watch = store, watch or Stopwatch()

    def batch(self, step: int, prompts: PromptSource, config: GRPOConfig) -> tuple[list[Group], dict[str, float]]:
        """The groups of a step and its metrics over all that was sampled for it.

        With `use_dynamic_sampling` only groups that teach count, and further prompts are drawn until there are
        `num_prompts_per_step` of them; what is left over is dropped. Raises DataError when
        `dynamic_sampling_max_gen_batches` batches do not give so many, and as `groups` does.
        """
        wanted, seen, kept = config.num_prompts_per_step, [], []
        for draw in range(config.dynamic_sampling_max_gen_batches):
            groups = self._begun() or self._next(step, prompts, config, draw)
            seen += groups
            kept += teaching(groups, config) if config.use_dynamic_sampling else groups
            if len(kept) >= wanted:
                break
        else:
            raise DataError(
                f"step {step}: {len(seen)} prompts gave {len(kept)} groups to learn from, not {wanted}; the prompts are too "
                "easy or too hard for the policy: change the data, or raise grpo.dynamic_sampling_max_gen_batches and go on"
            )
        metrics = rollout_metrics(seen)
        metrics["groups_taught"] = len(teaching(kept[:wanted], config)) / wanted
        if config.use_dynamic_sampling:
            metrics["filtered_reward"] = mean(r.reward for group in kept[:wanted] for r in group.rollouts)
            metrics["dynamic_sampling_num_gen_batches"] = draw + 1
        return kept[:wanted], metrics

    def begin(self, step: int, prompts: PromptSource, config: GRPOConfig) -> None:
        """Begins the first draw of a step to come, with the weights of now; the next `batch` is that step's."""
        before, asked = prompts.state_dict(), prompts.next(config.num_prompts_per_step)
        self.ahead = Ahead(cache(self._draw(step, asked, config.num_generations_per_prompt)), before)

    def settle(self) -> None:
        """Waits until what was begun is on disk, so that the engine may do something else."""
        if self.ahead is not None:
            self.ahead.groups()

    def remembered(self, prompts: PromptSource) -> dict:
        """What a checkpoint keeps for the next `batch`: where its prompts begin. What was begun of it is on disk then."""
        self.settle()
        return {"prompts": prompts.state_dict() if self.ahead is None else self.ahead.before}

    def where(self, step: int) -> str:
        """What errors begin with."""
        return f"stage {self.store.directory.parent.name}, step {step}"

    def groups(self, step: int, prompts: list[Prompt], group_size: int, draw: int = 0) -> list[Group]:
        """The groups of a step's draw, replayed from disk when they are there.

        Raises DataError when what is there answers other prompts, because rows changed under a running stage, and, before it
        is stored, for what nothing can be trained on.
        """
        return self._draw(step, prompts, group_size, draw)()

    def refuse_unusable(self, step: int, groups: list[Group]) -> None:
        """Raises DataError for what nothing can be trained on."""
        refuse_unusable_rollouts(groups, self.where(step), self.rewards.env.nemo_gym.servers)
        refuse_faults(groups, self.rewards.env.max_faults, self.where(step))

    def _begun(self) -> list[Group] | None:
        ahead, self.ahead = self.ahead, None
        return ahead.groups() if ahead is not None else None

    def _next(self, step: int, prompts: PromptSource, config: GRPOConfig, draw: int) -> list[Group]:
        asked = prompts.next(config.num_prompts_per_step)
        if config.adv_estimator.name == "grpo" and config.num_generations_per_prompt < 2:
            raise group_of_one(asked[0], self.where(step))
        return self.groups(step, asked, config.num_generations_per_prompt, draw)

    def _draw(self, step: int, prompts: list[Prompt], group_size: int, draw: int = 0) -> Callable[[], list[Group]]:
        """Begins what the call of its result ends."""
        name = f"{step}" if draw == 0 else f"{step}_{draw}"
        stored = self.store.load(name)
        if stored is not None:
            self._refuse_others(name, stored, prompts)
            return lambda: stored
        heartbeat.at("rollouts")
        self.watch.lap("data_processing")
        ended = self.rewards.begin({prompt.id: prompt.row for prompt in prompts})
        seed = self.seed * 1_000_003 + step + (draw << 52)
        sampled = begin_groups(
            self.policy, self.engine, prompts, group_size, seed=seed, turns=self.turns, ended=ended, watch=self.watch
        )

        def finish() -> list[Group]:
            heartbeat.at("rollouts")
            groups = sampled()
            heartbeat.at("rewards")
            self.rewards.fill(groups)
            self.watch.lap("reward_calculation")
            self.refuse_unusable(step, groups)
            self.store.save(name, groups)
            self.watch.lap("data_processing")
            return groups

        return finish

    def _refuse_others(self, name: str, stored: list[Group], prompts: list[Prompt]) -> None:
        if [group.rollouts[0].prompt_id for group in stored] != [prompt.id for prompt in prompts]:
            raise DataError(
                f"{self.store.path(name)}: these rollouts answer other prompts than this step draws; put the rows back "
                f"that they were drawn with, or {self.store.remedy}"
            )
