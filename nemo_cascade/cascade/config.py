"""The whole cascade's config: top-level defaults, `cascade:` with the stages, each stage resolved to what its loop
reads.

A stage is the top-level blocks (`policy`, `sft`, `grpo`, `loss_fn`, `data`, `checkpointing`) with its own overrides
merged over them. `load_config` collects every problem before it raises; what is legal across keys and stages is in
checks.py. Importing this module imports neither torch nor megatron-core.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_cascade.cascade import checks
from nemo_cascade.cascade.checks import AUTO
from nemo_cascade.cascade.problems import merged
from nemo_cascade.cascade.strict import (
    ConfigErrors,
    clean,
    did_you_mean,
    flatten,
    is_missing,
    join,
    make,
    merge,
    to_plain,
    without_missing,
)
from nemo_cascade.environments.endpoint import EndpointConfig
from nemo_cascade.interop import exp_manager
from nemo_cascade.models.presets import is_hf_folder
from nemo_cascade.stages.config import DatasetConfig, GRPOConfig, SFTConfig
from nemo_cascade.stages.context import LoopConfig

__all__ = [
    "CascadeConfig",
    "ClusterConfig",
    "ConfigErrors",
    "DemoDataConfig",
    "GateConfig",
    "HandoverConfig",
    "JudgeConfig",
    "StageConfig",
    "Teacher",
    "ValidationConfig",
    "load_config",
]

BLOCKS = (*(block.name for block in dataclasses.fields(LoopConfig)), "cluster")


@dataclass
class ClusterConfig:
    """`cluster`: the machines a config is written for. `nemo-cascade plan` reads it; a run takes what torchrun starts.

    gpu: h100-80g, h200 or b200 (`engine.memory.GPUS`). collective_timeout_minutes: a run in which no rank has moved for so long has
    hung, and ends.
    """

    num_nodes: int = 1  # machines
    gpus_per_node: int = 1  # GPUs of each
    gpu: str = "h100-80g"
    collective_timeout_minutes: float = 30.0


@dataclass
class DemoDataConfig:
    """`cascade.demo_data`: procedural rows, written to `path` by the runner when they are missing or made otherwise.

    rows_of: other numbers for a domain, as {tool_use: {sft_rows: 500}}.
    """

    path: str = "???"
    train_rows: int = 1000  # rows of RL a domain
    validation_rows: int = 300  # rows for scores a domain
    sft_rows: int = 1000  # rows of SFT a domain
    seed: int = 0  # of the generator
    rows_of: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass
class ValidationConfig:
    """`cascade.validation`: prompts a domain (0: no validation) and replies a prompt, scored after every stage.

    Replies are drawn with this temperature and top_p and earn 0 when cut, whatever the stage trains with: else a
    difference between two stages would be in part their sampling's. Only a judge is scored as it answers. max_rollout_turns is
    `grpo`'s, for all stages' scores alike.
    """

    num_prompts: int = 128  # prompts a domain; 0: no validation
    num_samples: int = 1  # replies a prompt
    temperature: float = 1.0
    top_p: float = 1.0
    max_rollout_turns: int = 1


@dataclass
class HandoverConfig:
    """`cascade.handover`: what is asked of a stage's checkpoint, read again, before anything goes on from it.

    max_logprob_error: the largest difference of a log-prob from that in memory before the save. On a CPU there is none; kernels
    of a GPU that add in any order need some. max_logprob_error_elsewhere: what rounding may make of one in another engine that
    samples, or at another layout or on another device than where it was saved. hf: whether it is also written as a Hugging Face
    folder and read from there.
    """

    max_logprob_error: float = 0.0
    max_logprob_error_elsewhere: float = 0.05
    hf: bool = True


@dataclass
class JudgeConfig:
    """`cascade.judge`: what compares replies to preference rows. Either a stage, whose checkpoint does for every stage after
    it, or a model behind an endpoint.

    min_agreement: with known preferences, on the judge stage's own validation prompts or, of an endpoint, on the rows of
    `agreement` (a JSONL file of the environment genrm); below it no stage starts that it would judge.
    """

    stage: str | None = None  # the stage whose checkpoint judges
    endpoint: EndpointConfig | None = None  # a model behind an endpoint, instead
    agreement: str | None = None
    min_agreement: float = 0.8


@dataclass
class Teacher:
    """`teachers.<domain>`: the stage whose checkpoint teaches, or `auto`: the best in the domain when the student begins; or
    path, weights from outside of this run as `checkpointing.pretrained_checkpoint` has them, with tokenizer, a folder, where nothing
    beside them tells it. anchor says that it may be where the student starts.
    """

    stage: str | None = None  # the stage whose checkpoint teaches, or auto
    path: str | None = None  # weights from outside of the run, instead
    tokenizer: str | None = None  # a folder, where nothing beside those weights tells theirs
    anchor: bool = False  # it may be where the student starts

    @property
    def name(self) -> str:
        """The stage or the folder, as the config says it."""
        return self.path or self.stage or ""


@dataclass
class GateConfig:
    """`gate`: what a stage may cost and must bring, each rule by domain, in points of the domain's mean score.

    All scores are means of the same validation prompts; a stage is compared with the one that it really started from. A score
    that is missing or not finite is an error (GateError) and stops the run, whatever on_failure says.

    max_drop: fails where the mean fell by more than this and the fall is not noise: the one-sided sign-flip test on the
    prompts' differences, at 4 % for all domains of max_drop and floor together (Holm). Of stages that change no true score at
    most 4 % fail; how small a loss is seen, the verdict says (`detectable`). A true loss of just max_drop fails at most every
    second time: to see a loss of 0.05 in 4 of 5 stages it must be 0.03 or less.
    min_gain: fails unless the mean rose by this at least and the rise is not noise: the same test, at 5 % in each domain,
    without a correction because all of them must pass.
    floor: fails where the mean is below this and surely so: at most as many bootstrap means reach it as max_drop's level
    allows.

    on_failure: advance (the verdict is only recorded and reported); warn and go on; stop; or rollback, after which later stages
    start from the parent instead, and the stage's checkpoint may still teach.
    """

    max_drop: dict[str, float] = field(default_factory=dict)
    min_gain: dict[str, float] = field(default_factory=dict)
    floor: dict[str, float] = field(default_factory=dict)
    on_failure: str = "stop"

    @property
    def domains(self) -> list[str]:
        """Every domain with a rule, once."""
        return list(self.max_drop | self.min_gain | self.floor)


@dataclass(kw_only=True)
class StageConfig(LoopConfig):
    """`cascade.stages.<name>`, resolved. kind is the loop (sft or rl); teacher_only keeps it off the main line.

    judge and judge_endpoint come from `cascade.judge`: the stage that judges this one's replies, if that runs before.
    """

    name: str = ""
    kind: str = "???"  # the loop
    parent: str | None = None  # the stage whose weights it starts from; without the key the one before it on the main line
    teacher_only: bool = False
    teachers: dict[str, Teacher] = field(default_factory=dict)  # with adv_estimator opd, by domain
    gate: GateConfig = field(default_factory=GateConfig)
    judge: str | None = None
    judge_endpoint: EndpointConfig | None = None
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def loop(self) -> SFTConfig | GRPOConfig:
        """The block of its kind that has its length and its validation."""
        return self.sft if self.kind == "sft" else self.grpo

    @property
    def max_num_steps(self) -> int:
        """Optimizer steps of the stage, unless it stops at a plateau."""
        return self.loop.max_num_steps

    @property
    def start(self) -> str:
        """What the stage starts from, in words."""
        given, folder = self.checkpointing.pretrained_checkpoint, is_hf_folder(self.policy.model_name)
        weights = given.path if given is not None else self.policy.model_name if folder else None
        return self.parent or (f"the weights of {weights}" if weights else "fresh weights")

    @property
    def distils(self) -> bool:
        """Whether teachers, not rewards, give the advantages."""
        return self.kind == "rl" and self.grpo.adv_estimator.name == "opd"


@dataclass
class CascadeConfig:
    """`cascade`: the pipeline. `stages` has the resolved stages of `order`, in that order."""

    run_dir: str = "???"  # where everything of the run is written
    seed: int = 0  # of data, weights and sampling
    order: list[str] = field(default_factory=list)
    demo_data: DemoDataConfig | None = None  # procedural rows to write (null: none)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    handover: HandoverConfig = field(default_factory=HandoverConfig)
    judge: JudgeConfig | None = None  # what compares replies to preference rows (null: nothing)
    stages: dict[str, StageConfig] = field(default_factory=dict)

    def scored(self, name: str) -> dict[str, DatasetConfig]:
        """The files of every domain that a stage or one before it validates; a judge's domain is the judge's alone.

        What only judges or teaches is scored where it was trained, teaches or has a gate: nobody goes on from it, and other
        domains would cost as much to score as those of a stage that somebody does.
        """
        stage, judge = self.stages[name], self.judge.stage if self.judge is not None else None
        so_far = self.order[: self.order.index(name) + 1]
        files = {
            domain: file
            for earlier in so_far
            if earlier in self.stages and (earlier == name or earlier != judge)
            for domain, file in self.stages[earlier].data.validation.items()
        }
        if not stage.teacher_only and name != judge:
            return files
        taught = set(stage.gate.domains) | {
            domain
            for student in self.stages.values()
            for domain, teacher in student.teachers.items()
            if teacher.stage == name
        }
        return {domain: file for domain, file in files.items() if domain in taught or domain in stage.data.train}


@dataclass(kw_only=True)
class _File(LoopConfig):
    """The shape of a config file: the top-level defaults and the pipeline."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    cascade: CascadeConfig = field(default_factory=CascadeConfig)


