"""Rewards of sampled groups: verifiers for most rows, a judge for rows whose replies can only be compared."""

import itertools
import json
from collections.abc import Callable, Mapping
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
from nemo_cascade.environments.faults import no_verdict, said_beside
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
        self._early = Early(tokenizer, env)

    def begin(self, rows: Mapping[str, dict]) -> Callable[[list[Rollout]], None]:
        """What takes rollouts of these rows (prompt id -> row) as soon as a rank has them, and begins to verify them; `fill` of all
        their groups waits for the verdicts."""
        self._early = Early(self.tokenizer, self.env, rows)
        return self._early.take

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
                if self.overlong == "reward_zero" and rollout.finish_reason == "length":
                    rollout.info.pop("fault", None)  # what it earns needs no verdict

    def _verify(self, groups: list[Group]) -> None:
        # One rank asks about a group, so that a slow or random verifier cannot give ranks different rewards.
        spare, known = self.overlong == "reward_zero", self._early.verdicts()
        verdicts = parallel.share_out(lambda mine: verify_all(mine, self.tokenizer, self.env, self.judges, spare, known), groups)
        for group, of_group in zip(groups, verdicts):
            for rollout, verdict in zip(group.rollouts, of_group):
                rollout.info |= said_beside(verdict)
                rollout.reward = float(verdict["reward"])


# (prompt id, what was said, the outcome of its session): equal ones are verified once.
Said = tuple[tuple[str, ...], str]


class Early:
    """Verification of replies while others are still being sampled, each on the rank that sampled it.

    rows: prompt id -> row, of those that may be verified early. What only a server or a comparison can reward waits for all.
    """

    def __init__(self, tokenizer, env: EnvConfig, rows: Mapping[str, dict] = MappingProxyType({})):
        elsewhere = {"genrm_compare", *env.nemo_gym.servers}
        self.rows = {name: row for name, row in rows.items() if environment_of(row) not in elsewhere}
        self.tokenizer, self.env = tokenizer, env
        self._begun: list[tuple[list[tuple[str, Said]], Callable[[], list[dict]]]] = []
        self._seen: set[tuple[str, Said]] = set()

    def take(self, rollouts: list[Rollout]) -> None:
        """Begins to verify them."""
        mine = (r for r in rollouts if r.prompt_id in self.rows and r.finish_reason not in FAILED)
        asked = dict.fromkeys((r.prompt_id, said(r, self.tokenizer)) for r in mine)
        new = [key for key in asked if key not in self._seen]
        if new:
            self._seen.update(new)
            pairs = [response_pair(self.rows[name], *words) for name, words in new]
            self._begun.append((new, verifiers(self.env.num_workers).begin(pairs)))

    def verdicts(self) -> dict[tuple[str, Said], dict]:
        """The verdicts on all that any rank has taken, on every rank; an error of one is raised on all."""
        if not self.rows:
            return {}
        found, error = {}, None
        try:
            for keys, wait in self._begun:
                found.update(zip(keys, wait()))
        except Exception as failure:  # noqa: BLE001 - the other ranks must not wait for ever
            error = failure
        self._begun, self.rows = [], {}
        parallel.raise_anywhere(error)
        return {key: verdict for of_rank in parallel.gathered(found) for key, verdict in of_rank.items()}


def verify_all(
    groups: list[Group],
    tokenizer,
    config: EnvConfig = EnvConfig(),
    judges: Mapping[str, Endpoint] = MappingProxyType({}),
    spare_cut: bool = False,
    known: Mapping[tuple[str, Said], dict] = MappingProxyType({}),
) -> list[list[dict]]:
    """The verdict on every reply of every group; equal replies to a row are verified once, `known` ones not again, and those whose tools
    failed not at all.

    By servers of NeMo Gym where the config names one for the environment, else by worker processes and then by the
    environment's judge, if there is one. spare_cut: no judge is asked about what was cut at the length limit.
    """
    texts = [[said(rollout, tokenizer) for rollout in group.rollouts] for group in groups]
    ends: dict[tuple[int, Said], set[str]] = {}
    for number, of_group in enumerate(texts):
        for rollout, text in zip(groups[number].rollouts, of_group):
            if rollout.finish_reason not in FAILED:
                ends.setdefault((number, text), set()).add(rollout.finish_reason)
    asked = list(ends)
    judged = {key for key, reasons in ends.items() if not spare_cut or reasons != {"length"}}
    by_server: dict[str | None, list[tuple[int, str]]] = {}
    for number, text in asked:
        server = config.nemo_gym.servers.get(environment_of(groups[number].row))
        by_server.setdefault(server, []).append((number, text))
    verdicts = {}
    for server, of_server in by_server.items():
        pairs = [response_pair(groups[number].row, *words) for number, words in of_server]
        if server is None:
            told = [known.get((groups[number].rollouts[0].prompt_id, words)) for number, words in of_server]
            missing = [place for place, verdict in enumerate(told) if verdict is None]
            for place, verdict in zip(missing, verifiers(config.num_workers).verify([pairs[place] for place in missing])):
                told[place] = verdict
            whole = [place for place, key in enumerate(of_server) if key in judged]
            last = judged_where_asked([pairs[place] for place in whole], [told[place] for place in whole], judges)
            for place, verdict in zip(whole, last):
                told[place] = verdict
        else:
            gym = config.nemo_gym
            told = GymClient(server, concurrency=gym.concurrency, timeout=gym.timeout).verify_all(pairs)
        verdicts.update(zip(of_server, told))
    return [
        [failure(group.row, r) if r.finish_reason in FAILED else verdicts[number, text] for r, text in zip(group.rollouts, of_group)]
        for number, (group, of_group) in enumerate(zip(groups, texts))
    ]


def failure(row: dict, rollout: Rollout) -> dict:
    """What stands for the verdict on a rollout whose tools failed; why is in its info as a rule."""
    reason = rollout.info.get("verifier_error", rollout.finish_reason)
    return no_verdict(rollout.finish_reason, reason, environments.least(environment_of(row), row))


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


def said(rollout: Rollout, tokenizer) -> Said:
    """What a verifier is given of a rollout."""
    return spoken(rollout, tokenizer), json.dumps(rollout.info.get("outcome"))


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
