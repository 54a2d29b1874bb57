"""Does the cascade learn? Seeds of `tiny`: RL stages against SFT continued for the same seconds, MOPD against teachers and GRPO.

    python benchmarks/learning.py --seeds 1 2 3 --out runs/learning

For every seed it runs the cascade, then one control a RL stage: the same parent checkpoint, more SFT on the (clean)
demonstrations, for as many optimizer steps as fit into the seconds the RL stage trained. Beside MOPD stands GRPO from the same
start on the same mixture: with as many rollouts, and with as many as MOPD and its teachers took together. Gains are paired by
validation prompt, with a 95 % bootstrap interval. Prints a table with a verdict on the bars below after every seed and writes
results.json beside the runs; the same command again goes on where it was stopped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from nemo_cascade.cascade.gate import paired_scores
from nemo_cascade.cascade.manifest import Manifest
from nemo_cascade.stages.metrics import MetricsLog
from nemo_cascade.stages.paired import paired_difference

ROOT = Path(__file__).parents[1]
# The domains each stage is there to improve; what multi_domain_rl has of if_rl's domain only keeps it.
RL_STAGES = {
    "if_rl": ["instruction_following"],
    "multi_domain_rl": ["mcqa", "structured_outputs", "tool_use"],
    "math_rl": ["math"],
    "preference_rl": ["preference"],
    "rlhf": ["preference"],
    "long_context_rl": ["long_context"],
    "code_rl": ["code_gen"],
    "swe_rl": ["swe_repair"],
}
FIRST, LAST = "sft", "swe_rl"
# The bars. RL: its domain starts where there is room both ways, and gains over more SFT. MOPD: at least so many teachers have
# a lead worth the name, of which this share is closed, and a domain without such a lead falls by no more than this.
START, GAIN = (0.2, 0.8), 0.10
LEAD, CLOSED, FALL = 0.10, 0.80, 0.03
TEACHERS = 2
# And the mean over all domains ends so much above SFT.
MEAN_GAIN = 0.15
GRPO_GROUP = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--nproc-per-node", type=int, default=2)
    parser.add_argument("--no-control", action="store_true", help="leave out the SFT controls")
    parser.add_argument("overrides", nargs="*", help="key=value, passed on to every run")
    args = parser.parse_args()
    results = []
    for seed in args.seeds:
        results.append(run_seed(seed, args))
        (args.out / "results.json").write_text(json.dumps(results, indent=1))
        show(results)


def run_seed(seed: int, args) -> dict:
    """One cascade with its controls; returns gains by stage and domain and MOPD's gaps."""
    run_dir = args.out / f"seed_{seed}"
    overrides = [f"cascade.run_dir={run_dir}", f"cascade.seed={seed}", *args.overrides]
    launch(args.nproc_per_node, overrides)
    manifest = Manifest.load(run_dir)
    order = [name for name in manifest.stages if not name.startswith(("control_", "grpo_"))]
    if not args.no_control:
        controls = {f"control_{stage}": control_stage(manifest, stage) for stage in RL_STAGES}
        controls |= grpo_stages(manifest)
        added = [override for stage in controls.values() for override in stage]
        launch(args.nproc_per_node, [*overrides, *added, f"cascade.order=[{','.join([*order, *controls])}]"])
    manifest = Manifest.load(run_dir)
    gains = {}
    for stage, domain in ((stage, domain) for stage, domains in RL_STAGES.items() for domain in domains):
        parent = manifest.stages[stage].parent
        before, after = paired_scores(manifest, parent, stage, domain)
        row = {"before": before.mean(), "after": after.mean(), "gain": paired_difference(before, after)}
        if not args.no_control:
            control, after = paired_scores(manifest, f"control_{stage}", stage, domain)
            row |= {"control": control.mean(), "over_control": paired_difference(control, after)}
        gains[f"{stage}/{domain}"] = row
    scores = all_scores(manifest)
    means = {stage: float(np.mean(list(scores[stage].values()))) for stage in (FIRST, LAST)}
    mopd = distillation(manifest)
    return {"seed": seed, "scores": scores, "gains": gains, "means": means, "mopd": mopd}


