"""Either half of one RL stage's steps alone, to find out which of them is to blame: `--rollouts-only` samples and verifies and trains
nothing, `--train-only` trains on rollouts that are saved and samples nothing.

Both begin with the weights that the stage begins with, from a run whose earlier stages are done, and write to folders of their own
in its run directory, `rollouts_only/<stage>` and `train_only/<stage>`, which each call makes anew. The manifest is not touched: what
they leave is no part of the cascade. Left out: the scores of what was trained, and going on where such a half was killed.
"""

import dataclasses
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nemo_cascade import sandbox
from nemo_cascade.cascade import data_files, readiness, runner, state, teachers
from nemo_cascade.cascade.config import CascadeConfig, StageConfig
from nemo_cascade.cascade.lock import RunLock
from nemo_cascade.cascade.manifest import Manifest
from nemo_cascade.cascade.plan import (
    RunRefused,
    check_dependencies_done,
    check_names,
    check_unchanged,
    dependencies,
    write_stage_config,
)
from nemo_cascade.data.rows import environment_of
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.engine import parallel
from nemo_cascade.engine.checkpoint import read_info
from nemo_cascade.rollout.types import Group, Rollout
from nemo_cascade.stages.config import LoggerConfig
from nemo_cascade.stages.context import StageRun
from nemo_cascade.stages.rollouts import mean
from nemo_cascade.stages.traces import decoded

ROLLOUTS_ONLY, TRAIN_ONLY = "rollouts_only", "train_only"
# Characters of a sample that are printed, of its prompt's end and of its reply's beginning.
SHOWN = 600


def rollouts_only(cascade: CascadeConfig, only: str | None, steps: int) -> None:
    """Draws and verifies so many steps' rollouts of stage `only` and prints what they are like."""

    def draw(stage_run: StageRun, console: Console) -> None:
        from nemo_cascade.stages import draw

        stage = stage_run.config
        # A narrower cascade, so that other stages' rows are not read.
        known, notes = runner.check_rows(dataclasses.replace(cascade, order=[stage.name], stages={stage.name: stage}))
        runner.tell(console, *notes)
        runner.on_rank_0(lambda: runner.refuse_absent_servers(cascade, [stage.name]))
        sandbox.use(stage.sandbox.url)
        readiness.refuse_broken(stage.name, known[stage.name])
        groups, seconds, verified = draw.run(stage_run, steps)
        if parallel.rank() == 0:
            show(groups, seconds, verified, load_tokenizer(stage.policy.tokenizer.name), console)
            runner.tell(console, f"written: {stage_run.dir / 'rollouts'}, as texts {stage_run.dir / 'traces'}")

    _run(cascade, f"--{ROLLOUTS_ONLY.replace('_', '-')}", only, ROLLOUTS_ONLY, draw)


def train_only(cascade: CascadeConfig, only: str | None, folder: Path) -> None:
    """Trains stage `only` on the rollouts in a folder, as many steps as are there and the stage has."""

    def train(stage_run: StageRun, console: Console) -> None:
        from nemo_cascade.stages import rl

        wanted = stage_run.config.max_num_steps
        saved, steps = runner.on_rank_0(lambda: saved_steps(folder, wanted))
        if steps < wanted:
            runner.tell(console, f"training on steps 1 to {steps} of {wanted}, which are those in {saved}")
        rl.run(dataclasses.replace(stage_run, saved_rollouts=saved, config=shortened(stage_run.config, steps)))
        record = Manifest.load(Path(cascade.run_dir)).stages.get(stage_run.name)
        trained = read_info(final := stage_run.dir / f"step_{steps}")["weights_hash"]
        told = f"written: {final}, weights {trained[:12]}"
        if record is not None and record.checkpoint_hash is not None:
            told += f", {'the same as' if trained == record.checkpoint_hash else 'not'} those that {stage_run.name} ended with in this run"
        runner.tell(console, told)

    _run(cascade, f"--{TRAIN_ONLY.replace('_', '-')}", only, TRAIN_ONLY, train)


def _run(cascade: CascadeConfig, option: str, only: str | None, kind: str, half: Callable[[StageRun, Console], None]) -> None:
    """What both halves need around them. Raises RunRefused on every rank before anything is computed."""
    stage = stage_of(cascade, option, only)
    console = Console(highlight=False, soft_wrap=True)
    parallel.init(stage.policy.megatron_cfg, seed=cascade.seed, timeout=2 * stage.cluster.collective_timeout_minutes)
    lock = RunLock(Path(cascade.run_dir))
    try:
        state.refuse_unwritable([Path(cascade.run_dir)])
        runner.on_rank_0(lock.take)
        manifest = runner.on_rank_0(lambda: begin(cascade, stage))
        state.refuse_damaged(manifest, state.read_by(cascade, manifest, [stage.name]))
        runner.refuse_poor_judge(cascade, stage, manifest)
        directory = Path(cascade.run_dir) / kind / stage.name
        if parallel.rank() == 0:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            write_stage_config(cascade, stage, directory)
        parallel.barrier()
        half(runner.as_begun(cascade, stage, manifest, directory), console)
        parallel.shutdown()
    finally:
        lock.release()


def stage_of(cascade: CascadeConfig, option: str, only: str | None) -> StageConfig:
    """The stage, without what goes on around its steps: validation, and trackers."""
    if only is None:
        raise RunRefused(f"{option}: name its stage with --only")
    check_names(cascade, {"--only": only})
    stage = cascade.stages[only]
    if stage.kind != "rl":
        raise RunRefused(f"{option}: stage {only} is of kind {stage.kind}, which samples nothing; name one of kind rl with --only")
    return dataclasses.replace(
        stage,
        grpo=dataclasses.replace(stage.grpo, val_period=0, val_patience=0),
        checkpointing=dataclasses.replace(stage.checkpointing, metric_name=None),
        logger=LoggerConfig(rollouts_per_step=stage.logger.rollouts_per_step),
    )


