"""What must hold of judges: of the one that compares replies, and of those that are asked about single ones.

As in checks.py every function yields problems as lines "key: what is wrong; what to do".
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_cascade import environments
from nemo_cascade.cascade.strict import did_you_mean, is_missing
from nemo_cascade.environments.endpoint import Endpoint

if TYPE_CHECKING:
    from nemo_cascade.cascade.config import CascadeConfig, JudgeConfig, StageConfig
    from nemo_cascade.environments.endpoint import EndpointConfig


def judge_problems(cascade: "CascadeConfig") -> Iterator[str]:
    """A judge is a stage off the main line, or an endpoint, whose agreement with known preferences is measured."""
    if cascade.judge is None:
        return
    name, least = cascade.judge.stage, cascade.judge.min_agreement
    if not 0 <= least <= 1:
        yield f"cascade.judge.min_agreement: a share of preferences, from 0 to 1, got {least}"
    if (name is None) == (cascade.judge.endpoint is None):
        yield "cascade.judge: either a stage or an endpoint judges; set one of cascade.judge.stage and cascade.judge.endpoint"
    elif name is None:
        yield from endpoint_judge_problems(cascade.judge)
    if name is None:
        return
    if name not in cascade.stages:
        yield f"cascade.judge.stage: unknown stage {name}{did_you_mean(name, cascade.stages)}"
        return
    stage = cascade.stages[name]
    if not stage.teacher_only:
        yield f"cascade.judge.stage: {name} is on the main line; set cascade.stages.{name}.teacher_only=true"
    if cascade.validation.num_prompts == 0:
        yield f"cascade.validation.num_prompts: 0, but {name} may judge only once its agreement is measured"
    for domain in stage.data.train:
        if domain not in stage.data.validation:
            yield f"cascade.stages.{name}.data.validation.{domain}: missing; on it the judge's agreement is measured"


def endpoint_judge_problems(judge: "JudgeConfig") -> Iterator[str]:
    """A judge behind an endpoint is one that is there, and has rows on which its agreement is measured."""
    for name in ("base_url", "model"):
        if is_missing(getattr(judge.endpoint, name)):
            yield f"cascade.judge.endpoint.{name}: missing value; set it"
    yield from endpoint_problems("cascade.judge.endpoint", judge.endpoint)
    if judge.agreement is None:
        yield "cascade.judge.agreement: missing; a JSONL file of known preferences, on which the judge's agreement is measured"
    elif not Path(judge.agreement).is_file():
        yield f"cascade.judge.agreement: no file {judge.agreement}"


def endpoint_problems(key: str, endpoint: "EndpointConfig") -> Iterator[str]:
    """An endpoint has an address, and the key that it needs."""
    if not is_missing(endpoint.base_url) and not endpoint.base_url.startswith(("http://", "https://")):
        yield f"{key}.base_url: an address such as http://host:8000/v1, got {endpoint.base_url}"
    if endpoint.api_key_env is not None and not os.environ.get(endpoint.api_key_env):
        yield f"{key}.api_key_env: the environment variable {endpoint.api_key_env} is not set"
    for name in ("concurrency", "tries", "max_tokens"):
        if getattr(endpoint, name) < 1:
            yield f"{key}.{name}: must be >= 1, got {getattr(endpoint, name)}"


def judges_problems(stage: "StageConfig", where) -> Iterator[str]:
    """A judge of single replies serves an environment that asks one."""
    for name, endpoint in stage.env.judges.items():
        key = where(f"env.judges.{name}")
        if name not in environments.asking():
            known = environments.asking()
            yield f"{key}: no environment of that name asks a judge about single replies{did_you_mean(name, known)}"
        yield from endpoint_problems(key, endpoint)


def absent_judges(cascade: "CascadeConfig", names: list[str]) -> Iterator[str]:
    """Lines on the models behind endpoints that these stages ask about single replies, and that cannot be asked now."""
    asked = {
        (endpoint.base_url, endpoint.model, endpoint.api_key_env): (environment, endpoint)
        for name in names
        for environment, endpoint in cascade.stages[name].env.judges.items()
    }
    for environment, endpoint in asked.values():
        said = Endpoint(endpoint).trouble()
        if said:
            yield f"env.judges.{environment}: {said}"


def absent_judge(cascade: "CascadeConfig") -> Iterator[str]:
    """The same of the model that compares replies."""
    endpoint = cascade.judge.endpoint if cascade.judge is not None else None
    said = Endpoint(endpoint).trouble() if endpoint is not None else None
    if said:
        yield f"cascade.judge.endpoint: {said}"
