"""Replies of weights in this process, or in all that torchrun started: a stage's checkpoint or a Hugging Face folder, by the engine that
`policy.generation.backend` names.

The noise of a token depends on (prompt, sample, position), so that a run which goes on draws what it would have drawn.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_cascade.cascade.plan import CONFIG_FILE, RunRefused
from nemo_cascade.cascade.strict import clean, make, merge
from nemo_cascade.data.chat import render_prompt
from nemo_cascade.data.hashes import json_hash
from nemo_cascade.data.rows import DataError, messages_of, tools_of
from nemo_cascade.data.tokenizer import fingerprint
from nemo_cascade.engine import parallel
from nemo_cascade.engine.config import PolicyConfig
from nemo_cascade.engine.policy import Policy
from nemo_cascade.evaluation.benchmark import Sample, Settings
from nemo_cascade.evaluation.replies import Heard, Reply
from nemo_cascade.models.presets import get_preset
from nemo_cascade.rollout.engine import generate, generate_global
from nemo_cascade.rollout.types import FAILED, Request, Rollout, SamplingParams
from nemo_cascade.stages.prompts import Prompt
from nemo_cascade.stages.rewards import response_pair, said
from nemo_cascade.stages.rollouts import conversing, make_engine
from nemo_cascade.stages.validation import VALIDATION_SEED

# Other noise than scores in a run have: what was chosen for its luck there does not keep it.
SEED = VALIDATION_SEED + 2


class Loaded:
    """`replies.Source`; built and called on all ranks together."""

    def __init__(self, policy: Policy, name: str):
        self.policy, self.name = policy, name
        self.rank, self.ranks = parallel.rank(), parallel.world_size()
        self.identity = json_hash(["weights", policy.weights_hash(), fingerprint(policy.tokenizer)])
        self.engine = make_engine(policy)

    def share(self, function, items: list) -> list:
        return parallel.share_out(function, items)

    def close(self) -> None:
        """Leaves the world."""
        parallel.shutdown()

    def answer(self, samples: list[Sample], settings: Settings, heard: Heard) -> dict[str, Reply]:
        """Raises DataError for a prompt that leaves no room for a reply."""
        if not samples:
            return {}
        prompts = self._prompts(samples, settings)
        sample_of = {(sample.prompt, sample.number): sample for sample in samples}
        requests = [Request(sample.prompt, sample.number, tuple(prompts[sample.prompt].tokens)) for sample in samples]
        params = SamplingParams(settings.temperature, settings.top_p, max_new_tokens=settings.max_tokens, seed=SEED)
        draw = generate if settings.turns == 1 else conversing(self.policy, list(prompts.values()), settings.turns)

        def ended(rollouts: list[Rollout]) -> None:
            for rollout in rollouts:
                if rollout.finish_reason not in FAILED:
                    sample = sample_of[rollout.prompt_id, rollout.sample]
                    heard(sample, self._reply(sample, rollout))

        self.engine.sync(self.policy)
        rollouts = generate_global(self.engine, requests, params, partial(draw, ended=ended))
        drawn = [(sample, rollout) for sample, rollout in zip(samples, rollouts) if rollout.finish_reason not in FAILED]
        return {sample.key: self._reply(sample, rollout) for sample, rollout in drawn}

    def _prompts(self, samples: list[Sample], settings: Settings) -> dict[str, Prompt]:
        rows = {sample.prompt: sample.row for sample in samples}
        longest = self.policy.config.max_total_sequence_length
        prompts = {}
        for name, row in rows.items():
            thinks = row["enable_thinking"]
            tokens = render_prompt(self.policy.tokenizer, messages_of(row), tools=tools_of(row), enable_thinking=thinks)
            if len(tokens) + settings.max_tokens > longest:
                raise DataError(
                    f"prompt {name[:12]} ({str(messages_of(row)[-1].get('content'))[:60]!r}) has {len(tokens)} tokens, which with a reply of "
                    f"{settings.max_tokens} are more than the {longest} of policy.max_total_sequence_length; lower --max-tokens"
                )
            prompts[name] = Prompt(name, "", row, tokens)
        return prompts

    def _reply(self, sample: Sample, rollout: Rollout) -> Reply:
        _, response = response_pair(sample.row, *said(rollout, self.policy.tokenizer))
        return {"response": response, "finish": rollout.finish_reason, "tokens": sum(rollout.written)}


def of_stage(checkpoint: Path, overrides: list[str]) -> Loaded:
    """A checkpoint (`step_N`) of a stage, of the model that the `config.yaml` beside it names."""
    stored = checkpoint.parent / CONFIG_FILE
    if not (checkpoint / "policy").is_dir() or not stored.is_file():
        raise RunRefused(f"--checkpoint {checkpoint}: not a step_N of a stage's folder (policy/ in it, {CONFIG_FILE} beside it)")
    given = yaml.safe_load(stored.read_text(encoding="utf-8"))["policy"]
    # Nothing is trained here.
    given = merge(given, {"router_replay": {"enabled": False}})
    return _loaded(given, overrides, lambda policy: policy.load(checkpoint / "policy", optimizer=False), str(checkpoint))


def of_folder(folder: Path, overrides: list[str]) -> Loaded:
    """A Hugging Face folder with weights, tokenizer and chat template, in bfloat16 where there is a GPU."""
    if not (folder / "config.json").is_file():
        raise RunRefused(f"--hf {folder}: no config.json there; name a Hugging Face folder")
    precision = "bfloat16" if torch.cuda.is_available() else "float32"
    given = {"model_name": str(folder), "tokenizer": {"name": str(folder)}, "precision": precision}
    return _loaded(given, overrides, lambda policy: policy.load_hf(folder), str(folder))


def _loaded(given: dict, overrides: list[str], fill: Callable[[Policy], None], name: str) -> Loaded:
    """Joins the world, builds the network and has `fill` read its weights. overrides: policy.KEY=VALUE. Raises RunRefused naming every
    wrong key, or saying what of layout, engine or weights does not fit."""
    problems: list[str] = []
    config = make(PolicyConfig, clean(PolicyConfig, merge(given, _overridden(overrides)), "policy", problems))
    if problems:
        raise RunRefused("\n".join(problems))
    try:
        longest = get_preset(config.model_name).max_sequence_length
        config = dataclasses.replace(config, max_total_sequence_length=longest)
        parallel.init(config.megatron_cfg, timeout=24 * 60.0)
        policy = Policy(config, seed=0)
        fill(policy)
        return Loaded(policy, name)
    except ValueError as error:
        raise RunRefused(str(error)) from error


def _overridden(overrides: list[str]) -> dict:
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist(overrides))
    except (OmegaConfBaseException, ValueError) as error:
        raise RunRefused(f"{' '.join(overrides)}: {error}") from error
    others = [name for name in values if name != "policy"]
    if others:
        raise RunRefused(f"{', '.join(others)}: only keys of policy can be set here, as policy.generation.backend=vllm")
    return values.get("policy") or {}
