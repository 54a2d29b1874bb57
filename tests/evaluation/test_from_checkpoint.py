"""Weights in this process: a stage's checkpoint and a Hugging Face folder say the same, on one rank or two, and are asked once."""

import json
from pathlib import Path

import pytest

from nemo_cascade.data.hashes import json_hash
from tests.helpers import run_distributed

# A server that imports torch and megatron-core, policies, workers: some 10 seconds a world.
pytestmark = pytest.mark.slow
CHANGED = {"samples": 3, "max_tokens": 12}


def written(folder: Path, model: str = "micro") -> None:
    """Fresh weights as a stage's checkpoint has them, without what only training reads, and as a Hugging Face folder with tokenizer."""
    import dataclasses
    import shutil

    import yaml

    from nemo_cascade.data.tokenizer import find_tokenizer
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import PolicyConfig
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.models.hf_folder import write_hf

    config = PolicyConfig(model_name=model)
    parallel.init(config.megatron_cfg)
    policy = Policy(config, seed=3)
    (folder / "sft" / "step_1").mkdir(parents=True)
    policy.save(folder / "sft" / "step_1" / "policy", optimizer=False)
    (folder / "sft" / "config.yaml").write_text(yaml.safe_dump({"policy": dataclasses.asdict(config)}))
    write_hf(policy.hf_weights(), policy.preset, folder / "hf")
    for file in find_tokenizer("tiny").iterdir():
        shutil.copy(file, folder / "hf")


def evaluated(out: Path, of: str, folder: Path, names: list[str], overrides: list[str]) -> tuple[int, dict[str, str], list[dict]]:
    """How many replies this rank was given, the hashes of all, and what was told."""
    from rich.console import Console

    from nemo_cascade.environments.workers import Verifiers
    from nemo_cascade.evaluation import checkpoint, journal, run
    from nemo_cascade.evaluation.benchmarks import chosen

    source = checkpoint.of_folder(folder / "hf", overrides) if of == "hf" else checkpoint.of_stage(folder / "sft" / "step_1", overrides)
    asked, draw = [], source.answer
    source.answer = lambda samples, settings, heard: draw(samples, settings, lambda *said: (asked.append(said), heard(*said)))
    with Verifiers(1) as verifiers:
        run.evaluate(run.asked(chosen(names), None, 2, CHANGED, judge=False), source, verifiers, out, Console(quiet=True))
    replies = {key: json_hash(reply) for name in names for key, reply in journal.read(out / name, "replies").items()}
    return len(asked), replies, json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    run_distributed(written, 1, folder)
    return folder


def test_a_checkpoint_is_asked_once_and_drawn_again_says_the_same(weights, tmp_path):
    out = tmp_path / "one"
    ((asked, replies, told),) = run_distributed(evaluated, 1, out, "stage", weights, ["gpqa_diamond"], [])
    assert asked == len(replies) == 6 and told[0]["samples"] == 6 and told[0]["mean_tokens"] <= 12
    lines = (out / "gpqa_diamond" / "replies_0.jsonl").read_bytes().splitlines(keepends=True)
    (out / "gpqa_diamond" / "replies_0.jsonl").write_bytes(b"".join(lines[:4]))
    ((again, same, told_again),) = run_distributed(evaluated, 1, out, "stage", weights, ["gpqa_diamond"], [])
    assert (again, same, told_again) == (2, replies, told)


def test_two_ranks_and_a_hugging_face_folder_say_what_one_rank_and_the_checkpoint_do(weights, tmp_path):
    names = ["aime25_python", "gpqa_diamond"]
    ((_, one, told),) = run_distributed(evaluated, 1, tmp_path / "one", "stage", weights, names, [])
    two = run_distributed(evaluated, 2, tmp_path / "two", "stage", weights, names, [])
    assert [asked for asked, *_ in two] == [6, 6] and all(replies == one for _, replies, _ in two)
    assert [result["score"] for result in two[0][2]] == [result["score"] for result in told]
    ((_, folder, _),) = run_distributed(evaluated, 1, tmp_path / "hf", "hf", weights, names, [])
    assert folder == one, "weights are known by what they are, not by where they are"


def test_what_is_wrong_with_weights_or_keys_is_told_before_anything_is_built(tmp_path):
    from nemo_cascade.cascade.plan import RunRefused
    from nemo_cascade.evaluation import checkpoint

    with pytest.raises(RunRefused, match="not a step_N of a stage's folder"):
        checkpoint.of_stage(tmp_path, [])
    with pytest.raises(RunRefused, match="no config.json there"):
        checkpoint.of_folder(tmp_path, [])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunRefused, match="policy.generation.backnd.*did you mean backend"):
        checkpoint.of_folder(tmp_path, ["policy.generation.backnd=vllm"])
    with pytest.raises(RunRefused, match="grpo: only keys of policy can be set here"):
        checkpoint.of_folder(tmp_path, ["grpo.max_num_steps=3"])
