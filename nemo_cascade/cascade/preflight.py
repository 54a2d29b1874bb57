"""`nemo-cascade check --run`: minutes on the machines of a run instead of a surprise in its second week.

Every stage's own loop makes one small step with real rows, from the checkpoints that the stages before it wrote here, so that all
that a run does happens once: process groups, weights read and written, sampling, verifiers, sandbox, judges, teachers. Then the
written checkpoint is read by a fresh policy, which takes a step, and samples, at the longest length of the stage. What it
writes goes into a folder beside the run directory and is removed, what a kill left by the next pre-flight; only demo rows stay, where
the run would write them.

Left out: whether anything learns, and how fast.
"""

import dataclasses
import gc
import math
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from rich.console import Console
from rich.table import Table

from nemo_cascade import heartbeat
from nemo_cascade.cascade import operation, runner
from nemo_cascade.cascade.checks import AUTO
from nemo_cascade.cascade.config import CascadeConfig, StageConfig, Teacher
from nemo_cascade.cascade.manifest import PENDING, Manifest
from nemo_cascade.cascade.plan import RunRefused, check_unchanged
from nemo_cascade.data.sample import Sample
from nemo_cascade.engine import checkpoint, parallel
from nemo_cascade.engine.policy import Policy
from nemo_cascade.rollout.engine import generate_global
from nemo_cascade.rollout.types import Request, SamplingParams
from nemo_cascade.stages.config import LoggerConfig
from nemo_cascade.stages.context import StageRun
from nemo_cascade.stages.loss import make_loss
from nemo_cascade.stages.rl import Question, ask, rollout_sample
from nemo_cascade.stages.rollouts import make_engine
from nemo_cascade.stages.sft import sft_loss

# New tokens of a reply, replies to a prompt and validation prompts of a domain: enough for every part to have something to do.
NEW_TOKENS, REPLIES, PROMPTS = 32, 2, 1
# NeMo RL's bound for the mismatch between the probabilities of sampling and of training.
MISMATCH = 1.05


@dataclass
class Outcome:
    """One stage's pre-flight. memory: the most bytes that a rank held. mismatch: token_mult_prob_error, None where nothing is sampled."""

    stage: str
    step_seconds: float
    longest_tokens: int
    longest_seconds: float
    checkpoint_bytes: int
    memory: int
    mismatch: float | None


def run(cascade: CascadeConfig) -> list[Outcome]:
    """All stages in their order. Raises what a run would raise, on every rank, or RunRefused where a check fails; on rank 0 it is
    said first in which stage and part."""
    console = Console(highlight=False, soft_wrap=True)
    first = next(iter(cascade.stages.values()))
    parallel.init(first.policy.megatron_cfg, seed=cascade.seed, timeout=2 * first.cluster.collective_timeout_minutes)
    folder = Path(cascade.run_dir).absolute()
    folder = folder.with_name(f"tmp_preflight_{folder.name}")
    part = "before the first stage"
    signal.signal(signal.SIGTERM, leave)
    try:
        runner.on_rank_0(lambda: before(cascade, folder))
        with operation.watched(cascade, folder):
            heartbeat.at("reading rows")
            runner.check_rows(cascade)
            runner.on_rank_0(lambda: runner.refuse_absent_servers(cascade, cascade.order))
            agreed = runner.on_rank_0(lambda: runner.agreement_of_endpoint(cascade))
            runner.tell(console, *([agreed] if agreed else []))
            outcomes, written = [], {}
            for number, name in enumerate(cascade.order, start=1):
                operation.begin_stage(cascade, cascade.stages[name])
                for doing, outcome in of_stage(cascade, small(cascade.stages[name]), folder, written):
                    runner.tell(console, f"stage {number}/{len(cascade.order)}  {name}: {doing}")
                    part = f"{doing} of {name}"
                    heartbeat.at(doing)
                outcomes.append(outcome)
                gc.collect()
            runner.on_rank_0(lambda: refuse_small_disk(cascade, outcomes))
    except Exception:
        runner.tell(console, f"failed in {part}")
        raise
    finally:
        if parallel.rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
    if parallel.rank() == 0:
        show(outcomes, console)
    parallel.shutdown()
    return outcomes


def leave(number: int, _frame) -> None:
    """Asked to stop: what was written is removed on the way out."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def before(cascade: CascadeConfig, folder: Path) -> None:
    """Rank 0's part: an empty folder, the demo rows, and nothing that a run which has begun could lose."""
    manifest = Manifest.load(Path(cascade.run_dir))
    begun = [name for name in cascade.order if name in manifest.stages and manifest.stages[name].status != PENDING]
    check_unchanged(cascade, manifest, begun)
    runner.check_model_overrides(cascade)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if cascade.demo_data is not None:
        runner.write_demo_rows(cascade.demo_data)


