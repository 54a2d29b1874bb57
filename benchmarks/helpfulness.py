"""Do replies get better where the judge says so? The judge's wins beside the exact rule that it learned from pairs.

    python benchmarks/helpfulness.py runs/learning/seed_1

The stages of a finished cascade answer the validation prompts of its preference domain once more; what makes a letter good
is exact there (`data.demo.preference.helpfulness`: 1 to 5, 5 for all four parts right), and no reward ever saw it. Prints a
row for the start and every stage that trains on preferences, and writes helpfulness.json into the run's folder.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import StageConfig, load_config
from nemo_cascade.cascade.manifest import Manifest
from nemo_cascade.data.demo.preference import helpfulness
from nemo_cascade.engine import parallel
from nemo_cascade.engine.policy import Policy
from nemo_cascade.environments.response import split_reply
from nemo_cascade.stages.data import load_domains
from nemo_cascade.stages.prompts import render, thinking
from nemo_cascade.stages.rewards import reply_text
from nemo_cascade.stages.rollouts import make_engine, mean, sample_groups
from nemo_cascade.stages.validation import VALIDATION_SEED

DOMAIN = "preference"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("overrides", nargs="*", help="key=value, as the run had them")
    args = parser.parse_args()
    manifest = Manifest.load(args.run_dir)
    cascade = load_config(compose_config("tiny", [f"cascade.run_dir={args.run_dir}", *args.overrides]))
    trained = [name for name, stage in cascade.stages.items() if DOMAIN in stage.data.train]
    results = {name: measure(cascade.stages[name], manifest) for name in trained}
    (args.run_dir / "helpfulness.json").write_text(json.dumps(results, indent=1))
    show(results)


def measure(stage: StageConfig, manifest: Manifest) -> dict[str, float]:
    """The judge's wins from the manifest, and of new replies to the same prompts: helpfulness, share of perfect ones."""
    parallel.init(stage.policy.megatron_cfg)
    policy = Policy(stage.policy, seed=0)
    policy.load(manifest.checkpoint(stage.name) / "policy", optimizer=False)
    prompts = render(load_domains(stage.data, "validation", kind="rl")[DOMAIN], policy.tokenizer, policy.config)
    groups = sample_groups(policy, make_engine(policy), prompts, 1, seed=VALIDATION_SEED)
    points = []
    for group in groups:
        (rollout,) = group.rollouts
        _, letter = split_reply(reply_text(rollout, policy.tokenizer), thinking(group.row))
        points.append(helpfulness(group.row["asked"], letter or ""))
    parallel.shutdown()
    return {
        "wins": manifest.stages[stage.name].scores[DOMAIN]["mean"],
        "helpfulness": mean(points),
        "perfect": mean(point == 5 for point in points),
        "prompts": len(points),
    }


def show(results: dict[str, dict[str, float]]) -> None:
    table = Table("stage", "judge's wins", "helpfulness, 1 to 5", "all parts right", "prompts")
    for name, row in results.items():
        cells = (f"{row['wins']:.3f}", f"{row['helpfulness']:.2f}", f"{row['perfect']:.3f}", str(row["prompts"]))
        table.add_row(name, *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
