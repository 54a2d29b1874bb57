"""The generative judge: another checkpoint of the run, which compares replies in the policy's own buffers.

In training every reply of a group is compared with the others, and `genrm_rewards` makes rewards of it. Where a reply stands
alone (validation, distillation) it is compared with the row's reference reply: its reward is then a win rate.
"""

import hashlib
import json
from pathlib import Path

import torch

from nemo_cascade.algorithms import comparison_pairs, genrm_rewards
from nemo_cascade.data.chat import render_prompt
from nemo_cascade.engine.policy import Policy
from nemo_cascade.environments.genrm_compare import Comparison, judge_messages, parse
from nemo_cascade.environments.response import split_reply
from nemo_cascade.rollout.engine import generate_global
from nemo_cascade.rollout.types import Group, Request, Rollout, SamplingParams
from nemo_cascade.stages.config import GenRMConfig
from nemo_cascade.stages.context import StageRun
from nemo_cascade.stages.prompts import thinking
from nemo_cascade.stages.rewards import Rewards, reply_text


class Judge:
    """Compares replies with the weights of `checkpoint`. Every method gives the same on all ranks, which call it together."""

    def __init__(self, policy: Policy, engine, checkpoint: Path, config: GenRMConfig):
        self.policy, self.engine, self.checkpoint, self.config = policy, engine, checkpoint, config

    def reward_groups(self, groups: list[Group]) -> None:
        """Fills reward and info of every rollout by comparisons inside its group."""
        pairs = [comparison_pairs(len(group.rollouts), self.config.comparison_strategy) for group in groups]
        texts = [[self._split(group.row, rollout) for rollout in group.rollouts] for group in groups]
        asked = [
            (group.row, said[i][1], said[j][1]) for group, said, mine in zip(groups, texts, pairs) for i, j in mine
        ]
        answers = iter(self.compare(asked))
        for group, said, mine in zip(groups, texts, pairs):
            self._reward(group, said, mine, [next(answers) for _ in mine])

    def reward_by_reference(self, groups: list[Group]) -> None:
        """Fills reward, 1 for a win over the row's reference reply, and info of every rollout.

        Judges favour a place, so the reply's place depends on the row: on the average of many rows it cancels.
        """
        rollouts = [(group.row, rollout) for group in groups for rollout in group.rollouts]
        asked, first = [], []
        for row, rollout in rollouts:
            two = (self._split(row, rollout)[1], row["reference_reply"])
            first.append(int(rollout.prompt_id[-1], 16) % 2 == 0)
            asked.append((row, *(two if first[-1] else two[::-1])))
        for (_, rollout), answer, is_first in zip(rollouts, self.compare(asked), first):
            rollout.reward = answer.first_wins if is_first else 1.0 - answer.first_wins
            rollout.info = {"judge_readable": answer.readable}

    def compare(self, asked: list[tuple[dict, str, str]]) -> list[Comparison]:
        """What the judge says about (row, first reply, second reply), the likeliest answer; equal ones are asked once."""
        requests, ids = {}, []
        for row, first, second in asked:
            messages = judge_messages(row, first, second)
            name = hashlib.sha256(json.dumps(messages).encode()).hexdigest()
            if name not in requests:
                prompt = render_prompt(
                    self.policy.tokenizer, messages, enable_thinking=self.config.judge_enable_thinking
                )
                requests[name] = Request(name, 0, tuple(prompt))
            ids.append(name)
        params = SamplingParams(temperature=0.0, max_new_tokens=self.config.judge_max_new_tokens)
        with self.policy.weights_of(self.checkpoint / "policy"):
            rollouts = generate_global(self.engine, list(requests.values()), params)
        thinks = self.config.judge_enable_thinking
        said = {r.prompt_id: parse(split_reply(reply_text(r, self.policy.tokenizer), thinks)[1] or "") for r in rollouts}
        return [said[name] for name in ids]

    def _split(self, row: dict, rollout: Rollout) -> tuple[str, str]:
        """(thought, answer), stripped. A reply that never ends its thought has an empty answer."""
        thought, answer = split_reply(reply_text(rollout, self.policy.tokenizer), thinking(row))
        return thought.strip(), (answer or "").strip()

    def _reward(self, group: Group, said: list[tuple[str, str]], pairs, answers: list[Comparison]) -> None:
        config = self.config
        rewards = genrm_rewards(
            torch.tensor(pairs),
            torch.tensor([[answer.score_1, answer.score_2] for answer in answers]),
            torch.tensor([answer.ranking for answer in answers]),
            torch.tensor([len(thought) for thought, _ in said]),
            torch.tensor([len(answer) for _, answer in said]),
            reasoning_coeff=config.group_reasoning_length_penalty_coeff,
            answer_coeff=config.group_answer_length_penalty_coeff,
            reasoning_bonus=config.reasoning_bonus,
            answer_bonus=config.answer_bonus,
            top_percentile=config.top_percentile,
        )
        readable = sum(answer.readable for answer in answers) / len(answers)
        for rollout, reward in zip(group.rollouts, rewards.tolist()):
            rollout.reward, rollout.info = reward, {"judge_readable": readable}


def make_rewards(stage: StageRun, policy: Policy, engine, alone: bool) -> Rewards:
    """What rewards a stage's rollouts: the environments, and the stage's judge where it has one."""
    judge = Judge(policy, engine, stage.judge, stage.config.genrm) if stage.judge is not None else None
    config = stage.config
    return Rewards(
        policy.tokenizer, judge, alone=alone, overlong_reward=config.grpo.overlong_reward, env=config.env
    )