def small(stage: StageConfig) -> StageConfig:
    """The stage with one step of one prompt, or pack, a data-parallel rank, without validation inside it."""
    ranks = parallel_state.get_data_parallel_world_size()
    generation = dataclasses.replace(
        stage.policy.generation, max_new_tokens=min(stage.policy.generation.max_new_tokens, NEW_TOKENS)
    )
    grpo = dataclasses.replace(
        stage.grpo,
        max_num_steps=1,
        num_prompts_per_step=min(stage.grpo.num_prompts_per_step, ranks),
        num_generations_per_prompt=min(stage.grpo.num_generations_per_prompt, REPLIES),
        # Untrained weights may have nothing to teach.
        use_dynamic_sampling=False,
        val_period=0,
        val_patience=0,
    )
    return dataclasses.replace(
        stage,
        policy=dataclasses.replace(stage.policy, train_global_batch_size=ranks, generation=generation),
        sft=dataclasses.replace(stage.sft, max_num_steps=1, val_period=0, val_patience=0),
        grpo=grpo,
        checkpointing=dataclasses.replace(stage.checkpointing, save_period=0, metric_name=None),
        logger=LoggerConfig(),
    )


def of_stage(
    cascade: CascadeConfig, stage: StageConfig, folder: Path, written: dict[str, Path]
) -> Iterator[tuple[str, Outcome | None]]:
    """(part that begins, None) for each part, and ("ok", outcome) at the end; `written` gets the stage's checkpoint."""
    reset_memory()
    runner.sandbox.use(stage.sandbox.url)
    stage_run = StageRun(
        name=stage.name,
        config=stage,
        dir=folder / stage.name,
        seed=runner.stage_seed(cascade.seed, stage.name),
        parent=written[stage.parent] if stage.parent is not None else None,
        teachers={domain: stand_in(teacher, written) for domain, teacher in stage.teachers.items()},
        judge=written[stage.judge] if stage.judge is not None else None,
        judge_endpoint=stage.judge_endpoint,
        rank=parallel.rank(),
        max_logprob_error=cascade.handover.max_logprob_error,
    )
    if parallel.rank() == 0:
        stage_run.dir.mkdir()
    parallel.barrier()
    yield "one step of its loop", None
    started = time.perf_counter()
    runner.default_loops()[stage.kind](stage_run)
    step_seconds = time.perf_counter() - started
    final = written[stage.name] = stage_run.dir / "step_1"
    gc.collect()

    yield "its checkpoint, read by a fresh policy", None
    policy = Policy(stage.policy, seed=stage_run.seed, max_num_steps=2)
    info = checkpoint.load(policy, final)
    if policy.weights_hash() != info["weights_hash"]:
        raise RunRefused(f"stage {stage.name}: {final} does not come back as it was written; look at the file system of run_dir")

    yield "a step at its longest length", None
    started = time.perf_counter()
    samples = longest(policy, stage)
    if stage.kind == "rl":
        fill_fields(policy, stage_run, samples)
    loss = make_loss(stage.loss_fn, stage.distils) if stage.kind == "rl" else sft_loss
    policy.train_step(samples, loss, as_sampled=stage.kind == "rl")
    longest_seconds = time.perf_counter() - started

    domains = runner.validation_domains(cascade, stage.name)
    mismatch = None
    if stage.kind == "rl" or domains:
        yield "sampling at its longest length", None
        mismatch = sampling_mismatch(policy, stage)
    del policy
    gc.collect()
    if domains:
        yield "validation", None
        few = {domain: entry.first(PROMPTS) for domain, entry in domains.items()}
        runner.default_score(cascade)(runner.as_scored(cascade, stage_run), final, few, 1)

    size = runner.on_rank_0(lambda: sum(file.stat().st_size for file in final.rglob("*") if file.is_file()))
    yield "ok", Outcome(
        stage.name, step_seconds, len(samples[0].tokens), longest_seconds, size, of_all_ranks(most_memory()), mismatch
    )


def stand_in(teacher: Teacher, written: dict[str, Path]) -> Path:
    """What teaches here: the checkpoint of a stage, or, where the best is to be found, the last that was written."""
    if teacher.path is not None:
        return Path(teacher.path)
    return written[teacher.stage] if teacher.stage != AUTO else list(written.values())[-1]


