"""One step's rollouts with their rewards: sampled and verified once, then on disk, so that a resumed run trains on the same ones."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import torch

from nemo_cascade import environments, heartbeat
from nemo_cascade.algorithms import informative_groups, swe_group_mask
from nemo_cascade.data.rows import DataError
from nemo_cascade.engine.policy import Policy
from nemo_cascade.rollout.agent import Session, Talk, converse
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.engine import RolloutEngine, generate, generate_global, nothing_to_do
from nemo_cascade.rollout.megatron import MegatronEngine
from nemo_cascade.rollout.protocol import ToolProtocol
from nemo_cascade.rollout.store import RolloutStore
from nemo_cascade.rollout.types import Group, Request, Rollout, SamplingParams
from nemo_cascade.stages.config import GRPOConfig
from nemo_cascade.stages.prompts import Prompt, PromptSource, thinking
from nemo_cascade.stages.rewards import Rewards
from nemo_cascade.stages.stopwatch import Stopwatch
from nemo_cascade.stages.usable import faults_of, group_of_one, refuse_faults, refuse_unusable_rollouts


def make_engine(policy: Policy) -> RolloutEngine:
    """The engine that `policy.generation.backend` names: the embedded one over the policy's own weights, or vLLM, here or behind HTTP, whose
    weights mean nothing before its first `sync`.

    It samples from all ids the model scores, those the tokenizer does not use included: leaving them out would sample
    from another distribution than the one that is trained.
    """
    if policy.config.generation.backend == "vllm":
        from nemo_cascade.rollout.vllm import VllmEngine

        return VllmEngine(policy.preset, policy.config.generation, policy.config.precision)
    if policy.config.generation.backend == "vllm_server":
        from nemo_cascade.rollout.vllm_server import VllmServerEngine

        return VllmServerEngine(policy.preset, policy.config.generation)
    return MegatronEngine(
        policy.model, vocab_size=policy.preset.vocab_size, max_batch_size=policy.config.generation.max_batch_size
    )


def served(policy: Policy) -> Callable[[list[list[int]]], list[list[float]]]:
    """How to ask an engine of its own, which gets the policy's weights, for the log-probs of tokens."""
    engine = make_engine(policy)
    engine.sync(policy)
    return engine.score


class Sampler:
    """Draws groups with the policy's current weights and has them rewarded."""

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
            asked = prompts.next(wanted)
            if config.adv_estimator.name == "grpo" and config.num_generations_per_prompt < 2:
                raise group_of_one(asked[0], self.where(step))
            groups = self.groups(step, asked, config.num_generations_per_prompt, draw)
            seen += groups
            kept += [group for group in groups if teaches(group, config)] if config.use_dynamic_sampling else groups
            if len(kept) >= wanted:
                break
        else:
            raise DataError(
                f"step {step}: {len(seen)} prompts gave {len(kept)} groups to learn from, not {wanted}; the prompts are too "
                "easy or too hard for the policy: change the data, or raise grpo.dynamic_sampling_max_gen_batches and go on"
            )
        metrics = rollout_metrics(seen)
        metrics["groups_taught"] = mean(teaches(group, config) for group in kept[:wanted])
        if config.use_dynamic_sampling:
            metrics["filtered_reward"] = mean(r.reward for group in kept[:wanted] for r in group.rollouts)
            metrics["dynamic_sampling_num_gen_batches"] = draw + 1
        return kept[:wanted], metrics

    def where(self, step: int) -> str:
        """What errors begin with."""
        return f"stage {self.store.directory.parent.name}, step {step}"

    def groups(self, step: int, prompts: list[Prompt], group_size: int, draw: int = 0) -> list[Group]:
        """The groups of a step's draw, replayed from disk when they are there.

        Raises DataError when what is there answers other prompts, because rows changed under a running stage, and, before it
        is stored, for what nothing can be trained on.
        """
        name = f"{step}" if draw == 0 else f"{step}_{draw}"
        stored = self.store.load(name)
        if stored is None:
            seed = self.seed * 1_000_003 + step + (draw << 52)
            heartbeat.at("rollouts")
            self.watch.lap("data_processing")
            ended = self.rewards.begin({prompt.id: prompt.row for prompt in prompts})
            how = dict(seed=seed, turns=self.turns, ended=ended, watch=self.watch)
            stored = sample_groups(self.policy, self.engine, prompts, group_size, **how)
            heartbeat.at("rewards")
            self.rewards.fill(stored)
            self.watch.lap("reward_calculation")
            refuse_unusable_rollouts(stored, self.where(step), self.rewards.env.nemo_gym.servers)
            refuse_faults(stored, self.rewards.env.max_faults, self.where(step))
            self.store.save(name, stored)
            self.watch.lap("data_processing")
        elif [group.rollouts[0].prompt_id for group in stored] != [prompt.id for prompt in prompts]:
            raise DataError(
                f"{self.store.path(name)}: these rollouts answer other prompts than this step draws; put the rows back "
                f"that they were drawn with, or {self.store.remedy}"
            )
        return stored


def informative(group: Group) -> bool:
    """Whether its replies earned differently."""
    return bool(informative_groups(rewards_PG([group]), comparable_PG([group]))[0])


