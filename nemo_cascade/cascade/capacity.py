"""Whether every stage of a cascade fits its GPUs, rank by rank, and the nearest layout that does when one does not.

What a rank holds is counted on the model (`engine.planner`, given here as `measure`), what a step needs beside it is
estimated (`engine.memory`). This module turns a stage's keys into the numbers both want, and looks for other layouts.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nemo_cascade.cascade import layout as legality
from nemo_cascade.cascade.config import CascadeConfig, StageConfig
from nemo_cascade.engine import memory
from nemo_cascade.engine.config import MegatronConfig, PolicyConfig
from nemo_cascade.engine.memory import GPUS, Gpu, Layout, Need, RankModel, Tensors, Work
from nemo_cascade.models.presets import get_preset
from nemo_cascade.rollout.config import MAX_CACHE_BYTES

Measure = Callable[[PolicyConfig, int], tuple[RankModel, ...]]

# Sizes that a suggestion may have.
TENSOR, CONTEXT, PIPELINE, EXPERT = (1, 2, 4, 8), (1, 2, 4, 8, 16), (1, 2, 4), (1, 2, 4, 8, 16, 32, 64, 128)
PREFIX = "policy.megatron_cfg."


@dataclass(frozen=True)
class StagePlan:
    """One stage: its rank models (a pipeline stage each) and what each of them needs."""

    name: str
    kind: str
    layout: Layout
    work: Work
    ranks: tuple[RankModel, ...]
    needs: tuple[Need, ...]
    problems: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class CascadePlan:
    """All stages on a GPU; suggestion: overrides under which all of them fit, None where none is known or needed."""

    gpu: Gpu
    world_size: int
    gpus_per_node: int
    model: str
    parameters: int
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...] = ()
    suggestion: tuple[str, ...] | None = field(default=None)

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with what is derived spelled out."""
        plain = dataclasses.asdict(self)
        for stage, told in zip(self.stages, plain["stages"]):
            told["fits"] = stage.fits
            for rank, need, rank_told, need_told in zip(stage.ranks, stage.needs, told["ranks"], told["needs"]):
                rank_told |= {"parameters": rank.parameters, "weights": rank.weights}
                need_told |= {"peak": need.peak, "host": need.host}
        return plain | {"fits": self.fits}


def plan_cascade(
    cascade: CascadeConfig, gpu: Gpu, world_size: int, measure: Measure, suggest: bool = True
) -> CascadePlan:
    """The plan of a legal config (`load_config(planning=True)` with this world size)."""
    measure = remembering(measure)
    stages = tuple(plan_stage(cascade, stage, gpu, world_size, measure) for stage in cascade.stages.values())
    first = next(iter(cascade.stages.values()))
    plan = CascadePlan(
        gpu=gpu,
        world_size=world_size,
        gpus_per_node=first.cluster.gpus_per_node,
        model=first.policy.model_name,
        parameters=sum(rank.whole for rank in stages[0].ranks),
        stages=stages,
        notes=tuple(notes(cascade)),
    )
    if plan.fits or not suggest:
        return plan
    return dataclasses.replace(plan, suggestion=nearest(cascade, gpu, world_size, measure))


def remembering(measure: Measure) -> Measure:
    """Stages of one layout hold the same; each layout is measured once."""
    known: dict[Any, tuple[RankModel, ...]] = {}

    def measured(policy: PolicyConfig, world_size: int) -> tuple[RankModel, ...]:
        cfg = policy.megatron_cfg
        sizes = tuple(getattr(cfg, name) for name in legality.KEYS)
        key = (policy.model_name, policy.precision, cfg.freeze_moe_router, sizes, str(cfg.model_overrides), world_size)
        if key not in known:
            known[key] = measure(policy, world_size)
        return known[key]

    return measured