def longest(policy: Policy, stage: StageConfig) -> list[Sample]:
    """A text of max_total_sequence_length tokens for each data-parallel rank; of every one but the first token is trained on."""
    length, generator = stage.policy.max_total_sequence_length, torch.Generator().manual_seed(0)
    count = parallel_state.get_data_parallel_world_size()
    rows = torch.randint(0, policy.preset.vocab_size, (count, length), generator=generator).tolist()
    return [Sample(tokens=row, loss_mask=[0] + [1] * (length - 1), fields={}) for row in rows]


def fill_fields(policy: Policy, stage_run: StageRun, samples: list[Sample]) -> None:
    """What the loss of an RL stage reads of its samples: as sampled by this policy, by teachers and reference as they are here."""
    for sample, logprobs in zip(samples, policy.logprobs(samples)):
        sample.fields |= {"sampling_logprobs": logprobs, "advantages": [1.0] * len(sample.tokens)}
    questions = [Question(teacher, "teacher_logprobs", samples) for teacher in set(stage_run.teachers.values())]
    if stage_run.config.loss_fn.reference_policy_kl_penalty > 0:
        questions.append(Question(stage_run.parent, "reference_logprobs", samples))
    ask(policy, questions)


def sampling_mismatch(policy: Policy, stage: StageConfig) -> float:
    """token_mult_prob_error, the mean of exp |log-prob in training - when sampled|, of replies to prompts that leave just the
    room for them. Raises RunRefused where it is not below MISMATCH."""
    new = stage.policy.generation.max_new_tokens
    prompt = tuple(longest(policy, stage)[0].tokens[: stage.policy.max_total_sequence_length - new])
    ranks = parallel_state.get_data_parallel_world_size()
    requests = [Request(f"{rank:02x}", reply, prompt) for rank in range(ranks) for reply in range(REPLIES)]
    generation = stage.policy.generation
    params = SamplingParams(generation.temperature, generation.top_p, max_new_tokens=new, stop_ids=())
    engine = make_engine(policy)
    engine.sync(policy)
    rollouts = generate_global(engine, requests, params)
    replies = [rollout_sample(rollout, trained=True) for rollout in rollouts]
    errors = [
        math.exp(abs(trained - sampled))
        for reply, rollout, logprobs in zip(replies, rollouts, policy.logprobs(replies))
        for trained, sampled in zip(logprobs[len(rollout.prompt) :], rollout.logprobs)
    ]
    mismatch = sum(errors) / len(errors)
    if not mismatch < MISMATCH:
        raise RunRefused(
            f"stage {stage.name}: sampled tokens have other probabilities in training (token_mult_prob_error {mismatch:.3f}, "
            f"below {MISMATCH} is usual); the engine's weights, cache or precision are not the trainer's"
        )
    return mismatch


# -------------------------------------------------------------------------------- memory, disk, table


def reset_memory() -> None:
    """Forgets the most memory that the GPU ever held; a process's own cannot be."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def most_memory() -> int:
    """Bytes: the most of the GPU since `reset_memory`, without one of the process now."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss


def of_all_ranks(number: int) -> int:
    """The largest."""
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, number)
    return max(everyone)


def refuse_small_disk(cascade: CascadeConfig, outcomes: list[Outcome]) -> None:
    """Raises RunRefused when the checkpoints that the whole run keeps, and one more while it is written, will not fit."""
    kept = {outcome.stage: max(cascade.stages[outcome.stage].checkpointing.keep_top_k, 1) for outcome in outcomes}
    needed = sum(outcome.checkpoint_bytes * kept[outcome.stage] for outcome in outcomes)
    needed += max(outcome.checkpoint_bytes for outcome in outcomes)
    folder = Path(cascade.run_dir).absolute()
    place = next(place for place in (folder, *folder.parents) if place.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RunRefused(
            f"cascade.run_dir: {place} has {free / 2**30:.1f} GiB free, but the checkpoints of all stages take {needed / 2**30:.1f} GiB; "
            "make room, or lower checkpointing.keep_top_k"
        )


def show(outcomes: list[Outcome], console: Console) -> None:
    """A row a stage, whole in a file, too."""
    console = console if console.is_terminal else Console(highlight=False, width=140)
    table = Table(title="pre-flight")
    for column in ("stage", "its loop's step", "longest step", "checkpoint", "memory of a rank", "token_mult_prob_error"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for o in outcomes:
        table.add_row(
            o.stage,
            f"{o.step_seconds:.1f} s",
            f"{o.longest_tokens:,} tokens, {o.longest_seconds:.1f} s",
            f"{o.checkpoint_bytes / 2**20:,.1f} MiB",
            f"{o.memory / 2**30:.1f} GiB",
            "-" if o.mismatch is None else f"{o.mismatch:.4f}",
        )
    console.print(table)
