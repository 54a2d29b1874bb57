"""The tables of settings in docs/stages: what a stage has in tiny.yaml and in full.yaml, after everything is composed.

python docs/hooks/stage_tables.py writes them anew, below the line `<!-- settings: STAGE -->` of each page; a test looks whether they are
what the configs say.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from nemo_cascade.cascade.compose import compose_config  # noqa: E402
from nemo_cascade.cascade.config import StageConfig, load_config  # noqa: E402

FOLDER = ROOT / "docs" / "stages"
TABLE = re.compile(r"(?<=<!-- settings: )(\w+)( -->\n\n)((?:\|.*\n)*\n?)")
OPTIMIZER = ("optimizer.lr", "optimizer.min_lr", "optimizer.weight_decay", "optimizer.adam_beta2")
SCHEDULER = ("scheduler.lr_decay_style", "scheduler.lr_warmup_iters", "scheduler.lr_decay_iters")
ROUTER = ("moe_router_load_balancing_type", "moe_aux_loss_coeff", "moe_router_bias_update_rate")
OF_SFT = (
    "sft.max_num_steps",
    "policy.train_global_batch_size",
    "policy.sequence_packing.train_mb_tokens",
    *(f"policy.megatron_cfg.{key}" for key in (*OPTIMIZER, *SCHEDULER, *ROUTER)),
)
OF_RL = (
    "grpo.max_num_steps",
    "grpo.num_prompts_per_step",
    "grpo.num_generations_per_prompt",
    "grpo.max_rollout_turns",
    "grpo.overlong",
    "policy.max_total_sequence_length",
    "policy.generation.max_new_tokens",
    "policy.generation.temperature",
    "policy.generation.top_p",
    *(f"policy.megatron_cfg.{key}" for key in (*OPTIMIZER[:1], *SCHEDULER[:2])),
)
# Beside these, what a stage has of its own.
OWN = {
    "if_rl": ("grpo.use_dynamic_sampling",),
    "mopd": (
        "grpo.adv_estimator.name",
        "loss_fn.token_level_loss",
        "loss_fn.truncated_importance_sampling_type",
        "loss_fn.truncated_importance_sampling_ratio_min",
        "loss_fn.truncated_importance_sampling_ratio",
        "policy.megatron_cfg.optimizer.min_lr",
        "policy.megatron_cfg.scheduler.lr_warmup_init",
    ),
    "rlhf": (
        "loss_fn.reference_policy_kl_penalty",
        "genrm.comparison_strategy",
        "genrm.group_reasoning_length_penalty_coeff",
        "genrm.group_answer_length_penalty_coeff",
        "genrm.reasoning_bonus",
        "genrm.answer_bonus",
        "genrm.top_percentile",
    ),
    "swe_rl": ("grpo.swe_group_threshold",),
    "swe_agentic_rl": ("policy.megatron_cfg.optimizer.min_lr",),
}


def table(name: str) -> str:
    """The Markdown table of a stage; tiny's column is agentic.yaml's for the stage that tiny does not have."""
    small, large = (stage(config, name) for config in ("agentic" if name == "swe_agentic_rl" else "tiny", "full"))
    keys = OF_SFT if large.kind == "sft" else (*OF_RL, *OWN.get(name, ()))
    rows = [(key, said(at(small, key)), said(at(large, key))) for key in keys]
    rows.append(("data.train", shares(small), shares(large)))
    return "\n".join(["| key | tiny | full |", "|---|---|---|", *(f"| `{key}` | {a} | {b} |" for key, a, b in rows), ""])


def stage(config: str, name: str) -> StageConfig:
    """A stage of a shipped config, resolved."""
    return load_config(compose_config(config), planning=True).stages[name]


def at(value, key: str):
    """The value at a dotted key."""
    for part in key.split("."):
        value = getattr(value, part)
    return value


def said(value) -> str:
    """A value in YAML's words, numbers as people write them."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def shares(of: StageConfig) -> str:
    """Domains by their share of the prompts."""
    files = of.data.train
    total = sum(file.share for file in files.values())
    if len(files) == 1:
        return next(iter(files))
    return ", ".join(f"{domain} {100 * file.share / total:.0f} %" for domain, file in files.items())


def renewed(text: str) -> str:
    """A page with its table as the configs are now."""
    return TABLE.sub(lambda found: found[1] + found[2] + table(found[1]) + "\n", text)


if __name__ == "__main__":
    for page in FOLDER.glob("*.md"):
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
