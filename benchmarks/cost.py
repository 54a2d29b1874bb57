"""What control costs: the share of a cascade's time that goes into gates, checks, hand-over, report and logging (TARGET: 5 %).

    python benchmarks/cost.py --config-name smoke --out cost.json
    python benchmarks/cost.py --config-name tiny --out cost.json cascade.run_dir=runs/cost

Runs the cascade as ever, with clocks around the functions of `PARTS` on rank 0; what one of them calls counts once, for the
outermost. Validation rollouts are the stage's own work, and so is writing a checkpoint, of which only its seal and its probe
count. Threads beside the training (heartbeats) are counted by their processor time, of which there is none to speak of.
"""

import argparse
import functools
import importlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
TARGET = 0.05
# Where a rank finds the file to write, and what tells that it is one.
OUT, RANK = "NEMO_CASCADE_CLOCKED", "--rank"
# Part -> what is done for it, as module:function or module:Class.method.
PARTS = {
    "config, rows, verifiers, disk": (
        "nemo_cascade.cascade.cli:load",
        "nemo_cascade.cascade.runner:begin",
        "nemo_cascade.cascade.runner:check_rows",
        "nemo_cascade.cascade.runner:refuse_absent_servers",
        "nemo_cascade.cascade.readiness:refuse_broken",
        "nemo_cascade.cascade.state:refuse_unwritable",
        "nemo_cascade.cascade.state:refuse_damaged",
        "nemo_cascade.cascade.state:verified",
        "nemo_cascade.cascade.data_files:hashes",
        "nemo_cascade.engine.checkpoint:refuse_without_space",
        "nemo_cascade.engine.checkpoint:latest_whole",
    ),
    "teachers": (
        "nemo_cascade.cascade.teachers:resolve",
        "nemo_cascade.cascade.provenance:of_outside",
        "nemo_cascade.cascade.provenance:of_teachers",
    ),
    "seals and probes of checkpoints": ("nemo_cascade.engine.seal:seal", "nemo_cascade.engine.probe:take"),
    "hand-over": ("nemo_cascade.cascade.handover:check",),
    "gates": ("nemo_cascade.cascade.gate:judge",),
    "report": ("nemo_cascade.cascade.report:write",),
    "logging, manifest": (
        "nemo_cascade.stages.context:StageRun.log",
        "nemo_cascade.stages.traces:Traces.write",
        "nemo_cascade.cascade.manifest:Manifest.save",
        "nemo_cascade.cascade.operation:tell_trackers",
    ),
    "asking whether to stop": ("nemo_cascade.engine.parallel:first_not_none",),
}


class Clocks:
    """Seconds by part; of nested parts only the outermost counts."""

    def __init__(self):
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.inside = False

    def around(self, part: str, function):
        @functools.wraps(function)
        def timed(*args, **kwargs):
            if self.inside:
                return function(*args, **kwargs)
            self.inside, began = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.inside = False
                self.seconds[part] += time.perf_counter() - began
                self.calls[part] += 1

        return timed

    def install(self, parts: dict[str, tuple[str, ...]]) -> None:
        """Puts a clock around every function of parts, as `PARTS`, wherever a module holds it by name."""
        for part, places in parts.items():
            for place in places:
                module, _, path = place.partition(":")
                owner = importlib.import_module(module)
                *classes, name = path.split(".")
                for attribute in classes:
                    owner = getattr(owner, attribute)
                known = getattr(owner, name)
                timed = self.around(part, known)
                setattr(owner, name, timed)
                for other in [m for n, m in sys.modules.items() if n.startswith("nemo_cascade")]:
                    for held, value in list(vars(other).items()):
                        if value is known:
                            setattr(other, held, timed)


def first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def run_cascade(arguments: list[str]) -> None:
    """One process of the cascade, as examples/cascade.py starts it."""
    import typer

    from nemo_cascade.cascade import cli

    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(cli.run)
    app(arguments, standalone_mode=False)


def run_rank(arguments: list[str]) -> dict:
    """One process of the cascade, with clocks on rank 0. {"seconds", "parts", "calls"} there, {} elsewhere."""
    from nemo_cascade.stages import rl, sft  # noqa: F401 - imported before clocks are put around what they hold

    clocks = Clocks()
    if first_rank():
        clocks.install(PARTS)
    began = time.perf_counter()
    run_cascade(arguments)
    return {"seconds": time.perf_counter() - began, "parts": dict(clocks.seconds), "calls": dict(clocks.calls)} if first_rank() else {}


def clocked(script: str, processes: int, arguments: list[str], out: Path) -> dict:
    """What rank 0 of a run of this script's own told at its end, which stays in `out`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", script, RANK, *arguments]
    subprocess.run(command, check=True, env={**os.environ, OUT: str(out.absolute()), "OMP_NUM_THREADS": "1"})
    return json.loads(out.read_text())


def as_script(rank, main) -> None:
    """`main()`, or in a process that `clocked` started `rank(arguments)`, which returns what is told."""
    if RANK not in sys.argv:
        return main()
    told = rank([argument for argument in sys.argv[1:] if argument != RANK])
    if first_rank():
        Path(os.environ[OUT]).write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-name", default="smoke")
    parser.add_argument("--nproc-per-node", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("cost.json"))
    parser.add_argument("overrides", nargs="*", help="key=value, passed on to the run, which must not have begun")
    args = parser.parse_args()
    show(clocked(__file__, args.nproc_per_node, [f"--config-name={args.config_name}", *args.overrides], args.out))


def show(told: dict) -> None:
    table = Table("part", "calls", "seconds", "share", title=f"of {told['seconds']:.0f} s")
    for part in PARTS:
        seconds = told["parts"].get(part, 0.0)
        table.add_row(part, f"{told['calls'].get(part, 0):,}", f"{seconds:.2f}", f"{seconds / told['seconds']:.2%}")
    share = sum(told["parts"].values()) / told["seconds"]
    table.add_row("all", "", f"{sum(told['parts'].values()):.2f}", f"{share:.2%}, beside {TARGET:.0%}")
    Console(width=100).print(table)


if __name__ == "__main__":
    as_script(run_rank, main)
