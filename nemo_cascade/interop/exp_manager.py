"""NeMo's `exp_manager:` block of a config in our own keys.

NeMo hands the block to a function that prepares Lightning's trainer: where things are written, who gets the metrics, what is saved
and when to stop. Here the same is said by `cascade.run_dir`, `logger` and `checkpointing`, which the block overrides where it says
something. Only what is written counts: NeMo's defaults (a TensorBoard logger, three checkpoints by `val_loss`) are not taken over. What
cannot be had is refused by its name; a value that asks for what a run does anyway is let through.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_cascade.cascade.strict import MISSING, did_you_mean, merge

BLOCK = "exp_manager"
CHECKPOINTS = "checkpoint_callback_params"
# Where NeMo puts what has no folder or no name.
EXP_DIR, NAME = "nemo_experiments", "default"

# Key of the block -> key of ours that takes the same value.
SAID = {
    "max_time_per_run": "checkpointing.checkpoint_must_save_by",
    "create_tensorboard_logger": "logger.tensorboard_enabled",
    "create_wandb_logger": "logger.wandb_enabled",
    "create_mlflow_logger": "logger.mlflow_enabled",
    f"{CHECKPOINTS}.every_n_train_steps": "checkpointing.save_period",
    f"{CHECKPOINTS}.save_top_k": "checkpointing.keep_top_k",
    f"{CHECKPOINTS}.async_save": "checkpointing.async_save",
    f"{CHECKPOINTS}.monitor": "checkpointing.metric_name",
    f"{CHECKPOINTS}.mode": "checkpointing.higher_is_better",
}
# Values that are spelt otherwise here: all checkpoints, the direction of a metric.
SPELT = {
    f"{CHECKPOINTS}.save_top_k": {-1: 0},
    f"{CHECKPOINTS}.mode": {"max": True, "min": False},
}
# What a logger is given -> our block for it, and what of it that takes.
GIVEN = {
    "summary_writer_kwargs": ("logger.tensorboard", {"comment", "max_queue", "flush_secs", "filename_suffix"}),
    "wandb_logger_kwargs": (
        "logger.wandb",
        {"project", "name", "entity", "group", "tags", "notes", "job_type", "mode", "settings", "save_code"},
    ),
    "mlflow_logger_kwargs": ("logger.mlflow", {"experiment_name", "run_name", "tracking_uri"}),
}
# These say together where the run is (`run_dir`).
FOLDER = ("explicit_log_dir", "exp_dir", "name", "version", "use_datetime_version")
ANY = object()
# Key -> (the only value that can be had, or ANY where the key changes nothing here; why another cannot, and what to do).
FIXED: dict[str, tuple[Any, str]] = {
    "resume_if_exists": (True, "the same command always goes on where the run stopped; to begin anew name another folder"),
    "resume_ignore_no_checkpoint": (True, "a folder without a run is where one begins"),
    "resume_past_end": (False, "a finished stage is not trained on; raise its max_num_steps and repeat it with --redo"),
    "resume_from_checkpoint": (None, "name weights to begin with in checkpointing.pretrained_checkpoint.path"),
    "create_dllogger_logger": (False, "metrics.jsonl has every metric as JSON lines"),
    "create_clearml_logger": (False, "there is none; use TensorBoard, W&B or MLflow"),
    "create_neptune_logger": (False, "there is none; use TensorBoard, W&B or MLflow"),
    "create_checkpoint_callback": (True, "a stage always saves at its end, because the next one starts from that"),
    "create_early_stopping_callback": (False, "set grpo.val_patience or sft.val_patience, and gates (cascade.stages.<stage>.gate)"),
    "create_ipl_epoch_stopper_callback": (False, "there is none; stages count steps"),
    "create_preemption_callback": (True, "SIGTERM always ends a run after it has saved"),
    "create_straggler_detection_callback": (False, "there is none; metrics.jsonl has each step's times"),
    "create_fault_tolerance_callback": (False, "there is none; cluster.collective_timeout_minutes ends a run that hangs"),
    "files_to_copy": (None, "nothing is copied but each stage's config.yaml"),
    "disable_validation_on_resume": (True, "a validation that was done is not repeated"),
    "ema.enable": (False, "weights are not averaged"),
    f"{CHECKPOINTS}.save_last": (True, "the last checkpoint is what a resumed stage begins with"),
    f"{CHECKPOINTS}.save_weights_only": (False, "a checkpoint has the optimizer's state, to resume from"),
    f"{CHECKPOINTS}.save_best_model": (False, "with checkpointing.metric_name the best checkpoint is what a stage hands on"),
    f"{CHECKPOINTS}.always_save_nemo": (False, "there are no .nemo files; examples/convert.py writes a Hugging Face folder"),
    f"{CHECKPOINTS}.save_nemo_on_train_end": (False, "there are no .nemo files; examples/convert.py writes a Hugging Face folder"),
    f"{CHECKPOINTS}.every_n_epochs": (None, "set every_n_train_steps, or checkpointing.save_period"),
    f"{CHECKPOINTS}.train_time_interval": (None, "set every_n_train_steps, or checkpointing.save_period"),
    f"{CHECKPOINTS}.save_on_train_epoch_end": (False, "stages count steps, not epochs"),
    f"{CHECKPOINTS}.save_last_n_optim_states": (-1, "every checkpoint that is kept has its optimizer's state"),
    **{
        f"{CHECKPOINTS}.{name}": (None, "checkpoints are step_N in the stage's folder of cascade.run_dir")
        for name in ("filepath", "dirpath", "filename", "prefix")
    },
    # Of loggers that are not there, and of NeMo's own trainer: each step's times and FLOPs are always measured.
    **{
        name: (ANY, "")
        for name in (
            "dllogger_logger_kwargs",
            "clearml_logger_kwargs",
            "neptune_logger_kwargs",
            "early_stopping_callback_params",
            "ipl_epoch_stopper_callback_params",
            "straggler_detection_params",
            "fault_tolerance",
            "ema",
            "log_step_timing",
            "log_delta_step_timing",
            "step_timing_kwargs",
            "log_tflops_per_sec_per_gpu",
            "seconds_to_sleep",
            f"{CHECKPOINTS}.verbose",
            f"{CHECKPOINTS}.postfix",
            f"{CHECKPOINTS}.model_parallel_size",
            f"{CHECKPOINTS}.auto_insert_metric_name",
        )
    },
}


def translate(block: Any) -> tuple[dict, list[str]]:
    """(the same in our keys, as mappings in mappings; what cannot be had, "key: why; what to do")."""
    if not isinstance(block, Mapping):
        return {}, [] if block is None else [f"{BLOCK}: expected a mapping, not {block!r}"]
    values, problems, settings = dict(written(block)), [], {}
    for key, value in values.items():
        if key == f"{CHECKPOINTS}.save_top_k" and value == 0:
            problems.append(f"{BLOCK}.{key}=0: the last checkpoint is always kept, because the next stage starts from it; 1 keeps it alone")
        elif key == f"{CHECKPOINTS}.monitor" and not str(value).startswith("val:"):
            problems.append(f"{BLOCK}.{key}={value}: no score of this name; val:reward is the mean over all domains, val:<domain> of one")
        elif key in SAID:
            settings = merge(settings, at(SAID[key], spelt(key, value)))
        elif key in GIVEN:
            given, refused = logger_settings(key, value)
            settings, problems = merge(settings, given), problems + refused
        elif key in FIXED:
            only, why = FIXED[key]
            if only is not ANY and value != only:
                problems.append(f"{BLOCK}.{key}={value}: {why}")
        elif key not in FOLDER:
            problems.append(f"{BLOCK}.{key}: unknown key{did_you_mean(key, [*SAID, *GIVEN, *FIXED, *FOLDER])}")
    folder = run_dir(values, problems)
    return merge(settings, {"cascade": {"run_dir": folder}}) if folder else settings, problems


def written(block: Mapping) -> Iterator[tuple[str, Any]]:
    """(key, value) of what the block says; null says nothing. What is inside of the parameters of checkpoints and EMA is dotted."""
    for key, value in block.items():
        if key in (CHECKPOINTS, "ema") and isinstance(value, Mapping):
            inside = ((f"{key}.{name}", entry) for name, entry in value.items())
            yield from (pair for pair in inside if pair[1] is not None and (key == CHECKPOINTS or pair[0] in FIXED))
        elif value is not None:
            yield str(key), value


def spelt(key: str, value: Any) -> Any:
    """The value as our key has it; one that is not among ours is left for the check of that key."""
    return SPELT[key].get(value, value) if key in SPELT and isinstance(value, int | str) else value


def logger_settings(key: str, value: Any) -> tuple[dict, list[str]]:
    """(what a logger is given in our block, what of it has no place there)."""
    block, known = GIVEN[key]
    if not isinstance(value, Mapping):
        return at(block, value), []
    kept = {name: entry for name, entry in value.items() if name in known and entry is not None}
    refused = [
        f"{BLOCK}.{key}.{name}={entry}: {block} does not take it{did_you_mean(name, sorted(known))}"
        for name, entry in value.items()
        if name not in known and entry not in (None, False, "", MISSING)
    ]
    return at(block, kept) if kept else {}, refused


def run_dir(values: Mapping[str, Any], problems: list[str]) -> str | None:
    """The folder that the block's keys name together, as NeMo makes it of them; None where they name none."""
    explicit, exp_dir, name, version = (values.get(key) for key in FOLDER[:4])
    if explicit:
        problems += [
            f"{BLOCK}.{key}={values[key]}: {BLOCK}.explicit_log_dir says where the run is; remove one of them"
            for key in ("exp_dir", "version")
            if values.get(key)
        ]
        return str(explicit)
    if not (exp_dir or name or version):
        return None
    if not version and not values.get("resume_if_exists"):
        problems.append(
            f"{BLOCK}: its folder would be named by the time, another one at each start, so that no run could go on; set "
            f"{BLOCK}.resume_if_exists=true, a version, or explicit_log_dir"
        )
    return str(Path(str(exp_dir or EXP_DIR), str(name or NAME), str(version or "")))


def at(key: str, value: Any) -> dict:
    """A dotted key as mappings in mappings."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value
