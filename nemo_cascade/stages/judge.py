"""The generative judge compares replies: another checkpoint of the run, in the policy's own buffers, or a model behind an
endpoint.

In training every reply of a group is compared with the others, and `genrm_rewards` makes rewards of it. Where a reply stands
alone (validation, distillation) it is compared with the row's reference reply: its reward is then a win rate.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch

from nemo_cascade.algorithms import comparison_pairs, genrm_rewards
from nemo_cascade.data.chat import encode, render_prompt
from nemo_cascade.data.sample import Sample
from nemo_cascade.engine import parallel
from nemo_cascade.engine.policy import Policy
from nemo_cascade.environments.endpoint import Endpoint, Said, Silence
from nemo_cascade.environments.faults import KINDS, no_verdict
from nemo_cascade.environments.genrm_compare import FIELDS, Comparison, judge_messages, parse, readable
from nemo_cascade.environments.response import END_OF_THOUGHT, split_reply
from nemo_cascade.rollout.engine import generate_global
from nemo_cascade.rollout.types import Group, Request, Rollout, SamplingParams
from nemo_cascade.stages.config import GenRMConfig
from nemo_cascade.stages.context import StageRun
from nemo_cascade.stages.prompts import thinking
from nemo_cascade.stages.rewards import Rewards, reply_text

Messages = list[dict]
# From conversations to what is said after each, without its thought, or why no answer came. The same on all ranks.
Ask = Callable[[list[Messages]], list[str | Silence]]


class Judge:
    """Compares replies by what `ask` gets. Every method gives the same on all ranks, which call it together."""

    def __init__(self, ask: Ask, tokenizer, config: GenRMConfig):
        self.ask, self.tokenizer, self.config = ask, tokenizer, config

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
            if isinstance(answer, Silence):
                leave_unjudged(rollout, answer)
                continue
            rollout.reward = answer.first_wins if is_first else 1.0 - answer.first_wins
            rollout.info = {"judge_readable": answer.readable}

    def compare(self, asked: list[tuple[dict, str, str]]) -> list[Comparison | Silence]:
        """What the judge says about (row, first reply, second reply), or why nothing; equal ones are asked once."""
        conversations, names = {}, []
        for row, first, second in asked:
            messages = judge_messages(row, first, second)
            names.append(hashlib.sha256(json.dumps(messages).encode()).hexdigest())
            conversations[names[-1]] = messages
        said = dict(zip(conversations, self.ask(list(conversations.values()))))
        return [text if isinstance(text, Silence) else parse(text) for text in map(said.get, names)]

    def _split(self, row: dict, rollout: Rollout) -> tuple[str, str]:
        """(thought, answer), stripped. A reply that never ends its thought has an empty answer."""
        thought, answer = split_reply(reply_text(rollout, self.tokenizer), thinking(row))
        return thought.strip(), (answer or "").strip()

    def _reward(self, group: Group, said: list[tuple[str, str]], pairs, answers: list[Comparison | Silence]) -> None:
        """Comparisons that did not come are as if they had not been asked for, and replies without any as if they were not there."""
        heard = {pair: answer for pair, answer in zip(pairs, answers) if isinstance(answer, Comparison)}
        compared = sorted({reply for pair in heard for reply in pair})
        for pair, answer in zip(pairs, answers):
            for reply in set(pair).difference(compared):
                leave_unjudged(group.rollouts[reply], answer)
        if not heard:
            return
        config, place = self.config, {reply: number for number, reply in enumerate(compared)}
        rewards = genrm_rewards(
            torch.tensor([[place[i], place[j]] for i, j in heard]),
            torch.tensor([[answer.score_1, answer.score_2] for answer in heard.values()]),
            torch.tensor([answer.ranking for answer in heard.values()]),
            torch.tensor([len(said[reply][0]) for reply in compared]),
            torch.tensor([len(said[reply][1]) for reply in compared]),
            reasoning_coeff=config.group_reasoning_length_penalty_coeff,
            answer_coeff=config.group_answer_length_penalty_coeff,
            reasoning_bonus=config.reasoning_bonus,
            answer_bonus=config.answer_bonus,
            top_percentile=config.top_percentile,
        )
        readable = sum(answer.readable for answer in heard.values()) / len(answers)
        for reply, reward in zip(compared, rewards.tolist()):
            group.rollouts[reply].reward, group.rollouts[reply].info = reward, {"judge_readable": readable}


def leave_unjudged(rollout: Rollout, silence: Silence) -> None:
    """Where no comparison of a reply came from the judge."""
    verdict = no_verdict(silence.fault, KINDS[silence.fault], 0.0)
    rollout.reward, rollout.info = verdict.pop("reward"), {"judge_readable": 0.0, **verdict}


class CheckpointJudge:
    """Asks the weights of a checkpoint, in the policy's own buffers: the likeliest answer.

    An answer without readable scores, as a young judge gives, is completed with the likeliest scores (`_score`).
    """

    def __init__(self, policy: Policy, engine, checkpoint: Path, config: GenRMConfig):
        self.policy, self.engine, self.checkpoint, self.config = policy, engine, checkpoint, config

    def __call__(self, conversations: list[Messages]) -> list[str]:
        """As `Ask`."""
        tokenizer, thinks = self.policy.tokenizer, self.config.judge_enable_thinking
        prompts = [render_prompt(tokenizer, messages, enable_thinking=thinks) for messages in conversations]
        requests = [Request(f"{number:016x}", 0, tuple(prompt)) for number, prompt in enumerate(prompts)]
        params = SamplingParams(temperature=0.0, max_new_tokens=self.config.judge_max_new_tokens)
        with self.policy.weights_of(self.checkpoint / "policy"):
            self.engine.sync(self.policy)
            rollouts = generate_global(self.engine, requests, params)
            said = [split_reply(reply_text(rollout, tokenizer), thinks) for rollout in rollouts]
            answers = [answer or "" for _, answer in said]
            if self.config.judge_guided_json:
                unread = [number for number, answer in enumerate(answers) if not parse(answer).readable]
                thoughts = [said[number][0] + END_OF_THOUGHT if thinks else "" for number in unread]
                for number, answer in zip(unread, self._score([prompts[n] for n in unread], thoughts)):
                    answers[number] = answer
        return answers

    def _score(self, prompts: list[list[int]], thoughts: list[str]) -> list[str]:
        """The judge's JSON after each prompt and thought, with the likeliest of the allowed values for each field in turn."""
        answers = ["{"] * len(prompts)
        for name, allowed in FIELDS.items():
            begun = [f'{answer}{", " if len(answer) > 1 else ""}"{name}": ' for answer in answers]
            candidates = [[f"{answer}{value}" for value in allowed] for answer in begun]
            scored = iter(self._logprobs([
                (prompt, thought + text)
                for prompt, thought, texts in zip(prompts, thoughts, candidates)
                for text in texts
            ]))
            answers = [max(texts, key=lambda _: next(scored)) for texts in candidates]
        return [answer + "}" for answer in answers]

    def _logprobs(self, asked: list[tuple[list[int], str]]) -> list[float]:
        """The log-prob of each text after its prompt."""
        replies = [encode(self.policy.tokenizer, text) for _, text in asked]
        samples = [
            Sample(prompt + reply, [0] * len(prompt) + [1] * len(reply), {}) for (prompt, _), reply in zip(asked, replies)
        ]
        rows = self.policy.logprobs(samples) if samples else []
        return [sum(row[len(row) - len(reply) :]) for row, reply in zip(rows, replies)]


class EndpointJudge:
    """Asks a model behind an endpoint; ranks share the questions."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint

    def __call__(self, conversations: list[Messages]) -> list[str | Silence]:
        """As `Ask`."""
        return parallel.share_out(self._ask, conversations)

    def _ask(self, conversations: list[Messages]) -> list[str | Silence]:
        return [said.text if isinstance(said, Said) else said for said in self.endpoint.ask(conversations, usable=readable)]


def make_rewards(stage: StageRun, policy: Policy, engine, alone: bool) -> Rewards:
    """What rewards a stage's rollouts: the environments, and the stage's judge where it has one."""
    config = stage.config
    answers = stage.dir / f"judge_answers_{stage.rank}.sqlite"
    ask = None
    if stage.judge is not None:
        ask = CheckpointJudge(policy, engine, stage.judge, config.genrm)
    elif stage.judge_endpoint is not None:
        ask = EndpointJudge(Endpoint(stage.judge_endpoint, answers))
    return Rewards(
        policy.tokenizer,
        Judge(ask, policy.tokenizer, config.genrm) if ask is not None else None,
        alone=alone,
        overlong=config.grpo.overlong_mode,
        env=config.env,
        answers=answers,
    )
