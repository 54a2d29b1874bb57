"""What must hold of a config's rows: files that are there, names of domains, environments, packs.

As in checks.py every function yields problems as lines "key: what is wrong; what to do".
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_cascade import environments
from nemo_cascade.cascade.strict import NAME, did_you_mean, is_missing, is_slip, join
from nemo_cascade.data import demo
from nemo_cascade.data.packing import document_multiple
from nemo_cascade.data.rows import DataError, environment_of

if TYPE_CHECKING:
    from nemo_cascade.cascade.config import CascadeConfig, Source, StageConfig


def data_problems(cascade: "CascadeConfig", stage: "StageConfig", source: "Source", where) -> Iterator[str]:
    """Files exist, shares are positive, the environments are known, and what RL trains can be scored."""
    if not stage.data.train:
        yield f"{source.own(stage.name, 'data.train')}: no data; add <domain>: {{data_path: <file.jsonl>}}"
    for split in ("train", "validation"):
        for domain, dataset in getattr(stage.data, split).items():
            key = f"data.{split}.{domain}"
            if not NAME.fullmatch(domain):
                yield f"{where(key)}: a domain name becomes part of metric names; use letters, digits, _ and - only"
            if dataset.share <= 0:
                yield f"{where(key + '.share')}: must be > 0, got {dataset.share}"
            if is_missing(dataset.data_path):
                continue
            if _to_be_written(cascade, dataset.data_path):
                yield from demo_file_problems(cascade.demo_data.path, dataset.data_path, where(f"{key}.data_path"))
            else:
                needs_environment = split == "validation" or stage.kind == "rl"
                if not needs_environment and Path(dataset.data_path).is_dir():
                    yield from packed_problems(stage, Path(dataset.data_path), where(f"{key}.data_path"))
                else:
                    known = {*environments.names(), *stage.env.nemo_gym.servers} if needs_environment else set()
                    yield from file_problems(dataset.data_path, where(f"{key}.data_path"), known)
    if stage.kind == "rl" and cascade.validation.num_prompts > 0:
        for domain in stage.data.train:
            if domain not in stage.data.validation:
                yield (
                    f"data.validation.{domain}: {stage.name} trains on {domain} but nothing scores it; add a "
                    "validation file or set cascade.validation.num_prompts=0"
                )


def domain_problems(source: "Source") -> Iterator[str]:
    """A domain has any name, so that a slip of the finger makes a new one: told where its file, or other keys, have the other.

    Names that differ in a digit, as code_1 and code_2, are meant.
    """
    places = [("", source.defaults), *((source.own(name, ""), values) for name, values in source.overrides.items())]
    named = [
        (join(path, f"{key}.{domain}"), domain, parts_of(entry))
        for path, values in places
        for key in ("data.train", "data.validation", "teachers")
        for domain, entry in at(values, key).items()
    ]
    uses = Counter(domain for _, domain, _ in named)
    for key, domain, parts in named:
        more_used = [other for other in uses if uses[other] > uses[domain]]
        for other in dict.fromkeys((*parts, *more_used)):
            if is_slip(domain, other) and not any(letter.isdigit() for letter in domain + other):
                yield f"{key}: nearly the name of another domain, or of its file; did you mean {other}? Else rename it"


def parts_of(entry) -> list[str]:
    """The names of folders and file in the data_path of a data set's entry, without suffixes."""
    path = entry.get("data_path") if isinstance(entry, dict) else None
    return [Path(part).stem for part in Path(path).parts] if isinstance(path, str) else []


