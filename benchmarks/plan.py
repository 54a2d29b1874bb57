"""How long does it take to plan the full Nano under many layouts, and do the ranks add up to the model?

    python benchmarks/plan.py --out plan.json

Every layout is measured and estimated for packs of 262,144 tokens on each known GPU. The time, on the clock and of the
CPU, includes importing torch and megatron-core. No test looks at what this prints.
"""

import argparse
import json
import os
import time

STARTED = time.perf_counter()
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from pathlib import Path  # noqa: E402

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from nemo_cascade.cascade.capacity import gib, layout_name, layout_of  # noqa: E402
from nemo_cascade.engine.config import MegatronConfig, PolicyConfig, layout_problems  # noqa: E402
from nemo_cascade.engine.memory import GPUS, Work, requirement  # noqa: E402
from nemo_cascade.engine.planner import rank_models  # noqa: E402
from nemo_cascade.models.presets import get_preset  # noqa: E402

BAR_SECONDS, BAR_LAYOUTS, PARAMETERS = 60, 20, 31_577_937_344
PACK = 262_144
# World size, then tensor, pipeline, context, expert and expert-tensor parallel.
LAYOUTS = [
    (1, 1, 1, 1, 1, None),
    (8, 1, 1, 1, 8, None),
    (8, 2, 1, 1, 8, None),
    (8, 8, 1, 1, 8, None),
    (16, 2, 2, 1, 8, None),
    (32, 1, 1, 8, 8, None),
    (64, 2, 1, 4, 8, None),
    (64, 4, 4, 1, 16, None),
    (128, 2, 2, 4, 8, None),
    (128, 1, 1, 16, 32, None),
    (128, 4, 1, 8, 16, 2),
    (256, 2, 2, 4, 8, None),
    (256, 2, 1, 4, 8, None),
    (256, 2, 1, 8, 8, None),
    (256, 8, 2, 2, 128, None),
    (512, 2, 1, 8, 8, None),
    (512, 4, 4, 4, 32, None),
    (512, 2, 1, 8, 128, None),
    (1024, 2, 2, 4, 8, None),
    (1024, 2, 1, 8, 8, None),
    (1024, 8, 4, 8, 16, 2),
    (1024, 2, 4, 8, 64, None),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    imported = time.perf_counter() - STARTED
    rows = [measure(*layout) for layout in LAYOUTS]
    seconds, cpu = time.perf_counter() - STARTED, time.process_time()
    found = {"imports": imported, "seconds": seconds, "cpu_seconds": cpu, "rows": rows}
    show(found)
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n")


def measure(world_size: int, tensor: int, pipeline: int, context: int, expert: int, expert_tensor: int | None) -> dict:
    """One layout: its ranks, how long they took, and on which GPUs they fit. AssertionError for an illegal one."""
    cfg = MegatronConfig(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        context_parallel_size=context,
        expert_model_parallel_size=expert,
        expert_tensor_parallel_size=expert_tensor,
        sequence_parallel=tensor > 1,
        activation_checkpointing=True,
    )
    assert not layout_problems(cfg, world_size), layout_problems(cfg, world_size)
    config = PolicyConfig(model_name="nano_30b_a3b", precision="bfloat16", megatron_cfg=cfg)
    started, cpu_started = time.perf_counter(), time.process_time()
    ranks = rank_models(config, world_size)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    model, layout, work = get_preset(config.model_name), layout_of(cfg), Work(PACK, pipeline)
    peaks = [requirement(model, rank, work, layout).peak for rank in ranks]
    return {
        "ranks": world_size,
        "layout": layout_name(layout),
        "kinds": len(ranks),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "whole": sum(rank.whole for rank in ranks),
        "parameters": [rank.parameters for rank in ranks],
        "peak": max(peaks),
        "fits": [name for name, gpu in GPUS.items() if max(peaks) <= gpu.memory],
    }


def show(found: dict) -> None:
    """All layouts, then the bars."""
    heads = ("ranks", "layout", "built", "s", "CPU s", "most parameters", "peak GiB", "fits")
    table = Table(*heads, title=f"packs of {PACK:,} tokens")
    for row in found["rows"]:
        most, fits = f"{max(row['parameters']) / 1e9:.3f} B", ", ".join(row["fits"]) or "none"
        counts = str(row["ranks"]), row["layout"], str(row["kinds"])
        times = f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}"
        table.add_row(*counts, *times, most, gib(row["peak"]), fits)
    count, seconds = len(found["rows"]), found["seconds"]
    quick = count >= BAR_LAYOUTS and seconds <= BAR_SECONDS
    holds = {
        f"{count} layouts, at least {BAR_LAYOUTS}, in at most {BAR_SECONDS} s": quick,
        f"each adds up to {PARAMETERS:,} parameters": all(row["whole"] == PARAMETERS for row in found["rows"]),
    }
    console = Console(width=120)
    console.print(table)
    console.print(f"{seconds:.1f} s in all, {found['imports']:.1f} s of them imports")
    console.print(f"{found['cpu_seconds']:.1f} s of CPU")
    console.print("; ".join(f"{bar}: {'holds' if held else 'missed'}" for bar, held in holds.items()))


if __name__ == "__main__":
    main()
