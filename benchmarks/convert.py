"""How much memory do conversions take? Nano's widths with few layers, from a Hugging Face folder to megatron-core and back.

    python benchmarks/convert.py --pattern MEME* --shard-gb 1 --out convert.json

Random BF16 weights are written as a folder, then `examples/convert.py` is run both ways; what comes back must be the
same bits. Memory is the most that a conversion's process has of its own at any look, files that it maps not counted,
its imports included (the first row, a conversion that is refused at once, has nothing else). No test looks at what this
prints.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from nemo_cascade.engine import parallel
from nemo_cascade.engine.config import MegatronConfig
from nemo_cascade.engine.convert import whole_model
from nemo_cascade.engine.gather import whole_shapes
from nemo_cascade.models.hf import hf_tensors
from nemo_cascade.models.hf_folder import HFReader, write_hf
from nemo_cascade.models.presets import get_preset

COMMAND = [sys.executable, str(Path(__file__).parents[1] / "examples" / "convert.py")]
LOOK = 0.005  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pattern", default="MEME*", help="layers, of Nano's widths")
    parser.add_argument("--shard-gb", type=float, default=1.0)
    parser.add_argument("--scratch", type=Path, help="where three copies of the model have room")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as root:
        source, checkpoint, back = (Path(root) / name for name in ("hf", "megatron", "back"))
        tensors, size = write_random(source, args.pattern, int(args.shard_gb * 1e9))
        to_hf = ("--from", "megatron", "--to", "hf", "--model", str(source), "--shard-gb", str(args.shard_gb))
        found = {
            "refused at once": run("--from", "hf", "--to", "hf", str(source), str(back)),
            "hf to megatron": run("--from", "hf", "--to", "megatron", str(source), str(checkpoint)),
            "megatron to hf": run(*to_hf, str(checkpoint), str(back)),
        }
        mine, other = HFReader(source), HFReader(back)
        assert mine.shapes() == other.shapes()
        assert all(torch.equal(mine[name].view(torch.int16), other[name].view(torch.int16)) for name in mine.shapes())
    show(found, tensors, size, args.shard_gb)
    if args.out:
        about = {"tensors": tensors, "model_bytes": size, "shard_bytes": int(args.shard_gb * 1e9)}
        args.out.write_text(json.dumps(about | found, indent=1))


def write_random(folder: Path, pattern: str, shard_bytes: int) -> tuple[int, int]:
    """Random weights of a network of these layers, a tensor at a time; -> (tensors, bytes)."""
    preset = dataclasses.replace(get_preset("nano_30b_a3b"), pattern=pattern)
    parallel.init(MegatronConfig())
    shapes = whole_shapes(whole_model(preset))
    parallel.shutdown()
    count = size = 0

    def random():
        nonlocal count, size
        megatron = ((name, torch.empty(shape, dtype=torch.bfloat16).normal_()) for name, shape in shapes.items())
        for name, tensor in hf_tensors(megatron, preset):
            count, size = count + 1, size + tensor.nbytes
            yield name, tensor

    write_hf(random(), preset, folder, shard_bytes=shard_bytes)
    return count, size


def run(*arguments: str) -> dict:
    """Peak of the memory that a conversion has of its own, in bytes, and its seconds."""
    started, peak = time.perf_counter(), 0
    process = psutil.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            memory = process.memory_info()
        except psutil.NoSuchProcess:
            break
        peak = max(peak, memory.rss - memory.shared)
        time.sleep(LOOK)
    return {"peak_bytes": peak, "seconds": time.perf_counter() - started, "exit_code": process.wait()}


def show(found: dict, tensors: int, size: int, shard_gb: float) -> None:
    table = Table("conversion", "peak GB", "seconds", "exit code", title=f"{tensors} tensors, {size / 1e9:.2f} GB, files of {shard_gb} GB")
    for name, about in found.items():
        table.add_row(name, f"{about['peak_bytes'] / 1e9:.2f}", f"{about['seconds']:.1f}", str(about["exit_code"]))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
