"""The cascade itself: every stage of the order trained, scored on all domains so far and written into the manifest.

All stages run in the processes that were started, with one parallel layout. What reads or decides does so on rank 0
and is broadcast, so that ranks never disagree; every rank keeps the same manifest in memory and rank 0 writes it. The
same command again goes on where a killed run stopped.
"""

import contextlib
import dataclasses
import gc
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from nemo_cascade import heartbeat, sandbox
from nemo_cascade.cascade import (
    agreement,
    data_files,
    gate,
    judge_checks,
    operation,
    provenance,
    readiness,
    report,
    state,
    teachers,
    vllm_checks,
)
from nemo_cascade.cascade.config import CascadeConfig, DemoDataConfig, StageConfig
from nemo_cascade.cascade.lock import RunLock
from nemo_cascade.cascade.manifest import DONE, PENDING, RUNNING, Manifest, StageRecord
from nemo_cascade.cascade.plan import Plan, RunRefused, config_hash, dependencies, make_plan, write_stage_config
from nemo_cascade.cascade.strict import did_you_mean
from nemo_cascade.data import demo
from nemo_cascade.data.files import write_atomically
from nemo_cascade.data.hashes import file_hash
from nemo_cascade.data.rows import DataError, environment_of
from nemo_cascade.data.tokenizer import fingerprint, load_tokenizer
from nemo_cascade.engine import parallel
from nemo_cascade.engine.policy import model_override_names
from nemo_cascade.environments.endpoint import EndpointError
from nemo_cascade.stages.context import StageRun
from nemo_cascade.stages.data import Domain, load_domains
from nemo_cascade.stages.interruption import Interruption
from nemo_cascade.stages.prompts import render
from nemo_cascade.stages.validations import Validations

Loop = Callable[[StageRun], None]
Score = Callable[[StageRun, Path, dict[str, Domain], int], dict[str, dict]]
T = TypeVar("T")


def run(
    cascade: CascadeConfig,
    only: str | None = None,
    from_stage: str | None = None,
    redo: str | None = None,
    loops: Mapping[str, Loop] | None = None,
    score: Score | None = None,
) -> Manifest:
    """Runs what is not done yet and returns the manifest.

    only: this stage alone. from_stage: it and all later ones once more, their old folders moved aside. redo: the same of it and
    those that its weights went into. loops and score stand in for the training loops by kind and for validation. Raises
    RunRefused, DataError, SandboxUnavailable or GateError on every rank, before anything is trained but where a gate stops, or a
    rollback leaves a stage with no teacher; Interrupted when it was asked to stop.
    """
    console = Console(highlight=False, soft_wrap=True)
    first = next(iter(cascade.stages.values()))
    parallel.init(first.policy.megatron_cfg, seed=cascade.seed, timeout=2 * first.cluster.collective_timeout_minutes)
    lock = RunLock(Path(cascade.run_dir))
    with leaves_together(lock):
        state.refuse_unwritable([Path(cascade.run_dir)])
        on_rank_0(lock.take)
        # What is asked to stop here has nothing to save, but says that it shall go on.
        with Interruption(Path(cascade.run_dir), parallel.rank()):
            manifest, plan = on_rank_0(lambda: begin(cascade, only, from_stage, redo))
    with operation.attended(cascade) as interruption:
        with leaves_together(lock):
            state.refuse_unwritable([manifest.directory(name) for name in plan.run])
            heartbeat.at("reading checkpoints")
            state.refuse_damaged(manifest, state.read_by(cascade, manifest, plan.run))
            heartbeat.at("reading rows")
            known, noted = check_rows(cascade, plan.run)
            heartbeat.at("asking judges")
            on_rank_0(lambda: refuse_absent_servers(cascade, plan.run))
            agreed = on_rank_0(lambda: agreement_of_endpoint(cascade)) if plan.run else None
        tell(console, *plan.notes, *noted, *([agreed] if agreed else []))
        loops = loops if loops is not None else default_loops()
        score = score if score is not None else default_score(cascade)
        for name in plan.run:
            stage = cascade.stages[name]
            tell(console, headline(cascade, stage, manifest))
            sandbox.use(stage.sandbox.url)
            readiness.refuse_broken(name, known[name])
            run_stage(cascade, stage, manifest, loops[stage.kind], score, interruption)
            tell(console, f"{name} is done in {manifest.stages[name].seconds:.0f} s{scores_text(manifest, name)}")
            tell(console, *gate.lines(name, manifest.stages[name].gate, stage.gate))
            gc.collect()  # a policy's buffers sit in reference cycles; two models at once would double the memory
            if stopped(manifest, name):
                break
    if all(manifest.stages[name].status == DONE for name in cascade.order):
        manifest.redo = None
    if parallel.rank() == 0:
        manifest.save()
        report.print_scores(manifest, console)
        tell(console, *(f"written: {path}" for path in report.write(cascade.run_dir)))
    parallel.shutdown()
    lock.release()
    refuse_stopped(cascade, manifest, concerned(cascade, only))
    return manifest


