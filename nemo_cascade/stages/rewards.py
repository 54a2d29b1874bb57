"""Rewards of sampled groups: verifiers for most rows, a judge for rows whose replies can only be compared."""

import itertools
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch

from nemo_cascade import environments
from nemo_cascade.algorithms import overlong
from nemo_cascade.data.rows import DataError, environment_of, tools_of
from nemo_cascade.engine import parallel
from nemo_cascade.environments.endpoint import Endpoint
from nemo_cascade.environments.gym import GymClient
from nemo_cascade.environments.judged import judge_all
from nemo_cascade.environments.workers import Verifiers
from nemo_cascade.rollout.types import FAILED, Group, Rollout, SamplingParams
from nemo_cascade.stages.config import EnvConfig
from nemo_cascade.stages.prompts import thinking


class Comparing(Protocol):
    """What a judge can do; every rank calls it with the same groups."""

    def reward_groups(self, groups: list[Group]) -> None:
        """Fills reward and info of every rollout by comparisons inside its group."""

    def reward_by_reference(self, groups: list[Group]) -> None:
        """Fills reward and info of every rollout by a comparison with the row's reference reply."""


class Rewards:
    """alone: a judge compares replies with the row's reference reply, not with one another. answers: the file that keeps
    what judges of single replies said, this rank's own."""

    def __init__(
        self,
        tokenizer,
        judge: Comparing | None = None,
        *,
        alone: bool = False,
        overlong: str = "reward_zero",
        env: EnvConfig = EnvConfig(),
        answers: Path | None = None,
    ):
        self.tokenizer, self.judge, self.alone, self.env = tokenizer, judge, alone, env
        self.overlong = overlong
        self.judges = {name: Endpoint(endpoint, answers) for name, endpoint in env.judges.items()}

    def fill(self, groups: list[Group]) -> None:
        """Fills reward and info of every rollout, the same on every rank, which all call it.

        With overlong "reward_zero" a reply cut at the length limit earns 0, or the least that its environment gives where that is
        below 0, whatever it says [Nemotron-Cascade 2, section 4.2]. Raises DataError for rows that need a judge where there is none.
        """
        judged = [group for group in groups if environment_of(group.row) == "genrm_compare"]
        self._verify([group for group in groups if environment_of(group.row) != "genrm_compare"])
        if judged and self.judge is None:
            raise DataError(f"{judged[0].domain}: its replies are compared by a judge; set cascade.judge.stage")
        if judged:
            (self.judge.reward_by_reference if self.alone else self.judge.reward_groups)(judged)
        for group in groups:
            given = torch.tensor([rollout.reward for rollout in group.rollouts], dtype=torch.float64)
            cut = torch.tensor([rollout.finish_reason == "length" for rollout in group.rollouts], dtype=torch.bool)
            least = environments.least(environment_of(group.row), group.row)
            for rollout, reward in zip(group.rollouts, overlong(given, cut, self.overlong, least)[0].tolist()):
                rollout.reward = reward

    def _verify(self, groups: list[Group]) -> None:
        # One rank asks about a group, so that a slow or random verifier cannot give ranks different rewards.
        spare = self.overlong == "reward_zero"
        verdicts = parallel.share_out(lambda mine: verify_all(mine, self.tokenizer, self.env, self.judges, spare), groups)
        for group, of_group in zip(groups, verdicts):
            for rollout, verdict in zip(group.rollouts, of_group):
                rollout.info |= {key: value for key, value in verdict.items() if key != "reward"}
                rollout.reward = float(verdict["reward"])