def plan_stage(
    cascade: CascadeConfig, stage: StageConfig, gpu: Gpu, world_size: int, measure: Measure
) -> StagePlan:
    """What each sort of rank needs, and what is too much."""
    model, ranks = get_preset(stage.policy.model_name), measure(stage.policy, world_size)
    layout, work = layout_of(stage.policy.megatron_cfg), work_of(stage, world_size)
    needs = tuple(memory.need(model, rank, work, layout) for rank in ranks)
    problems = []
    for rank, need in zip(ranks, needs):
        if need.peak > gpu.memory:
            phase = max(need.phases, key=need.phases.get)
            problems.append(
                f"pipeline stage {rank.pipeline_stage}: {gib(need.peak)} GiB when it comes to {phase}, "
                f"{gib(need.peak - gpu.memory)} more than the {gib(gpu.memory)} of {gpu.name}"
            )
        if need.cache > MAX_CACHE_BYTES:
            problems.append(
                f"pipeline stage {rank.pipeline_stage}: {gib(need.cache)} GiB of cache to decode {work.rows} replies "
                f"of {work.row_tokens} tokens, more than the {gib(MAX_CACHE_BYTES)} that the engine allows; lower "
                "policy.generation.max_batch_size"
            )
    per_node = max(need.host for need in needs) * min(stage.cluster.gpus_per_node, world_size)
    if per_node > gpu.host_memory:
        problems.append(f"{gib(per_node)} GiB of host memory a node, more than {gib(gpu.host_memory)}")
    return StagePlan(stage.name, stage.kind, layout, work, ranks, needs, tuple(problems))


def layout_of(cfg: MegatronConfig) -> Layout:
    """The keys of `policy.megatron_cfg` that the formulas know."""
    modules = cfg.recompute_modules or () if cfg.recompute_granularity == "selective" else ()
    return Layout(
        tensor=cfg.tensor_model_parallel_size,
        pipeline=cfg.pipeline_model_parallel_size,
        context=cfg.context_parallel_size,
        expert=cfg.expert_model_parallel_size,
        expert_tensor=cfg.expert_tensor_parallel,
        recompute_layers=cfg.activation_checkpointing or cfg.recompute_granularity == "full",
        recompute_modules=tuple(modules),
        distributed_optimizer=cfg.optimizer.use_distributed_optimizer,
        optimizer_offload=cfg.optimizer.optimizer_cpu_offload,
    )


def work_of(stage: StageConfig, world_size: int) -> Work:
    """A stage's batch, as one rank sees it.

    Replies are dealt to all that hold the whole model together, context ranks too (a reply being decoded is not cut),
    and `generation.max_batch_size` of them are decoded at once. How many packs they make is not known beforehand:
    enough to fill a pipeline. Checkpoints beside the student's: teachers, the parent under a KL term, the judge.
    """
    cfg, policy = stage.policy.megatron_cfg, stage.policy
    model_ranks = cfg.tensor_model_parallel_size * cfg.pipeline_model_parallel_size
    if stage.kind == "sft":
        data_parallel = world_size // (model_ranks * cfg.context_parallel_size)
        return Work(policy.sequence_packing.train_mb_tokens, math.ceil(policy.train_global_batch_size / data_parallel))
    others = {teacher.stage for teacher in stage.teachers.values()}
    others |= {stage.parent} if stage.loss_fn.reference_policy_kl_penalty > 0 else set()
    others |= {stage.judge} if stage.judge is not None else set()
    rollouts = stage.grpo.num_prompts_per_step * stage.grpo.num_generations_per_prompt
    return Work(
        pack=policy.sequence_packing.train_mb_tokens,
        microbatches=cfg.pipeline_model_parallel_size,
        rows=min(policy.generation.max_batch_size, math.ceil(rollouts * model_ranks / world_size)),
        row_tokens=policy.max_total_sequence_length,
        prompt_tokens=policy.max_total_sequence_length - policy.generation.max_new_tokens,
        copies=len(others),
    )


def notes(cascade: CascadeConfig) -> Iterator[str]:
    """What the plan takes for granted and the engine does not do yet."""
    for stage in cascade.stages.values():
        for problem in legality.decoding_problems(stage, lambda key: key):
            yield f"planned as if it could, but: {problem}"
        together = stage.policy.megatron_cfg.recompute_num_layers
        if together not in (None, 1):
            yield f"planned as if every layer was recomputed by itself, but: recompute_num_layers is {together}"


# ---------------------------------------------------------------------------------- another layout


