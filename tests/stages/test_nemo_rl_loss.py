"""A `loss_fn` block of NeMo RL means here what it means there: every legal combination of its keys beside its formulas in Python's own
floats, value and gradient."""

import itertools
import math
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml

from nemo_cascade.cascade.checks import value_problems
from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import ConfigErrors, StageConfig, load_config
from nemo_cascade.cascade.loss_checks import loss_problems
from nemo_cascade.stages.config import LossConfig
from nemo_cascade.stages.loss import make_loss, policy_loss

FORMS = (
    {},
    {"force_on_policy_ratio": True},
    {"disable_ppo_ratio": True},
    {"disable_ppo_ratio": True, "force_on_policy_ratio": True},
    {"use_cispo": True},
    {"sequence_level_importance_ratios": True},
    {"sequence_level_importance_ratios": True, "force_on_policy_ratio": True},
)
DUAL = ({}, {"ratio_clip_c": 1.5})
CORRECTIONS = (
    {},
    {"use_importance_sampling_correction": True},
    *(
        {
            "use_importance_sampling_correction": True,
            "truncated_importance_sampling_type": kind,
            "truncated_importance_sampling_ratio_min": low,
            "truncated_importance_sampling_ratio": high,
        }
        for kind, low, high in (("tis", None, 1.4), ("tis", 0.7, 1.4), ("icepop", 0.6, 1.7), ("seq-mask-tis", 0.8, 1.25))
    ),
)
KL = (
    {},
    *(
        {"reference_policy_kl_penalty": 0.3, "reference_policy_kl_type": kind, "use_on_policy_kl_approximation": weighed, **clamps}
        for kind in ("k1", "k2", "k3")
        for weighed in (False, True)
        for clamps in (
            {"kl_input_clamp_value": None, "kl_output_clamp_value": None},
            {"kl_input_clamp_value": 0.9, "kl_output_clamp_value": 0.3},
        )
    ),
)


def problems(config: LossConfig) -> list[str]:
    stage = StageConfig(kind="rl", name="if_rl", parent="sft", loss_fn=config)
    stage.policy.megatron_cfg.moe_aux_loss_coeff = 0.0
    return [*value_problems(stage, str), *loss_problems(stage, str)]


def legal(config: LossConfig) -> bool:
    """Whether the forms go together; k1 is a sound function, though a stage refuses it."""
    return not problems(replace(config, reference_policy_kl_type="k3"))


COMBINATIONS = [
    config
    for form, dual, corrected, kl, token in itertools.product(FORMS, DUAL, CORRECTIONS, KL, (True, False))
    if legal(config := LossConfig(**form, **dual, **corrected, **kl, token_level_loss=token, ratio_clip_max=0.28))
]


def clamp(value, low, high):
    return min(max(value, low), high)


def batch(seed: int):
    """Responses, each a list of tokens (previous, sampled, reference log-prob, advantage, trained on) and the log-probs now."""
    draw, responses = random.Random(seed), []
    for length in (3, 1, 2):
        tokens = [
            dict(
                previous=(previous := -draw.uniform(0.2, 3)),
                sampled=previous + draw.gauss(0, 0.3),
                reference=previous + draw.gauss(0, 0.8),
                advantage=draw.gauss(0, 1),
                on=draw.random() < 0.8 or length == 1,
            )
            for _ in range(length)
        ]
        responses.append(tokens)
    return responses, [[token["previous"] + draw.gauss(0, 0.4) for token in tokens] for tokens in responses]


def slow_loss(cfg: LossConfig, responses, now, frozen) -> float:
    """now: the log-probs with a gradient; frozen: the same numbers where the formula stops the gradient."""
    means, tokens_of_all = [], []
    for tokens, current, still in zip(responses, now, frozen):
        on = [i for i, token in enumerate(tokens) if token["on"]]
        prev = [s if cfg.force_on_policy_ratio else token["previous"] for token, s in zip(tokens, still)]
        mismatch = [p - token["sampled"] for p, token in zip(prev, tokens)]
        values = []
        for i in on:
            advantage = tokens[i]["advantage"]
            if cfg.disable_ppo_ratio and not cfg.force_on_policy_ratio:
                ratio = clipped = current[i]
            elif cfg.sequence_level_importance_ratios and not cfg.force_on_policy_ratio:
                ratio = math.exp(sum(current[k] - prev[k] for k in on) / len(on))
                clipped = clamp(ratio, 1 - cfg.ratio_clip_min, 1 + cfg.ratio_clip_max)
            else:
                ratio = math.exp(current[i] - prev[i])
                clipped = clamp(ratio, 1 - cfg.ratio_clip_min, 1 + cfg.ratio_clip_max)
            if cfg.use_cispo:
                held = clamp(math.exp(still[i] - prev[i]), 1 - cfg.ratio_clip_min, 1 + cfg.ratio_clip_max)
                loss = -advantage * held * current[i]
            else:
                loss = max(-advantage * ratio, -advantage * clipped)
            if cfg.ratio_clip_c is not None and advantage < 0:
                loss = min(loss, -advantage * cfg.ratio_clip_c)
            values.append(weight(cfg, mismatch, on, i) * loss + penalty(cfg, tokens[i], current[i], still[i]))
        tokens_of_all += values
        means += [sum(values) / len(values)] if values else []
    every = tokens_of_all if cfg.token_level_loss else means
    return sum(every) / len(every)