@contextlib.contextmanager
def leaves_together(lock: RunLock) -> Iterator[None]:
    """Around what is raised on every rank alike, so that every rank can leave and none is left behind with a traceback."""
    try:
        yield
    except Exception:
        parallel.shutdown()
        lock.release()
        raise


def begin(
    cascade: CascadeConfig, only: str | None, from_stage: str | None, redo: str | None = None
) -> tuple[Manifest, Plan]:
    """Rank 0's part before the first stage: the manifest, the plan, the demo rows."""
    manifest = Manifest.load(Path(cascade.run_dir))
    # The plan first: it refuses changed settings, and rewriting the rows of finished stages could not be undone.
    check_model_overrides(cascade)
    plan = make_plan(cascade, manifest, only, from_stage, redo)
    heartbeat.forget(manifest.run_dir)
    judge_again(cascade, manifest)
    refuse_stopped(cascade, manifest, [name for name in concerned(cascade, only) if name != only])
    state.remove_stale(manifest.run_dir)
    if cascade.demo_data is not None and write_demo_rows(cascade.demo_data):
        changed = data_files.problems(manifest, cascade.order)
        if changed:
            raise RunRefused("\n".join(changed))
    return manifest, plan


def run_stage(
    cascade: CascadeConfig, stage: StageConfig, manifest: Manifest, loop: Loop, score: Score, interruption: Interruption
) -> None:
    """Trains, scores and records one stage; called on all ranks."""
    started = time.monotonic()
    interruption.must_save_by(stage.checkpointing.checkpoint_must_save_by)
    operation.begin_stage(cascade, stage)
    record = manifest.stages[stage.name]
    directory = manifest.directory(stage.name)
    record.parent = start_of(stage, manifest)
    record.fingerprint = on_rank_0(lambda: fingerprint(load_tokenizer(stage.policy.tokenizer.name)))
    record.teachers = on_rank_0(lambda: teachers.resolve(manifest, stage))
    if record.status == PENDING:
        record.data = on_rank_0(lambda: data_files.hashes(cascade, stage.name))
    refuse_own_start(stage, record)
    outside = provenance.of_outside(manifest, stage)
    record.teacher_facts = on_rank_0(lambda: provenance.of_teachers(manifest, stage, outside))
    tell(Console(highlight=False, soft_wrap=True), *teachers.lines(record.teacher_facts))
    record.status, record.config_hash = RUNNING, config_hash(cascade, stage)
    record.teacher_only = stage.teacher_only
    refuse_poor_judge(cascade, stage, manifest)
    state.refuse_damaged(manifest, state.read_by(cascade, manifest, [stage.name]))
    sandbox.use(stage.sandbox.url)
    if parallel.rank() == 0:
        manifest.save()
        directory.mkdir(parents=True, exist_ok=True)
        write_stage_config(cascade, stage, directory)
    parallel.barrier()
    stage_run = as_begun(cascade, stage, manifest, directory)
    stage_run.interruption = interruption
    if stage.loop.val_period > 0:
        stage_run.validate = validator(cascade, stage_run)
    loop(stage_run)
    gc.collect()
    parallel.barrier()
    final = directory / f"step_{Validations(stage_run, stage.loop, done=stage.max_num_steps).final_step}"
    if not final.is_dir():
        raise RuntimeError(f"stage {stage.name} came to its end without writing {final}")
    heartbeat.at("reading its checkpoint again, scoring", step=0)
    info = state.verified(final, stage.name)
    scores = score_stage(cascade, stage_run, final, score)
    record.handover = on_rank_0(lambda: read_handover(directory))
    record.checkpoint = str(final.relative_to(manifest.run_dir))
    record.checkpoint_hash = info["weights_hash"]
    record.imported = info.get("imported")
    record.scores = {domain: {"mean": entry["mean"], "n": entry["n"]} for domain, entry in scores.items()}
    record.scores_hash = on_rank_0(lambda: file_hash(directory / gate.SCORES)) if scores else None
    record.seconds = parallel.broadcast(round(time.monotonic() - started, 1))
    record.status = DONE
    if parallel.rank() == 0:
        manifest.save()  # before the verdict, so that a gate in error costs no training
    record.gate = on_rank_0(lambda: gate.judge(manifest, stage.name, stage.gate))
    if parallel.rank() == 0:
        manifest.save()
        operation.tell_trackers(cascade, stage_run, record)


