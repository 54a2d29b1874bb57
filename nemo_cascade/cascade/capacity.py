"""Whether every stage of a cascade fits its GPUs, rank by rank, and the nearest layout that does when one does not.

What a rank holds is counted on the model (`engine.planner`, given here as `measure`), what a step needs beside it is
estimated (`engine.memory`). This module turns a stage's keys into the numbers both want, and looks for other layouts.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nemo_cascade.cascade import layout as legality
from nemo_cascade.cascade.checks import AUTO
from nemo_cascade.cascade.config import CascadeConfig, StageConfig
from nemo_cascade.engine import memory
from nemo_cascade.engine.config import MegatronConfig, PolicyConfig, recompute_settings
from nemo_cascade.engine.memory import GPUS, Gpu, Layout, RankModel, Requirement, Tensors, Work
from nemo_cascade.models.config import ModelConfig
from nemo_cascade.models.presets import get_preset
from nemo_cascade.rollout.config import MAX_CACHE_BYTES

Measure = Callable[[PolicyConfig, int], tuple[RankModel, ...]]

# Sizes that a suggestion may have.
TENSOR, CONTEXT, PIPELINE, EXPERT = (1, 2, 4, 8), (1, 2, 4, 8, 16), (1, 2, 4), (1, 2, 4, 8, 16, 32, 64, 128)
PREFIX, BATCH = "policy.megatron_cfg.", "policy.generation.max_batch_size"
RECOMPUTE = tuple(f"recompute_{name}" for name in ("granularity", "method", "num_layers", "modules"))


@dataclass(frozen=True)
class StagePlan:
    """One stage: its rank models (a pipeline stage each) and what each of them needs."""

    name: str
    kind: str
    layout: Layout
    work: Work
    ranks: tuple[RankModel, ...]
    requirements: tuple[Requirement, ...]
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
    suggestion: tuple[str, ...] | None = None

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with what is derived spelled out."""
        plain = dataclasses.asdict(self)
        for stage, values in zip(self.stages, plain["stages"]):
            values["fits"] = stage.fits
            for rank, rank_values in zip(stage.ranks, values["ranks"]):
                rank_values |= {"parameters": rank.parameters, "weights": rank.weights}
            for required, required_values in zip(stage.requirements, values["requirements"]):
                derived = ("peak", "worst_phase", "host")
                required_values |= {name: getattr(required, name) for name in derived}
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
    found = None if plan.fits or not suggest else nearest(cascade, gpu, world_size, measure)
    if found is None:
        return plan
    layout, batches = found
    suggestion = tuple(f"{key}={written(value)}" for key, value in (layout | batches).items())
    more = [f"of what fits: {note}" for note in notes(with_changes(cascade, layout)) if note not in plan.notes]
    return dataclasses.replace(plan, suggestion=suggestion, notes=(*plan.notes, *more))


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
    layout, work = layout_of(stage.policy.megatron_cfg), work_of(cascade, stage, gpu, world_size)
    requirements = tuple(memory.requirement(model, rank, work, layout) for rank in ranks)
    problems = []
    for rank, required in zip(ranks, requirements):
        place = f"pipeline stage {rank.pipeline_stage}: " if len(ranks) > 1 else ""
        if required.peak > gpu.memory:
            problems.append(
                f"{place}{gib(required.peak)} GiB a rank when it comes to {required.worst_phase}, "
                f"{gib(required.peak - gpu.memory)} more than the {gib(gpu.memory)} of {gpu.name}"
            )
        if required.cache > MAX_CACHE_BYTES and not work.vllm:
            problems.append(
                f"{place}{gib(required.cache)} GiB of cache a rank to decode a sequence of {work.sequence_tokens:,} tokens, more than "
                f"the {gib(MAX_CACHE_BYTES)} that the engine allows; lower policy.max_total_sequence_length or raise "
                f"{PREFIX}tensor_model_parallel_size"
            )
    if work.vllm:
        problems += vllm_problems(model, stage.policy, sum(rank.whole for rank in ranks), work)
    per_node = max(required.host for required in requirements) * min(stage.cluster.gpus_per_node, world_size)
    if per_node > gpu.host_memory:
        problems.append(f"{gib(per_node)} GiB of host memory a node, more than {gib(gpu.host_memory)}")
    return StagePlan(stage.name, stage.kind, layout, work, ranks, requirements, tuple(problems))


