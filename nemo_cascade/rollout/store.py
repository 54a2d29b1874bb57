"""Rollouts on disk before they are trained on, so that a resumed run trains on the very same ones.

`step_NAME.jsonl`, NAME the step (and the draw, where a step has several): one group a line, then a line with the sha256 of
all before. Log-probs, 8 bytes each, and experts are written by their bytes in base64, half as long as digits and much sooner made; log-probs as
numbers are read as well. Other floats are written by repr, which reads back to the same bits.
Written to a temporary name, synced, renamed; a file that is cut or damaged counts as absent.
"""

import base64
import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import torch

from nemo_cascade.data.files import write_atomically
from nemo_cascade.data.rows import DataError
from nemo_cascade.engine import parallel
from nemo_cascade.rollout.types import Group, Rollout

logger = logging.getLogger(__name__)

DOUBLES = "<f8"


class RolloutStore:
    """The rollouts of one stage. Rank 0 reads and writes; every rank gets what it read."""

    # What happens where a file cannot be used, and what else is to be done about rollouts that do not fit.
    instead, remedy = "its rollouts are drawn again", "repeat the stage with --from-stage"

    def __init__(self, directory: Path):
        self.directory = Path(directory)

    def path(self, name: str) -> Path:
        return self.directory / f"step_{name}.jsonl"

    def save(self, name: str, groups: list[Group]) -> None:
        """Returns on every rank only when the file is on disk under its final name."""
        if parallel.rank() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            body = "".join(json.dumps(_values(group), default=_written) + "\n" for group in groups)
            write_atomically(self.path(name), body + json.dumps({"sha256": _digest(body)}) + "\n")
        parallel.barrier()

    def load(self, name: str) -> list[Group] | None:
        """The groups kept under a name, None when there is no complete file."""
        return parallel.broadcast(self._read(name) if parallel.rank() == 0 else None)

    def _read(self, name: str) -> list[Group] | None:
        path = self.path(name)
        if not path.exists():
            return None
        *lines, seal = path.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
        body = "".join(lines)
        if seal != json.dumps({"sha256": _digest(body)}) + "\n":
            logger.warning("%s is incomplete or damaged; %s", path, self.instead)
            return None
        return [_group(json.loads(line)) for line in lines]


class SavedRollouts(RolloutStore):
    """Rollouts to train on where nothing can be drawn: what is not there is an error."""

    instead = remedy = "draw them again with --rollouts-only"

    def load(self, name: str) -> list[Group]:
        """The groups kept under a name. Raises DataError on every rank when there is no complete file."""
        groups = super().load(name)
        if groups is None:
            raise DataError(f"{self.path(name)}: no whole file of rollouts, and nothing is sampled here; {self.remedy}")
        return groups


def _values(group: Group) -> dict:
    # dataclasses.asdict would copy every token: three times the time of all the rest.
    rollouts = [{**vars(rollout), "logprobs": base64.b64encode(np.array(rollout.logprobs, DOUBLES)).decode()} for rollout in group.rollouts]
    return {**vars(group), "rollouts": rollouts}


def _group(values: dict) -> Group:
    return Group(values["row"], values["domain"], [_rollout(rollout) for rollout in values["rollouts"]])


def _rollout(values: dict) -> Rollout:
    experts, logprobs = values.pop("experts", None), values["logprobs"]
    if isinstance(logprobs, str):
        values["logprobs"] = np.frombuffer(base64.b64decode(logprobs), DOUBLES).tolist()
    return Rollout(**values, experts=None if experts is None else _read_tensor(experts))


def _written(tensor: torch.Tensor) -> dict:
    """A tensor of integers as JSON values."""
    array = tensor.numpy()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "base64": base64.b64encode(array.tobytes()).decode()}


def _read_tensor(values: dict) -> torch.Tensor:
    flat = torch.frombuffer(bytearray(base64.b64decode(values["base64"])), dtype=getattr(torch, values["dtype"]))
    return flat.reshape(values["shape"])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
