"""Hand-over: what a stage has written is read again, and is the network that the stage had in memory, before anything goes on
from it.

Three comparisons, on the policy that then scores the checkpoint: log-probs of a fixed batch (`engine.probe`) with those before
the save, the hash of all weights with the one that was written, and the way through a Hugging Face folder and back, bit by bit.
Left out: the optimizer's state, which no other stage reads.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.data.files import write_atomically
from nemo_cascade.engine import checkpoint, parallel, probe
from nemo_cascade.engine.policy import Policy
from nemo_cascade.stages.context import StageRun

if TYPE_CHECKING:
    from nemo_cascade.cascade.config import HandoverConfig

FILE = "handover.json"

# token ids, a list a sequence -> their log-probs, entry 0 being 0, from an engine that was given the policy's weights.
Served = Callable[[list[list[int]]], list[list[float]]]


class HandoverError(RunRefused):
    """A checkpoint is not the network that its stage had in memory; names stage, file and what differs."""


def reload(
    stage: StageRun, final: Path, config: "HandoverConfig", serve: Callable[[Policy], Served] | None = None
) -> Policy:
    """The policy of a finished stage with the weights at `final`, checked; called on all ranks. `handover.json` has the result.

    serve: gives an engine of its own the policy's weights and says how to ask it (vLLM, where it samples).
    Raises HandoverError on every rank.
    """
    policy = Policy(stage.config.policy, seed=stage.seed)
    try:
        policy.load(final / "policy", optimizer=False)
    except Exception as error:  # noqa: BLE001 - every reader has errors of its own for a damaged file
        raise HandoverError(f"stage {stage.name}: {final / 'policy'} cannot be read: {type(error).__name__}: {error}") from error
    found = check(policy, stage.name, final, config, serve(policy) if serve is not None else None)
    if parallel.rank() == 0:
        write_atomically(stage.dir / FILE, json.dumps(found) + "\n")
    return policy


def check(policy: Policy, name: str, final: Path, config: "HandoverConfig", served: Served | None = None) -> dict:
    """Compares a policy that has just been read with what was written at `final`; returns {comparison: largest difference of a
    log-prob}, None for one that was not made. Raises HandoverError."""
    found: dict[str, float | None] = {"reloaded": None, "hf": None, "served": None}
    weights = final / "policy" / "weights"
    known = probe.read(final)
    now = probe.take(policy, known.tokens if known is not None else None)
    again = f"; what keeps this file is at fault: repeat the stage with --from-stage {name}"
    if known is not None:
        limit = config.max_logprob_error if known.where == now.where else max(config.max_logprob_error, config.max_logprob_error_elsewhere)
        found["reloaded"] = compare(f"stage {name}: {weights}, read again,", known, now.logprobs, limit, again)
    written, read = checkpoint.read_info(final)["weights_hash"], policy.weights_hash()
    if read != written:
        raise HandoverError(f"stage {name}: {weights}, read again, has the hash {read}, but {written} was written{again}")
    if config.hf:
        found["hf"] = through_hf(policy, name, final, now, config.max_logprob_error)
    if served is not None:
        place = f"stage {name}: {weights}, given to the engine that samples,"
        wrong = "; it must not sample for training. A bound of its own: cascade.handover.max_logprob_error_elsewhere"
        found["served"] = compare(place, now, served(now.tokens), config.max_logprob_error_elsewhere, wrong)
    return found


def through_hf(policy: Policy, name: str, final: Path, before: probe.Probe, limit: float) -> float:
    """The largest difference of a log-prob after the weights went through a Hugging Face folder, which is removed again."""
    folder = final.parent / "tmp_handover_hf"
    place = f"stage {name}: {final / 'policy' / 'weights'}, written as a Hugging Face folder and read from it,"
    wrong = "; the conversion is at fault. To go on without a folder that others can open: cascade.handover.hf=false"
    try:
        changed = policy.changed_by_hf(folder)
    except (ValueError, OSError) as error:
        raise HandoverError(f"{place} fails: {error}{wrong}") from error
    finally:
        if parallel.rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
    worst = compare(place, before, probe.take(policy, before.tokens).logprobs, limit, wrong)
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise HandoverError(f"{place} has other values in {', '.join(changed[:5])}{more}{wrong}")
    return worst


def compare(place: str, before: probe.Probe, logprobs: list[list[float]], limit: float, remedy: str) -> float:
    """The largest difference; raises HandoverError, naming the token and both values, where it is above the limit or no number."""
    worst, row, token = max(
        (math.inf if math.isnan(one - other) else abs(one - other), row, token)
        for row, (old, new) in enumerate(zip(before.logprobs, logprobs, strict=True))
        for token, (one, other) in enumerate(zip(old, new, strict=True))
    )
    if worst > limit:
        raise HandoverError(
            f"{place} gives token {token} (id {before.tokens[row][token]}) of probe sequence {row} the log-prob "
            f"{logprobs[row][token]:.6f} instead of {before.logprobs[row][token]:.6f}, with a bound of {limit:g}{remedy}"
        )
    return worst