def load_config(config: DictConfig | dict, world_size: int | None = None, planning: bool = False) -> CascadeConfig:
    """Checks and resolves a composed config. world_size None leaves out whether the layout fits the processes.

    planning: of another machine, so files and tokenizers need not be here, nor the engine be able to run it yet.
    Raises ConfigErrors with all problems at once.
    """
    problems: list[str] = []
    raw = to_plain(config if isinstance(config, DictConfig) else OmegaConf.create(config), "", problems)
    said, refused = exp_manager.translate(raw.pop(exp_manager.BLOCK, None))
    raw, problems = merge(raw, said), problems + refused
    _spell_out_teachers(raw)
    _refuse_names(raw, problems)
    cleaned = clean(_File, raw, "", problems)
    source = Source(cleaned)
    cascade = _resolve(source, problems)
    find = checks.planning_problems if planning else checks.all_problems
    problems += find(cascade, source, world_size)
    if problems:
        raise ConfigErrors(merged(problems, cascade.stages))
    return cascade


class Source:
    """Where in the config file a stage's value comes from, so that an error names the key that the user wrote."""

    def __init__(self, cleaned: dict):
        self.defaults = {key: value for key, value in cleaned.items() if key != "cascade"}
        self.cascade = cleaned.get("cascade", {})
        self.overrides = {name: stage or {} for name, stage in self.cascade.get("stages", {}).items()}

    def merged(self, stage: str) -> dict:
        """Defaults with the stage's own keys over them."""
        return merge(self.defaults, self.overrides[stage])

    def where(self, stage: str, key: str) -> str:
        """The full dotted key in the file: the stage's own when it says anything there, else the top-level one."""
        own = self.own(stage, "")
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            prefix = parts[:length]
            if _contains(self.overrides[stage], prefix):
                return join(own, key)
            if _contains(self.defaults, prefix):
                return key
        return key if parts[0] in BLOCKS else join(own, key)

    def own(self, stage: str, key: str) -> str:
        """A key below `cascade.stages.<stage>`."""
        return join(f"cascade.stages.{stage}", key) if key else f"cascade.stages.{stage}"