def control_stage(manifest: Manifest, stage: str) -> list[str]:
    """Overrides that add the control of an RL stage: from its parent, SFT goes on at the rate at which SFT ended."""
    steps = max(1, round(sum(step_times(manifest, stage)) / float(np.mean(step_times(manifest, "sft")))))
    key, sft = f"+cascade.stages.control_{stage}", "${cascade.stages.sft"
    optimizer = f"{sft}.policy.megatron_cfg.optimizer"
    return [
        f"{key}={{kind:sft,parent:{manifest.stages[stage].parent},teacher_only:true,sft:{{max_num_steps:{steps}}}}}",
        f"{key}.data={sft}.data}}",
        f"{key}.policy.megatron_cfg.moe_router_load_balancing_type={sft}.policy.megatron_cfg.moe_router_load_balancing_type}}",
        f"{key}.policy.megatron_cfg.moe_aux_loss_coeff={sft}.policy.megatron_cfg.moe_aux_loss_coeff}}",
        f"{key}.policy.megatron_cfg.moe_router_bias_update_rate={sft}.policy.megatron_cfg.moe_router_bias_update_rate}}",
        f"{key}.policy.megatron_cfg.optimizer="
        f"{{lr:{optimizer}.min_lr}},weight_decay:{optimizer}.weight_decay}},adam_beta2:{optimizer}.adam_beta2}}}}",
    ]


def grpo_stages(manifest: Manifest) -> dict[str, list[str]]:
    """GRPO beside MOPD, on its mixture of prompts: as many rollouts as MOPD drew, and from there on as many as the side
    branches that teach drew."""
    mopd = manifest.stages["mopd"]
    teachers = {name for name in mopd.teachers.values() if manifest.stages[name].teacher_only}
    size = rollouts(manifest, "mopd") // len(step_times(manifest, "mopd"))
    stages = {}
    for name, parent, count in (
        ("grpo_same", mopd.parent, rollouts(manifest, "mopd")),
        ("grpo_counted", "grpo_same", sum(rollouts(manifest, teacher) for teacher in teachers)),
    ):
        key, mine = f"+cascade.stages.{name}", "${cascade.stages.mopd"
        grpo = f"{{max_num_steps:{count // size},num_prompts_per_step:{size // GRPO_GROUP},num_generations_per_prompt:{GRPO_GROUP}}}"
        cfg = f"{key}.policy.megatron_cfg"
        stages[name] = [
            f"{key}={{kind:rl,parent:{parent},teacher_only:true,grpo:{grpo}}}",
            f"{key}.data={mine}.data}}",
            f"{key}.genrm=${{cascade.stages.preference_rl.genrm}}",
            f"{cfg}.moe_router_load_balancing_type={mine}.policy.megatron_cfg.moe_router_load_balancing_type}}",
            f"{cfg}.moe_aux_loss_coeff={mine}.policy.megatron_cfg.moe_aux_loss_coeff}}",
            f"{cfg}.moe_router_bias_update_rate={mine}.policy.megatron_cfg.moe_router_bias_update_rate}}",
            f"{cfg}.optimizer.adam_beta2={mine}.policy.megatron_cfg.optimizer.adam_beta2}}",
        ]
    return stages


def rollouts(manifest: Manifest, stage: str) -> int:
    """How many replies a stage trained on."""
    grpo = yaml.safe_load((manifest.directory(stage) / "config.yaml").read_text())["grpo"]
    return grpo["max_num_steps"] * grpo["num_prompts_per_step"] * grpo["num_generations_per_prompt"]


