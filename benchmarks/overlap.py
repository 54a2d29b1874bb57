"""How much of a slow verifier's time is hidden behind sampling? (TARGET: 70 %)

    python benchmarks/overlap.py [--replies 256] [--seconds 0.02] [--out overlap.json]

Samples replies of `tiny` with lengths drawn from 1 to 128 tokens and has them rewarded by an environment that sleeps: in turn with
replies that are verified as they end, with replies that are all verified afterwards, and with a verifier that does not sleep. Hidden
is the share of the sleep that does not make sampling and rewards longer: 1 - (early - without) / (afterwards - without), of the medians.
The environment is a package of its own, as a third party's would be.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
TARGET = 0.7
NAME = "sleeping"
MODULE = '''
"""Sleeps, and is content."""
import time

def verify(row, response):
    time.sleep(row["seconds"])
    return {"reward": 1.0}
'''
NEW_TOKENS, GROUP = 128, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=0.02, help="that the verifier sleeps over each reply")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_environment(Path(folder))
        told = measure(args.replies, args.seconds, args.repeats)
    show(told)
    if args.out:
        args.out.write_text(json.dumps(told, indent=1) + "\n")


def write_environment(folder: Path) -> None:
    """The package, where this process and the verifiers that it starts find it."""
    info = folder / "sleeping-1.0.dist-info"
    info.mkdir()
    (folder / "sleeping_environment.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sleeping\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[nemo_cascade.environments]\n{NAME} = sleeping_environment\n")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def measure(replies: int, seconds: float, repeats: int) -> dict[str, list[float]]:
    """Seconds of sampling and rewards together, a list for each way."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig, PolicyConfig
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.rollout.config import GenerationConfig
    from nemo_cascade.rollout.engine import generate, generate_global, nothing_to_do
    from nemo_cascade.rollout.types import Group, Request, SamplingParams
    from nemo_cascade.stages.rewards import Rewards
    from nemo_cascade.stages.rollouts import make_engine

    parallel.init(MegatronConfig())
    policy = Policy(PolicyConfig(model_name="tiny", generation=GenerationConfig(max_batch_size=replies)), seed=1)
    engine, rewards = make_engine(policy), Rewards(policy.tokenizer)
    # A token of 32 ends a reply, so that most end long before the last.
    stop_ids = tuple(range(0, policy.preset.vocab_size, 32))
    params = SamplingParams(max_new_tokens=NEW_TOKENS, stop_ids=stop_ids, seed=1)
    ids = [f"{number:016x}" for number in range(replies // GROUP)]
    requests = [Request(name, k, tuple(range(20, 60))) for name in ids for k in range(GROUP)]

    def once(asleep: float, early: bool) -> float:
        row = {"agent_ref": {"name": f"{NAME}_simple_agent"}, "seconds": asleep}
        ended = rewards.begin({name: row for name in ids}) if early else nothing_to_do
        began = time.perf_counter()
        rollouts = generate_global(engine, requests, params, partial(generate, ended=ended))
        rewards.fill([Group(row, "sleeping", rollouts[start : start + GROUP]) for start in range(0, replies, GROUP)])
        return time.perf_counter() - began

    ways = {"early": (seconds, True), "afterwards": (seconds, False), "without": (0.0, True)}
    for way in ways.values():
        once(*way)
    told: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            told[name].append(once(*way))
    return told


def show(told: dict[str, list[float]]) -> None:
    table = Table("verified", "seconds, median", "least", title="sampling and rewards")
    for name, seconds in told.items():
        table.add_row(name, f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f}")
    early, afterwards, without = (statistics.median(told[name]) for name in ("early", "afterwards", "without"))
    hidden = 1 - (early - without) / (afterwards - without)
    Console(width=100).print(table, f"hidden: {hidden:.0%} of the sleep, beside {TARGET:.0%}")


if __name__ == "__main__":
    main()
