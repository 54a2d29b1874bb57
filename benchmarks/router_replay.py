"""What does router replay take of the mismatch, where the engine that samples is not the model that trains?

    python benchmarks/router_replay.py runs/tiny --stage if_rl

A stage's checkpoint answers validation prompts of its domains with its matrices as they are, or rounded as an engine of fewer bits
holds them (router, embedding and head left alone), and is then asked for the same replies in training, as it is, without replay and
with it. Prints a row for each, and writes router_replay.json with --out. Weights alone are rounded, not activations.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from evidence.stand_ins import matrices, to_fp4
from rich.console import Console
from rich.table import Table

from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import StageConfig, load_config
from nemo_cascade.cascade.manifest import Manifest
from nemo_cascade.engine import parallel
from nemo_cascade.engine.policy import Policy
from nemo_cascade.stages.config import LossConfig
from nemo_cascade.stages.data import load_domains
from nemo_cascade.stages.loss import make_loss
from nemo_cascade.stages.prompts import render
from nemo_cascade.stages.rl import rollout_sample
from nemo_cascade.stages.rollouts import make_engine, sample_groups

METRICS = ("token_mult_prob_error", "max_seq_mult_prob_error", "gen_kl_error", "policy_kl_error", "router_replay_changed")


def to_fp8(weights: torch.Tensor) -> torch.Tensor:
    """The nearest E4M3 numbers, of rows that are scaled so that their largest weight is the largest number."""
    scale = weights.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / torch.finfo(torch.float8_e4m3fn).max
    return (weights / scale).to(torch.float8_e4m3fn).to(weights) * scale


ENGINES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "the same": lambda weights: weights,
    "BF16": lambda weights: weights.bfloat16().to(weights),
    "FP8": to_fp8,
    "FP4": to_fp4,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--stage", default="if_rl")
    parser.add_argument("--prompts", type=int, default=64, help="of each domain")
    parser.add_argument("--replies", type=int, default=2, help="to each prompt")
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", help="key=value, as the run had them")
    args = parser.parse_intermixed_args()
    asked = ["policy.router_replay.enabled=true", f"cascade.run_dir={args.run_dir}", *args.overrides]
    stage = load_config(compose_config("tiny", asked)).stages[args.stage]
    results = measure(stage, Manifest.load(args.run_dir).checkpoint(args.stage), args.prompts, args.replies)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))
    show(results)


def measure(stage: StageConfig, checkpoint: Path, prompts: int, replies: int) -> dict[str, dict[str, dict[str, float]]]:
    """engine -> without and with -> metric."""
    # A step changes nothing, so that all are asked of the same weights.
    stage.policy.megatron_cfg.optimizer.lr = stage.policy.megatron_cfg.optimizer.min_lr = 0.0
    parallel.init(stage.policy.megatron_cfg)
    policy = Policy(stage.policy, seed=0, max_num_steps=100)
    policy.load(checkpoint / "policy", optimizer=False)
    domains = load_domains(stage.data, "validation", kind="rl").values()
    asked = [p for domain in domains if domain.name in stage.data.train for p in render(domain, policy.tokenizer, policy.config)[:prompts]]
    loss, results = make_loss(LossConfig(), distil=False), {}
    for name, rounding in ENGINES.items():
        with rounded(policy.model, rounding):
            groups = sample_groups(policy, make_engine(policy), asked, replies, seed=1)
        samples = [rollout_sample(rollout, True, advantages=1.0) for group in groups for rollout in group.rollouts]
        without = policy.train_step([replace(sample, experts=None) for sample in samples], loss)
        results[name] = {"without": without, "with": policy.train_step(samples, loss)}
    parallel.shutdown()
    return results


@contextmanager
def rounded(model: torch.nn.Module, rounding: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """The matrices of a model's layers rounded; afterwards bit for bit what they were."""
    kept = {parameter: parameter.detach().clone() for parameter in matrices(model)}
    try:
        for parameter, value in kept.items():
            parameter.data.copy_(rounding(value))
        yield
    finally:
        for parameter, value in kept.items():
            parameter.data.copy_(value)


def show(results: dict[str, dict[str, dict[str, float]]]) -> None:
    table = Table("engine", "replay", *METRICS)
    for engine, pair in results.items():
        for replay, metrics in pair.items():
            table.add_row(engine, replay, *(f"{metrics[name]:.5f}" if name in metrics else "-" for name in METRICS))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
