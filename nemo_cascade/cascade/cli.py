"""Post-training as one cascade of stages: run it, check it, look into it.

A config that is wrong ends with one line a problem on standard error and exit code 2, before torch is imported or a process group
exists. Under torchrun only rank 0 speaks.
"""

import json as json_format
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn, Optional

import typer
from omegaconf import DictConfig

from nemo_cascade import last_words
from nemo_cascade.cascade import data_cli, gate, judge_checks, vllm_checks
from nemo_cascade.cascade.compose import compose_config, in_file
from nemo_cascade.cascade.config import CascadeConfig, ConfigErrors, load_config
from nemo_cascade.cascade.manifest import FILE, Manifest, ManifestError
from nemo_cascade.cascade.strict import did_you_mean
from nemo_cascade.chat.serve import serve
from nemo_cascade.engine.memory import GPUS
from nemo_cascade.evaluation.command import evaluate
from nemo_cascade.scaling.cli import app as scaling_app

EXIT_DOES_NOT_FIT, EXIT_LACKS, EXIT_REFUSED = 1, 1, 2
SECONDS_FOR_RANK_0_TO_SPEAK = 5

Overrides = Annotated[Optional[list[str]], typer.Argument(help="key=value, +key=value or ~key, as in Hydra")]
ConfigName = Annotated[str, typer.Option(help="A shipped config, one in --config-dir, or a .yaml file")]
ConfigDir = Annotated[Optional[Path], typer.Option(help="A folder of your own configs")]
ConfigFile = Annotated[Optional[Path], typer.Option(help="A .yaml file, instead of both above")]


class Remedy(StrEnum):
    """What is done about a row that cannot be used, by the names of `data.on_bad_row`."""

    STOP = "stop"
    SKIP = "skip"


# Plain help: rich's boxes cut long options off and break lines of a docstring's second paragraph where the source does. A
# command's first sentence stands in the list of commands, which cuts it off from 59 characters on.
app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None
)
app.add_typer(data_cli.app, name="data")
app.add_typer(scaling_app, name="scale")


@app.command()
def run(
    overrides: Overrides = None,
    config_name: ConfigName = "tiny",
    config_dir: ConfigDir = None,
    config: ConfigFile = None,
    only: Annotated[Optional[str], typer.Option(metavar="STAGE", help="Run this stage alone")] = None,
    from_stage: Annotated[
        Optional[str],
        typer.Option(metavar="STAGE", help="Repeat this stage and all later ones; old folders move aside"),
    ] = None,
    redo: Annotated[
        Optional[str],
        typer.Option(metavar="STAGE", help="Repeat this stage and those from it, taught or judged by it; old folders move aside"),
    ] = None,
    rollouts_only: Annotated[
        Optional[int],
        typer.Option(min=1, metavar="STEPS", help="Of the RL stage --only: draw and verify rollouts of so many steps, train nothing"),
    ] = None,
    train_only: Annotated[
        Optional[Path],
        typer.Option(metavar="FOLDER", help="Of the RL stage --only: train on the rollouts saved there, sample nothing"),
    ] = None,
) -> None:
    """Run a cascade, or go on with it.

    The same command goes on where a run stopped. For more than one process:

    \b
    torchrun --nproc-per-node=2 -m nemo_cascade run --config-name=tiny
    """
    cascade = load(config_name, config_dir, config, overrides, processes())
    begin(cascade, only, from_stage, redo, rollouts_only, train_only)


def begin(
    cascade: CascadeConfig,
    only: str | None = None,
    from_stage: str | None = None,
    redo: str | None = None,
    rollouts_only: int | None = None,
    train_only: Path | None = None,
) -> None:
    """What `run` does with its config."""
    other = {"--from-stage": from_stage, "--redo": redo, "--rollouts-only": rollouts_only, "--train-only": train_only}
    given = [option for option, value in other.items() if value is not None]
    if len(given) > 1:
        refuse([f"{' and '.join(given)}: give one of them"])
    quiet_logs()
    # Imported late: megatron-core takes seconds, and a typo should not have to wait for it.
    from nemo_cascade.cascade import halves, runner

    if rollouts_only is not None:
        return started(lambda: halves.rollouts_only(cascade, only, rollouts_only))
    if train_only is not None:
        return started(lambda: halves.train_only(cascade, only, train_only))
    started(lambda: runner.run(cascade, only=only, from_stage=from_stage, redo=redo))