def distillation(manifest: Manifest) -> dict:
    """domain -> scores of the student at the start, its teacher, the student at the end, GRPO; share of the gap closed.

    Domains that are not distilled have no teacher, and GRPO beside MOPD is not scored there; the share is None where there is no gap.
    """
    mopd = manifest.stages["mopd"]
    table = {}
    for domain in mopd.scores:
        teacher = mopd.teachers.get(domain)
        names = {"start": mopd.parent, "teacher": teacher, "end": "mopd", "grpo": "grpo_same", "counted": "grpo_counted"}
        row = {
            key: manifest.stages[stage].scores[domain]["mean"]
            if stage in manifest.stages and domain in manifest.stages[stage].scores
            else None
            for key, stage in names.items()
        }
        gap = row["teacher"] - row["start"] if teacher else 0.0
        table[domain] = row | {"closed": (row["end"] - row["start"]) / gap if gap > 0.01 else None}
    return table


def learned(row: dict) -> bool:
    """Whether a stage started inside START and gained GAIN, its interval above 0, over its parent and over the control."""
    gains = [row["gain"], *([row["over_control"]] if "over_control" in row else [])]
    return START[0] <= row["before"] <= START[1] and all(mean >= GAIN and low > 0 for mean, low, _ in gains)


def leads(row: dict) -> bool:
    """Whether a domain's teacher begins as far ahead of the student as the bar asks."""
    return row["teacher"] is not None and row["teacher"] - row["start"] >= LEAD


def distilled(row: dict) -> bool:
    """Whether MOPD closed the domain's gap, or held the domain where its teacher had no lead."""
    if leads(row):
        return row["closed"] >= CLOSED
    return row["end"] - row["start"] >= -FALL


def launch(processes: int, overrides: list[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    subprocess.run([*command, str(ROOT / "examples/cascade.py"), "--config-name=tiny", *overrides], check=True)


def step_times(manifest: Manifest, stage: str) -> list[float]:
    log = MetricsLog(manifest.directory(stage) / "metrics.jsonl").read()
    return [entry["timing/train/total_step_time"] for entry in log]


def all_scores(manifest: Manifest) -> dict:
    return {
        name: {domain: score["mean"] for domain, score in stage.scores.items()}
        for name, stage in manifest.stages.items()
    }


def show(results: list[dict]) -> None:
    def interval(value):
        return f"{value[0]:+.3f} [{value[1]:+.3f}, {value[2]:+.3f}]" if value else "-"

    gains = Table("seed", "stage/domain", "before", "after", "gain [95 %]", "control", "over control [95 %]", "holds", title="RL")
    mopd = Table(
        *("seed", "domain", "student", "teacher", "after MOPD", "gap closed", "GRPO, same rollouts", "GRPO, teachers' too", "holds"),
        title="MOPD",
    )
    for result in results:
        for name, row in result["gains"].items():
            control = f"{row['control']:.3f}" if "control" in row else "-"
            values = (f"{row['before']:.3f}", f"{row['after']:.3f}", interval(row["gain"]), control)
            gains.add_row(str(result["seed"]), name, *values, interval(row.get("over_control")), str(learned(row)))
        for domain, row in result["mopd"].items():
            closed = "-" if row["closed"] is None else f"{row['closed']:.0%}"
            cells = {key: "-" if row[key] is None else f"{row[key]:.3f}" for key in row if key != "closed"}
            first = [cells[key] for key in ("start", "teacher", "end")]
            mopd.add_row(str(result["seed"]), domain, *first, closed, cells["grpo"], cells["counted"], str(distilled(row)))
    console = Console(width=150)
    console.print(gains)
    console.print(mopd)
    for result in results:
        ahead = sum(map(leads, result["mopd"].values()))
        console.print(f"seed {result['seed']}: teachers that lead by {LEAD}: {ahead}, holds: {ahead >= TEACHERS}")
        first, last = result["means"][FIRST], result["means"][LAST]
        console.print(f"seed {result['seed']}: mean over all domains {first:.3f} -> {last:.3f}, holds: {last - first >= MEAN_GAIN}")


if __name__ == "__main__":
    main()
