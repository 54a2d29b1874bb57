"""`nemo-cascade data`: which data sets were released, and making of them what stages read."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(help="Released data sets, made into what stages read.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_sets() -> None:
    """List the released sets, their subsets and the stages they feed."""
    from nemo_cascade.data.prepare.catalogue import SETS

    for released in SETS:
        print(f"{released.name}: {released.kind} rows, {released.repository} @ {released.revision or 'no revision pinned'}")
        for subset in released.subsets:
            rows = f"{subset.rows:,}" if subset.rows is not None else "?"
            print(f"  {subset.name:<22} {rows:>12} rows  {subset.stage:<16} {subset.what}")


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(metavar="SET", help="A set of `nemo-cascade data list`, by its name or repository")],
    out: Annotated[Path, typer.Option(help="The folder to write; one that was begun is gone on with")],
    from_folder: Annotated[
        Optional[Path], typer.Option("--from", help="A folder with the set's files; without it they are read from the hub")
    ] = None,
    subset: Annotated[Optional[list[str]], typer.Option(help="Only this; may be given more than once")] = None,
    revision: Annotated[Optional[str], typer.Option(help="Another commit of the repository than the pinned one")] = None,
    limit: Annotated[Optional[int], typer.Option(min=1, help="Read so many rows of each subset")] = None,
    evaluation: Annotated[
        Optional[Path], typer.Option(help="A folder of evaluation prompts, JSONL or Parquet; rows that repeat one are dropped")
    ] = None,
    validation_share: Annotated[float, typer.Option(min=0.0, max=0.99, help="RL: of all prompts, by their hash")] = 0.02,
    without: Annotated[Optional[list[str]], typer.Option(metavar="ENVIRONMENT", help="RL: leave its rows out")] = None,
    gym_server: Annotated[
        Optional[list[str]], typer.Option(metavar="NAME", help="RL: rows of this server of NeMo Gym are kept; it will verify them")
    ] = None,
    tokenizer: Annotated[str, typer.Option(help="SFT: a shipped tokenizer or a Hugging Face folder")] = "tiny",
    capacity: Annotated[int, typer.Option(min=1, help="SFT: tokens in a pack")] = 262_144,
    tensor_model_parallel_size: Annotated[int, typer.Option(min=1, help="SFT: of the training to come")] = 1,
    context_parallel_size: Annotated[int, typer.Option(min=1, help="SFT: of the training to come")] = 1,
    shuffle_seed: Annotated[int, typer.Option(help="SFT: of the order in which a part is packed")] = 0,
    part_rows: Annotated[int, typer.Option(min=1, help="Rows of a part; a kill costs one part")] = 20_000,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the output does not depend on it")] = 1,
) -> None:
    """Make packed shards (SFT) or JSONL with splits (RL) of a released set.

    The same command goes on where it was killed. What was dropped, and why, is in OUT/dropped.jsonl, the counts in OUT/prepare.json.
    """
    # Of whichever HTTP client the hub's package is built on; not all of its errors are OSErrors.
    from huggingface_hub.errors import HTTPError
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from nemo_cascade.cascade.cli import refuse
    from nemo_cascade.data.prepare import catalogue
    from nemo_cascade.data.prepare.convert import Rules
    from nemo_cascade.data.prepare.report import config_keys, table
    from nemo_cascade.data.prepare.run import Job, prepare
    from nemo_cascade.sandbox import SandboxError

    try:
        released = catalogue.find(name)
        chosen = tuple(dict.fromkeys(subset or [each.name for each in released.subsets]))
        expected = [released.subset(each).rows for each in chosen]
    except KeyError as error:
        refuse([error.args[0]])
    is_sft = released.kind == "sft"
    rules = Rules(
        tokenizer=tokenizer if is_sft else None,
        capacity=capacity,
        evaluation=evaluation,
        validation_share=validation_share,
        without=tuple(without or ()),
        gym_servers=tuple(gym_server or ()),
    )
    job = Job(
        released,
        chosen,
        rules,
        folder=str(from_folder) if from_folder is not None else None,
        revision=revision,
        limit=limit,
        part_rows=part_rows,
        tensor_model_parallel_size=tensor_model_parallel_size,
        context_parallel_size=context_parallel_size,
        shuffle_seed=shuffle_seed,
    )
    known = None if None in expected else sum(min(rows, limit or rows) for rows in expected)
    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    terminal = Console(stderr=True)
    try:
        with Progress(*columns, console=terminal, disable=not terminal.is_terminal) as progress:
            bar = progress.add_task("", total=known)
            report = prepare(job, out, workers, lambda rows: progress.advance(bar, rows))
    except (ValueError, SandboxError) as error:
        refuse(str(error).splitlines())
    except (OSError, HTTPError) as error:
        refuse([f"{' '.join(str(error).split())}; the same command goes on where this ended"])
    shown = table(report)
    Console(width=None if sys.stdout.isatty() else max(120, Console(width=10_000).measure(shown).maximum)).print(shown)
    print("\n".join(["for a config:", *map(shlex.quote, config_keys(report, released, out)), f"ok: {out}"]))