@app.command()
def check(
    overrides: Overrides = None,
    config_name: ConfigName = "tiny",
    config_dir: ConfigDir = None,
    config: ConfigFile = None,
    world_size: Annotated[Optional[int], typer.Option(help="Processes the layout must fit")] = None,
    run: Annotated[
        bool,
        typer.Option(
            "--run",
            "--preflight",  # torchrun takes --run for an abbreviation of its own --run-path
            help="Also a step of every stage, on these machines; under torchrun it is called --preflight",
        ),
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask whether judges that are served can be reached")] = False,
) -> None:
    """Say what a config would run, or what is wrong with it.

    Nothing is started. Judges that are served are asked whether they are there. Exit code 2 when something is wrong.
    """
    if run:
        world_size = processes()
    cascade = load(config_name, config_dir, config, overrides, world_size)
    if not offline:
        absent = [*judge_checks.absent_judge(cascade), *judge_checks.absent_judges(cascade, cascade.order)]
        absent += vllm_checks.absent_servers(cascade, cascade.order)
        if absent:
            refuse([f"{line} Start it, or look at the config alone with --offline" for line in absent])
    if run:
        quiet_logs()
        from nemo_cascade.cascade import preflight

        started(lambda: preflight.run(cascade))
        return
    if any(stage.policy.megatron_cfg.model_overrides for stage in cascade.stages.values()):
        quiet_logs()
        # Imported for these alone: megatron-core takes seconds.
        from nemo_cascade.cascade import runner

        try:
            runner.check_model_overrides(cascade)
        except runner.RunRefused as error:
            refuse(str(error).splitlines())
    for number, stage in enumerate(cascade.stages.values(), start=1):
        domains = ", ".join(stage.data.train)
        print(f"{number}  {stage.name}: {stage.kind} on {domains}, from {stage.start}, {stage.max_num_steps} steps")
    for line in gate.blind_lines(cascade):
        print(line)
    print(f"ok: {len(cascade.stages)} stages, run directory {cascade.run_dir}")


@app.command()
def plan(
    overrides: Overrides = None,
    config_name: ConfigName = "full",
    config_dir: ConfigDir = None,
    config: ConfigFile = None,
    world_size: Annotated[Optional[int], typer.Option(min=1, help="GPUs; without it those of `cluster`")] = None,
    gpu: Annotated[Optional[str], typer.Option(help=f"{', '.join(GPUS)}; without it that of `cluster`")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, in bytes")] = False,
    suggest: Annotated[bool, typer.Option(help="Look for the nearest layout that fits")] = True,
) -> None:
    """Say what each rank would hold, and whether that fits.

    Of every stage; needs neither GPU nor data. Exit code 1 when a stage does not fit, 2 when the config or the layout is wrong.
    """
    if gpu is not None and gpu not in GPUS:
        refuse([f"--gpu {gpu}: not one of {', '.join(GPUS)}"])
    cascade = load(config_name, config_dir, config, overrides, world_size, planning=True)
    # The planner builds on no device; a GPU that it could see would be one.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from rich.console import Console

    from nemo_cascade.cascade import capacity
    from nemo_cascade.engine.planner import rank_models

    cluster = next(iter(cascade.stages.values())).cluster
    size = world_size or cluster.num_nodes * cluster.gpus_per_node
    planned = capacity.plan_cascade(cascade, GPUS[gpu or cluster.gpu], size, rank_models, suggest)
    if json:
        print(json_format.dumps(planned.as_dict(), indent=2))
    else:
        # A table that is cut off to the width of a pipe would hide numbers.
        capacity.show(planned, Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200))
    raise SystemExit(0 if planned.fits else EXIT_DOES_NOT_FIT)


@app.command()
def status(
    run_dir: Annotated[Path, typer.Argument(help="The run directory of a cascade")],
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until the run ends")] = False,
) -> None:
    """Show how far a run is.

    Scores by stage and domain, what it is doing now, whether its processes live, and the last verdicts of gates.
    """
    from rich.console import Console

    from nemo_cascade.cascade import live

    manifest_of(run_dir)
    try:
        live.show(run_dir, Console(highlight=False), watch)
    except ManifestError as error:
        refuse([str(error)])


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="The run directory of a cascade")],
    most_rollouts: Annotated[int, typer.Option(min=1, help="At most so many; of more, those of evenly spaced steps")] = 100_000,
) -> None:
    """Write a page about a run, RUN_DIR/report/index.html.

    Everything about it in one file for any browser; the run may still be going on.
    """
    from nemo_cascade.cascade import report_page

    manifest_of(run_dir)
    try:
        print(f"written: {report_page.write(run_dir, most_rollouts)}")
    except OSError as error:
        refuse([f"{run_dir / 'report'}: {error.strerror or error}"])


