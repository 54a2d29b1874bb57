"""Where rollouts come from: `origin.json` beside them says how they were drawn, so that nobody trains on them as if they were others.

What must be the same: tokenizer, chat template, the stage's seed and every setting that decides what a step asks, what is sampled and
what it earns. What may be another: all of the training, and the weights that a stage starts from, which is told. The rows themselves
are compared prompt by prompt when a step is read (`sampler.Sampler`).
"""

import json
import logging
from pathlib import Path

from nemo_cascade.data.files import write_atomically
from nemo_cascade.data.rows import DataError
from nemo_cascade.data.tokenizer import fingerprint
from nemo_cascade.engine import checkpoint, parallel, seal
from nemo_cascade.rollout.store import RolloutStore, SavedRollouts
from nemo_cascade.stages.context import LoopConfig, StageRun

FILE = "origin.json"

logger = logging.getLogger(__name__)


def open_store(stage: StageRun, tokenizer) -> RolloutStore:
    """The stage's own rollouts, whose origin is written; or the saved ones that it is to train on.

    Raises DataError on every rank where these were drawn otherwise than this stage would.
    """
    if stage.saved_rollouts is not None:
        refuse_other(stage.saved_rollouts, origin_of(stage, tokenizer))
        return SavedRollouts(stage.saved_rollouts)
    store = RolloutStore(stage.dir / "rollouts")
    if stage.rank == 0:
        store.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(store.directory / FILE, json.dumps(origin_of(stage, tokenizer), indent=2) + "\n")
    return store


def origin_of(stage: StageRun, tokenizer) -> dict:
    """{"start": hash of the weights of the checkpoint that the stage starts from, None where there is none; "drawn": what must be the
    same, by the names of the config's keys where it has some}."""
    start = stage.parent
    has_info = start is not None and (start / seal.INFO).exists()
    drawn = {**fingerprint(tokenizer), "seed of the stage": stage.seed, **sampling(stage.config)}
    return {"start": checkpoint.read_info(start)["weights_hash"] if has_info else None, "drawn": drawn}


def sampling(config: LoopConfig) -> dict:
    """The settings of a stage that decide what its steps ask, what is sampled and what it earns."""
    policy, grpo = config.policy, config.grpo
    return {
        "policy.max_total_sequence_length": policy.max_total_sequence_length,
        "policy.generation.max_new_tokens": policy.generation.max_new_tokens,
        "policy.generation.temperature": policy.generation.temperature,
        "policy.generation.top_p": policy.generation.top_p,
        "policy.router_replay.enabled": policy.router_replay.enabled,
        "grpo.num_prompts_per_step": grpo.num_prompts_per_step,
        "grpo.num_generations_per_prompt": grpo.num_generations_per_prompt,
        "grpo.use_dynamic_sampling": grpo.use_dynamic_sampling,
        "grpo.max_rollout_turns": grpo.max_rollout_turns,
        "grpo.overlong": grpo.overlong_mode,
        "grpo.adv_estimator.name": grpo.adv_estimator.name,
        "data.train": {domain: file.share for domain, file in config.data.train.items()},
        "data.shuffle": config.data.shuffle,
    }


def refuse_other(folder: Path, mine: dict) -> None:
    """Raises DataError, a line each, for what of saved rollouts is not as this stage's would be; another start is only told."""
    path = folder / FILE
    text = parallel.broadcast(path.read_text(encoding="utf-8") if parallel.rank() == 0 and path.is_file() else None)
    try:
        theirs = json.loads(text or "")
        drawn = theirs["drawn"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise DataError(f"{path}: missing or damaged, so how these rollouts were drawn is not known; {SavedRollouts.remedy}") from None
    problems = [
        f"{path}: {key} was {_show(drawn, key)} when these rollouts were drawn, and here is {_show(mine['drawn'], key)}; "
        f"put it back, or {SavedRollouts.remedy}"
        for key in dict.fromkeys((*drawn, *mine["drawn"]))
        if key not in drawn or key not in mine["drawn"] or drawn[key] != mine["drawn"][key]
    ]
    if problems:
        raise DataError("\n".join(problems))
    if theirs.get("start") != mine["start"]:
        logger.warning("%s: drawn from other weights than this stage starts from, so nothing comes out the same to the bit", path)


def _show(values: dict, key: str) -> str:
    value = values.get(key, "(absent)")
    return value[:12] if key in ("tokenizer", "template") else f"{value}"
