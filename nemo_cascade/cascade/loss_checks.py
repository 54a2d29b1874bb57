"""What a stage's `loss_fn` may say: pairs of NeMo RL's keys that exclude each other, and those that cannot be honoured here."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_cascade.cascade.config import StageConfig


def loss_problems(stage: "StageConfig", where) -> Iterator[str]:
    """Every problem of an RL stage's `loss_fn`."""
    for found in (importance_problems, ratio_problems, kl_problems, auxiliary_problems, full_vocabulary_problems, older_problems):
        for key, text in found(stage):
            yield f"{where(key)}: {text}"


def importance_problems(stage: "StageConfig") -> Iterator[tuple[str, str]]:
    """The correction for sampling with another engine than trains: a band with its ends where it is on."""
    loss = stage.loss_fn
    kind, prefix = loss.truncated_importance_sampling_type, "loss_fn.truncated_importance_sampling"
    low, high = loss.truncated_importance_sampling_ratio_min, loss.truncated_importance_sampling_ratio
    if kind is None:
        for end, value in (("ratio", high), ("ratio_min", low)):
            if value is not None:
                yield f"{prefix}_{end}", f"{value} bounds nothing without {prefix}_type; set that, or this to null"
        return
    if not loss.use_importance_sampling_correction:
        yield f"{prefix}_type", f"{kind} has no effect without use_importance_sampling_correction=true; set that, or this to null"
    if high is None:
        yield f"{prefix}_ratio", f"{kind} needs the upper end of its band; set it above 0"
    if low is None and kind in ("icepop", "seq-mask-tis"):
        yield f"{prefix}_ratio_min", f"{kind} needs the lower end of its band; set it"
    if low is not None and high is not None and low > high:
        yield f"{prefix}_ratio_min", f"{low} is above truncated_importance_sampling_ratio {high}"
    if kind == "seq-mask-tis" and loss.sequence_level_importance_ratios:
        yield f"{prefix}_type", "seq-mask-tis weighs tokens, so sequence_level_importance_ratios must be false"


def ratio_problems(stage: "StageConfig") -> Iterator[tuple[str, str]]:
    """Forms of the ratio of which one would undo the other, as NeMo RL refuses them."""
    loss = stage.loss_fn
    if loss.ratio_clip_c is not None and loss.ratio_clip_c <= 1:
        yield "loss_fn.ratio_clip_c", f"must be above 1 (or null), got {loss.ratio_clip_c}"
    if loss.sequence_level_importance_ratios and loss.token_level_loss:
        yield "loss_fn.sequence_level_importance_ratios", "a ratio a response needs its mean, too; set token_level_loss=false"
    if loss.use_cispo:
        excluded = {
            "disable_ppo_ratio": loss.disable_ppo_ratio,
            "force_on_policy_ratio": loss.force_on_policy_ratio,
            "sequence_level_importance_ratios": loss.sequence_level_importance_ratios,
            "ratio_clip_c": loss.ratio_clip_c is not None,
            "token_level_loss=false": not loss.token_level_loss,
        }
        for key in (key for key, said in excluded.items() if said):
            yield "loss_fn.use_cispo", f"it is a form of its own that {key} excludes; drop one of them"


def kl_problems(stage: "StageConfig") -> Iterator[tuple[str, str]]:
    """A penalty has a reference, and is a part of the loss."""
    loss = stage.loss_fn
    if loss.reference_policy_kl_penalty > 0 and stage.parent is None:
        yield (
            "loss_fn.reference_policy_kl_penalty",
            f"{loss.reference_policy_kl_penalty} needs a reference, but {stage.name} starts from {stage.start}; set it to 0 or "
            "name a parent",
        )
    if loss.use_kl_in_reward:
        yield (
            "loss_fn.use_kl_in_reward",
            "it belongs to NeMo RL's estimator reinforce_plus_plus, which there is not here (with grpo it would drop the "
            "penalty); set it to false",
        )


def full_vocabulary_problems(stage: "StageConfig") -> Iterator[tuple[str, str]]:
    """The exact divergence has no sampled token that could be weighed, and takes the whole softmax."""
    if not stage.grpo.adv_estimator.full_vocabulary:
        return
    if not stage.distils:
        yield "grpo.adv_estimator.full_vocabulary", "only distillation (adv_estimator.name=opd) has teachers to compare with; remove it"
    without = "with grpo.adv_estimator.full_vocabulary no sampled token is weighed"
    if stage.loss_fn.use_importance_sampling_correction:
        yield "loss_fn.use_importance_sampling_correction", f"{without}; set it to false, and truncated_importance_sampling_* to null"
    if stage.loss_fn.reference_policy_kl_penalty > 0:
        yield "loss_fn.reference_policy_kl_penalty", "grpo.adv_estimator.full_vocabulary is a KL to teachers alone; set it to 0"
    if stage.policy.generation.top_p < 1:
        yield "policy.generation.top_p", "grpo.adv_estimator.full_vocabulary compares whole softmaxes; set it to 1"


def older_problems(stage: "StageConfig") -> Iterator[tuple[str, str]]:
    """Replies of older weights, whole (async_grpo) or in part (partial_rollouts), are weighed; partial ones are of one turn, and all are
    trained on."""
    grpo, partial = stage.grpo, stage.grpo.partial_rollouts
    for key, on in (("async_grpo", grpo.async_grpo.enabled), ("partial_rollouts", partial.enabled)):
        if on and not stage.loss_fn.use_importance_sampling_correction:
            weigh = "replies are of older weights then, and have to be weighed by what the weights say of them now"
            yield f"grpo.{key}.enabled", f"{weigh}; set loss_fn.use_importance_sampling_correction=true, or this to false"
    if not partial.enabled:
        return
    excluded = {
        "grpo.async_grpo.enabled": grpo.async_grpo.enabled,
        "grpo.use_dynamic_sampling": grpo.use_dynamic_sampling,
        "grpo.max_rollout_turns above 1": grpo.max_rollout_turns > 1,
        "policy.router_replay.enabled": stage.policy.router_replay.enabled,
    }
    for key in (key for key, said in excluded.items() if said):
        yield "grpo.partial_rollouts.enabled", f"replies cannot go on with other weights beside {key}; drop one of them"
    longest, of_round = stage.policy.generation.max_new_tokens, partial.max_new_tokens_per_round
    if of_round > 0 and longest % of_round:
        yield "grpo.partial_rollouts.max_new_tokens_per_round", f"{of_round} does not divide policy.generation.max_new_tokens {longest}"
    if partial.num_prompts_in_flight < grpo.num_prompts_per_step:
        yield (
            "grpo.partial_rollouts.num_prompts_in_flight",
            f"{partial.num_prompts_in_flight} is below grpo.num_prompts_per_step {grpo.num_prompts_per_step}; set it above, say to twice that",
        )


def auxiliary_problems(stage: "StageConfig") -> Iterator[tuple[str, str]]:
    """Terms beside the policy gradient and the KL."""
    loss, router = stage.loss_fn, stage.policy.megatron_cfg
    if loss.positive_example_nll_weight != 0:
        yield (
            "loss_fn.positive_example_nll_weight",
            f"{loss.positive_example_nll_weight}, but there is no such term here; set it to 0",
        )
    if not loss.token_level_loss and router.moe_aux_loss_coeff > 0:
        yield (
            "policy.megatron_cfg.moe_aux_loss_coeff",
            "with loss_fn.token_level_loss=false the balancing loss would be divided by responses instead of tokens; set it to 0",
        )