def weight(cfg, mismatch, on, i) -> float:
    if not cfg.use_importance_sampling_correction:
        return 1.0
    value = math.exp(sum(mismatch[k] for k in on) if cfg.sequence_level_importance_ratios else mismatch[i])
    low, high = cfg.truncated_importance_sampling_ratio_min, cfg.truncated_importance_sampling_ratio
    match cfg.truncated_importance_sampling_type:
        case None:
            return value
        case "tis":
            return clamp(value, low or 0.0, high)
        case "icepop":
            return value if low <= value <= high else 0.0
        case "seq-mask-tis":
            return value if low <= math.exp(sum(mismatch[k] for k in on) / len(on)) <= high else 0.0


def penalty(cfg, token, current, still) -> float:
    if cfg.reference_policy_kl_penalty == 0:
        return 0.0
    ratio = token["reference"] - current
    if cfg.kl_input_clamp_value is not None:
        ratio = clamp(ratio, -cfg.kl_input_clamp_value, cfg.kl_input_clamp_value)
    kl = {"k1": -ratio, "k2": ratio * ratio / 2, "k3": math.exp(ratio) - 1 - ratio}[cfg.reference_policy_kl_type]
    if cfg.kl_output_clamp_value is not None:
        kl = clamp(kl, -cfg.kl_output_clamp_value, cfg.kl_output_clamp_value)
    weighed = math.exp(still - token["sampled"]) if cfg.use_on_policy_kl_approximation else 1.0
    return cfg.reference_policy_kl_penalty * weighed * kl


def slow_slope(cfg, responses, now, direction, step=1e-6) -> float:
    """The derivative in one direction of all log-probs, by a central difference."""
    sides = []
    for sign in (step, -step):
        along = iter(direction)
        moved = [[value + sign * next(along) for value in values] for values in now]
        sides.append(slow_loss(cfg, responses, moved, now))
    return (sides[0] - sides[1]) / (2 * step)


def packed(responses, now):
    """The same batch as one pack, with a token of padding whose values are no numbers."""
    flat = [token for tokens in responses for token in tokens]

    def row(values, pad=math.nan):
        return torch.tensor([*values, pad], dtype=torch.float64)

    fields = {key: row([token[key] for token in flat]) for key in ("previous", "sampled", "reference")}
    fields["advantages"] = row([token["advantage"] for token in flat], 0.0)
    fields["mask"] = row([float(token["on"]) for token in flat], 0.0)
    fields["segments"] = torch.tensor([r for r, tokens in enumerate(responses) for _ in tokens] + [-1])
    return row([value for values in now for value in values], -1.0).requires_grad_(), fields


def test_there_are_hundreds_of_combinations():
    assert len(COMBINATIONS) > 800
    forms = {(c.use_cispo, c.disable_ppo_ratio, c.force_on_policy_ratio, c.sequence_level_importance_ratios) for c in COMBINATIONS}
    assert len(forms) == len(FORMS)


def test_every_combination_of_keys_has_nemo_rls_loss_and_gradient():
    direction = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for number, config in enumerate(COMBINATIONS):
        responses, now = batch(number % 7)
        logprobs, fields = packed(responses, now)
        total, count, _ = policy_loss(config, logprobs, **fields)
        (gradient,) = torch.autograd.grad(total / count, logprobs)
        assert (total / count).item() == pytest.approx(slow_loss(config, responses, now, now), rel=1e-12, abs=1e-12), config
        slope = slow_slope(config, responses, now, direction.tolist())
        assert (gradient @ direction).item() == pytest.approx(slope, rel=1e-6, abs=1e-8), config
        assert gradient[-1] == 0.0, "padding"