@app.command()
def doctor(
    overrides: Overrides = None,
    config_name: Annotated[Optional[str], typer.Option(help="A config whose needs are looked at, as for `run`")] = None,
    config_dir: ConfigDir = None,
    config: ConfigFile = None,
) -> None:
    """Say what this machine has, what will be used, and why.

    Exit code 1 when the config needs something that is not here; without a config nothing is missing.
    """
    asked = config_name is not None or config is not None
    cascade = load(config_name or "", config_dir, config, overrides, None, planning=True) if asked else None
    if overrides and not asked:
        refuse(["doctor: key=value changes a config; name one with --config-name"])
    from rich.console import Console

    from nemo_cascade.cascade import doctor

    findings = doctor.examine(cascade)
    doctor.show(findings, Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200))
    lacks = any(finding.missing for finding in findings)
    if not lacks:
        print("ok: nothing is missing that this config needs" if asked else "what a config needs is looked at with --config-name=...")
    raise SystemExit(EXIT_LACKS if lacks else 0)


@app.command()
def teachers(run_dir: Annotated[Path, typer.Argument(help="The run directory of a cascade")]) -> None:
    """Show the best checkpoint of each domain of a run.

    And by how much it is ahead of the main line's end, and what taught the run's students.
    """
    from rich.console import Console

    from nemo_cascade.cascade.gate import GateError
    from nemo_cascade.cascade.teachers import registry

    try:
        tables = registry(manifest_of(run_dir))
    except GateError as error:
        refuse([str(error)])
    for table in tables:
        # A table that is cut off to the width of a pipe would hide numbers.
        Console(width=max(Console().width, Console(width=10_000).measure(table).maximum)).print(table)


