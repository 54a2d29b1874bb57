"""Reinforcement learning and on-policy distillation: one loop, one update per batch of fresh rollouts, strictly on-policy by default.

With `grpo.adv_estimator.name: grpo` the advantage of a token is its rollout's group-normalised reward; with `opd` (MOPD) it is
the teacher's log-prob minus the student's, and rewards are only reported; another name is another package's estimator. A stage
with `loss_fn.reference_policy_kl_penalty` is held near where it began. With `grpo.async_grpo` a batch is drawn while the one before it is trained on, so it is one update old.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from nemo_cascade import heartbeat
from nemo_cascade.algorithms import domain_weights, overlong
from nemo_cascade.data.sample import Sample
from nemo_cascade.engine.full_vocabulary import FullVocabularyStep, Lesson
from nemo_cascade.engine.policy import Policy
from nemo_cascade.rollout.types import FAILED, Group, Rollout
from nemo_cascade.stages import estimators
from nemo_cascade.stages.context import StageRun
from nemo_cascade.stages.metrics import train_metrics
from nemo_cascade.stages.judge import make_rewards
from nemo_cascade.stages.loss import make_full_vocabulary_loss, make_loss
from nemo_cascade.stages.origin import open_store
from nemo_cascade.stages.partial import PartialSampler
from nemo_cascade.stages.prompts import PromptSource
from nemo_cascade.stages.rollouts import acceptable_groups, comparable_PG, make_engine, rewards_PG
from nemo_cascade.stages.sampler import Sampler
from nemo_cascade.stages.self_test import refuse_unless_own_teacher
from nemo_cascade.stages.start import resume_or_begin
from nemo_cascade.stages.step import finish_step
from nemo_cascade.stages.stopwatch import Stopwatch
from nemo_cascade.stages.traces import Traces
from nemo_cascade.stages.usable import refuse_unusable_experts, refuse_unusable_logprobs
from nemo_cascade.stages.validations import Validations


def run(stage: StageRun) -> None:
    """Trains to `grpo.max_num_steps`. Rollouts are on disk before they are trained on; a resumed run replays them."""
    config = stage.config
    policy = Policy(config.policy, seed=stage.seed, max_num_steps=config.grpo.max_num_steps)
    prompts = PromptSource(config.data, policy.tokenizer, config.policy, seed=stage.seed, env=config.env)
    info = resume_or_begin(stage, policy)
    prompts.load_state_dict(info["prompts"]) if info else None
    distil = config.grpo.adv_estimator.name == "opd"
    watch, traces = Stopwatch(), Traces(stage, policy.tokenizer)
    sampler = make_sampler(stage, policy, watch)
    domains, full = list(config.data.train), distil and config.grpo.adv_estimator.full_vocabulary
    held = config.loss_fn.reference_policy_kl_penalty > 0
    loss = make_full_vocabulary_loss(config.loss_fn, domains) if full else make_loss(config.loss_fn, distil, domains)
    if distil and policy.step == 0:
        refuse_unless_own_teacher(policy, stage, add_teacher_logprobs)

    validations = Validations(stage, config.grpo, done=policy.step)
    with stage.progress(config.grpo.max_num_steps, stage.name, done=policy.step) as bar:
        while policy.step < config.grpo.max_num_steps and not validations.stopped:
            watch.start()
            step = policy.step + 1
            groups, seen = sampler.batch(step, prompts, config.grpo)
            if config.grpo.async_grpo.enabled and step < config.grpo.max_num_steps and stage.saved_rollouts is None:
                sampler.begin(step + 1, prompts, config.grpo)
            if config.policy.router_replay.enabled:
                refuse_unusable_experts(groups, policy.preset, sampler.where(step))
            how = {}
            if distil:
                samples = distillation_samples(groups, config)
                watch.lap("data_processing")
            if full:
                how = lessons_of(policy, samples, [group.domain for group in groups], stage.teachers)
                watch.lap("teacher_logprob_inference")
            elif distil:
                of = [group.domain for group in groups]
                add_teacher_logprobs(policy, samples, of, stage.teachers, sampler.where(step), reference=stage.parent if held else None)
                watch.lap("teacher_logprob_inference")
            else:
                samples = reward_samples(groups, config.grpo)
            traces.write(step, groups, samples)
            if not distil and only_advantages_teach(config):
                samples = with_gradient(samples, config.loss_fn.token_level_loss)
            watch.lap("data_processing")
            if held and not distil:
                ask(policy, [Question(stage.parent, "reference_logprobs", samples)], sampler.where(step))
                watch.lap("policy_and_reference_logprobs")
            metrics = policy.train_step(samples, loss, **how) | seen
            watch.lap("policy_training")
            if validations.due(step):
                sampler.settle()
            logged = train_metrics(metrics, watch.read()) | validations.after(step, policy)
            watch.start()
            stage.log(logged, step)
            bar.advance(reward=metrics["reward"])
            finish_step(stage, policy, validations, partial(sampler.remembered, prompts), watch)


def make_sampler(stage: StageRun, policy: Policy, watch: Stopwatch) -> Sampler:
    """What gives a stage its rollouts; without an engine where they are saved ones."""
    engine = make_engine(policy) if stage.saved_rollouts is None else None
    rewards = make_rewards(stage, policy, engine, alone=stage.config.grpo.adv_estimator.name == "opd")
    store, turns = open_store(stage, policy.tokenizer), stage.config.grpo.max_rollout_turns
    kind = PartialSampler if stage.config.grpo.partial_rollouts.enabled else Sampler
    return kind(policy, engine, rewards, store, seed=stage.seed, watch=watch, turns=turns)


def reward_samples(groups: list[Group], config) -> list[Sample]:
    """GRPO's training samples: every token of a rollout carries the advantage that `grpo.adv_estimator` gives it (stages/estimators.py).

    Left out of the loss, though they count in the baseline: with `grpo.overlong: mask` replies cut at the length limit, with
    `grpo.swe_group_threshold` groups in which no reply earned more. Replies without a verdict are left out of both, as if they had
    not been drawn.
    """
    comparable = comparable_PG(groups)
    advantages = estimators.get(config.adv_estimator.name)(rewards_PG(groups), comparable, config).flatten().tolist()
    kept = (comparable & acceptable_groups(groups, config)[:, None]).flatten().tolist()
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return [
        rollout_sample(rollout, stays and of_kept, advantages=advantage)
        for rollout, stays, of_kept, advantage in zip(rollouts, staying(rollouts, config), kept, advantages)
    ]


def staying(rollouts: list[Rollout], config) -> list[bool]:
    """Which replies are in the loss: `grpo.overlong` may leave some out, and nothing is learned where tools failed."""
    cut = torch.tensor([rollout.finish_reason == "length" for rollout in rollouts])
    kept = overlong(torch.zeros(len(rollouts)), cut, config.overlong_mode)[1].tolist()
    return [whole and rollout.finish_reason not in FAILED for whole, rollout in zip(kept, rollouts)]


def only_advantages_teach(config) -> bool:
    """Whether a sample without an advantage has no gradient: no penalty holds it near a reference, no router is balanced by it."""
    router = config.policy.megatron_cfg
    auxiliary_loss = router.moe_router_load_balancing_type != "none" and router.moe_aux_loss_coeff > 0
    balanced = auxiliary_loss or router.moe_router_bias_update_rate > 0 or router.model_overrides.get("moe_z_loss_coeff")
    return config.loss_fn.reference_policy_kl_penalty == 0 and not balanced


def with_gradient(samples: list[Sample], token_level_loss: bool) -> list[Sample]:
    """The samples that have a gradient, which is the same as that of all: replies that earned what their group earned add none.

    What they would add to the denominator of the loss's mean, a token or a response each, scales the advantages of the others.
    Means over tokens that the loss reports are over the samples that are left. One is kept where none has a gradient.
    """

    def weight(chosen: list[Sample]) -> int:
        return sum(sum(sample.loss_mask) if token_level_loss else any(sample.loss_mask) for sample in chosen)

    kept = [s for s in samples if any(on and a for on, a in zip(s.loss_mask, s.fields["advantages"]))] or samples[:1]
    scale = weight(kept) / max(weight(samples), 1)
    return [
        replace(sample, fields=sample.fields | {"advantages": [scale * a for a in sample.fields["advantages"]]})
        for sample in kept
    ]


def distillation_samples(groups: list[Group], config) -> list[Sample]:
    """MOPD's training samples; their advantages come from the teachers' log-probs and the student's own forward pass.

    Each token has the number of its domain in data.train, and what it counts with `grpo.adv_estimator.domain_shares`.
    """
    domains, shares = list(config.data.train), config.grpo.adv_estimator.domain_shares
    pairs = [(group.domain, rollout) for group in groups for rollout in group.rollouts]
    trained = staying([rollout for _, rollout in pairs], config.grpo)
    weights = dict.fromkeys(domains, 1.0)
    if shares:
        amounts = dict.fromkeys(domains, 0)
        for (domain, rollout), kept in zip(pairs, trained):
            amounts[domain] += kept * (sum(rollout.written) if config.loss_fn.token_level_loss else 1)
        weights |= domain_weights(amounts, shares)
    return [
        rollout_sample(rollout, kept, domain=domains.index(domain), domain_weight=weights[domain])
        for (domain, rollout), kept in zip(pairs, trained)
    ]


def rollout_sample(rollout, trained: bool, **constant_fields: float) -> Sample:
    """prompt + response; loss on what the model wrote of it (its stop tokens included), prompts carry zeros; the experts, where any
    were reported."""
    prompt, response = len(rollout.prompt), len(rollout.response)
    return Sample(
        tokens=rollout.prompt + rollout.response,
        loss_mask=[0] * prompt + [int(trained) * own for own in rollout.written],
        fields={
            "sampling_logprobs": [0.0] * prompt + rollout.logprobs,
            **{name: [0.0] * prompt + [value] * response for name, value in constant_fields.items()},
        },
        name=f"prompt {rollout.prompt_id}, reply {rollout.sample}",
        experts=rollout.experts,
    )


class Question(NamedTuple):
    """Whose log-probs fill which field of which samples; checkpoint: one, or a Hugging Face folder."""

    checkpoint: Path
    field: str
    samples: list[Sample]


def ask(policy: Policy, questions: list[Question], where: str = "before training") -> None:
    """Fills the fields, a value a token, in one rotation, into which each checkpoint comes once.

    where: stage and step, for errors. Raises DataError for a log-prob that is not finite."""
    with policy.rotation() as turn_to:
        for checkpoint, field, samples in sorted(questions, key=lambda question: question.checkpoint):
            heartbeat.at(f"{field} of {checkpoint.parent.name}")
            turn_to(checkpoint)
            for sample, logprobs in zip(samples, policy.logprobs(samples, trained_only=True)):
                sample.fields[field] = logprobs
            refuse_unusable_logprobs(samples, field, checkpoint, where)


def add_teacher_logprobs(
    policy: Policy,
    samples: list[Sample],
    domains: list[str],
    teachers: dict,
    where: str = "before training",
    reference: Path | None = None,
) -> None:
    """Fills `teacher_logprobs` of every sample by the teacher of its domain, and `reference_logprobs` where there is a reference.

    samples are group-major: len(samples) / len(domains) consecutive samples belong to each domain entry.
    """
    pairs = by_teacher(len(samples), domains, teachers)
    questions = [Question(teacher, "teacher_logprobs", [samples[i] for i in mine]) for teacher, mine in pairs]
    if reference is not None:
        questions.append(Question(reference, "reference_logprobs", samples))
    ask(policy, questions, where)


def lessons_of(policy: Policy, samples: list[Sample], domains: list[str], teachers: dict) -> dict:
    """How `Policy.train_step` is to train on the samples with what their teachers say of the whole vocabulary; order as in
    `add_teacher_logprobs`."""
    plan, lessons = [], []
    with policy.rotation() as turn_to:
        for teacher, mine in by_teacher(len(samples), domains, teachers):
            heartbeat.at(f"last states of {teacher.parent.name}")
            turn_to(teacher)
            packs, states, layer = policy.last_states([samples[i] for i in mine])
            plan += [[mine[i] for i in pack] for pack in packs]
            lessons += [Lesson(of_pack, layer) for of_pack in states]
    return {"plan": plan, "step": partial(FullVocabularyStep, lessons=iter(lessons))}


def by_teacher(count: int, domains: list[str], teachers: dict) -> list[tuple[Path, list[int]]]:
    """(teacher, the samples of its domains) for each; `count` samples, of which count / len(domains) in a row have each domain."""
    group = count // len(domains)
    of_sample = [teachers[domain] for domain in domains for _ in range(group)]
    return [(teacher, [i for i in range(count) if of_sample[i] == teacher]) for teacher in sorted(set(of_sample))]
