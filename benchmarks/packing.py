"""How full are packs, and how fast are they planned? Beside TRL's `bfd` packing and a plain first-fit-decreasing.

    pip install -e '.[bench]'
    python benchmarks/packing.py --out packing.json

Lengths are drawn like Nemotron-Cascade 2's SFT data, from a fixed seed; all packers get the same. Planning alone is
measured, from lengths to the documents of each pack. TRL does not part it from moving tokens, and those of a million
documents do not fit into memory: its code runs over lists without content and is spared the moving. No test looks at
what this prints.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from nemo_cascade.data.packing import document_multiple, pack, pack_multiple, round_up

BAR_SLOTS, BAR_SPEED = 0.995, 100_000
CAPACITY = 262_144
TENSOR_PARALLEL, CONTEXT_PARALLEL = 8, 8
SHORTEST = 16
# Thousands of samples (Nemotron-Cascade 2, section 3.2) and their mean tokens. The means of math, science, instruction
# following and safety were measured on released rows, long context's are the paper's. For chat, agents and SWE they are
# the released bytes a row divided by four; code is taken to be as long as math.
DOMAINS = {
    "math": (5_226, 13_500),
    "code": (4_200, 13_500),
    "scientific code": (1_100, 13_500),
    "science": (2_700, 3_800),
    "long context": (160, 128_000),
    "long context, ChatQA-2": (74, 29_000),
    "chat": (10_572, 3_500),
    "instruction following": (791, 947),
    "safety": (4, 959),
    "conversational agent": (822, 5_200),
    "swe": (514, 19_300),
    "terminal agent": (490, 14_900),
}
# Standard deviation of the logarithm: within a domain the longest of 40 is e^2 times the median.
SPREAD = 1.0

Packs = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lengths = draw(args.documents, args.seed)
    trl_bfd([1], CAPACITY)  # imports TRL, which must not count
    padded = [round_up(length, document_multiple(CONTEXT_PARALLEL)) for length in lengths]
    assert CAPACITY % pack_multiple(TENSOR_PARALLEL, CONTEXT_PARALLEL) == 0
    rows = [
        measure("ours, longest first", pack, lengths, lengths),
        measure("ours, in drawn order", partial(pack, decreasing=False), lengths, lengths),
        measure(f"ours, for TP {TENSOR_PARALLEL} and CP {CONTEXT_PARALLEL}", pack, padded, lengths),
        measure("first-fit-decreasing", first_fit_decreasing, lengths, lengths),
        measure("TRL bfd", trl_bfd, lengths, lengths),
    ]
    show(rows, lengths)
    if args.out:
        told = {"documents": args.documents, "tokens": sum(lengths), "seed": args.seed, "rows": rows}
        args.out.write_text(json.dumps(told, indent=2) + "\n")


def draw(count: int, seed: int) -> list[int]:
    """Lengths at random: a domain by its share of samples, lognormal with the domain's mean, clipped to a pack."""
    rng = np.random.default_rng(seed)
    samples, means = np.array(list(DOMAINS.values()), float).T
    chosen = rng.choice(len(DOMAINS), count, p=samples / samples.sum())
    # The mean of a lognormal is exp(mu + sigma^2 / 2).
    drawn = rng.lognormal(np.log(means[chosen]) - SPREAD**2 / 2, SPREAD)
    return drawn.astype(int).clip(SHORTEST, CAPACITY).tolist()


def measure(name: str, packer: Callable[[list[int], int], Packs], lengths: list[int], real: list[int]) -> dict:
    """One row: `lengths` are what is packed, `real` the tokens in them. AssertionError for packs that are none."""
    started = time.perf_counter(), time.process_time()
    packs = packer(lengths, CAPACITY)
    seconds, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    assert sorted(index for chosen in packs for index in chosen) == list(range(len(lengths))), f"{name}: not each once"
    assert max(sum(lengths[index] for index in chosen) for chosen in packs) <= CAPACITY, f"{name}: a pack is too full"
    used = sum(real) / (len(packs) * CAPACITY)
    times = {"seconds": seconds, "cpu": cpu, "speed": len(lengths) / seconds}
    return {"name": name, "packs": len(packs), "used": used, **times}


def first_fit_decreasing(lengths: list[int], capacity: int) -> Packs:
    """Longest first, each into the first pack it fits (Johnson 1973), by a tree of the most room below each node."""
    leaves = 1 << max(len(lengths) - 1, 1).bit_length()
    room = [capacity] * (2 * leaves)
    packs: Packs = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < lengths[index]:
                node += 1
        if node - leaves == len(packs):
            packs.append([])
        packs[node - leaves].append(index)
        room[node] -= lengths[index]
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return packs


def trl_bfd(lengths: list[int], capacity: int) -> Packs:
    """What `trl.pack_dataset(strategy="bfd")` puts together when it gets all documents in one batch."""
    import pyarrow as pa
    from trl import data_utils

    order = []

    class WithoutMoving:
        """pyarrow.compute as TRL uses it, but that token lists stay where they are; notes the order they would get."""

        def __getattr__(self, name: str):
            return getattr(pa.compute, name)

        def filter(self, values, mask):
            return values

        def list_slice(self, values, start, stop):
            return values

        def take(self, table, indices):
            order.extend(indices)
            sizes = pa.compute.take(table["seq_lengths"], pa.array(indices))
            return pa.table({"input_ids": table["input_ids"], "seq_lengths": sizes})

    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]))
    documents = pa.LargeListArray.from_arrays(offsets, pa.nulls(sum(lengths)))
    compute, data_utils.pc = data_utils.pc, WithoutMoving()
    try:
        table = data_utils._pack_bfd(pa.table({"input_ids": documents}), capacity)
    finally:
        data_utils.pc = compute
    ends = np.cumsum([len(sizes) for sizes in table["seq_lengths"]])
    return [[int(index) for index in chosen] for chosen in np.split(np.array(order), ends[:-1])]


def show(rows: list[dict], lengths: list[int]) -> None:
    """All packers, then the bars, which are for the first row."""
    fewest = -(-sum(lengths) // CAPACITY)
    table = Table("packer", "packs", "slots used", "documents/s", "s", "CPU s", title=f"{len(lengths):,} documents")
    for row in rows:
        figures = f"{row['packs']:,} {row['used']:.4%} {row['speed']:,.0f} {row['seconds']:.1f} {row['cpu']:.1f}"
        table.add_row(row["name"], *figures.split())
    ours, others = rows[0], rows[3:]
    holds = {
        f"at least {BAR_SLOTS:.1%} of slots used": ours["used"] >= BAR_SLOTS,
        f"at least {BAR_SPEED:,} documents/s": ours["speed"] >= BAR_SPEED,
        "never more packs than the others": all(ours["packs"] <= row["packs"] for row in others),
    }
    console = Console(width=110)
    console.print(table)
    mean = sum(lengths) / len(lengths)
    console.print(f"{sum(lengths):,} tokens, mean {mean:,.0f}; fewer than {fewest:,} packs cannot hold them")
    console.print("; ".join(f"{bar}: {'holds' if held else 'missed'}" for bar, held in holds.items()))


if __name__ == "__main__":
    main()
