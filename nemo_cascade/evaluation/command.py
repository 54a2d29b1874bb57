"""`nemo-cascade evaluate`."""

import os
import signal
from pathlib import Path
from typing import Annotated, Optional

import typer

Overrides = Annotated[
    Optional[list[str]],
    typer.Argument(metavar="[KEY=VALUE]...", help="For --checkpoint and --hf: keys of policy, as policy.generation.backend=vllm"),
]
INCOMPLETE, INTERRUPTED = 1, 130


def evaluate(
    overrides: Overrides = None,
    suite: Annotated[str, typer.Option(help="Suites or benchmarks, commas between; without any they are listed")] = "",
    checkpoint: Annotated[Optional[Path], typer.Option(help="A step_N of a stage, in this process or under torchrun")] = None,
    hf: Annotated[Optional[Path], typer.Option(help="A Hugging Face folder, the same way")] = None,
    endpoint: Annotated[Optional[str], typer.Option(help="An OpenAI-compatible URL; ends in /v1 as a rule")] = None,
    model: Annotated[Optional[str], typer.Option(help="The endpoint's name of the model")] = None,
    key_env: Annotated[Optional[str], typer.Option(help="The variable that has the endpoint's key")] = None,
    data: Annotated[Optional[Path], typer.Option(help="A folder of BENCHMARK.jsonl; without it demo rows")] = None,
    out: Annotated[Path, typer.Option(help="Replies, verdicts and results; the same again goes on there")] = Path("evaluation"),
    judge: Annotated[Optional[str], typer.Option(help="URL of a judge, where replies need one")] = None,
    judge_model: Annotated[Optional[str], typer.Option(help="The judge's name of its model")] = None,
    judge_key_env: Annotated[Optional[str], typer.Option(help="The variable that has the judge's key")] = None,
    samples: Annotated[Optional[int], typer.Option(min=1, help="Replies to a prompt, for the benchmark's own")] = None,
    max_tokens: Annotated[Optional[int], typer.Option(min=1, help="Tokens of a reply, for the benchmark's own")] = None,
    temperature: Annotated[Optional[float], typer.Option(min=0.0, help="For the benchmark's own")] = None,
    top_p: Annotated[Optional[float], typer.Option(min=0.0, max=1.0, help="For the benchmark's own")] = None,
    limit: Annotated[Optional[int], typer.Option(min=1, help="The first so many prompts of each benchmark")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to an endpoint at a time")] = 64,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds for an answer of an endpoint")] = 7200.0,
) -> None:
    """Score a model on benchmarks, beside the paper's.

    Of a checkpoint, a Hugging Face folder or an endpoint. A killed one goes on by the same command, and asks for no reply twice.
    Exit code 1 when replies or verdicts are missing, 2 when something is refused.

    \b
    nemo-cascade evaluate --suite math --endpoint http://host:8000/v1 --model M
    """
    from rich.console import Console

    from nemo_cascade.cascade.cli import quiet_logs, refuse
    from nemo_cascade.cascade.plan import RunRefused
    from nemo_cascade.data.rows import DataError
    from nemo_cascade.environments.endpoint import EndpointConfig, EndpointError
    from nemo_cascade.environments.workers import Verifiers
    from nemo_cascade.evaluation import results, run
    from nemo_cascade.evaluation.benchmarks import SUITES, chosen
    from nemo_cascade.sandbox import SandboxError

    console = Console(highlight=False, soft_wrap=True)
    if not suite:
        return _list(console, SUITES)
    quiet_logs()
    try:
        benchmarks = chosen([name.strip() for name in suite.split(",") if name.strip()])
    except KeyError as error:
        known = ", ".join([*SUITES, "all"])
        refuse([f"--suite: no suite or benchmark {error.args[0]}; suites are {known}; without --suite all are listed"])
    wrong = _contradictions(checkpoint, hf, endpoint, model, judge, judge_model, overrides)
    if wrong:
        refuse(wrong)
    # What asks a process to stop is Ctrl-C's way out, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    asked_judge = None
    if judge is not None:
        # A judge is to say the same of the same.
        asked_judge = EndpointConfig(judge, judge_model, judge_key_env, temperature=0.0, concurrency=concurrency, timeout=timeout)
    changed = dict(samples=samples, max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    try:
        parts = run.asked(benchmarks, data, limit, changed, judge is not None)
        if endpoint is not None:
            from nemo_cascade.evaluation.served import Served

            source = Served(EndpointConfig(endpoint, model, key_env, concurrency=concurrency, timeout=timeout))
            if trouble := source.trouble():
                refuse([f"--endpoint: {trouble}"])
        else:
            from nemo_cascade.evaluation import checkpoint as weights

            source = weights.of_stage(checkpoint, overrides or []) if hf is None else weights.of_folder(hf, overrides or [])
        with Verifiers() as verifiers:
            found = run.evaluate(parts, source, verifiers, out, console, asked_judge)
        source.close()
    except (RunRefused, DataError, EndpointError, SandboxError) as error:
        refuse(str(error).replace("cascade.run_dir", "--out").splitlines())
    except KeyboardInterrupt:
        console.print(f"stopped; what was answered is in {out}, and the same command goes on", markup=False)
        raise SystemExit(INTERRUPTED) from None
    if source.rank == 0:
        # A table that is cut off to the width of a pipe would hide numbers.
        Console(width=max(console.width, 160), highlight=False).print(results.table(found))
        for line in [*results.remarks(found), f"written: {out / results.FILE}"]:
            console.print(line, markup=False)
    raise SystemExit(INCOMPLETE if any(result.unscored for result in found) else 0)


def _contradictions(checkpoint, hf, endpoint, model, judge, judge_model, overrides) -> list[str]:
    """What is wrong with the options, a line each."""
    named = {"--checkpoint": checkpoint, "--hf": hf, "--endpoint": endpoint}
    given = [option for option, value in named.items() if value is not None]
    wrong = []
    if len(given) != 1:
        wrong.append(f"{' and '.join(given) or 'nobody to ask'}: give one of --checkpoint DIR, --hf FOLDER, --endpoint URL --model NAME")
    if (endpoint is None) != (model is None):
        wrong.append("--endpoint and --model belong together")
    if (judge is None) != (judge_model is None):
        wrong.append("--judge and --judge-model belong together")
    if endpoint is not None and overrides:
        wrong.append(f"{' '.join(overrides)}: keys of policy are for --checkpoint and --hf")
    if endpoint is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        wrong.append("--endpoint: one process asks it; leave torchrun out")
    return wrong


def _list(console, suites: dict) -> None:
    """The suites with their benchmarks, and what file each wants."""
    for suite, benchmarks in suites.items():
        console.print(suite, markup=False)
        for benchmark in benchmarks:
            console.print(f"  {benchmark.name} ({benchmark.metric}; {benchmark.settings.source})", markup=False)
            console.print(f"      --data FOLDER/{benchmark.name}.jsonl: {benchmark.rows}", markup=False)
