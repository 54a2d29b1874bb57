"""`nemo-cascade scale`: problems in, what more computing makes of them out."""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from nemo_cascade.cascade.strict import ConfigErrors

EXIT_INTERRUPTED = 130

app = typer.Typer(
    help="Spend more computing on one answer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

Problems = Annotated[Path, typer.Argument(help="A JSONL file, a problem a line (docs/scaling.md)")]
Overrides = Annotated[Optional[list[str]], typer.Argument(help="key=value, as endpoint.base_url=http://localhost:8000/v1")]
Out = Annotated[Path, typer.Option(help="The folder for journal.jsonl and results.json; the same command goes on there")]
ConfigFile = Annotated[Optional[Path], typer.Option(help="A .yaml file with these keys")]


@app.command()
def best_of_n(problems: Problems, out: Out, overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Draw n replies to each prompt and choose one.

    By the reward of the row's environment, or the answer that most replies give.
    """
    _scale("best_of_n", problems, out, overrides, config)


@app.command()
def refine(problems: Problems, out: Out, overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Generate proofs, verify and refine them.

    In rounds, until the model's own verifications find nothing more to criticise.
    """
    _scale("refine", problems, out, overrides, config)


@app.command()
def ioi(problems: Problems, out: Out, overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Solve contest problems subtask by subtask.

    In rounds, with earlier submissions and their verdicts in the prompt; scores as at the IOI.
    """
    _scale("ioi", problems, out, overrides, config)


@app.command()
def icpc(problems: Problems, out: Out, overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Submit programs until one is accepted.

    Problems solved and penalty minutes as at the ICPC.
    """
    _scale("icpc", problems, out, overrides, config)


def _scale(method: str, file: Path, out: Path, overrides: list[str] | None, config_file: Path | None) -> None:
    from nemo_cascade.cascade.cli import quiet_logs, refuse
    from nemo_cascade.scaling.config import load_scale_config
    from nemo_cascade.scaling.problems import load_problems
    from nemo_cascade.scaling.types import ScalingRefused

    try:
        config = load_scale_config(method, config_file, overrides or [])
        problems = load_problems(file, method)
    except ConfigErrors as errors:
        refuse(errors.problems)
    except ScalingRefused as error:
        refuse(str(error).splitlines())
    quiet_logs()
    # Imported late: an engine needs torch, and a typo should not have to wait for it.
    from rich.console import Console

    from nemo_cascade.engine import disk
    from nemo_cascade.environments.workers import Verifiers
    from nemo_cascade.scaling import proposers
    from nemo_cascade.scaling.graders import EnvironmentGrader
    from nemo_cascade.scaling.run import RESULTS, run, table, told_total

    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
    try:
        if config.endpoint is not None:
            proposer = proposers.EndpointProposer(config.endpoint, config.seed, config.thinking)
            if (trouble := proposer.endpoint.trouble()) is not None:
                refuse([trouble])
        else:
            proposer = proposers.engine_proposer(config.policy, config.checkpoint, config.seed, config.thinking)
        with Verifiers() as verifiers:
            results = run(method, problems, config, proposer, EnvironmentGrader(verifiers), out, console)
    except ScalingRefused as error:
        refuse(str(error).splitlines())
    except OSError as error:
        if error.errno not in disk.FAULTS:
            raise
        refuse([f"{out}: {error.strerror}; make room or mend the disk, and the same command goes on"])
    except KeyboardInterrupt:
        print(f"nemo-cascade: stopped; the same command goes on from {out}", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    console.print(table(results))
    print(f"ok: {told_total(results)}: {out / RESULTS}")
