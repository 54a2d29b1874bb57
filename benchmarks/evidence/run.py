"""The experiment of docs/evidence.md: a cascade with all its side branches for every seed, and its scores as one JSON each.

    python benchmarks/evidence/run.py --seeds 1 2 3 4 5 --out runs/evidence

Every seed runs in OUT/seed_N. Killed or stopped, the same command goes on: finished seeds are skipped, finished stages too, a
stage that had begun goes on from its last checkpoint (every 20 steps) with the rollouts that it had drawn. Ctrl-C and SIGTERM let
it save where it is; who kills this process outright has to end the torchrun that it started, too. What has to be kept is written
to --results when a seed is done; OUT may be removed then. `report.py` makes tables, curves and docs/evidence.md of the results.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from evidence import record  # noqa: E402 - a script, not a package

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
RESULTS = HERE / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON of each seed is written")
    parser.add_argument("--nproc-per-node", type=int, default=2)
    parser.add_argument("overrides", nargs="*", help="key=value, passed on to every run; its results belong in another folder")
    args = parser.parse_args()
    if args.overrides and args.results == RESULTS:
        parser.error("with overrides it is another experiment; name another folder with --results")
    for seed in args.seeds:
        result = args.results / f"seed_{seed}.json"
        if result.exists():
            print(f"seed {seed}: {result} is there; remove it to collect it again")
            continue
        started, run_dir = time.monotonic(), args.out / f"seed_{seed}"
        launch(args.nproc_per_node, [f"cascade.run_dir={run_dir}", f"cascade.seed={seed}", *args.overrides])
        record.write(record.collect(run_dir), result)
        print(f"seed {seed}: {(time.monotonic() - started) / 60:.1f} min in this attempt, written: {result}", flush=True)


def launch(processes: int, overrides: list[str]) -> None:
    """Runs the cascade, or goes on with it; a request to stop is passed on. Ends the program when it fails or was stopped."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    process = subprocess.Popen([*command, str(HERE / "entry.py"), *overrides], env=environment)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: process.send_signal(signal.SIGTERM))
    code = process.wait()
    if code:
        raise SystemExit(f"evidence: the cascade ended with exit code {code}; what it says is above, the same command goes on")


if __name__ == "__main__":
    main()
