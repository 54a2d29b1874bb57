"""Either half of an RL step alone: rollouts that are drawn and not trained on, training on rollouts that are saved."""

import contextlib
import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_cascade.cascade import halves
from nemo_cascade.cascade.cli import run as command
from nemo_cascade.cascade.config import load_config
from nemo_cascade.cascade.manifest import Manifest
from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.data.rows import DataError
from nemo_cascade.rollout.store import RolloutStore, SavedRollouts
from nemo_cascade.stages import origin
from nemo_cascade.stages.context import LoopConfig
from nemo_cascade.stages.metrics import MetricsLog
from tests.cascade.test_resume import row
from tests.helpers import run_distributed

STEPS = 3


def config_of(folder: Path, **of_rl):
    """An SFT step and an RL stage on rows that a babbling model answers well now and then; few words, done in seconds.
    of_rl: other values of the second, by dotted key."""
    config = OmegaConf.create({
        "policy": {
            "model_name": "micro",
            "generation": {"max_new_tokens": 16},
            "megatron_cfg": {"optimizer": {"lr": 1e-2, "min_lr": 1e-3}, "scheduler": {"lr_decay_style": "linear"}},
        },
        "cascade": {
            "run_dir": str(folder / "run"),
            "order": ["sft", "if_rl"],
            "validation": {"num_prompts": 0},
            "handover": {"hf": False},
            "stages": {
                "sft": {"kind": "sft", "sft": {"max_num_steps": 1}, "data": data(folder / "sft.jsonl")},
                "if_rl": {
                    "kind": "rl",
                    "grpo": {
                        **{"max_num_steps": STEPS, "num_prompts_per_step": 4, "num_generations_per_prompt": 4, "overlong": "keep"}
                    },
                    "data": data(folder / "rows.jsonl"),
                },
            },
        },
    })
    for key, value in of_rl.items():
        OmegaConf.update(config, f"cascade.stages.if_rl.{key}", value)
    return load_config(config, world_size=2)


def data(path: Path) -> dict:
    return {"train": {"words": {"data_path": str(path)}}}