def _contains(values: Any, parts: list[str]) -> bool:
    for part in parts:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _resolve(source: Source, problems: list[str]) -> CascadeConfig:
    """The dataclasses, with defaults in place of what is missing (which is reported)."""
    own = {key: value for key, value in source.cascade.items() if key != "stages"}
    problems += [f"cascade.{key}: missing value; set it" for key, value in flatten(own).items() if is_missing(value)]
    cascade: CascadeConfig = make(CascadeConfig, without_missing(own))
    for name in dict.fromkeys(cascade.order):
        if name not in source.overrides:
            problems.append(f"cascade.order: unknown stage {name}{did_you_mean(name, source.overrides)}")
            continue
        merged = source.merged(name)
        stage: StageConfig = make(StageConfig, without_missing(merged))
        stage.name = name
        if "parent" not in source.overrides[name]:
            stage.parent = _default_parent(cascade)
        if cascade.judge is not None and cascade.judge.stage in cascade.stages:
            stage.judge = cascade.judge.stage
        values = merge(dataclasses.asdict(stage), merged)
        problems += [
            f"{source.where(name, k)}: missing value; set it" for k, v in flatten(values).items() if is_missing(v)
        ]
        stage.judge_endpoint = cascade.judge.endpoint if cascade.judge is not None else None
        cascade.stages[name] = stage
    return cascade


def _default_parent(so_far: CascadeConfig) -> str | None:
    """The stage before on the main line."""
    return next((name for name, stage in reversed(so_far.stages.items()) if not stage.teacher_only), None)


def _raw_stages(raw: dict) -> dict:
    """The stages of a plain config as far as they have the shape of mappings."""
    cascade = raw.get("cascade")
    stages = cascade.get("stages") if isinstance(cascade, dict) else None
    return (
        {name: stage for name, stage in stages.items() if isinstance(stage, dict)} if isinstance(stages, dict) else {}
    )


def _spell_out_teachers(raw: dict) -> None:
    """`math: math_rl` is short for `math: {stage: math_rl}`; `teachers: auto` is so for all domains, of which those where nothing
    is better than the student's start get it as an anchor."""
    for stage in _raw_stages(raw).values():
        if stage.get("teachers") == AUTO:
            data = merge(raw.get("data") or {}, stage.get("data") or {})
            domains = data.get("train") if isinstance(data, dict) else None
            stage["teachers"] = {domain: {"stage": AUTO, "anchor": True} for domain in domains or {}}
        if isinstance(stage.get("teachers"), dict):
            stage["teachers"] = {
                domain: {"stage": teacher} if isinstance(teacher, str) else teacher
                for domain, teacher in stage["teachers"].items()
            }


def _refuse_names(raw: dict, problems: list[str]) -> None:
    """A stage's name is its key in the mapping and nothing else; one judge serves the whole cascade."""
    for name, stage in _raw_stages(raw).items():
        for key in ("judge", "judge_endpoint"):
            if stage.pop(key, None) is not None:
                problems.append(f"cascade.stages.{name}.{key}: one judge serves all stages; set cascade.judge")
        if "name" in stage:
            del stage["name"]
            problems.append(f"cascade.stages.{name}.name: unknown key; the stage is already named by its key, {name}")
