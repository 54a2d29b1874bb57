"""The parts of a step add up to the step."""

import itertools

from nemo_cascade.stages.metrics import train_metrics
from nemo_cascade.stages.stopwatch import Stopwatch


def ticking(*seconds: float) -> Stopwatch:
    """A watch that reads these times, one after the other."""
    return Stopwatch(clock=iter(seconds).__next__)


def test_parts_add_up_to_the_step_and_a_part_met_twice_is_summed():
    watch = ticking(0, 1, 2, 5, 6, 9, 9)
    watch.start()
    for part in ("generation", "reward_calculation", "generation", "policy_training"):
        watch.lap(part)
    seconds = watch.read()
    assert seconds == {"generation": 1 + 1, "reward_calculation": 3, "policy_training": 3, "total_step_time": 8}


def test_a_save_after_a_step_is_told_with_the_next_one_and_is_no_part_of_its_total():
    watch = ticking(0, 0, 2, 2, 10, 14, 20, 23, 23)
    watch.start()
    watch.lap("policy_training")
    assert watch.read() == {"policy_training": 2, "total_step_time": 2}
    watch.start()
    watch.lap("checkpointing")
    watch.start()
    watch.lap("policy_training")
    assert watch.read() == {"checkpointing": 4, "policy_training": 3, "total_step_time": 3}


def test_metrics_of_a_step_have_the_names_of_nemo_rl():
    watch = Stopwatch(clock=itertools.count().__next__)
    watch.lap("generation")
    named = train_metrics({"loss": 0.5}, watch.read())
    assert named == {"train/loss": 0.5, "timing/train/generation": 1, "timing/train/total_step_time": 2}
