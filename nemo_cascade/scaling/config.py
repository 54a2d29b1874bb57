"""The config of `nemo-cascade scale`: a YAML file, key=value on the command line, merged strictly and checked at once."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_cascade.cascade import checks
from nemo_cascade.cascade.compose import refuse_unless_key_value
from nemo_cascade.cascade.strict import ConfigErrors, clean, flatten, is_missing, make, to_plain
from nemo_cascade.engine.config import PolicyConfig
from nemo_cascade.scaling.best_of_n import SELECT, BestOfNConfig
from nemo_cascade.scaling.icpc import ICPCConfig
from nemo_cascade.scaling.ioi import IOIConfig
from nemo_cascade.scaling.proposers import ModelEndpoint
from nemo_cascade.scaling.refine import RefineConfig
from nemo_cascade.scaling.work import Budget

METHODS = ("best_of_n", "refine", "ioi", "icpc")


@dataclass
class ScaleConfig:
    """All keys. Of `endpoint` and `policy` one is given: who answers. checkpoint: weights for `policy`, a step_N of a run or what
    `checkpointing.pretrained_checkpoint.path` may name; without it those of a Hugging Face folder, or fresh ones.

    thinking: whether replies begin with a thought. The block of the method that runs may be given, no other's.
    """

    endpoint: ModelEndpoint | None = None
    policy: PolicyConfig | None = None
    checkpoint: str | None = None
    seed: int = 0  # of what is sampled
    thinking: bool = True
    budget: Budget = field(default_factory=Budget)
    best_of_n: BestOfNConfig = field(default_factory=BestOfNConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    ioi: IOIConfig = field(default_factory=IOIConfig)
    icpc: ICPCConfig = field(default_factory=ICPCConfig)


def load_scale_config(method: str, file: Path | None, overrides: list[str]) -> ScaleConfig:
    """The checked config. Raises ConfigErrors with all that is wrong."""
    refuse_unless_key_value(overrides)
    try:
        read = OmegaConf.load(file) if file is not None else OmegaConf.create({})
        given = OmegaConf.merge(read, OmegaConf.from_dotlist(overrides))
    except (OSError, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ConfigErrors([f"{file or 'key=value'}: {error}"]) from None
    problems: list[str] = []
    plain = clean(ScaleConfig, to_plain(given, "", problems), "", problems)
    unread = [other for other in METHODS if other != method and other in plain]
    problems += [f"{other}: `scale {method.replace('_', '-')}` does not read it; remove it" for other in unread]
    if not problems:
        config = make(ScaleConfig, plain)
        problems += _problems(config, method)
    if problems:
        raise ConfigErrors(problems)
    return config


def settings_of(config: ScaleConfig, method: str) -> dict:
    """What a journal must agree on: all that replies and what follows from them depend on. The budget may change, and where and how
    patiently an endpoint is asked."""
    values = asdict(config)
    for key in ("base_url", "api_key_env", "concurrency", "timeout", "tries"):
        (values["endpoint"] or {}).pop(key, None)
    kept = ("endpoint", "policy", "checkpoint", "seed", "thinking", method)
    return {"method": method, **{key: values[key] for key in kept}}


def _problems(config: ScaleConfig, method: str) -> list[str]:
    problems = []
    if (config.endpoint is None) == (config.policy is None):
        problems.append("give endpoint.base_url and endpoint.model, or policy.model_name: one of the two answers")
    if config.endpoint is not None:
        problems += _endpoint_problems(config.endpoint)
    if config.checkpoint is not None and config.policy is None:
        problems.append("checkpoint: only a `policy` has one; an endpoint has its model")
    if config.policy is not None:
        problems += _policy_problems(config.policy)
    numbers = {f"budget.{key}": value for key, value in asdict(config.budget).items()}
    numbers |= {f"{method}.{key}": value for key, value in asdict(getattr(config, method)).items()}
    may_be_0 = {"refine.critiques", "ioi.history", "ioi.best"}
    for key, value in numbers.items():
        if isinstance(value, (int, float)) and (value < 0 or (value == 0 and key not in may_be_0)):
            problems.append(f"{key}: {value} must be above 0")
    if config.best_of_n.select not in SELECT:
        problems.append(f"best_of_n.select: {config.best_of_n.select} is none of {', '.join(SELECT)}")
    return problems


def _endpoint_problems(endpoint: ModelEndpoint) -> Iterator[str]:
    for key in ("base_url", "model"):
        if is_missing(getattr(endpoint, key)):
            yield f"endpoint.{key}: not given"
    for key in ("max_tokens", "concurrency", "tries"):
        if getattr(endpoint, key) < 1:
            yield f"endpoint.{key}: {getattr(endpoint, key)} must be at least 1"
    if endpoint.timeout <= 0:
        yield f"endpoint.timeout: {endpoint.timeout:g} must be above 0"
    if endpoint.temperature < 0:
        yield f"endpoint.temperature: {endpoint.temperature:g} must not be below 0"
    if not 0 < endpoint.top_p <= 1:
        yield f"endpoint.top_p: {endpoint.top_p:g} must be above 0 and at most 1"
    if endpoint.logprobs:
        yield "endpoint.logprobs: nothing here reads them; remove it"


def _policy_problems(policy: PolicyConfig) -> Iterator[str]:
    values = flatten({"policy": asdict(policy)})
    for key, value in values.items():
        if key in checks.CHOICES and value not in checks.CHOICES[key]:
            yield f"{key}: {value} is none of {', '.join(map(str, checks.CHOICES[key]))}"
        if key in checks.AT_LEAST_ONE and value is not None and value < 1:
            yield f"{key}: {value} must be at least 1"
    if policy.generation.backend != "megatron":
        yield "policy.generation.backend: only megatron samples in this process; serve the model, and name it as endpoint.base_url"
