"""What a loop is given: metrics that can be cut back, a progress that only rank 0 shows, and when to save."""

import io
import json
import math

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nemo_cascade.stages.context import LoopConfig, StageRun
from nemo_cascade.stages.metrics import MetricsLog
from nemo_cascade.stages.progress import Progress


def stage_run(folder, rank=0, **checkpointing) -> StageRun:
    config = LoopConfig()
    for key, value in checkpointing.items():
        setattr(config.checkpointing, key, value)
    return StageRun(name="sft", config=config, dir=folder, seed=1, rank=rank)


def steps(folder) -> list[int]:
    return [entry["step"] for entry in MetricsLog(folder / "metrics.jsonl").read()]


def test_metrics_are_one_json_object_a_line(tmp_path):
    run = stage_run(tmp_path)
    run.log({"train/loss": 1.5, "train/grad_norm": math.inf}, 1)
    run.log({"train/loss": 1.25, "train/grad_norm": 2}, 2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["train/loss"] == 1.5 and lines[0]["train/grad_norm"] is None
    assert lines[0]["time"] <= lines[1]["time"]


def test_rewind_forgets_the_steps_that_will_be_written_again(tmp_path):
    run = stage_run(tmp_path)
    for step in range(1, 6):
        run.log({"loss": step}, step)
    run.rewind(3)
    assert steps(tmp_path) == [1, 2, 3]
    run.log({"loss": 40}, 4)
    assert [entry["loss"] for entry in MetricsLog(tmp_path / "metrics.jsonl").read()] == [1, 2, 3, 40]
    run.rewind(0)
    assert steps(tmp_path) == []


def test_rewind_without_metrics_does_nothing(tmp_path):
    stage_run(tmp_path).rewind(3)
    assert list(tmp_path.iterdir()) == []


def test_a_line_broken_by_a_kill_is_dropped(tmp_path):
    run = stage_run(tmp_path)
    run.log({"loss": 1.0}, 1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    assert steps(tmp_path) == [1]
    run.rewind(2)
    run.log({"loss": 2.0}, 2)
    assert steps(tmp_path) == [1, 2]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2"):
        steps(tmp_path)


def test_only_rank_0_writes(tmp_path):
    run = stage_run(tmp_path, rank=1)
    run.log({"loss": 1.0}, 1)
    run.rewind(0)
    with run.progress(2, "sft") as bar:
        bar.advance(loss=1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("period, expected", [(0, [7]), (3, [3, 6, 7]), (7, [7])])
def test_a_stage_saves_every_period_and_at_its_end(tmp_path, period, expected):
    run = stage_run(tmp_path, save_period=period)
    assert [step for step in range(1, 8) if run.should_save(step, 7)] == expected


def shown(terminal: bool, silent: bool = False, done: int = 0, total: int = 3) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with Progress(total, "if_rl", done=done, silent=silent, console=console) as bar:
        for _ in range(total - done):
            bar.advance(reward=0.25)
    return console.file.getvalue()


def test_without_a_terminal_the_last_step_is_a_line():
    (line,) = shown(terminal=False).splitlines()
    assert line.startswith("if_rl  3/3  reward 0.25")


def test_a_resumed_stage_counts_on():
    assert "3/3" in shown(terminal=True, done=1) and "3/3" in shown(terminal=False, done=2)


def test_a_terminal_gets_a_bar_with_the_numbers():
    text = shown(terminal=True)
    assert "if_rl" in text and "3/3" in text and "reward 0.25" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_silent_progress_shows_nothing(terminal):
    assert shown(terminal, silent=True) == ""


def on_the_board(folder) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a folder: metric -> step -> value."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_each_step_once_also_after_a_resume(tmp_path):
    for run, (first, last), loss in ((stage_run(tmp_path), (1, 5), 1.0), (stage_run(tmp_path), (3, 4), 2.0)):
        run.config.logger.tensorboard_enabled = True
        run.rewind(first - 1)
        for step in range(first, last + 1):
            run.log({"train/loss": loss, "train/reward": 0.5}, step)
    expected = {1: 1.0, 2: 1.0, 3: 2.0, 4: 2.0}
    assert on_the_board(tmp_path / "tensorboard") == {"train/loss": expected, "train/reward": dict.fromkeys(expected, 0.5)}


def test_without_tensorboard_nothing_of_it_is_written(tmp_path):
    stage_run(tmp_path).log({"train/loss": 1.0}, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
