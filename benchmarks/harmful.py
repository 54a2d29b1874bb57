"""Does a cascade survive a stage that harms? `tiny` with one stage whose reward has the wrong sign, beside the same cascade
without it.

    python benchmarks/harmful.py --out runs/harmful [override ...]

The stage trains instruction following with an environment, brought by a package of its own as a third party's would be, that
pays 1 minus what is right. Every stage's gate may lose 0.02 a domain and rolls back. Prints both cascades' scores and verdicts;
exits with 1 unless the harmful stage was rolled back, every other stage has the verdict that it has without it, and the last
stage is no worse in any domain. As a stage depends on nothing but its name, its seed and its start, its weights should even be
the same. (SFT and the last stage are shortened, so that the last one may do harm of its own: then it is rolled back in both.)
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from nemo_cascade.cascade import report
from nemo_cascade.cascade.manifest import Manifest
from nemo_cascade.data.demo import DOMAINS

ROOT = Path(__file__).parents[1]
ORDER = ["sft", "if_rl", "harm", "multi_domain_rl"]
SCORED = sorted(set(DOMAINS) - {"preference", "preference_pairs"})
NAME = "flipped_instruction_following"
MODULE = '''
"""Instruction following with the wrong sign."""
from nemo_cascade.environments import instruction_following

problem = instruction_following.problem

def verify(row, response):
    verdict = instruction_following.verify(row, response)
    return verdict | {"reward": 1.0 - verdict["reward"]}
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/harmful"))
    parser.add_argument("--nproc-per-node", type=int, default=2)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = DOMAINS["instruction_following"].rows(2000, "train")
    write_flipped(rows, args.out)
    common = [
        *("~cascade.judge", "~data.validation.preference", f"cascade.demo_data.path={args.out / 'data'}"),
        *("cascade.stages.sft.sft.max_num_steps=600", "cascade.stages.multi_domain_rl.grpo.max_num_steps=10", *args.overrides),
    ]
    both = {}
    for name, order in (("with", ORDER), ("without", [stage for stage in ORDER if stage != "harm"])):
        run_dir = args.out / name
        own = harmful_stage(args.out, steps=20) if "harm" in order else []
        own += [f"cascade.run_dir={run_dir}", f"cascade.order=[{','.join(order)}]", *gates(order[1:], SCORED)]
        launch("tiny", args.out, args.nproc_per_node, [*common, *own])
        both[name] = Manifest.load(run_dir)
        report.print_scores(both[name], Console(width=170))
    raise SystemExit(int(not survived(both["with"], both["without"])))


def write_flipped(rows: list[dict], folder: Path) -> None:
    """The rows as `flipped.jsonl`, to be verified by the environment of the package that is written beside them."""
    flipped = [row | {"agent_ref": {"type": "responses_api_agents", "name": f"{NAME}_simple_agent"}} for row in rows]
    (folder / "flipped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in flipped))
    info = folder / "package" / "flipped-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info.parent / "flipped_instructions.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flipped\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[nemo_cascade.environments]\n{NAME} = flipped_instructions\n")


def harmful_stage(folder: Path, steps: int, rate: float = 3.0e-4) -> list[str]:
    """Overrides that make `harm`: as if_rl, with the rows of `write_flipped`."""
    key, mine = "+cascade.stages.harm", "${cascade.stages.if_rl.policy.megatron_cfg"
    router = [f"moe_{name}" for name in ("router_load_balancing_type", "aux_loss_coeff", "router_bias_update_rate")]
    return [
        f"{key}={{kind:rl,grpo:{{max_num_steps:{steps}}}}}",
        f"{key}.data.train.instruction_following.data_path={folder / 'flipped.jsonl'}",
        f"{key}.policy.megatron_cfg.optimizer={{lr:{rate},adam_beta2:{mine}.optimizer.adam_beta2}}}}",
        *(f"{key}.policy.megatron_cfg.{name}={mine}.{name}}}" for name in router),
    ]


def gates(stages: list[str], domains: list[str], drop: float = 0.02) -> list[str]:
    """Overrides that have stages rolled back that lose more than this in any of the domains."""
    limits = ",".join(f"{domain}:{drop}" for domain in domains)
    return [f"+cascade.stages.{name}.gate={{max_drop:{{{limits}}},on_failure:rollback}}" for name in stages]


def launch(config: str, folder: Path, processes: int, overrides: list[str]) -> None:
    """A cascade of a shipped config to which the package below the folder is known. Raises CalledProcessError when it fails."""
    paths = [str((folder / "package").absolute()), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [str(ROOT / "examples/cascade.py"), f"--config-name={config}", *overrides]
    subprocess.run(command, check=True, env=environment)


def survived(harmed: Manifest, spared: Manifest) -> bool:
    """Whether `harm` was rolled back, no other that is not without it, and the last stage scores in no domain less."""
    rolled_back, without = ([name for name, record in run.stages.items() if record.rolled_back] for run in (harmed, spared))
    last = list(spared.stages)[-1]
    ends, expected = harmed.stages[last], spared.stages[last]
    lost = [domain for domain, score in expected.scores.items() if ends.scores[domain]["mean"] < score["mean"]]
    same = ends.checkpoint_hash == expected.checkpoint_hash
    print(f"rolled back: {rolled_back}, without it: {without}; worse than without in: {lost}; same weights: {same}")
    return [name for name in rolled_back if name != "harm"] == without and "harm" in rolled_back and not lost


if __name__ == "__main__":
    main()