def vllm_problems(model: ModelConfig, policy: PolicyConfig, parameters: int, work: Work) -> Iterator[str]:
    """Whether an engine's share of the model and one of the longest sequences fit into what vLLM may take of each GPU."""
    size, ranks = 4 if policy.precision == "float32" else 2, policy.generation.vllm_cfg.tensor_parallel_size
    weights, one = parameters * size // ranks, memory.cache_bytes(model, model.pattern, work.sequence_tokens, ranks, size)
    if weights + one > work.vllm:
        yield (
            f"vLLM needs {gib(weights)} GiB a rank for its weights and {gib(one)} for a sequence of {work.sequence_tokens:,} tokens, more "
            f"than the {gib(work.vllm)} it may take; raise policy.generation.vllm_cfg.tensor_parallel_size ({ranks}) or "
            f"gpu_memory_utilization ({policy.generation.vllm_cfg.gpu_memory_utilization})"
        )


def layout_of(cfg: MegatronConfig) -> Layout:
    """The keys of `policy.megatron_cfg` that the formulas know."""
    recompute = recompute_settings(cfg)
    granularity = recompute["recompute_granularity"]
    return Layout(
        tensor=cfg.tensor_model_parallel_size,
        pipeline=cfg.pipeline_model_parallel_size,
        context=cfg.context_parallel_size,
        expert=cfg.expert_model_parallel_size,
        expert_tensor=cfg.expert_tensor_parallel,
        sequence_parallel=cfg.sequence_parallel,
        recompute_method=recompute["recompute_method"] if granularity == "full" else None,
        recompute_num_layers=recompute["recompute_num_layers"] or 1,
        recompute_modules=tuple(recompute["recompute_modules"] or ()) if granularity == "selective" else (),
        distributed_optimizer=cfg.optimizer.use_distributed_optimizer,
        optimizer_offload=cfg.optimizer.optimizer_cpu_offload,
    )


def work_of(cascade: CascadeConfig, stage: StageConfig, gpu: Gpu, world_size: int) -> Work:
    """A stage's batch, as one rank sees it.

    How many packs a batch of RL makes is not known beforehand: enough to fill a pipeline. Sequences may be as long as
    `max_total_sequence_length` allows, those of validation too. Checkpoints beside the student's: teachers, the parent
    under a KL term, the judge.
    """
    cfg, policy = stage.policy.megatron_cfg, stage.policy
    validation, judges = cascade.validation, {stage.judge} - {None}
    scored = validation.num_prompts * validation.num_samples * len(cascade.scored(stage.name))
    work = Work(
        pack=policy.sequence_packing.train_mb_tokens,
        microbatches=cfg.pipeline_model_parallel_size,
        validation_sequences=_decoded_at_once(policy, scored, world_size),
        sequence_tokens=policy.max_total_sequence_length,
        prompt_tokens=policy.max_total_sequence_length - policy.generation.max_new_tokens,
        checkpoints=len(judges),
        judged=bool(judges),
        vllm=int(policy.generation.vllm_cfg.gpu_memory_utilization * gpu.memory) if policy.generation.backend == "vllm" else 0,
    )
    if stage.kind == "sft":
        data_parallel = world_size // (_model_ranks(cfg) * cfg.context_parallel_size)
        return dataclasses.replace(work, microbatches=math.ceil(policy.train_global_batch_size / data_parallel))
    # Which is the best of a domain is not known yet: another one in each, at most.
    named = {domain: teacher.name if teacher.stage != AUTO else f"{AUTO} {domain}" for domain, teacher in stage.teachers.items()}
    others = judges | set(named.values())
    others |= {stage.parent} if stage.loss_fn.reference_policy_kl_penalty > 0 else set()
    rollouts = stage.grpo.num_prompts_per_step * stage.grpo.num_generations_per_prompt
    sequences = _decoded_at_once(policy, rollouts, world_size)
    return dataclasses.replace(work, sequences=sequences, checkpoints=len(others))


