"""Partial rollouts: a step trains on the groups that are complete, and replies that are still being written go on at the next one.

Replies are written in rounds of so many tokens; after each the complete groups are counted, so that a step waits for a round and never
for the longest reply. What goes on is continued with the weights of its next step, and its tokens keep the log-probs that they were
drawn with, which is what importance weights are for. Rounds, not seconds, decide what is complete: the same whoever runs it.
"""

from collections.abc import Iterable
from dataclasses import replace

from nemo_cascade import heartbeat
from nemo_cascade.data.rows import DataError
from nemo_cascade.rollout.engine import generate_global
from nemo_cascade.rollout.types import Group, Request, Rollout
from nemo_cascade.stages.config import GRPOConfig
from nemo_cascade.stages.prompts import Prompt, PromptSource
from nemo_cascade.stages.rollouts import mean, rollout_metrics, sampling_params, teaching
from nemo_cascade.stages.sampler import Sampler

# How a reply ends that goes on at the next round, or step.
UNFINISHED = "unfinished"


class PartialSampler(Sampler):
    """Draws groups as `Sampler` does, but hands out those that are complete; the rest waits, on disk beside the step's rollouts."""

    waiting: list[Group] | None = None

    def batch(self, step: int, prompts: PromptSource, config: GRPOConfig) -> tuple[list[Group], dict[str, float]]:
        """The groups of a step, those first that were begun first, and its metrics.

        Raises DataError where a resumed stage does not find what was waiting, or finds what its rows do not say.
        """
        if self.waiting is None:
            self.waiting = self._left(step - 1) if step > 1 else []
        groups = self._replayed(step, prompts) or self._drawn(step, prompts, config)
        metrics = rollout_metrics(groups)
        metrics["groups_taught"] = len(teaching(groups, config)) / len(groups)
        metrics["begun_steps_ago"] = mean(step - rollout.info["begun"] for group in groups for rollout in group.rollouts)
        metrics["replies_waiting"] = sum(rollout.finish_reason == UNFINISHED for rollout in replies(self.waiting))
        return groups, metrics

    def _left(self, step: int) -> list[Group]:
        left = self.store.load(f"{step}_waiting")
        if left is None:
            raise DataError(f"{self.store.path(f'{step}_waiting')}: no whole file of the replies that go on; {self.store.remedy}")
        return left

    def _replayed(self, step: int, prompts: PromptSource) -> list[Group] | None:
        """The groups of a step that was sampled before, None where it was not."""
        groups = self.store.load(f"{step}")
        if groups is None:
            return None
        left, before = self._left(step), {id_of(group) for group in self.waiting}
        begun = [prompt.id for prompt in prompts.next(len(groups) + len(left) - len(self.waiting))]
        if sorted(map(id_of, groups + left)) != sorted([*map(id_of, self.waiting), *begun]):
            raise DataError(
                f"{self.store.path(f'{step}')}: these rollouts answer other prompts than this step draws; put the rows back "
                f"that they were drawn with, or {self.store.remedy}"
            )
        self.waiting = left
        return groups

    def _drawn(self, step: int, prompts: PromptSource, config: GRPOConfig) -> list[Group]:
        heartbeat.at("rollouts")
        self.watch.lap("data_processing")
        self.engine.sync(self.policy)
        self.watch.lap("weight_sync")
        flying, wanted, number = list(self.waiting), config.num_prompts_per_step, 0
        while len(done := [group for group in flying if complete(group)]) < wanted:
            room = config.partial_rollouts.num_prompts_in_flight - (len(flying) - len(done))
            for prompt in prompts.next(max(room, 0)):
                flying.append(begun(prompt, flying, config.num_generations_per_prompt, step))
            self._round(step, number, flying, config)
            number += 1
        taken = done[:wanted]
        left = [group for group in flying if not any(group is one for one in taken)]
        heartbeat.at("rewards")
        self.rewards.begin({})
        self.rewards.fill(taken)
        self.watch.lap("reward_calculation")
        self.refuse_unusable(step, taken)
        # The step's own file last: with it the step counts as sampled.
        self.store.save(f"{step}_waiting", left)
        self.store.save(f"{step}", taken)
        self.watch.lap("data_processing")
        self.waiting = left
        return taken

    def _round(self, step: int, number: int, flying: list[Group], config: GRPOConfig) -> None:
        """Every reply that is unfinished writes on."""
        longest, tokens = self.policy.config.generation.max_new_tokens, config.partial_rollouts.max_new_tokens_per_round
        writing = [rollout for rollout in replies(flying) if rollout.finish_reason == UNFINISHED]
        requests = [Request(r.prompt_id, r.sample, tuple(r.prompt + r.response)) for r in writing]
        params = replace(sampling_params(self.policy, self.seed * 1_000_003 + step + (number << 52)), max_new_tokens=tokens)
        for rollout, more in zip(writing, generate_global(self.engine, requests, params), strict=True):
            rollout.response += more.response
            rollout.logprobs += more.logprobs
            if more.finish_reason != "length" or len(rollout.response) >= longest:
                rollout.finish_reason = more.finish_reason
        self.watch.lap("generation")


def begun(prompt: Prompt, flying: list[Group], group_size: int, step: int) -> Group:
    """A group of empty replies; samples are counted on where the prompt is in flight already, as (prompt, sample) names a reply."""
    first = max((r.sample + 1 for r in replies(flying) if r.prompt_id == prompt.id), default=0)
    samples = range(first, first + group_size)
    rollouts = [Rollout(prompt.id, n, list(prompt.tokens), [], [], UNFINISHED, info={"begun": step}) for n in samples]
    return Group(prompt.row, prompt.domain, rollouts)


def id_of(group: Group) -> str:
    return group.rollouts[0].prompt_id


def complete(group: Group) -> bool:
    return all(rollout.finish_reason != UNFINISHED for rollout in group.rollouts)


def replies(groups: Iterable[Group]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group.rollouts]