def at(values: dict, key: str) -> dict:
    """The mapping at a dotted key, empty where there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def file_problems(path: str, key: str, known: set[str]) -> Iterator[str]:
    """The file is there and, where some environments are known, its first row names one of them. The other rows are
    read later."""
    if not Path(path).is_file():
        yield f"{key}: no file {path}"
        return
    if known:
        with open(path, encoding="utf-8") as file:
            line = file.readline()
        try:
            name = environment_of(json.loads(line))
        except (ValueError, AttributeError):
            return  # a malformed row is told with its number when all rows are read
        if name not in known:
            suggestion = did_you_mean(name, sorted(known))
            yield f"{key}: the first row of {path} asks for environment {name}{suggestion}"


def gate_limit_problems(cascade: "CascadeConfig", stage: "StageConfig", source: "Source") -> Iterator[str]:
    """A gate's limits are points of score, which the rewards of a domain can come to; said where its environment is known."""
    files = cascade.scored(stage.name)
    for rule in ("max_drop", "min_gain", "floor"):
        for domain, limit in getattr(stage.gate, rule).items():
            name = environment_in(cascade, files[domain].data_path) if domain in files else None
            if name not in environments.names():
                continue
            least, most = environments.reward_range(name)
            low, high = (least, most) if rule == "floor" else (0.0, most - least)
            if not low <= limit <= high:
                points = f"scores of {domain} are {least:g} to {most:g}, and limits are points of them: 0.02 is two hundredths"
                yield f"{source.own(stage.name, 'gate')}.{rule}.{domain}: must be {low:g} to {high:g}, got {limit:g}; {points}"


def environment_in(cascade: "CascadeConfig", path: str) -> str | None:
    """Whose rows a file has, or will have once the demo's are written; None where that cannot be said yet."""
    if is_missing(path):
        return None
    if Path(path).is_file():
        with open(path, encoding="utf-8") as file:
            line = file.readline()
        try:
            return environment_of(json.loads(line))
        except (ValueError, AttributeError):
            return None
    domain = demo.DOMAINS.get(Path(path).parent.name) if _to_be_written(cascade, path) else None
    return (domain.environment or domain.name) if domain is not None else None


def packed_problems(stage: "StageConfig", folder: Path, key: str) -> Iterator[str]:
    """A folder of packs is all that a stage trains on, and was packed for its tokenizer, its packs and its layout."""
    from nemo_cascade.data.packed_dataset import read_report

    try:
        report = read_report(folder)
    except DataError as error:
        yield f"{key}: {error}"
        return
    if len(stage.data.train) > 1:
        yield f"{key}: packs are a mixture already; pack all files of data.train together, or name no folder"
    policy = stage.policy
    if report.tokenizer != policy.tokenizer.name:
        yield (
            f"{key}: packed with the tokenizer {report.tokenizer}, not policy.tokenizer.name={policy.tokenizer.name}; "
            "pack again"
        )
    if report.capacity > policy.sequence_packing.train_mb_tokens:
        yield (
            f"{key}: packs of {report.capacity} tokens, more than policy.sequence_packing.train_mb_tokens="
            f"{policy.sequence_packing.train_mb_tokens}; raise it or pack again"
        )
    if report.longest + 1 > policy.max_total_sequence_length:
        yield (
            f"{key}: a document has {report.longest + 1} tokens, more than policy.max_total_sequence_length="
            f"{policy.max_total_sequence_length}; raise it or pack again without"
        )
    multiple = document_multiple(policy.megatron_cfg.context_parallel_size)
    if report.document_multiple % multiple:
        yield (
            f"{key}: packed for documents of a multiple of {report.document_multiple} tokens, but "
            f"context_parallel_size={policy.megatron_cfg.context_parallel_size} needs {multiple}; pack again with it"
        )


def demo_file_problems(folder: str, path: str, key: str) -> Iterator[str]:
    """A file below cascade.demo_data.path is one of those the demo domains write."""
    name = str(Path(path).absolute().relative_to(Path(folder).absolute()))
    if name not in demo.FILES:
        yield f"{key}: {name} is not one of the demo files of cascade.demo_data{did_you_mean(name, demo.FILES)}"


def _to_be_written(cascade: "CascadeConfig", path: str) -> bool:
    """Whether the runner will write this file itself."""
    if cascade.demo_data is None or is_missing(cascade.demo_data.path):
        return False
    return Path(path).absolute().is_relative_to(Path(cascade.demo_data.path).absolute())