def test_in_the_loop_the_bounds_hold_nothing_back_and_every_form_has_reinforces_gradient():
    """A batch is trained on once, so that the ratio is 1; with one advantage a response all forms are one."""
    responses, now = batch(3)
    for tokens in responses:
        for token in tokens:
            token["advantage"] = tokens[0]["advantage"]
    logprobs, fields = packed(responses, now)
    pack = SimpleNamespace(
        mask=fields["mask"],
        segments=fields["segments"],
        fields={"advantages": fields["advantages"], "sampling_logprobs": fields["sampled"].nan_to_num()},
    )
    for token in (True, False):
        gradients = []
        for form, dual in itertools.product(FORMS, DUAL):
            if legal(config := LossConfig(**form, **dual, token_level_loss=token)):
                total, _, _ = make_loss(config, distil=False)(logprobs, pack)
                gradients.append(torch.autograd.grad(total, logprobs)[0])
        assert len(gradients) > 6
        for gradient in gradients:
            torch.testing.assert_close(gradient, gradients[0])


# The `loss_fn` of NeMo RL's example of GRPO, with all keys it has.
PASTED = """
reference_policy_kl_penalty: 0.01
reference_policy_kl_type: "k3"
kl_input_clamp_value: 20.0
kl_output_clamp_value: 10.0
ratio_clip_min: 0.2
ratio_clip_max: 0.2
ratio_clip_c: null
use_on_policy_kl_approximation: false
truncated_importance_sampling_ratio: null
truncated_importance_sampling_ratio_min: null
truncated_importance_sampling_type: null
use_importance_sampling_correction: false
sequence_level_importance_ratios: false
token_level_loss: true
disable_ppo_ratio: false
force_on_policy_ratio: false
use_kl_in_reward: false
use_cispo: false
positive_example_nll_weight: 0.0
"""


def test_a_pasted_block_is_taken_as_it_is_and_any_other_key_is_refused():
    keys = yaml.safe_load(PASTED)
    block = yaml.safe_dump(keys | {"advantage_normalisation": True}, default_flow_style=True, width=10_000).strip()
    with pytest.raises(ConfigErrors) as refused:
        load_config(compose_config("smoke", overrides=[f"+cascade.stages.rlhf.loss_fn={block}"]), planning=True)
    (line,) = str(refused.value).splitlines()[-1:]
    assert "cascade.stages.rlhf.loss_fn.advantage_normalisation: unknown key" in line
    raw = compose_config("smoke")
    raw.cascade.stages.if_rl.loss_fn = keys
    assert vars(load_config(raw, planning=True).stages["if_rl"].loss_fn) == keys


@pytest.mark.parametrize(
    "keys, told",
    [
        ({"use_kl_in_reward": True}, r"loss_fn.use_kl_in_reward: it belongs to NeMo RL's estimator reinforce_plus_plus"),
        ({"positive_example_nll_weight": 0.1}, r"loss_fn.positive_example_nll_weight: 0.1, but there is no such term"),
        ({"reference_policy_kl_type": "k1"}, r"loss_fn.reference_policy_kl_type: 'k1' is not a choice"),
        ({"ratio_clip_c": 1.0}, r"loss_fn.ratio_clip_c: must be above 1 \(or null\), got 1.0"),
        ({"ratio_clip_min": -0.1}, r"loss_fn.ratio_clip_min: must be >= 0, got -0.1"),
        ({"sequence_level_importance_ratios": True}, r"sequence_level_importance_ratios: .* set token_level_loss=false"),
        ({"use_cispo": True, "ratio_clip_c": 3.0}, r"loss_fn.use_cispo: .* ratio_clip_c excludes"),
        ({"use_cispo": True, "token_level_loss": False}, r"loss_fn.use_cispo: .* token_level_loss=false excludes"),
        ({"use_cispo": True, "force_on_policy_ratio": True}, r"loss_fn.use_cispo: .* force_on_policy_ratio excludes"),
        ({"truncated_importance_sampling_ratio": 2.0}, r"importance_sampling_ratio: 2.0 bounds nothing without"),
        ({"truncated_importance_sampling_type": "tis"}, r"sampling_type: tis has no effect without use_importance"),
        (
            {"use_importance_sampling_correction": True, "truncated_importance_sampling_type": "tis"},
            r"truncated_importance_sampling_ratio: tis needs the upper end",
        ),
        (
            {
                "use_importance_sampling_correction": True,
                "truncated_importance_sampling_type": "icepop",
                "truncated_importance_sampling_ratio": 2.0,
            },
            r"truncated_importance_sampling_ratio_min: icepop needs the lower end",
        ),
        (
            {
                "use_importance_sampling_correction": True,
                "truncated_importance_sampling_type": "seq-mask-tis",
                "truncated_importance_sampling_ratio": 1.002,
                "truncated_importance_sampling_ratio_min": 0.999,
                "sequence_level_importance_ratios": True,
                "token_level_loss": False,
            },
            r"truncated_importance_sampling_type: seq-mask-tis weighs tokens",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_cannot_be_honoured_is_refused_by_its_key(keys, told):
    assert any(re.search(told, problem) for problem in problems(LossConfig(**keys)))