def begin(cascade: CascadeConfig, stage: StageConfig) -> Manifest:
    """Rank 0's part: what the stage starts from is there and what it was; the manifest with the stage as it would begin."""
    manifest = Manifest.load(Path(cascade.run_dir))
    for name in cascade.order:
        manifest.add(name)
    runner.check_model_overrides(cascade)
    check_unchanged(cascade, manifest, dependencies(stage))
    check_dependencies_done(cascade, manifest, stage.name)
    if cascade.demo_data is not None and runner.write_demo_rows(cascade.demo_data):
        if changed := data_files.problems(manifest, cascade.order):
            raise RunRefused("\n".join(changed))
    record = manifest.stages[stage.name]
    record.parent = runner.start_of(stage, manifest)
    record.teachers = teachers.resolve(manifest, stage)
    runner.refuse_own_start(stage, record)
    return manifest


def saved_steps(folder: Path, wanted: int) -> tuple[Path, int]:
    """The folder that has the rollouts, this one or the one in it that a stage keeps them in, and the number of steps, at most `wanted`,
    that are there from the first on. Raises RunRefused where one is missing before the last."""
    found = folder / "rollouts" if (folder / "rollouts").is_dir() else folder
    names = [re.fullmatch(r"step_(\d+)\.jsonl", path.name) for path in found.glob("step_*.jsonl")]
    steps = {int(name[1]) for name in names if name}
    if not steps:
        raise RunRefused(f"--train-only {folder}: no rollouts there (step_1.jsonl, ...); name a stage's folder, or its rollouts/")
    last = min(max(steps), wanted)
    missing = [step for step in range(1, last + 1) if step not in steps]
    if missing:
        raise RunRefused(f"{found / f'step_{missing[0]}.jsonl'}: missing; put it back, or draw them again with --rollouts-only")
    return found, last


def shortened(stage: StageConfig, steps: int) -> StageConfig:
    """The first steps of a stage, with the learning rates that they have in all of it."""
    megatron = stage.policy.megatron_cfg
    schedule = dataclasses.replace(
        megatron.scheduler, lr_decay_iters=megatron.scheduler.lr_decay_iters or stage.grpo.max_num_steps
    )
    policy = dataclasses.replace(stage.policy, megatron_cfg=dataclasses.replace(megatron, scheduler=schedule))
    return dataclasses.replace(stage, policy=policy, grpo=dataclasses.replace(stage.grpo, max_num_steps=steps))


# -------------------------------------------------------------------------------- in words


def show(groups: list[Group], seconds: dict[str, float], verified: dict[str, float], tokenizer, console: Console) -> None:
    """A row a domain, what sampling took, and of each domain the best reply of its first prompt."""
    wide = console if console.is_terminal else Console(file=console.file, highlight=False, width=140)
    table = Table(title="rollouts")
    for column in ("domain", "prompts", "replies", "reward", "tokens", "ended by", "verifier"):
        table.add_column(column, justify="left" if column in ("domain", "ended by") else "right")
    by_domain: dict[str, list[Group]] = {}
    for group in groups:
        by_domain.setdefault(group.domain, []).append(group)
    # The workers know environments, which domains may share.
    domains_of = Counter(name for of_domain in by_domain.values() for name in {environment_of(g.row) for g in of_domain})
    for domain, of_domain in by_domain.items():
        rollouts = [rollout for group in of_domain for rollout in group.rollouts]
        ends = Counter(rollout.finish_reason for rollout in rollouts)
        names = {environment_of(group.row) for group in of_domain}
        shared = " (shared)" if any(domains_of[name] > 1 for name in names) else ""
        took = [verified[name] for name in names if name in verified]
        table.add_row(
            domain,
            f"{len(of_domain)}",
            f"{len(rollouts)}",
            f"{mean(rollout.reward for rollout in rollouts):.3f}",
            f"{mean(sum(rollout.written) for rollout in rollouts):.1f}",
            ", ".join(f"{reason} {count}" for reason, count in ends.most_common()),
            f"{sum(took):.3f} s{shared}" if took else "-",
        )
    wide.print(table)
    tokens = sum(sum(rollout.written) for group in groups for rollout in group.rollouts)
    sampling = seconds["generation"] + seconds.get("idle", 0.0)
    parts = ", ".join(f"{part} {taken:.2f}" for part, taken in seconds.items())
    console.print(f"{tokens / max(sampling, 1e-9):,.0f} tokens a second while sampling; seconds: {parts}", markup=False)
    for domain, of_domain in by_domain.items():
        best = max(of_domain[0].rollouts, key=lambda rollout: rollout.reward)
        console.print(Text(sample_text(domain, best, tokenizer)))


def sample_text(domain: str, rollout: Rollout, tokenizer) -> str:
    """A rollout to read, special tokens included."""
    prompt, reply = decoded(tokenizer, rollout.prompt), decoded(tokenizer, rollout.response)
    prompt = prompt if len(prompt) <= SHOWN else f"... {prompt[-SHOWN:]}"
    reply = reply if len(reply) <= SHOWN else f"{reply[:SHOWN]} ..."
    return f"--- {domain}: reward {rollout.reward:g}, {len(rollout.response)} tokens, {rollout.finish_reason}\n{prompt}\n>>> {reply}"
