"""Writes rows with long contexts: python -m nemo_cascade.data.long_context --out FILE --lengths 4096 8192."""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track

from nemo_cascade.data.long_context import TASKS, rows, write
from nemo_cascade.data.tokenizer import load_tokenizer


def parser() -> argparse.ArgumentParser:
    width = max(map(len, TASKS))
    table = "\n".join(f"  {name:<{width}}  {task.description}" for name, task in TASKS.items())
    described = argparse.ArgumentParser(
        prog="python -m nemo_cascade.data.long_context",
        description=__doc__,
        epilog=f"tasks:\n{table}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    described.add_argument("--out", type=Path, required=True, help="the JSONL file")
    described.add_argument("--tokenizer", default="tiny", help="a shipped tokenizer or a Hugging Face folder (tiny)")
    described.add_argument("--lengths", type=int, nargs="+", required=True, help="tokens of a prompt, chat template included")
    names = list(TASKS)
    described.add_argument("--tasks", nargs="+", choices=names, default=names, metavar="TASK", help="see below (all)")
    described.add_argument("--rows", type=int, default=10, help="rows of each task at each length (10)")
    described.add_argument("--seed", type=int, default=0, help="another one for rows that were not seen in training (0)")
    return described


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    total = options.rows * len(options.tasks) * len(options.lengths)
    if total < 1 or min(options.lengths) < 1:
        parser().error("--rows and --lengths must be at least 1")
    lengths = []
    try:
        made = rows(options.tasks, load_tokenizer(options.tokenizer), options.lengths, options.rows, options.seed)
        shown = track(made, "rows", total=total, console=Console(stderr=True), disable=not sys.stderr.isatty())
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write(options.out, (lengths.append(row["length"]) or row for row in shown))
    except (ValueError, OSError) as error:
        print(f"{options.out} is not written: {error}", file=sys.stderr)
        return 2
    size = os.path.getsize(options.out) / 1e6
    print(
        f"{options.out}: {total} rows, {len(options.tasks)} tasks at {len(options.lengths)} lengths, "
        f"{min(lengths):,} to {max(lengths):,} tokens, {size:.1f} MB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