def nearest(cascade: CascadeConfig, gpu: Gpu, world_size: int, measure: Measure) -> tuple[str, ...] | None:
    """Overrides that change the fewest keys, and those the least, so that every stage fits.

    Layouts are first sized by dividing the model; only one that then fits is measured.
    """
    first = next(iter(cascade.stages.values()))
    present = measure(first.policy, world_size)
    for changes in candidates(first.policy.megatron_cfg, first.cluster.gpus_per_node):
        changed = with_changes(cascade, changes)
        if any(_illegal(stage, world_size) for stage in changed.stages.values()):
            continue
        for sized in (_divided(present), measure):
            rows = _fitting_rows(changed, gpu, world_size, sized)
            if rows is None:
                break
        else:
            return tuple([f"{key}={told(value)}" for key, value in changes.items()] + rows)
    return None


def candidates(cfg: MegatronConfig, most_tensor: int) -> Iterator[dict[str, Any]]:
    """Changes to the layout, nearest first, none being the first: {dotted key: value}."""
    # By key: what it is, what it may be, and how gladly it is changed (lowest first) where two candidates are equally
    # near.
    present = layout_of(cfg)
    may_be = {
        "activation_checkpointing": (present.recompute_layers, (True,)),
        "context_parallel_size": (present.context, CONTEXT),
        "expert_model_parallel_size": (present.expert, EXPERT),
        "optimizer.optimizer_cpu_offload": (present.optimizer_offload, (True,)),
        "tensor_model_parallel_size": (present.tensor, [size for size in TENSOR if size <= most_tensor]),
        "pipeline_model_parallel_size": (present.pipeline, PIPELINE),
    }
    found = []
    for values in itertools.product(*({now, *others} for now, others in may_be.values())):
        changed = [
            (place, key, now, value)
            for place, ((key, (now, _)), value) in enumerate(zip(may_be.items(), values))
            if value != now
        ]
        # How many doublings or halvings; switching something on is one.
        steps = sum(1 if value is True else abs(math.log2(value / now)) for _, _, now, value in changed)
        changes = {PREFIX + key: value for _, key, _, value in changed}
        if changes.get(PREFIX + "activation_checkpointing"):
            selective = ("recompute_granularity", "recompute_modules")
            changes |= {PREFIX + name: None for name in selective if getattr(cfg, name)}
        if changes.get(PREFIX + "tensor_model_parallel_size", 1) > 1 and not cfg.sequence_parallel:
            changes[PREFIX + "sequence_parallel"] = True
        found.append((len(changed), steps, sum(place for place, *_ in changed), list(changes.items())))
    for *_, changes in sorted(found, key=lambda entry: entry[:3]):
        yield dict(changes)


def told(value: bool | int | None) -> str:
    """A value as it is written on the command line."""
    return "null" if value is None else str(value).lower()


def with_changes(cascade: CascadeConfig, changes: dict[str, Any]) -> CascadeConfig:
    """The cascade with these keys in every stage."""
    return dataclasses.replace(
        cascade, stages={name: _with(stage, changes) for name, stage in cascade.stages.items()}
    )


def _with(config: Any, changes: dict[str, Any]) -> Any:
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        inner = _with(getattr(config, head), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{head: inner})
    return config


def _illegal(stage: StageConfig, world_size: int) -> bool:
    return next(legality.legal_problems(stage, lambda key: key, world_size), None) is not None