def _decoded_at_once(policy: PolicyConfig, replies: int, world_size: int) -> int:
    """Replies are dealt to all ranks that hold the whole model together, context ranks too: one being decoded is not
    cut."""
    return min(policy.generation.max_batch_size, math.ceil(replies * _model_ranks(policy.megatron_cfg) / world_size))


def _model_ranks(cfg: MegatronConfig) -> int:
    return cfg.tensor_model_parallel_size * cfg.pipeline_model_parallel_size


def notes(cascade: CascadeConfig) -> Iterator[str]:
    """What the plan takes for granted and the engine does not do yet."""
    validated = cascade.validation.num_prompts > 0
    undecodable = {
        name: legality.undecodable(stage.policy)
        for name, stage in cascade.stages.items()
        if stage.kind == "rl" or validated
    }
    for key in dict.fromkeys(key for sizes in undecodable.values() for key in sizes):
        names = [name for name, sizes in undecodable.items() if key in sizes]
        sizes = " or ".join(sorted({str(undecodable[name][key]) for name in names}))
        yield (
            f"cannot be run: under {PREFIX}{key}={sizes} the embedded rollout engine refuses to decode the rollouts or "
            "validation of "
            + ("every stage" if len(names) == len(cascade.stages) else ", ".join(names))
            + "; planned as if every rank could decode whole replies. Set it to 1, or take policy.generation.backend=vllm"
        )
    if any(stage.policy.megatron_cfg.fp8_cfg.enabled for stage in cascade.stages.values()):
        yield f"planned in the parameters' own type, without what {PREFIX}fp8_cfg saves or adds"


# ---------------------------------------------------------------------------------- another layout


def nearest(
    cascade: CascadeConfig, gpu: Gpu, world_size: int, measure: Measure
) -> tuple[dict[str, Any], dict[str, int]] | None:
    """Changes to the layout, the fewest keys and those the least, and to batches, so that every stage fits; by key.

    Layouts are first sized by dividing the model; only one that then fits is measured.
    """
    first = next(iter(cascade.stages.values()))
    present = measure(first.policy, world_size)
    for changes in candidates(first.policy.megatron_cfg, first.cluster.gpus_per_node):
        changed = with_changes(cascade, changes)
        if any(_illegal(stage, world_size) for stage in changed.stages.values()):
            continue
        for sized in (_divided(present), measure):
            batches = _fitting_batches(changed, gpu, world_size, sized)
            if batches is None:
                break
        else:
            return changes, batches
    return None


