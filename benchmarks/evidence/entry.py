"""The cascade's entry point as `examples/cascade.py` has it, for evidence.yaml: its RL stages may have stand-ins by their names.

    torchrun --nproc-per-node=2 benchmarks/evidence/entry.py cascade.run_dir=runs/evidence/seed_1 cascade.seed=1
"""

import os
import sys
from pathlib import Path

import typer

sys.path.append(str(Path(__file__).parents[1]))
CONFIG = Path(__file__).with_name("evidence.yaml")


def main(overrides: list[str] = typer.Argument(default=None)) -> None:
    """Run the experiment's cascade, or go on with it."""
    from nemo_cascade.cascade import cli

    cascade = cli.load("", None, CONFIG, overrides, int(os.environ.get("WORLD_SIZE", "1")))
    cli.quiet_logs()
    from nemo_cascade.cascade import runner
    from nemo_cascade.stages import sft

    from evidence import stand_ins

    cli.started(lambda: runner.run(cascade, loops={"sft": sft.run, "rl": stand_ins.run}))


# Saving a distributed checkpoint spawns processes, which import this file again.
if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