def _divided(present: tuple[RankModel, ...]) -> Measure:
    """Sizes of any layout by dividing the model, about right for every pipeline stage."""
    whole = sum(rank.whole for rank in present)
    size_of_one = max(present[0].tensors, key=lambda tensors: tensors.count).element_size

    def divide(policy: PolicyConfig, world_size: int) -> tuple[RankModel, ...]:
        cfg, model = policy.megatron_cfg, get_preset(policy.model_name)
        stages, tensor = cfg.pipeline_model_parallel_size, cfg.tensor_model_parallel_size
        experts = model.pattern.count("E") * model.num_moe_experts * 2 * model.hidden_size * model.moe_ffn_hidden_size
        of_experts = math.ceil(experts / (_expert_ranks(cfg) * stages))
        ranks = world_size // stages
        return tuple(
            dataclasses.replace(
                present[0],
                pipeline_stage=stage,
                ranks=ranks,
                layers=model.pattern[stage * model.num_layers // stages : (stage + 1) * model.num_layers // stages],
                tensors=(
                    Tensors(math.ceil((whole - experts) / (tensor * stages)), size_of_one, False, True),
                    Tensors(of_experts, size_of_one, cfg.expert_model_parallel_size > 1, True),
                ),
                data_parallel=ranks // tensor,
                expert_data_parallel=ranks // _expert_ranks(cfg),
            )
            for stage in range(stages)
        )

    return divide


def _expert_ranks(cfg: MegatronConfig) -> int:
    return cfg.expert_model_parallel_size * cfg.expert_tensor_parallel


def _fitting_rows(cascade: CascadeConfig, gpu: Gpu, world_size: int, measure: Measure) -> list[str] | None:
    """Overrides of `generation.max_batch_size` where it must be lower; None when some stage does not fit with any."""
    overrides = []
    for stage in cascade.stages.values():
        plan = plan_stage(cascade, stage, gpu, world_size, measure)
        if plan.fits:
            continue
        if not plan.work.rows:
            return None
        model = get_preset(stage.policy.model_name)
        rows = min(memory.most_rows(model, rank, plan.work, plan.layout, gpu.memory) for rank in plan.ranks)
        by_engine = min(
            MAX_CACHE_BYTES * plan.work.rows // need.cache if need.cache else plan.work.rows for need in plan.needs
        )
        rows = min(rows, by_engine)
        if rows < 1:
            return None
        rows = 2 ** int(math.log2(rows))
        key = "policy.generation.max_batch_size"
        if not plan_stage(cascade, _with(stage, {key: rows}), gpu, world_size, measure).fits:
            return None
        overrides.append(f"cascade.stages.{stage.name}.{key}={rows}")
    return overrides


# ---------------------------------------------------------------------------------- on the screen


def gib(number: float) -> str:
    """Bytes as GiB."""
    return f"{number / memory.GIB:,.1f}"


def show(plan: CascadePlan, console) -> None:
    """The table, a row for each sort of rank, and below it what does not fit and what would."""
    from rich.table import Table

    title = f"{plan.model}, {plan.parameters / 1e9:.3f} B parameters on {plan.world_size} x {plan.gpu.name}; GiB a rank"
    table = Table(title=title)
    heads = "params weights gradients optimizer activations cache aside peak".split()
    for head in ("stage", "ranks", "layout", "pack"):
        table.add_column(head, overflow="fold")
    for head in heads:
        table.add_column(head, justify="right")
    table.add_column("host/node", justify="right")
    table.add_column("fits")
    for stage in plan.stages:
        for rank, need in zip(stage.ranks, stage.needs):
            first = rank.pipeline_stage == 0
            held = (need.weights, need.gradients, need.optimizer, need.activations, need.cache, need.copy, need.peak)
            table.add_row(
                stage.name if first else "",
                f"{rank.ranks}" if len(stage.ranks) == 1 else f"{rank.ranks} of pipeline stage {rank.pipeline_stage}",
                layout_name(stage.layout) if first else "",
                f"{stage.work.pack:,}" if first else "",
                f"{rank.parameters / 1e9:.3f} B",
                *(gib(number) for number in held),
                gib(need.host * min(plan.gpus_per_node, plan.world_size)),
                "yes" if need.peak <= plan.gpu.memory and stage.fits else "NO",
            )
    console.print(table)
    console.print(
        f"peak: the worst of load, train, sample and score, with {gib(memory.RESERVE)} for CUDA, NCCL and "
        f"fragmentation, of {gib(plan.gpu.memory)}; aside: the student while another checkpoint answers; host/node: "
        "other checkpoints and the offloaded optimizer"
    )
    for stage in plan.stages:
        for problem in stage.problems:
            console.print(f"{stage.name}: {problem}")
    for note in dict.fromkeys(plan.notes):
        console.print(note)
    if plan.suggestion is not None:
        console.print("fits with: " + " ".join(plan.suggestion))
    elif not plan.fits:
        console.print(f"found no layout of {plan.world_size} of these GPUs that fits; use more or shorter packs")


def layout_name(layout: Layout) -> str:
    """ "TP2 CP8 EP8 recompute" """
    sizes = (layout.tensor, layout.pipeline, layout.context, layout.expert, layout.expert_tensor)
    words = [f"{name}{size}" for name, size in zip(("TP", "PP", "CP", "EP", "ETP"), sizes) if size > 1]
    if layout.recompute_layers or layout.recompute_modules:
        words.append("+".join(["recompute", *layout.recompute_modules]))
    if layout.optimizer_offload:
        words.append("offload")
    return " ".join(words) or "DP"


__all__ = ["GPUS", "CascadePlan", "StagePlan", "plan_cascade", "show"]
