"""What a stage without a parent begins with: that the weights a config names are there and say what they are."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_cascade.cascade.strict import is_missing
from nemo_cascade.engine import pretrained

if TYPE_CHECKING:
    from nemo_cascade.cascade.config import Source, StageConfig


def pretrained_problems(stage: "StageConfig", source: "Source", where) -> Iterator[str]:
    """The folder exists and is of its format; a stage that starts from another one's checkpoint does not name any."""
    given, key = stage.checkpointing.pretrained_checkpoint, "checkpointing.pretrained_checkpoint"
    if stage.parent is not None:
        own = source.overrides[stage.name].get("checkpointing") or {}
        if own.get("pretrained_checkpoint") is not None:
            text = f"{stage.name} starts from {stage.parent}, so this would not be read; remove it, or set parent: null"
            yield f"{source.own(stage.name, key)}: {text}"
        return
    if given is None or is_missing(given.path):
        return
    if given.format not in (None, *pretrained.FORMATS):
        yield f"{where(f'{key}.format')}: must be one of {', '.join(pretrained.FORMATS)} or null, got {given.format!r}"
        return
    try:
        pretrained.find(Path(given.path), given.format)
    except ValueError as error:
        yield f"{where(f'{key}.path')}: {error}"