def teaches(group: Group, config: GRPOConfig) -> bool:
    """Whether GRPO has a gradient from it: informative, and acceptable to `swe_group_threshold`."""
    return informative(group) and bool(acceptable_groups([group], config)[0])


def acceptable_groups(groups: list[Group], config: GRPOConfig) -> torch.Tensor:
    """[prompts] bool: which groups `swe_group_threshold` leaves in the loss; all of them without one."""
    threshold = float("-inf") if config.swe_group_threshold is None else config.swe_group_threshold
    return swe_group_mask(rewards_PG(groups), threshold, comparable_PG(groups))


def rewards_PG(groups: list[Group]) -> torch.Tensor:
    """Rewards [prompts, group] in float64."""
    return torch.tensor([[rollout.reward for rollout in group.rollouts] for group in groups], dtype=torch.float64)


def comparable_PG(groups: list[Group]) -> torch.Tensor:
    """[prompts, group] bool: which rollouts have a verdict, and another of their group to be compared with has one."""
    valid = torch.tensor([[rollout.fault is None for rollout in group.rollouts] for group in groups])
    return valid & (valid.sum(dim=1, keepdim=True) >= 2)


def sample_groups(
    policy: Policy,
    engine,
    prompts: list[Prompt],
    group_size: int,
    seed: int,
    generation: GenerationConfig | None = None,
    turns: int = 1,
    ended: Callable[[list[Rollout]], None] = nothing_to_do,
    watch: Stopwatch | None = None,
) -> list[Group]:
    """group_size rollouts of every prompt with the policy's current weights, sampled as it trains unless told otherwise, and then with the
    experts that training replays, if it does; the same on every rank. turns: how often the model may speak where a prompt's environment
    has tools. ended: is given this rank's rollouts as soon as they are there. watch: told of the push of the weights, this rank's
    sampling, and its waiting for the others."""
    report_experts, watch = generation is None and policy.config.router_replay.enabled, watch or Stopwatch()
    engine.sync(policy)
    watch.lap("weight_sync")
    generation = generation or policy.config.generation
    params = SamplingParams(
        temperature=generation.temperature,
        top_p=generation.top_p,
        max_new_tokens=generation.max_new_tokens,
        seed=seed,
        report_experts=report_experts,
    )
    share = generate if turns == 1 else conversing(policy, prompts, turns)

    def run(*asked) -> list[Rollout]:
        drawn = share(*asked, ended=ended)
        watch.lap("generation")
        return drawn

    rollouts = generate_global(engine, make_requests(prompts, group_size), params, run)
    watch.lap("idle")
    return [
        Group(prompt.row, prompt.domain, rollouts[i * group_size : (i + 1) * group_size])
        for i, prompt in enumerate(prompts)
    ]


def conversing(policy: Policy, prompts: list[Prompt], turns: int) -> Callable:
    """What a rank does with its requests where prompts may have tools."""
    row_of = {prompt.id: prompt.row for prompt in prompts}

    def begin(request: Request) -> tuple[Session | None, bool]:
        row = row_of[request.prompt_id]
        return environments.session(row), thinking(row)

    talk = Talk(ToolProtocol(policy.tokenizer), begin, turns, policy.config.max_total_sequence_length)
    return partial(converse, talk=talk)


def make_requests(prompts: list[Prompt], group_size: int) -> list[Request]:
    """group_size requests a prompt. One that is drawn twice goes on counting its samples, because replies of one
    (prompt, sample) are the same."""
    drawn: Counter[str] = Counter()
    requests = []
    for prompt in prompts:
        first = drawn[prompt.id]
        drawn[prompt.id] += group_size
        requests += [Request(prompt.id, first + k, tuple(prompt.tokens)) for k in range(group_size)]
    return requests


def rollout_metrics(groups: list[Group]) -> dict[str, float]:
    """Means over the step's rollouts: reward, also by domain, length, truncation, share of informative groups, of replies
    that their verifier could not take, and of a judge's comparisons that could be read where it made any; the number of replies
    without a verdict by what kept them from it, where any are."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    metrics = {
        "reward": mean(r.reward for r in rollouts),
        "num_replies": len(rollouts),
        "mean_gen_tokens_per_sample": mean(sum(r.written) for r in rollouts),
        "truncation_rate": mean(r.finish_reason == "length" for r in rollouts),
        "informative_groups": mean(informative(group) for group in groups),
    }
    metrics["verifier_errors"] = mean("verifier_error" in r.info for r in rollouts)
    metrics |= {f"faults/{kind}": count for kind, count in faults_of(rollouts).items()}
    talked = [rollout for rollout in rollouts if "turns" in rollout.info]
    if talked:
        metrics["avg_turns_per_sample"] = mean(r.info["turns"] for r in talked)
        metrics["max_turns_reached_rate"] = mean(r.finish_reason == "turns" for r in talked)
        metrics["tool_errors"] = mean(r.info["tool_errors"] > 0 for r in talked)
    judged = [r.info["judge_readable"] for r in rollouts if "judge_readable" in r.info]
    if judged:
        metrics["judge_readable"] = mean(judged)
    for domain in sorted({group.domain for group in groups}):
        metrics[f"{domain}/reward"] = mean(r.reward for g in groups if g.domain == domain for r in g.rollouts)
    return metrics


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)
