"""Groups of rollouts: sampled with the policy's current weights, on all ranks together, and what is to be known about them."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Thread

import torch

from nemo_cascade import environments
from nemo_cascade.algorithms import informative_groups, swe_group_mask
from nemo_cascade.engine.policy import Policy
from nemo_cascade.rollout.agent import Session, Talk, converse
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.engine import RolloutEngine, generate, generate_global, nothing_to_do, share_of_rank
from nemo_cascade.rollout.megatron import MegatronEngine
from nemo_cascade.rollout.protocol import ToolProtocol
from nemo_cascade.rollout.types import Group, Request, Rollout, SamplingParams
from nemo_cascade.stages.config import GRPOConfig
from nemo_cascade.stages.prompts import Prompt, thinking
from nemo_cascade.stages.stopwatch import Stopwatch
from nemo_cascade.stages.usable import faults_of


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
        policy.model,
        vocab_size=policy.preset.vocab_size,
        max_batch_size=policy.config.generation.max_batch_size,
        # What those make of the network only the modules know.
        by_modules=bool(policy.config.megatron_cfg.model_overrides),
    )


def served(policy: Policy) -> Callable[[list[list[int]]], list[list[float]]]:
    """How to ask an engine of its own, which gets the policy's weights, for the log-probs of tokens."""
    engine = make_engine(policy)
    engine.sync(policy)
    return engine.score


def informative(groups: list[Group]) -> list[bool]:
    """Of which groups the replies earned differently."""
    return informative_groups(rewards_PG(groups), comparable_PG(groups)).tolist()


def teaching(groups: list[Group], config: GRPOConfig) -> list[Group]:
    """Those that GRPO has a gradient from: informative, and acceptable to `swe_group_threshold`."""
    chosen = zip(groups, informative(groups), acceptable_groups(groups, config).tolist())
    return [group for group, differs, acceptable in chosen if differs and acceptable]


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


def sample_groups(policy: Policy, engine: RolloutEngine, prompts: list[Prompt], group_size: int, **how) -> list[Group]:
    """What `begin_groups` begins, when it is there."""
    return begin_groups(policy, engine, prompts, group_size, **how)()


def begin_groups(
    policy: Policy,
    engine: RolloutEngine,
    prompts: list[Prompt],
    group_size: int,
    seed: int,
    generation: GenerationConfig | None = None,
    turns: int = 1,
    ended: Callable[[list[Rollout]], None] = nothing_to_do,
    watch: Stopwatch | None = None,
) -> Callable[[], list[Group]]:
    """group_size rollouts of every prompt with the policy's current weights, sampled as it trains unless told otherwise, and then with the
    experts that training replays, if it does; the same on every rank. turns: how often the model may speak where a prompt's environment
    has tools. ended: is given this rank's rollouts as soon as they are there. watch: told of the push of the weights, this rank's
    sampling, and its waiting for the others.

    Returns what gives them, which all ranks call together. An engine that is beside this process is still sampling until then; any other
    has sampled."""
    watch = watch or Stopwatch()
    engine.sync(policy)
    watch.lap("weight_sync")
    params = sampling_params(policy, seed, generation)
    requests = make_requests(prompts, group_size)
    draw = partial(generate if turns == 1 else conversing(policy, prompts, turns), ended=ended)
    drawing = in_background(draw, engine, share_of_rank(engine, requests), params) if engine.beside else None

    def run(*asked) -> list[Rollout]:
        drawn = drawing.result() if drawing else draw(*asked)
        watch.lap("generation")
        return drawn

    def finish() -> list[Group]:
        rollouts = generate_global(engine, requests, params, run)
        watch.lap("idle")
        return [
            Group(prompt.row, prompt.domain, rollouts[i * group_size : (i + 1) * group_size])
            for i, prompt in enumerate(prompts)
        ]

    if drawing:
        return finish
    groups = finish()
    return lambda: groups


def sampling_params(policy: Policy, seed: int, generation: GenerationConfig | None = None) -> SamplingParams:
    """How a policy samples as it trains, or as it is told otherwise, which is not trained on."""
    asked = generation or policy.config.generation
    return SamplingParams(
        temperature=asked.temperature,
        top_p=asked.top_p,
        max_new_tokens=asked.max_new_tokens,
        seed=seed,
        report_experts=generation is None and policy.config.router_replay.enabled,
    )


def in_background(function: Callable, *args) -> Future:
    """The result of a call in a thread that does not keep the process from ending."""
    future: Future = Future()

    def work() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    return future


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
        "informative_groups": mean(informative(groups)),
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