def write_rows(folder: Path, letters: str) -> None:
    made = DOMAINS["math"].rows(4, "train", level="demo")
    demonstrations = [DOMAINS["math"].demonstration(row, number) for number, row in enumerate(made)]
    for name, rows in (("sft", demonstrations), ("rows", map(row, letters))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def whole(cascade):
    from nemo_cascade.cascade import runner

    runner.run(cascade)


def half(cascade, name, *arguments):
    """What a half says; with --train-only there is no engine to be had. A refusal is returned as its text."""
    from nemo_cascade.stages import rl

    def none(policy):
        raise AssertionError("an engine was made")

    made, told = rl.make_engine, io.StringIO()
    rl.make_engine = none if name == "train_only" else made
    try:
        with contextlib.redirect_stdout(told):
            getattr(halves, name)(cascade, *arguments)
    except (RunRefused, DataError) as refused:
        return f"refused: {refused}"
    finally:
        rl.make_engine = made
    return told.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that is done."""
    folder = tmp_path_factory.mktemp("halves")
    write_rows(folder, "aeiorstnlmpq")
    run_distributed(whole, 2, config_of(folder))
    return folder


def numbers(stage: Path) -> list[dict]:
    """What was trained, step by step."""
    shown = ("train/loss", "train/grad_norm", "train/lr", "train/reward", "train/tokens")
    return [{name: line[name] for name in shown if name in line} for line in MetricsLog(stage / "metrics.jsonl").read()]


def test_training_on_the_rollouts_of_a_run_gives_its_weights_and_its_losses_to_the_bit(folder):
    manifest = Manifest.load(folder / "run").stages
    assert manifest["if_rl"].checkpoint_hash != manifest["sft"].checkpoint_hash, "a stage that learns nothing shows nothing"
    before = (folder / "run" / "cascade_manifest.json").read_bytes()
    told, _ = run_distributed(half, 2, config_of(folder), "train_only", "if_rl", folder / "run" / "02-if_rl")
    assert f"weights {manifest['if_rl'].checkpoint_hash[:12]}, the same as those that if_rl ended with" in told
    assert numbers(folder / "run" / "train_only" / "if_rl") == numbers(folder / "run" / "02-if_rl")
    assert (folder / "run" / "cascade_manifest.json").read_bytes() == before, "it is no part of the cascade"


def test_rollouts_alone_are_those_of_the_stages_first_step_and_can_be_trained_on(folder):
    told, _ = run_distributed(half, 2, config_of(folder), "rollouts_only", "if_rl", 1)
    drawn = folder / "run" / "rollouts_only" / "if_rl"
    first, again = (stage / "rollouts" / "step_1.jsonl" for stage in (folder / "run" / "02-if_rl", drawn))
    assert first.read_bytes() == again.read_bytes()
    assert not list(drawn.glob("step_*")) and (drawn / "traces" / "step_1.jsonl").is_file(), "nothing is trained, some can be read"
    for word in ("words ", "tokens a second while sampling", "reward_calculation", "Avoid the letter", "written: "):
        assert word in told
    told, _ = run_distributed(half, 2, config_of(folder), "train_only", "if_rl", drawn)
    assert f"steps 1 to 1 of {STEPS}" in told and "not those that if_rl ended with" in told
    trained = numbers(folder / "run" / "train_only" / "if_rl")
    assert trained == numbers(folder / "run" / "02-if_rl")[:1], "the learning rate is that of the whole stage, too"


def test_rollouts_that_were_drawn_otherwise_are_refused_by_what_differs(folder, tmp_path):
    saved = folder / "run" / "02-if_rl"
    hotter = config_of(folder, **{"policy.generation.temperature": 0.5, "grpo.num_prompts_per_step": 2})
    told, _ = run_distributed(half, 2, hotter, "train_only", "if_rl", saved)
    assert "policy.generation.temperature was 1.0 when these rollouts were drawn, and here is 0.5; put it back" in told
    assert "grpo.num_prompts_per_step was 4 when these rollouts were drawn, and here is 2" in told
    write_rows(tmp_path, "nmlkjihgfedc")
    others = config_of(folder, data=data(tmp_path / "rows.jsonl"))
    told, _ = run_distributed(half, 2, others, "train_only", "if_rl", saved)
    assert told.startswith("refused: ") and "step_1.jsonl: these rollouts answer other prompts than this step draws" in told
    assert "with --rollouts-only" in told
    cut = tmp_path / "rollouts"
    shutil.copytree(saved / "rollouts", cut)
    (cut / "step_2.jsonl").write_text((cut / "step_2.jsonl").read_text()[:-40])
    told, _ = run_distributed(half, 2, config_of(folder), "train_only", "if_rl", cut)
    assert f"refused: {cut / 'step_2.jsonl'}: no whole file of rollouts, and nothing is sampled here" in told


def test_origins_are_compared_key_by_key_and_another_start_is_only_told(tmp_path, caplog):
    mine = {"start": "a", "drawn": {"tokenizer": "1" * 64, "template": "2" * 64, **origin.sampling(LoopConfig())}}

    def refused(theirs) -> str:
        (tmp_path / "origin.json").write_text(theirs if isinstance(theirs, str) else json.dumps(theirs))
        with pytest.raises(DataError) as error:
            origin.refuse_other(tmp_path, mine)
        return str(error.value)

    for part in ("tokenizer", "template"):
        other = {**mine, "drawn": {**mine["drawn"], part: "3" * 64}}
        assert f"origin.json: {part} was 333333333333 when these rollouts were drawn" in refused(other)
    assert "a key of later was 1 when these rollouts were drawn, and here is (absent)" in refused(
        {**mine, "drawn": {**mine["drawn"], "a key of later": 1}}
    )
    for broken in ("", "{", "[]", '{"start": null}'):
        assert "origin.json: missing or damaged" in refused(broken)
    (tmp_path / "origin.json").write_text(json.dumps({**mine, "start": "b"}))
    origin.refuse_other(tmp_path, mine)
    assert "drawn from other weights than this stage starts from" in caplog.text


def test_steps_are_those_from_the_first_on_and_a_gap_is_named(tmp_path):
    with pytest.raises(RunRefused, match="no rollouts there"):
        halves.saved_steps(tmp_path, 5)
    store = RolloutStore(tmp_path / "rollouts")
    for name in ("1", "1_1", "2", "4"):
        store.save(name, [])
    assert halves.saved_steps(tmp_path, 2) == halves.saved_steps(tmp_path / "rollouts", 2) == (tmp_path / "rollouts", 2)
    with pytest.raises(RunRefused, match="step_3.jsonl: missing"):
        halves.saved_steps(tmp_path, 30)
    assert SavedRollouts(tmp_path / "rollouts").load("1_1") == []
    with pytest.raises(DataError, match="step_1_2.jsonl: no whole file of rollouts"):
        SavedRollouts(tmp_path / "rollouts").load("1_2")


def test_what_is_asked_wrongly_is_refused_before_anything_starts(tmp_path, capsys):
    write_rows(tmp_path, "a")
    cascade = config_of(tmp_path)
    for only, why in ((None, "name its stage with --only"), ("if_r", "did you mean if_rl"), ("sft", "of kind sft, which samples nothing")):
        with pytest.raises(RunRefused, match=why):
            halves.rollouts_only(cascade, only, 1)
    with pytest.raises(SystemExit) as end:
        command(config_name="smoke", only="if_rl", rollouts_only=1, train_only=tmp_path)
    assert end.value.code == 2 and "--rollouts-only and --train-only: give one of them" in capsys.readouterr().err
    with pytest.raises(RunRefused, match="if_rl: it starts from, learns from or is judged by sft, not finished yet"):
        halves.begin(cascade, cascade.stages["if_rl"])
    assert not (tmp_path / "run").exists()


def test_the_first_steps_alone_keep_the_schedule_of_the_stage(tmp_path):
    write_rows(tmp_path, "a")
    stage = config_of(tmp_path).stages["if_rl"]
    short = halves.shortened(stage, 1)
    assert short.max_num_steps == 1 and short.policy.megatron_cfg.scheduler.lr_decay_iters == STEPS
    scheduler = dataclasses.replace(stage.policy.megatron_cfg.scheduler, lr_decay_iters=9)
    stage.policy.megatron_cfg = dataclasses.replace(stage.policy.megatron_cfg, scheduler=scheduler)
    assert halves.shortened(stage, 1).policy.megatron_cfg.scheduler.lr_decay_iters == 9


def test_the_parts_of_a_step_are_its_time_and_all_parts_that_between_two_lines(folder):
    """Also where rewards are verified beside sampling, and a checkpoint is written."""
    log = MetricsLog(folder / "run" / "02-if_rl" / "metrics.jsonl").read()
    for before, line in zip(log, log[1:]):
        parts = {name.removeprefix("timing/train/"): value for name, value in line.items() if name.startswith("timing/train/")}
        total = parts.pop("total_step_time")
        between = parts.pop("logging") + parts.pop("checkpointing", 0.0)
        assert {"weight_sync", "generation", "idle", "reward_calculation", "data_processing", "policy_training"} == set(parts)
        assert 0.95 <= sum(parts.values()) / total <= 1.01
        assert 0.95 <= (total + between) / (line["time"] - before["time"]) <= 1.05