def as_begun(cascade: CascadeConfig, stage: StageConfig, manifest: Manifest, directory: Path) -> StageRun:
    """A stage with the checkpoints that its record in the manifest names, run in a folder."""
    record = manifest.stages[stage.name]
    return StageRun(
        name=stage.name,
        config=stage,
        dir=directory,
        seed=stage_seed(cascade.seed, stage.name),
        parent=manifest.checkpoint(record.parent) if record.parent is not None else None,
        teachers={
            domain: manifest.checkpoint(teacher) if teacher in manifest.stages else Path(teacher)
            for domain, teacher in record.teachers.items()
        },
        judge=manifest.checkpoint(stage.judge) if stage.judge is not None else None,
        judge_endpoint=stage.judge_endpoint,
        rank=parallel.rank(),
        max_logprob_error=cascade.handover.max_logprob_error,
    )


def read_handover(directory: Path) -> dict | None:
    """What the hand-over check of a stage found; None of a stage that went without it, as those of stand-ins for the loops."""
    path = directory / "handover.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def score_stage(cascade: CascadeConfig, stage_run: StageRun, final: Path, score: Score) -> dict[str, dict]:
    """Validation of a stage's last checkpoint; `gate.SCORES` in its folder keeps the score of every prompt."""
    domains = validation_domains(cascade, stage_run.name)
    scores = score(as_scored(cascade, stage_run), final, domains, cascade.validation.num_samples)
    if domains and parallel.rank() == 0:
        write_atomically(stage_run.dir / gate.SCORES, json.dumps(scores) + "\n")
    return scores


def validator(cascade: CascadeConfig, stage_run: StageRun) -> Callable[..., dict[str, dict]]:
    """Scores a policy inside its stage, on the prompts that the stage will be scored on."""
    from nemo_cascade.stages import validation

    scored, domains = as_scored(cascade, stage_run), validation_domains(cascade, stage_run.name)
    return lambda policy: validation.score_policy(
        scored, policy, domains, cascade.validation.num_samples, seed=validation.IN_STAGE_SEED
    )


def as_scored(cascade: CascadeConfig, stage_run: StageRun) -> StageRun:
    """The stage with the sampling, the turns and the overlong rule of `cascade.validation`; a judge as it is."""
    if cascade.judge is not None and stage_run.name == cascade.judge.stage:
        return stage_run
    config, validation = stage_run.config, cascade.validation
    generation = dataclasses.replace(config.policy.generation, temperature=validation.temperature, top_p=validation.top_p)
    config = dataclasses.replace(
        config,
        policy=dataclasses.replace(config.policy, generation=generation),
        grpo=dataclasses.replace(config.grpo, overlong="reward_zero", max_rollout_turns=validation.max_rollout_turns),
    )
    return dataclasses.replace(stage_run, config=config)


