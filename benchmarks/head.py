"""What do log-probs of a large vocabulary cost? The head in chunks beside all logits at once, forwards and backwards.

    python benchmarks/head.py --hidden 512
    python benchmarks/head.py --types float32 bfloat16 --hidden 512 2688 --repeats 2 --out head.json

All at once is: logits = hidden @ weight.T, log_softmax in float32, gather; about 13 GB for 8,192 tokens of 131,072 ids.
The chunks are told the slope of the loss beforehand, as the policy does, or not. Every side is a process of its own.
Extra memory is its peak less what it held when hidden states, weight and labels were there; the gradients of hidden
states and weight, which any way must have, are a part of it. Every log-prob and every number of both gradients is then
compared with the first side's. Where other programs take part of the machine, CPU seconds say more than seconds. No
test looks at what this prints.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

SIDES = ("all at once", "chunks, slope told", "chunks")
MEMORY_BAR, TIME_BAR = 1 / 8, 1.2
# How far the sides' log-probs and gradients may be apart, relative: the norm of the difference to the norm, and the
# largest difference to the largest number.
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2}
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocab", type=int, default=131072)
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 2688])
    parser.add_argument("--types", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--scratch", type=Path, help="where the sides leave their gradients until they are compared")
    args = parser.parse_args()
    found = []
    for kind in args.types:
        for hidden in args.hidden:
            size = dict(tokens=args.tokens, vocab=args.vocab, hidden=hidden, kind=kind)
            with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
                files = {side: Path(folder) / f"{number}.pt" for number, side in enumerate(args.sides)}
                measured = {side: in_a_process(side, args.repeats, files[side], **size) for side in args.sides}
                check(measured, files, TOLERANCES[kind])
            show(size, measured)
            found.append(size | {"sides": measured})
            if args.out:
                args.out.write_text(json.dumps(found, indent=1))


def in_a_process(side: str, repeats: int, file: Path, **size) -> dict:
    """What `measure` returns, in a fresh process; BrokenProcessPool if it was killed, as for want of memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, side, repeats, file, **size).result()


def measure(side: str, repeats: int, file: Path, *, tokens: int, vocab: int, hidden: int, kind: str) -> dict:
    """Extra bytes at the peak, bytes of the gradients, (seconds, CPU seconds) of each repeat; results lie in file."""
    import psutil
    import torch

    # Before the memory is looked at, as it brings megatron-core with it.
    import nemo_cascade.engine.head  # noqa: F401

    torch.manual_seed(0)
    dtype = getattr(torch, kind)
    states = torch.empty(tokens, hidden, dtype=dtype).normal_().requires_grad_()
    weight = torch.empty(vocab, hidden, dtype=dtype).normal_(std=hidden**-0.5).requires_grad_()
    labels, factors = torch.randint(vocab, (tokens,)), torch.randn(tokens)
    before, spent = psutil.Process().memory_info().rss, []
    for _ in range(repeats):
        states.grad = weight.grad = None
        started = time.perf_counter(), time.process_time()
        logprobs = logprobs_of(side, states, weight, labels, factors)
        (logprobs * factors).sum().backward()
        spent.append([now - then for now, then in zip((time.perf_counter(), time.process_time()), started)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.save({"log-probs": logprobs.detach(), "hidden states": states.grad, "weight": weight.grad}, file)
    return {
        "extra_bytes": peak - before,
        "gradient_bytes": states.grad.nbytes + weight.grad.nbytes,
        "seconds": spent,
    }


def logprobs_of(side: str, states, weight, labels, factors):
    """Log-probs [tokens]; factors [tokens] are the slope of the loss."""
    from nemo_cascade.engine.head import label_logprobs

    if side == "all at once":
        logits = states @ weight.T
        return logits.float().log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    slope = (lambda _, chunk: factors[chunk]) if side == "chunks, slope told" else None
    return label_logprobs(states, weight, labels, slope=slope)[0]


def check(measured: dict, files: dict[str, Path], tolerance: float) -> None:
    """Adds to each side how far its results are from the first's; AssertionError where that is more than tolerance."""
    import torch

    expected, *others = (torch.load(file, mmap=True) for file in files.values())
    for side, results in zip([*measured][1:], others):
        errors = {name: apart(results[name], expected[name]) for name in expected}
        measured[side]["errors"] = errors
        for name, found in errors.items():
            assert max(found) <= tolerance, f"{side}: {name} {found} from {next(iter(files))}, more than {tolerance}"


def apart(one, other) -> tuple[float, float]:
    """(norm of the difference / norm of other, largest difference / largest number of other), in float64."""
    squares, largest = [0.0, 0.0], [0.0, 0.0]
    for piece, against in zip(one.split(1024), other.split(1024), strict=True):
        against = against.double()
        for number, values in enumerate((piece.double() - against, against)):
            squares[number] += float(values.square().sum())
            largest[number] = max(largest[number], float(values.abs().max()))
    return (squares[0] / squares[1]) ** 0.5, largest[0] / largest[1]


def show(size: dict, measured: dict) -> None:
    """A row a side: memory, time, and both as shares of the first side's."""
    title = "{tokens:,} tokens, {vocab:,} ids, hidden size {hidden:,}, {kind}".format(**size)
    columns = ("", "extra GiB", "of these gradients", "share", "fastest s", "share", "CPU s", "share", "apart")
    table = Table(*columns, title=title)
    first = next(iter(measured.values()))
    fastest = {side: [min(times) for times in zip(*found["seconds"])] for side, found in measured.items()}
    for side, found in measured.items():
        shares = [one / other for one, other in zip(fastest[side], next(iter(fastest.values())))]
        memory = found["extra_bytes"] / first["extra_bytes"]
        table.add_row(
            side,
            f"{found['extra_bytes'] / GIB:.2f}",
            f"{found['gradient_bytes'] / GIB:.2f}",
            f"1/{1 / memory:.1f}",
            *(text for spent, share in zip(fastest[side], shares) for text in (f"{spent:.1f}", f"{share:.2f}")),
            f"{max(max(pair) for pair in found['errors'].values()):.0e}" if "errors" in found else "",
        )
    console = Console(width=110)
    console.print(table)
    console.print(f"bars: {MEMORY_BAR:.3f} of the memory, {TIME_BAR} times the time\n")


if __name__ == "__main__":
    main()