def candidates(cfg: MegatronConfig, most_tensor: int) -> Iterator[dict[str, Any]]:
    """Changes to the layout, nearest first, none being the first: {dotted key: value}."""
    # By key: what it is, what it may be, and how gladly it is changed (lowest first) where two candidates are equally
    # near.
    present = layout_of(cfg)
    may_be = {
        "activation_checkpointing": (present.recompute_method == "uniform", (True,)),
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
            changes |= {PREFIX + name: None for name in RECOMPUTE if getattr(cfg, name)}
        if changes.get(PREFIX + "tensor_model_parallel_size", 1) > 1 and not cfg.sequence_parallel:
            changes[PREFIX + "sequence_parallel"] = True
        found.append((len(changed), steps, sum(place for place, *_ in changed), list(changes.items())))
    for *_, changes in sorted(found, key=lambda entry: entry[:3]):
        yield dict(changes)


def written(value: bool | int | None) -> str:
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


def _fitting_batches(cascade: CascadeConfig, gpu: Gpu, world_size: int, measure: Measure) -> dict[str, int] | None:
    """`generation.max_batch_size` of the stages where it must be lower, by key, each the highest power of 2 that fits;
    None when some stage does not fit with any."""
    batches = {}
    for stage in cascade.stages.values():

        def planned(changes: dict[str, int], stage: StageConfig = stage) -> StagePlan:
            return plan_stage(cascade, _with(stage, changes), gpu, world_size, measure)

        plan = planned({})
        if plan.fits:
            continue
        if plan.work.most_sequences < 2 or not planned({BATCH: 1}).fits:
            return None
        size = 2 ** int(math.log2(plan.work.most_sequences - 1))
        while not planned({BATCH: size}).fits:
            size //= 2
        batches[f"cascade.stages.{stage.name}.{BATCH}"] = size
    return batches


# ---------------------------------------------------------------------------------- on the screen


def gib(number: float) -> str:
    """Bytes as GiB."""
    return f"{number / memory.GIB:,.1f}"


def show(plan: CascadePlan, console) -> None:
    """The table, and below it what it means, what does not fit and what would."""
    console.print(table(plan))
    for line in dict.fromkeys(footers(plan)):
        console.print(line)


def table(plan: CascadePlan):
    """A row for each sort of rank."""
    from rich.table import Table

    title = f"{plan.model}, {plan.parameters / 1e9:.3f} B parameters on {plan.world_size} x {plan.gpu.name}; GiB a rank"
    rows = Table(title=title)
    for head in ("stage", "ranks", "layout", "tokens a pack"):
        rows.add_column(head, overflow="fold")
    heads = ("parameters", "weights", "gradients", "optimizer", "activations", "cache", "set aside", "peak")
    for head in (*heads, "host memory a node"):
        rows.add_column(head, justify="right")
    rows.add_column("fits")
    for stage in plan.stages:
        for rank, required in zip(stage.ranks, stage.requirements):
            rows.add_row(*_cells(plan, stage, rank, required))
    return rows


def _cells(plan: CascadePlan, stage: StagePlan, rank: RankModel, required: Requirement) -> tuple[str, ...]:
    of_stage = stage.name, layout_name(stage.layout), f"{stage.work.pack:,}"
    name, layout, pack = of_stage if rank.pipeline_stage == 0 else ("", "", "")
    parts = ("weights", "gradients", "optimizer", "activations", "cache", "set_aside")
    fits = required.peak <= plan.gpu.memory and stage.fits
    return (
        name,
        f"{rank.ranks}" if len(stage.ranks) == 1 else f"{rank.ranks} (PP {rank.pipeline_stage})",
        layout,
        pack,
        f"{rank.parameters / 1e9:.3f} B",
        *(gib(getattr(required, part)) if getattr(required, part) else "-" for part in parts),
        f"{gib(required.peak)} {required.worst_phase}",
        gib(required.host * min(plan.gpus_per_node, plan.world_size)) if required.host else "-",
        "yes" if fits else "NO",
    )


def footers(plan: CascadePlan) -> Iterator[str]:
    """What the columns mean, what does not fit, what has been taken for granted, and what would fit."""
    yield (
        "peak: the phase (load, train, sample, logprobs or validate) that needs most, which is not all columns, and "
        f"{gib(memory.RESERVE)} GiB for CUDA, NCCL and fragmentation, of the GPU's {gib(plan.gpu.memory)}"
    )
    yield (
        "cache: of the replies that a rank decodes at once, or all that vLLM takes; set aside: the student's weights while another checkpoint "
        "is in their place; host memory a node: other checkpoints and the offloaded optimizer"
    )
    stages_with: dict[str, list[str]] = {}
    for stage in plan.stages:
        for problem in stage.problems:
            stages_with.setdefault(problem, []).append(stage.name)
    for problem, names in stages_with.items():
        yield f"does not fit: {problem} ({', '.join(names)})"
    yield from plan.notes
    if plan.suggestion is not None:
        yield "fits with: " + " ".join(plan.suggestion)
    elif not plan.fits:
        yield f"found no layout of {plan.world_size} of these GPUs that fits; use more or shorter packs"


def layout_name(layout: Layout) -> str:
    """ "TP2 CP8 EP8 recompute" """
    sizes = (layout.tensor, layout.pipeline, layout.context, layout.expert, layout.expert_tensor)
    words = [f"{name}{size}" for name, size in zip(("TP", "PP", "CP", "EP", "ETP"), sizes) if size > 1]
    if layout.recompute_method:
        whole = layout.recompute_method == "uniform" and layout.recompute_num_layers == 1
        words.append("recompute" if whole else f"recompute:{layout.recompute_method}{layout.recompute_num_layers}")
    elif layout.recompute_modules:
        words.append("+".join(["recompute", *layout.recompute_modules]))
    if layout.optimizer_offload:
        words.append("offload")
    return " ".join(words) or "DP"


__all__ = ["GPUS", "CascadePlan", "StagePlan", "plan_cascade", "show"]