def validation_domains(cascade: CascadeConfig, name: str) -> dict[str, Domain]:
    """The first `cascade.validation.num_prompts` rows of every domain that a stage is scored on."""
    count = cascade.validation.num_prompts
    if count == 0:
        return {}
    stage = cascade.stages[name]
    domains = load_domains(
        dataclasses.replace(stage.data, validation=cascade.scored(name)), "validation", kind="rl", env=stage.env
    )
    return {domain: entry.first(count) for domain, entry in domains.items()}


def start_of(stage: StageConfig, manifest: Manifest) -> str | None:
    """The stage that a stage really starts from; one that has begun keeps its start, whatever became of gates since."""
    record = manifest.stages[stage.name]
    if record.status != PENDING or stage.parent is None:
        return record.parent
    return manifest.standing(stage.parent)


def judge_again(cascade: CascadeConfig, manifest: Manifest) -> None:
    """Verdicts of all finished stages by the gates as they are now.

    Raises RunRefused when a finished stage was built on another start than these verdicts give it.
    """
    done = [name for name in cascade.order if manifest.stages[name].status == DONE]
    for name in done:
        manifest.stages[name].gate = gate.judge(manifest, name, cascade.stages[name].gate)
    for name in done:
        parent, started_from = cascade.stages[name].parent, manifest.stages[name].parent
        if parent is not None and manifest.standing(parent) != started_from:
            raise RunRefused(
                f"stage {name} was built from {started_from}, but with these gates it starts from {manifest.standing(parent)}; "
                f"put the gate of {parent} back, or repeat {name} and all later stages with --from-stage {name}"
            )
    manifest.save()


def concerned(cascade: CascadeConfig, only: str | None) -> list[str]:
    """The stages whose gates a command has to respect."""
    return cascade.order if only is None else [*dependencies(cascade.stages[only]), only]


def stopped(manifest: Manifest, name: str) -> bool:
    """Whether the stage's gate ends the run."""
    verdict = manifest.stages[name].gate
    return verdict is not None and verdict["action"] == gate.STOP


def refuse_stopped(cascade: CascadeConfig, manifest: Manifest, names: list[str]) -> None:
    """Raises RunRefused when the gate of one of these stages says stop, with what can be done about it."""
    for name in names:
        if stopped(manifest, name):
            line = gate.lines(name, manifest.stages[name].gate, cascade.stages[name].gate)[0]
            raise RunRefused(
                f"{line}; change the stage and repeat it with --from-stage {name}, or go on with "
                f"cascade.stages.{name}.gate.on_failure=rollback or =warn"
            )


def refuse_own_start(stage: StageConfig, record: StageRecord) -> None:
    """After a rollback a teacher may turn out to be where the student starts; raises RunRefused unless it is an anchor."""
    for domain, teacher in stage.teachers.items():
        if teacher.stage is not None and teacher.stage == record.parent and not teacher.anchor:
            raise RunRefused(
                f"stage {stage.name}: {stage.parent} was rolled back, so the student starts from {teacher.stage}, which is "
                f"its teacher of {domain} too; name another teacher or make it an anchor"
            )


def refuse_poor_judge(cascade: CascadeConfig, stage: StageConfig, manifest: Manifest) -> None:
    """Raises RunRefused when the stage's judge agrees with known preferences less than it must."""
    if stage.judge is None:
        return
    scores = manifest.stages[stage.judge].scores
    if not scores:
        raise RunRefused(f"stage {stage.name}: the agreement of its judge {stage.judge} with known preferences was not measured")
    for domain, entry in scores.items():
        if not entry["mean"] >= cascade.judge.min_agreement:
            raise RunRefused(
                f"stage {stage.name}: its judge {stage.judge} agrees with {entry['mean']:.3f} of {entry['n']} preferences of "
                f"{domain}, less than cascade.judge.min_agreement={cascade.judge.min_agreement}; train the judge longer or "
                f"on more pairs and repeat it with --from-stage {stage.judge}"
            )


