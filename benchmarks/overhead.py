"""What is around the model's own work in an RL step: advantages, filters, packing, rollouts to disk, logging (BAR: 5 % of a step).

    python benchmarks/overhead.py --out overhead.json cascade.run_dir=runs/overhead
    python benchmarks/overhead.py --nproc-per-node=1 cascade.stages.sft.sft.max_num_steps=20 cascade.run_dir=runs/overhead

A short cascade of `tiny`: SFT, so that replies end, a few steps of GRPO (`math_rl`) and of MOPD, without validation. The model's own
work is what a stage's stopwatch calls weight_sync, generation, idle, reward_calculation, the log-probs of teachers and reference, and
policy_training, less the packing in it, which the clocks of benchmarks/cost.py see on rank 0. All the rest of a step is around it:
`data_processing` and what comes after the stopwatch was read. Checkpoints are neither. PARTS are pieces of that rest, to see where it goes; what of it
is in none of them is told as other, which is also waiting for other ranks.
"""

import argparse
import functools
import json
from collections import Counter
from pathlib import Path

from cost import Clocks, as_script, clocked, first_rank, run_cascade
from rich.console import Console
from rich.table import Table

BAR = 0.05
# What lies inside the laps of the model's own work, and after them.
PACKING, AFTERWARDS = "packing, unpacking", "logging, asking whether to stop"
PARTS = {
    "prompts": ("nemo_cascade.stages.prompts:PromptSource.next",),
    "advantages, samples": (
        "nemo_cascade.stages.rl:reward_samples",
        "nemo_cascade.stages.rl:distillation_samples",
        "nemo_cascade.stages.rl:with_gradient",
    ),
    "filters, metrics of rollouts": (
        "nemo_cascade.stages.sampler:refuse_unusable_rollouts",
        "nemo_cascade.stages.sampler:teaching",
        "nemo_cascade.stages.sampler:rollout_metrics",
    ),
    "rollouts to disk": (
        "nemo_cascade.rollout.store:RolloutStore.save",
        "nemo_cascade.rollout.store:RolloutStore.load",
    ),
    "traces": ("nemo_cascade.stages.traces:Traces.write",),
    PACKING: ("nemo_cascade.engine.policy:Policy._packs", "nemo_cascade.engine.batch:scatter_logprobs"),
    AFTERWARDS: (
        "nemo_cascade.stages.context:StageRun.log",
        "nemo_cascade.stages.progress:Progress.advance",
        "nemo_cascade.engine.parallel:first_not_none",
    ),
}
SAMPLING = ("weight_sync", "generation", "idle")
OWN = (*SAMPLING, "reward_calculation", "teacher_logprob_inference", "policy_and_reference_logprobs", "policy_training")
ANCHORS = ("instruction_following", "mcqa")
SHORT = [
    "cascade.order=[sft,math_rl,mopd]",
    "~cascade.judge",
    "~data.validation.preference",
    "cascade.validation.num_prompts=0",
    "cascade.stages.sft.sft.max_num_steps=200",
    "cascade.stages.math_rl.grpo.max_num_steps=20",
    "cascade.stages.mopd.grpo.max_num_steps=4",
    "cascade.stages.mopd.parent=sft",
    "~cascade.stages.mopd.gate",
    *(f"cascade.stages.mopd.teachers.{domain}.stage=sft" for domain in ANCHORS),
    *(
        f"~cascade.stages.mopd.{key}.{domain}"
        for key in ("teachers", "data.train")
        for domain in ("structured_outputs", "tool_use", "preference", "long_context", "code_gen", "swe_repair")
    ),
]


class StageClocks(Clocks):
    """Seconds by part of each RL stage."""

    def __init__(self):
        super().__init__()
        self.stages: dict[str, dict[str, float]] = {}

    def by_stage(self, run):
        @functools.wraps(run)
        def noted(stage):
            self.seconds.clear()
            run(stage)
            self.stages[stage.name] = {"dir": str(stage.dir), "parts": dict(self.seconds)}

        return noted


def run_rank(arguments: list[str]) -> dict:
    """One process of the cascade, with clocks on rank 0. {stage: its steps, laps and parts} there, {} elsewhere."""
    from nemo_cascade.stages import rl

    clocks = StageClocks()
    if first_rank():
        clocks.install(PARTS)
        rl.run = clocks.by_stage(rl.run)
    run_cascade(arguments)
    return {name: of_steps(Path(stage["dir"])) | stage for name, stage in clocks.stages.items()}


def of_steps(folder: Path) -> dict:
    """{steps: how many, laps: the stopwatch's seconds of all of them} from a stage's metrics."""
    laps, lines = Counter(), (folder / "metrics.jsonl").read_text().splitlines()
    for line in lines:
        laps.update({k.rsplit("/", 1)[1]: v for k, v in json.loads(line).items() if k.startswith("timing/train/")})
    laps.pop("checkpointing", None)
    return {"steps": len(lines), "laps": dict(laps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nproc-per-node", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("overhead.json"))
    parser.add_argument("overrides", nargs="*", help="key=value, passed on to the run, which must not have begun")
    args = parser.parse_args()
    for stage, told in clocked(__file__, args.nproc_per_node, ["--config-name=tiny", *SHORT, *args.overrides], args.out).items():
        show(stage, told)


def show(stage: str, told: dict) -> None:
    parts, laps, steps = told["parts"], told["laps"], told["steps"]
    own = sum(laps.get(lap, 0.0) for lap in OWN) - parts.get(PACKING, 0.0)
    whole = laps["total_step_time"] + parts.get(AFTERWARDS, 0.0)
    table = Table("part", "seconds a step", "share", title=f"{stage}: {steps} steps of {whole / steps:.2f} s")
    for part in PARTS:
        table.add_row(part, f"{parts.get(part, 0.0) / steps:.4f}", f"{parts.get(part, 0.0) / whole:.2%}")
    other = whole - own - sum(parts.get(part, 0.0) for part in PARTS)
    table.add_row("other", f"{other / steps:.4f}", f"{other / whole:.2%}")
    table.add_row("all around", f"{(whole - own) / steps:.4f}", f"{(whole - own) / whole:.2%}, beside {BAR:.0%}")
    for lap in OWN:
        table.add_row(f"({lap})", f"{laps.get(lap, 0.0) / steps:.4f}", f"{laps.get(lap, 0.0) / whole:.2%}")
    Console(width=100).print(table)


if __name__ == "__main__":
    as_script(run_rank, main)