def verify_all(
    groups: list[Group],
    tokenizer,
    config: EnvConfig = EnvConfig(),
    judges: Mapping[str, Endpoint] = MappingProxyType({}),
    spare_cut: bool = False,
) -> list[list[dict]]:
    """The verdict on every reply of every group; equal replies to a row are verified once.

    By servers of NeMo Gym where the config names one for the environment, else by worker processes and then by the
    environment's judge, if there is one. spare_cut: no judge is asked about what was cut at the length limit.
    """
    texts = [[(spoken(r, tokenizer), json.dumps(r.info.get("outcome"))) for r in group.rollouts] for group in groups]
    asked = [(number, text) for number, said in enumerate(texts) for text in dict.fromkeys(said)]
    judged = {
        (number, text)
        for number, said in enumerate(texts)
        for rollout, text in zip(groups[number].rollouts, said)
        if not spare_cut or rollout.finish_reason != "length"
    }
    by_server: dict[str | None, list[tuple[int, str]]] = {}
    for number, text in asked:
        server = config.nemo_gym.servers.get(environment_of(groups[number].row))
        by_server.setdefault(server, []).append((number, text))
    verdicts = {}
    for server, of_server in by_server.items():
        pairs = [response_pair(groups[number].row, *said) for number, said in of_server]
        if server is None:
            told = verifiers(config.num_workers).verify(pairs)
            whole = [place for place, key in enumerate(of_server) if key in judged]
            last = judged_where_asked([pairs[place] for place in whole], [told[place] for place in whole], judges)
            for place, verdict in zip(whole, last):
                told[place] = verdict
        else:
            gym = config.nemo_gym
            told = GymClient(server, concurrency=gym.concurrency, timeout=gym.timeout).verify_all(pairs)
        verdicts.update(zip(of_server, told))
    told = [[verdicts[number, text] for text in said] for number, said in enumerate(texts)]
    return [
        [failure(group.row) if rollout.finish_reason in FAILED else verdict for rollout, verdict in zip(group.rollouts, of_group)]
        for group, of_group in zip(groups, told)
    ]


def failure(row: dict) -> dict:
    """The verdict on a rollout whose tools failed; why is in its info already."""
    return {"reward": environments.least(environment_of(row), row)}


def judged_where_asked(pairs: list[tuple[dict, dict]], verdicts: list[dict], judges: Mapping[str, Endpoint]) -> list[dict]:
    """The verdicts, with those of environments that have a judge as it decides. One that no verifier could give stays."""
    last = list(verdicts)
    for name, endpoint in judges.items():
        mine = [
            number
            for number, (row, _) in enumerate(pairs)
            if environment_of(row) == name and "verifier_error" not in verdicts[number]
        ]
        for number, verdict in zip(mine, judge_all([(*pairs[number], verdicts[number]) for number in mine], endpoint)):
            last[number] = verdict
    return last


# Kept for all of a run's steps and stages: to start them takes longer than most of what they do.
verifiers = cache(Verifiers)


def response_pair(row: dict, texts: tuple[str, ...], outcome: str = "null") -> tuple[dict, dict]:
    """A row and what was said to it, as `spoken`, as a response; outcome: that of its session, as JSON."""
    if len(texts) == 1:
        response = environments.response_of(texts[0], thinking(row))
    else:
        response = environments.response_of_turns(texts, thinking(row), tools_of(row))
    return row, response if outcome == "null" else response | {"outcome": json.loads(outcome)}


def spoken(rollout: Rollout, tokenizer) -> tuple[str, ...]:
    """The texts of a rollout, the model's and what it was told in turn: one, where no tool was called. Stop tokens are left out."""
    if rollout.own is None:
        return (reply_text(rollout, tokenizer),)
    texts, start = [], 0
    for own, tokens in itertools.groupby(rollout.own):
        end = start + len(list(tokens))
        text = rollout.response[start:end]
        if own and text[-1] in SamplingParams.stop_ids:
            text = text[:-1]
        texts.append(decoded(text, tokenizer))
        start = end
    return tuple(texts)


def reply_text(rollout: Rollout, tokenizer) -> str:
    """What the model wrote, without its stop token; special tokens such as </think> stay, because verifiers need them."""
    return decoded(rollout.response if rollout.finish_reason == "length" else rollout.response[:-1], tokenizer)


def decoded(tokens: list[int], tokenizer) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