@app.command()
def pack(
    files: Annotated[list[Path], typer.Argument(help="JSONL files of SFT rows")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not be there")],
    tokenizer: Annotated[str, typer.Option(help="A shipped tokenizer or a Hugging Face folder")] = "tiny",
    capacity: Annotated[int, typer.Option(min=1, help="Tokens in a pack")] = 262_144,
    tensor_model_parallel_size: Annotated[int, typer.Option(min=1, help="Of the training to come")] = 1,
    context_parallel_size: Annotated[int, typer.Option(min=1, help="Of the training to come")] = 1,
    shuffle_seed: Annotated[
        Optional[int],
        typer.Option(help="Pack in an order shuffled by this, not longest first: each pack is a sample of all files"),
    ] = None,
    on_bad_row: Annotated[Remedy, typer.Option(help="A row that cannot be used")] = Remedy.STOP,
    on_too_long: Annotated[Remedy, typer.Option(help="A document longer than a pack; none is ever cut")] = Remedy.STOP,
) -> None:
    """Pack SFT conversations, once and before training.

    They are tokenised and written as a folder of packed Parquet, which data.train of an SFT stage can name.
    """
    from nemo_cascade.data.packed_dataset import write_packed

    try:
        report = write_packed(
            files,
            out,
            tokenizer,
            capacity,
            tensor_model_parallel_size=tensor_model_parallel_size,
            context_parallel_size=context_parallel_size,
            shuffle_seed=shuffle_seed,
            on_bad_row=on_bad_row,
            on_too_long=on_too_long,
        )
    except ValueError as error:
        refuse(str(error).splitlines())
    if report.too_long or report.skipped_rows:
        counts = f"{len(report.too_long):,} documents longer than a pack and {len(report.skipped_rows):,} bad rows"
        print(f"left out: {counts}; packing.json names them")
    print(
        f"ok: {report.documents:,} documents of {report.shortest:,} to {report.longest:,} tokens in {report.packs:,} "
        f"packs of {report.capacity:,}, {report.efficiency:.2%} of their slots used: {out}"
    )


app.command()(evaluate)
app.command()(serve)


@app.command()
def export_nemo_rl(
    stage: Annotated[str, typer.Argument(metavar="STAGE")],
    out: Annotated[Path, typer.Option(help="The YAML file to write")],
    overrides: Overrides = None,
    config_name: ConfigName = "full",
    config_dir: ConfigDir = None,
    config: ConfigFile = None,
    model: Annotated[Optional[Path], typer.Option(help="A Hugging Face folder to start from, whatever the config says")] = None,
    nemo_rl: Annotated[str, typer.Option(help="NeMo RL's folder where it will run")] = "/opt/nemo-rl",
) -> None:
    """Write a stage as a config that NeMo RL opens.

    What that config cannot say is told, and stands in the file.
    """
    cascade = load(config_name, config_dir, config, overrides, None, planning=True)
    known_stage(cascade, stage)
    from nemo_cascade.cascade.plan import RunRefused
    from nemo_cascade.interop import nemo_rl as door
    from nemo_cascade.interop import starts

    folder = out.absolute().with_suffix("")
    try:
        found = starts.find(cascade, stage, model)
    except (RunRefused, ManifestError) as error:
        refuse(str(error).splitlines())
    exported = door.export(cascade, stage, found, folder, nemo_rl)
    given = [f"--config={config}"] if config else [f"--config-name={config_name}"] + ([f"--config-dir={config_dir}"] if config_dir else [])
    back = ["nemo-cascade", "import-checkpoint", stage, f"{folder}/checkpoints/step_{cascade.stages[stage].max_num_steps}", *given]
    kind = cascade.stages[stage].kind
    commands = [*found.commands, door.launch(kind, nemo_rl, out), shlex.join([*back, *(overrides or [])])]
    out.write_text(exported.text(f"Stage {stage} of {cascade.run_dir}, for NeMo RL.", commands), encoding="utf-8")
    print("\n".join(commands))
    for line in exported.untold:
        print(f"cannot be said there: {line}")
    print(f"ok: {out}")


@app.command()
def import_checkpoint(
    stage: Annotated[str, typer.Argument(metavar="STAGE")],
    folder: Annotated[Path, typer.Argument(help="A step_N of NeMo RL, or a Hugging Face folder")],
    overrides: Overrides = None,
    config_name: ConfigName = "full",
    config_dir: ConfigDir = None,
    config: ConfigFile = None,
) -> None:
    """Take what NeMo RL trained into a run, as a stage.

    It is written in our form, read again, scored and judged by its gate; the next stages start from it.
    """
    cascade = load(config_name, config_dir, config, overrides, processes())
    known_stage(cascade, stage)
    quiet_logs()
    started(lambda: _import(cascade, stage, folder))


def _import(cascade: CascadeConfig, stage: str, folder: Path) -> None:
    from nemo_cascade.interop import import_checkpoint as door

    found = door.find(cascade, stage, folder)
    changes = door.differences(found, cascade, stage)
    manifest = door.run(cascade, stage, found, changes)
    if os.environ.get("RANK", "0") == "0":
        for line in changes:
            print(f"trained otherwise than the export of the stage: {line}")
        print(f"ok: {folder} is stage {stage} of {manifest.run_dir}, {manifest.stages[stage].checkpoint}")


@app.command()
def gym_serve(
    names: Annotated[Optional[list[str]], typer.Argument(metavar="ENVIRONMENT...", help="Which; all without any")] = None,
    host: Annotated[str, typer.Option(help="The address to listen at; whoever reaches it can have replies verified")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8000,
    workers: Annotated[int, typer.Option(help="Processes that verify; 0: one a core")] = 0,
) -> None:
    """Serve environments as NeMo Gym's servers do.

    A reply is verified by POST http://HOST:PORT/ENVIRONMENT/verify, as by NeMo Gym's resources servers.
    """
    import uvicorn

    from nemo_cascade import environments
    from nemo_cascade.environments.serve import application

    served = names or environments.verifying()
    # Before anything is loaded, and before it is said that something is served.
    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        refuse([f"--host {host} --port {port}: {error.strerror or error}; choose another"])
    with listening:
        try:
            app = application(served, workers)
        except KeyError as error:
            refuse([error.args[0]])
        print(f"serving {', '.join(served)} at http://{host}:{listening.getsockname()[1]}/<environment>/verify", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


@app.command()
def sandbox_serve(
    host: Annotated[str, typer.Option(help="The address to listen on; with any but loopback a token must be given")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8700,
    workers: Annotated[Optional[int], typer.Option(min=1, help="Programs at a time; without it the cores")] = None,
    token_file: Annotated[
        Optional[Path], typer.Option(help="A file with the token, instead of NEMO_CASCADE_SANDBOX_TOKEN")
    ] = None,
) -> None:
    """Run programs for trainers on other hosts.

    In this host's sandbox, over HTTP with a bearer token. Without a token one is made and printed.

    Trainers have `sandbox.url` (or NEMO_CASCADE_SANDBOX_URL) and the token in NEMO_CASCADE_SANDBOX_TOKEN.
    """
    import secrets
    import signal

    from nemo_cascade.sandbox import Sandbox, SandboxUnavailable, http_server, wire

    try:
        given = token_file.read_text() if token_file is not None else os.environ.get(wire.TOKEN, "")
    except OSError as error:
        refuse([f"--token-file {token_file}: {error.strerror}"])
    token = given.strip() or secrets.token_urlsafe(32)
    if not given.strip() and not http_server.is_loopback(host):
        refuse([f"--host {host}: others can reach it; set {wire.TOKEN} or --token-file to a token of your own"])
    with Sandbox(workers) as sandbox:
        try:
            probed = sandbox.probe()
            server = http_server.SandboxServer(sandbox, token, host, port)
        except SandboxUnavailable as error:
            refuse([str(error)])
        except OSError as error:
            refuse([f"--host {host} --port {port}: {error.strerror or error}"])
        print(f"ok: {sandbox.workers} programs at a time with Python {probed['python']}, {server.url}", flush=True)
        if not given.strip():
            print(f"{wire.TOKEN}={token}", flush=True)
        # A shell's background job ignores SIGINT unless it says otherwise, and a service is stopped by SIGTERM.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


def processes() -> int:
    """Processes that were started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def known_stage(cascade: CascadeConfig, name: str) -> None:
    """Ends the program when no stage has this name."""
    if name not in cascade.stages:
        refuse([f"unknown stage {name}{did_you_mean(name, cascade.order)}"])


def manifest_of(run_dir: Path) -> Manifest:
    """The manifest of a run directory; ends the program when there is none or it is damaged."""
    if not (run_dir / FILE).is_file():
        refuse([f"{run_dir}: no {FILE}; name the run directory of a cascade (cascade.run_dir)"])
    try:
        return Manifest.load(run_dir)
    except ManifestError as error:
        refuse([str(error)])


def load(
    name: str,
    directory: Path | None,
    file: Path | None,
    overrides: list[str] | None,
    world_size: int | None,
    planning: bool = False,
) -> CascadeConfig:
    """The checked config; ends the program when it is wrong. planning: for machines that this is not one of."""
    try:
        name, directory = place(name, directory, file)
        composed = compose_config(name, overrides or (), directory)
    except ConfigErrors as errors:
        refuse(errors.problems)
    return checked(composed, world_size, planning)


def checked(composed: DictConfig, world_size: int | None, planning: bool = False) -> CascadeConfig:
    """The same of a composed config."""
    try:
        return load_config(composed, world_size, planning)
    except ConfigErrors as errors:
        refuse(errors.problems)


def place(name: str, directory: Path | None, file: Path | None) -> tuple[str, Path | None]:
    """(name, directory) of the config that the options choose together. Raises ConfigErrors where --config names no file."""
    if file is None and directory is None and name.endswith(".yaml") and Path(name).is_file():
        file = Path(name)
    return in_file(file) if file is not None else (name, directory)


def started(action: Callable[[], object]) -> None:
    """Runs what trains; a refusal, or what a disk did, ends the program with its lines, anything else with its traceback."""
    from nemo_cascade.cascade import runner
    from nemo_cascade.cascade.gate import GateError
    from nemo_cascade.data.rows import DataError
    from nemo_cascade.engine import disk
    from nemo_cascade.engine.seal import Damaged
    from nemo_cascade.sandbox import SandboxError

    refusals = (runner.RunRefused, runner.RefusedElsewhere, ManifestError, DataError, SandboxError, GateError)
    try:
        action()
    except (*refusals, disk.DiskError, Damaged) as error:
        refuse(str(error).splitlines())
    except OSError as error:
        if error.errno not in disk.FAULTS:
            raise
        refuse([disk.failed(error)])


def quiet_logs() -> None:
    """Warnings of the package once, and on rank 0 only: every rank reads the same rows, in several stages."""
    told: set[str] = set()

    def first_time(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return text not in told and not told.add(text)

    handler = logging.StreamHandler()
    handler.addFilter(first_time)
    package = logging.getLogger("nemo_cascade")
    package.addHandler(handler)
    package.propagate = False
    if os.environ.get("RANK", "0") != "0":
        package.setLevel(logging.ERROR)


def refuse(lines: list[str]) -> NoReturn:
    """Says why, on rank 0, and exits with code 2."""
    if os.environ.get("RANK", "0") != "0":
        # torchrun stops all ranks as soon as one exits; rank 0 must get its lines out first.
        time.sleep(SECONDS_FOR_RANK_0_TO_SPEAK)
    else:
        told = "\n".join(f"nemo-cascade: {line}" for line in lines)
        print(told, file=sys.stderr, flush=True)
        last_words.leave(told)
    raise SystemExit(EXIT_REFUSED)


def main() -> None:
    """Entry point of the `nemo-cascade` console script."""
    app()
