"""NeMo's exp_manager block means here what it means there, or is refused by name; with the real nemo-toolkit (make test-doors)."""

import dataclasses
import itertools
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import CascadeConfig, ConfigErrors, load_config
from nemo_cascade.cascade.strict import flatten
from nemo_cascade.interop import exp_manager
from nemo_cascade.interop.exp_manager import CHECKPOINTS, FIXED, FOLDER, GIVEN, SAID, translate

REASON = "nemo-toolkit is not installed here; make test-doors has it in an environment of its own"


@pytest.fixture
def nemos():
    """NeMo's own module."""
    if find_spec("nemo") is None:
        pytest.skip(REASON)
    from nemo_cascade.engine import cpu

    cpu.install()
    import nemo.utils.exp_manager

    return nemo.utils.exp_manager


def loaded(*overrides: str) -> CascadeConfig:
    return load_config(compose_config("smoke", [f"exp_manager.{override}" for override in overrides]), planning=True)


def refused(block: dict) -> list[str]:
    return translate(block)[1]


def test_what_it_says_stands_in_every_stage():
    cascade = loaded(
        "explicit_log_dir=/runs/mine",
        "resume_if_exists=true",
        "resume_ignore_no_checkpoint=true",
        "max_time_per_run='00:03:45:00'",
        "create_tensorboard_logger=false",
        "create_wandb_logger=true",
        "wandb_logger_kwargs={project: cascades, name: first}",
        "checkpoint_callback_params={save_top_k: -1, every_n_train_steps: 2, async_save: true, save_last: true}",
    )
    assert cascade.run_dir == "/runs/mine"
    for stage in cascade.stages.values():
        assert stage.checkpointing.checkpoint_must_save_by == "00:03:45:00" and stage.checkpointing.async_save
        assert (stage.checkpointing.keep_top_k, stage.checkpointing.save_period) == (0, 2)
        assert stage.logger.wandb_enabled and not stage.logger.tensorboard_enabled
        assert stage.logger.wandb == {"project": "cascades", "name": "first"}


def test_the_best_checkpoint_is_told_by_monitor_and_mode():
    cascade = loaded("checkpoint_callback_params={monitor: 'val:reward', mode: max, save_top_k: 2}", "resume_if_exists=true")
    kept = cascade.stages["if_rl"].checkpointing
    assert (kept.metric_name, kept.higher_is_better, kept.keep_top_k) == ("val:reward", True, 2)
    (told,) = refused({CHECKPOINTS: {"monitor": "val_loss", "mode": "min"}})
    assert told.startswith("exp_manager.checkpoint_callback_params.monitor=val_loss: no score of this name; val:reward is")


def test_nothing_said_changes_nothing():
    plain = load_config(compose_config("smoke"), planning=True)
    assert load_config(compose_config("smoke", ["exp_manager={}"]), planning=True) == plain == loaded("explicit_log_dir=null")


@pytest.mark.parametrize("key", sorted(key for key, (only, _) in FIXED.items() if only is not exp_manager.ANY))
def test_a_key_that_cannot_be_had_is_named_with_what_to_do(key):
    only, _ = FIXED[key]
    other = (not only) if isinstance(only, bool) else "x"
    block = {key: other} if "." not in key else {key.split(".")[0]: {key.split(".")[1]: other}}
    (told,) = refused(block)
    assert told.startswith(f"exp_manager.{key}={other}: ") and len(told) > len(key) + 30
    same = {key: only} if "." not in key else {key.split(".")[0]: {key.split(".")[1]: only}}
    assert refused(same) == []


def test_what_nobody_knows_is_told_with_what_was_meant():
    assert refused({"explicit_log_dirr": "x"}) == ["exp_manager.explicit_log_dirr: unknown key; did you mean explicit_log_dir?"]
    (told,) = refused({"wandb_logger_kwargs": {"project": "p", "log_model": True, "save_dir": None}})
    assert told.startswith("exp_manager.wandb_logger_kwargs.log_model=True: logger.wandb does not take it")
    (told,) = refused({CHECKPOINTS: {"save_top_k": 0}})
    assert told.startswith("exp_manager.checkpoint_callback_params.save_top_k=0: the last checkpoint is always kept")
    assert refused("a string") == ["exp_manager: expected a mapping, not 'a string'"]
    with pytest.raises(ConfigErrors) as raised:
        loaded("ema={enable: true}", "create_clearml_logger=true", "create_wandb_logger=maybe")
    assert len(raised.value.problems) == 3 and "logger.wandb_enabled" in str(raised.value)


def test_a_folder_named_by_the_time_is_refused_and_so_are_two_folders():
    (told,) = refused({"exp_dir": "/runs", "name": "x"})
    assert "resume_if_exists=true" in told
    (told,) = refused({"explicit_log_dir": "/a", "version": "1"})
    assert told == "exp_manager.version=1: exp_manager.explicit_log_dir says where the run is; remove one of them"
    assert translate({"create_wandb_logger": True})[0] == {"logger": {"wandb_enabled": True}}


def test_every_key_of_nemos_schema_is_said_or_refused_or_without_effect(nemos):
    known = {*SAID, *GIVEN, *FIXED, *FOLDER}
    theirs = {field.name for field in dataclasses.fields(nemos.ExpManagerConfig)} - {CHECKPOINTS}
    theirs |= {f"{CHECKPOINTS}.{field.name}" for field in dataclasses.fields(nemos.CallbackParams)} | {"ema.enable"}
    assert known == theirs
    assert GIVEN["mlflow_logger_kwargs"][1] <= {field.name for field in dataclasses.fields(nemos.MLFlowParams)}


def test_nemos_own_defaults_written_out_are_refused_only_where_they_differ_from_what_a_run_does(nemos):
    from omegaconf import OmegaConf

    block = OmegaConf.to_container(OmegaConf.structured(nemos.ExpManagerConfig))
    found = {told.split(": ")[0].split("=")[0].removeprefix("exp_manager.") for told in refused(block)}
    # Beginning anew, a loss of validation, epochs, .nemo files.
    wanted = {"resume_if_exists", "resume_ignore_no_checkpoint"}
    wanted |= {f"{CHECKPOINTS}.{name}" for name in ("monitor", "every_n_epochs", "save_nemo_on_train_end")}
    # MLflow's folder.
    assert found == wanted | {"mlflow_logger_kwargs.save_dir"}
    assert flatten(translate(block)[0])["checkpointing.keep_top_k"] == 3


def test_the_run_is_where_nemo_would_put_it(nemos, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEMO_EXPM_VERSION", raising=False)
    trainer, tried = SimpleNamespace(logger=None), 0
    for explicit, exp_dir, name, version, resume in itertools.product((None, "/e"), (None, "/d"), (None, "n"), (None, "1"), (False, True)):
        block = dict(explicit_log_dir=explicit, exp_dir=exp_dir, name=name, version=version)
        folder = translate({**block, **({"resume_if_exists": True} if resume else {})})
        if folder[1] or not folder[0]:
            continue
        theirs, *_ = nemos.get_log_dir(trainer=trainer, **block, resume_if_exists=resume)
        assert Path(folder[0]["cascade"]["run_dir"]).absolute() == Path(theirs), block
        tried += 1
    assert tried == 15