def refuse_absent_servers(cascade: CascadeConfig, names: list[str]) -> None:
    """Raises RunRefused, a line each, for models that judge single replies of these stages, and engines that draw theirs, that cannot be
    asked."""
    absent = [*judge_checks.absent_judges(cascade, names), *vllm_checks.absent_servers(cascade, names)]
    if absent:
        raise RunRefused("\n".join(absent))


def agreement_of_endpoint(cascade: CascadeConfig) -> str | None:
    """How well the judge behind an endpoint agrees with known preferences, in words, if there is such a judge.

    Raises RunRefused when it is less than it must be, or the endpoint refuses.
    """
    judge = cascade.judge
    if judge is None or judge.endpoint is None:
        return None
    try:
        found = agreement.measure(judge, Path(cascade.run_dir))
    except EndpointError as error:
        raise RunRefused(f"cascade.judge.endpoint: {error}") from None
    words = f"the judge {judge.endpoint.model} agrees with {found['agreement']:.3f} of {found['pairs']} known preferences"
    words += f" ({found['unreadable']} of its answers could not be read)"
    if found["agreement"] < judge.min_agreement:
        raise RunRefused(f"{words}, less than cascade.judge.min_agreement={judge.min_agreement}; is it the right model?")
    return words


def stage_seed(seed: int, name: str) -> int:
    """A stage's own seed: the same for the same (cascade.seed, stage name) whatever else the cascade holds."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big") >> 1


# -------------------------------------------------------------------------------- before the first stage


def write_demo_rows(settings: DemoDataConfig) -> bool:
    """The procedural rows, unless they are there already with these settings; whether it wrote them."""
    asked = dataclasses.asdict(settings)
    try:
        return demo.ensure(Path(asked.pop("path")), **asked)
    except ValueError as error:
        raise RunRefused(f"cascade.demo_data: {error}") from error


def check_model_overrides(cascade: CascadeConfig) -> None:
    """`model_overrides` passes through to megatron-core, whose field names are known only once it is imported."""
    known = model_override_names()
    for stage in cascade.stages.values():
        for key in stage.policy.megatron_cfg.model_overrides:
            if key not in known:
                raise RunRefused(
                    f"policy.megatron_cfg.model_overrides.{key}: no field of megatron-core's TransformerConfig that is not set "
                    f"by another key of policy{did_you_mean(key, known)}"
                )


def check_rows(cascade: CascadeConfig, to_run: Collection[str] | None = None) -> tuple[dict[str, set[str]], list[str]]:
    """Reads every row of every stage and renders every prompt, so that a bad one stops the run before its first step; rows of
    the stages to run (None: of all) are verified once (`readiness.dry_pass`).

    Returns stage -> environments of its rows, and notes for the user. Called on all ranks, which share the work.
    Demonstrations are tokenized when their stage begins, because that takes as long as reading them again.
    """
    to_run = cascade.order if to_run is None else to_run
    seen, tried, notes = set(), {}, []
    known: dict[str, set[str]] = {name: set() for name in cascade.stages}
    for name, stage in cascade.stages.items():
        sandbox.use(stage.sandbox.url)
        servers = str(stage.env.nemo_gym.servers)
        # How long a prompt may be is the stage's own.
        rules = (stage.policy.max_total_sequence_length, stage.policy.generation.max_new_tokens, servers, name in to_run)
        for split, kind in (("train", stage.kind), ("validation", "rl")):
            files = stage.data.train if split == "train" else cascade.scored(name)
            if split == "train" and stage.data.packed_folder:
                continue  # its rows were read when it was packed
            new = {domain: file for domain, file in files.items() if (file.data_path, kind, rules) not in seen}
            domains = load_domains(dataclasses.replace(stage.data, **{split: new}), split, kind=kind, env=stage.env)
            if kind == "rl":
                tokenizer = load_tokenizer(stage.policy.tokenizer.name)
                for domain in domains.values():
                    render(domain, tokenizer, stage.policy)
                    refuse_unjudged(stage, domain)
                    if name in to_run and (domain.path, servers) not in tried:
                        notes += readiness.dry_pass(domain, stage.env, stage.data.on_bad_row)
                        tried[domain.path, servers] = {environment_of(row) for row in domain.rows}
                for file in files.values():
                    known[name] |= tried.get((Path(file.data_path), servers), set()) - set(stage.env.nemo_gym.servers)
            seen |= {(file.data_path, kind, rules) for file in files.values()}
    return known, notes


def refuse_unjudged(stage: StageConfig, domain: Domain) -> None:
    """Raises DataError for rows whose replies only a judge can compare in a stage that has none."""
    for number, row in zip(domain.numbers, domain.rows):
        if stage.judge is None and stage.judge_endpoint is None and environment_of(row) == "genrm_compare":
            raise DataError(
                f"{domain.path}, row {number}: a judge has to compare replies to it, but {stage.name} has none; set "
                "cascade.judge.stage to a stage that runs before, or cascade.judge.endpoint"
            )


# -------------------------------------------------------------------------------- ranks and words


class RefusedElsewhere(RuntimeError):
    """Rank 0 failed in its part; it tells why, the other ranks only stop."""


def on_rank_0(action: Callable[[], T]) -> T:
    """Runs `action` on rank 0 alone and returns its result on every rank; when it raises there, every rank raises."""
    outcome, error = None, None
    if parallel.rank() == 0:
        try:
            outcome = action()
        except Exception as raised:  # noqa: BLE001 - whatever it is, the other ranks must not wait for ever
            error = raised
    outcome, failed = parallel.broadcast((outcome, str(error) if error is not None else None))
    if error is not None:
        raise error
    if failed is not None:
        raise RefusedElsewhere(failed)
    return outcome


def tell(console: Console, *lines: str) -> None:
    """Prints on rank 0."""
    if parallel.rank() == 0:
        for line in lines:
            console.print(line, markup=False)


def headline(cascade: CascadeConfig, stage: StageConfig, manifest: Manifest) -> str:
    """One line on a stage that begins."""
    parent = start_of(stage, manifest)
    start = f"from {parent or stage.start}"
    start += f" ({stage.parent} was rolled back)" if parent != stage.parent else ""
    teachers = [f"{domain} by {teacher.name}" for domain, teacher in stage.teachers.items()]
    taught = f", taught {', '.join(teachers)}" if teachers else ""
    place = f"stage {cascade.order.index(stage.name) + 1}/{len(cascade.order)}  {stage.name}"
    return f"{place}: {stage.kind} on {', '.join(stage.data.train)}, {start}{taught}, {stage.max_num_steps} steps"


def scores_text(manifest: Manifest, name: str) -> str:
    """ "; math 0.512, ..." for a scored stage."""
    scores = manifest.stages[name].scores
    return "; " + ", ".join(f"{domain} {entry['mean']:.3f}" for domain, entry in scores.items()) if scores else ""


def default_loops() -> Mapping[str, Loop]:
    """The two training loops by kind."""
    from nemo_cascade.stages import rl, sft

    return {"sft": sft.run, "rl": rl.run}


def default_score(cascade: CascadeConfig) -> Score:
    """The hand-over check, and validation of the policy that passed it by the engine of its stage."""
    from nemo_cascade.cascade import handover
    from nemo_cascade.stages import validation
    from nemo_cascade.stages.rollouts import served

    def score(stage_run: StageRun, final: Path, domains: dict[str, Domain], num_samples: int) -> dict[str, dict]:
        serve = served if stage_run.config.policy.generation.backend != "megatron" else None
        policy = handover.reload(stage_run, final, cascade.handover, serve)
        return validation.score_policy(stage_run, policy, domains, num_samples) if domains else {}

    return score
