"""How fast do teachers rotate? Bytes a second of a whole rotation beside a plain copy of as many.

    python benchmarks/rotation.py --teachers 1 2 4
    python benchmarks/rotation.py --precision bfloat16 --hidden 1024 --out rotation.json

A rotation of N teachers moves the weights N + 2 times: the student out, every teacher in, the student back; with it goes what
checks that the student came back as it left. The plain copy is of one tensor with as many bytes, N + 2 times, in the same process
and in turn with it. The teachers were read before: that is done once a stage, and told apart. A round is as fast as its fastest;
where other programs take part of the machine, CPU seconds say more than seconds. No test looks at what this prints.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

BAR, LEAST_MB = 0.7, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--hidden", type=int, default=1024, help="the width that the size of the weights comes from")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--scratch", type=Path, help="where the teachers' checkpoints are written until the end")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        measured = measure(Path(folder), args)
    show(measured)
    if args.out:
        args.out.write_text(json.dumps(measured, indent=1) + "\n")


def measure(folder: Path, args) -> dict:
    """Megabytes, what reading a teacher took, and for each number of teachers the fastest rounds of both ways."""
    import torch

    policy = built(args.hidden, args.precision)
    megabytes = sum(tensor.nbytes for tensor in policy._tensors().values()) / 1e6
    assert megabytes >= LEAST_MB, f"{megabytes:.0f} MB of weights, not {LEAST_MB}: raise --hidden"
    teachers = [folder / f"teacher_{number}" for number in range(max(args.teachers))]
    for teacher in teachers:
        with torch.no_grad():
            next(policy.model.parameters()).mul_(1.5)
        policy.save(teacher, optimizer=False)
    student = policy.weights_hash()
    read = min(timed(lambda teacher=teacher: rotate(policy, [teacher])) for teacher in teachers)
    source = torch.ones(int(megabytes * 1e6) // 4)
    target = source.clone()
    found = []
    for count in args.teachers:
        rounds: dict[str, list[tuple[float, float]]] = {"rotation": [], "copy": []}
        for _ in range(args.rounds):
            rounds["rotation"].append(timed(lambda: rotate(policy, teachers[:count])))
            rounds["copy"].append(timed(lambda: [target.copy_(source) for _ in range(count + 2)]))
        found.append({"teachers": count} | {way: [min(of) for of in zip(*times)] for way, times in rounds.items()})
    assert policy.weights_hash() == student
    return {"megabytes": megabytes, "tensors": len(policy._tensors()), "read": read, "rotations": found}


def built(hidden: int, precision: str):
    """A policy of one process with three of each sort of layer, and a training step's buffers."""
    import torch

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig, PolicyConfig
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.models.presets import PRESETS

    sizes = dict(moe_ffn_hidden_size=hidden, moe_shared_expert_intermediate_size=2 * hidden, kv_channels=hidden // 4)
    wide = dataclasses.replace(PRESETS["tiny"], name="wide", hidden_size=hidden, mamba_head_dim=hidden // 4, **sizes)
    PRESETS["wide"] = wide
    config = PolicyConfig(model_name="wide", precision=precision, megatron_cfg=MegatronConfig())
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    torch.set_num_threads(1)
    parallel.init(config.megatron_cfg)
    return Policy(config, seed=0, max_num_steps=1)


def rotate(policy, teachers: list[Path]) -> None:
    import torch

    with policy.rotation() as turn_to:
        for teacher in teachers:
            turn_to(teacher)
    torch.cuda.synchronize()


def timed(work: Callable) -> tuple[float, float]:
    """(seconds, CPU seconds)"""
    began = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began[0], time.process_time() - began[1]


def show(measured: dict) -> None:
    megabytes = measured["megabytes"]
    title = f"{megabytes:,.0f} MB of weights in {measured['tensors']} tensors; reading a teacher {measured['read'][0]:.2f} s, once"
    table = Table("teachers", "moved MB", "rotation GB/s", "copy GB/s", "share", "of CPU seconds", title=title)
    for found in measured["rotations"]:
        moved = (found["teachers"] + 2) * megabytes
        (seconds, cpu), (copy_seconds, copy_cpu) = found["rotation"], found["copy"]
        rates = [f"{moved / 1e3 / spent:.2f}" for spent in (seconds, copy_seconds)]
        shares = [f"{copy_seconds / seconds:.0%}", f"{copy_cpu / cpu:.0%}"]
        table.add_row(str(found["teachers"]), f"{moved:,.0f}", *rates, *shares)
    console = Console(width=110)
    console.print(table)
    console.print(f"bar: {BAR:.0%} of the copy's rate")


if __name__ == "__main__":
    main()
