"""Rewards of sampled groups: verifiers for most rows, a judge for rows whose replies can only be compared."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from nemo_cascade import environments
from nemo_cascade.data.rows import DataError, environment_of
from nemo_cascade.engine import parallel
from nemo_cascade.rollout.types import Group, Rollout
from nemo_cascade.stages.prompts import thinking


class Comparing(Protocol):
    """What a judge can do; every rank calls it with the same groups."""

    def reward_groups(self, groups: list[Group]) -> None:
        """Fills reward and info of every rollout by comparisons inside its group."""

    def reward_by_reference(self, groups: list[Group]) -> None:
        """Fills reward and info of every rollout by a comparison with the row's reference reply."""


class Rewards:
    """alone: a judge compares replies with the row's reference reply, not with one another."""

    def __init__(self, tokenizer, judge: Comparing | None = None, *, alone: bool = False, overlong_reward: str = "zero"):
        self.tokenizer, self.judge, self.alone, self.overlong_reward = tokenizer, judge, alone, overlong_reward

    def fill(self, groups: list[Group]) -> None:
        """Fills reward and info of every rollout, the same on every rank, which all call it.

        A reply cut at the length limit earns 0 whatever it says [Nemotron-Cascade 2, section 4.2], unless
        overlong_reward is "keep". Raises DataError for rows that need a judge where there is none.
        """
        judged = [group for group in groups if environment_of(group.row) == "genrm_compare"]
        self._verify([group for group in groups if environment_of(group.row) != "genrm_compare"])
        if judged and self.judge is None:
            raise DataError(f"{judged[0].domain}: its replies are compared by a judge; set cascade.judge.stage")
        if judged:
            (self.judge.reward_by_reference if self.alone else self.judge.reward_groups)(judged)
        if self.overlong_reward == "zero":
            for rollout in (rollout for group in groups for rollout in group.rollouts):
                rollout.reward = 0.0 if rollout.finish_reason == "length" else rollout.reward

    def _verify(self, groups: list[Group]) -> None:
        # One rank asks the environments, so that a slow or random verifier cannot give ranks different rewards.
        if parallel.rank() == 0:
            verify_all(groups, self.tokenizer)
        verdicts = parallel.broadcast([[(r.reward, r.info) for r in group.rollouts] for group in groups])
        for group, row in zip(groups, verdicts):
            for rollout, verdict in zip(group.rollouts, row):
                rollout.reward, rollout.info = verdict


def verify_all(groups: list[Group], tokenizer) -> None:
    """Verifies every reply; side by side, a thread a core, where the environment waits for processes."""
    replies = [(group.row, rollout) for group in groups for rollout in group.rollouts]
    slow = [reply for reply in replies if getattr(environment(reply[0]), "IN_THREADS", False)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        running = [threads.submit(verify, *reply, tokenizer) for reply in slow]
        for row, rollout in replies:
            if not getattr(environment(row), "IN_THREADS", False):
                verify(row, rollout, tokenizer)
        for future in running:
            future.result()


def environment(row: dict):
    """The environment that verifies replies to the row."""
    return environments.get(environment_of(row))


def verify(row: dict, rollout: Rollout, tokenizer) -> None:
    """Fills reward and info of one rollout with its verifier's verdict."""
    response = environments.response_of(reply_text(rollout, tokenizer), thinking(row))
    verdict = environment(row).verify(row, response)
    rollout.info = {key: value for key, value in verdict.items() if key != "reward"}
    rollout.reward = float(verdict["reward"])


def reply_text(rollout: Rollout, tokenizer) -> str:
    """What the model wrote, without its stop token; special tokens such as </think> stay, because verifiers need them."""
    tokens = rollout.response[:-1] if rollout.finish_reason == "stop" else rollout.response
    return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
