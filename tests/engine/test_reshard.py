"""What one layout saved, weights and optimizer, another goes on with: the next losses are the same."""

import pytest

from nemo_cascade.engine.config import PolicyConfig
from tests.engine.cases import EVERY_LAYOUT, layout
from tests.engine.test_layouts import config, made, samples_for
from tests.helpers import run_distributed

PAIRS = [("DP2", "TP2+PP2"), ("TP2+EP2", "PP2")]
MORE_PAIRS = [("TP2+PP2", "CP2+EP2"), ("PP2+EP2", "TP2+CP2"), ("TP2+CP2+EP4", "TP2+PP2+EP2")]


def next_losses(directory, policy_config: PolicyConfig, save: bool):
    """Three losses after two steps, which are taken and saved here or read."""
    from nemo_cascade.stages.sft import sft_loss

    policy = made(policy_config)
    samples = samples_for(policy)
    if save:
        for _ in range(2):
            policy.train_step(samples, sft_loss)
        policy.save(directory)
    else:
        policy.load(directory)
        assert policy.step == 2
    return [policy.train_step(samples, sft_loss)["loss"] for _ in range(3)]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The checkpoint at which a layout stopped, and its next losses; each layout trains once."""
    known = {}

    def of(name):
        if name not in known:
            directory = tmp_path_factory.mktemp("stopped")
            world, settings = layout(name)
            losses, *_ = run_distributed(next_losses, world, directory, config(True, **settings), True)
            assert losses[-1] < losses[0], "the test would not notice a step that does nothing"
            known[name] = directory, losses
        return known[name]

    return of


def goes_on(name, directory, losses):
    world, settings = layout(name)
    for others in run_distributed(next_losses, world, directory, config(True, **settings), False):
        assert others == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("name", EVERY_LAYOUT)
def test_a_layout_goes_on_where_one_process_stopped(name, stopped):
    goes_on(name, *stopped("one"))


@pytest.mark.parametrize("name", EVERY_LAYOUT)
def test_one_process_goes_on_where_a_layout_stopped(name, stopped):
    goes_on("one", *stopped(name))


@pytest.mark.parametrize(
    ("first", "second"), [*PAIRS, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE_PAIRS)]
)
def test_a_layout_goes_on_where_another_stopped(first, second, stopped):
    goes_on(second, *stopped(first))


def test_an_optimizer_that_every_data_parallel_rank_has_whole_passes_between_layouts_as_well(tmp_path):
    (world, first), (_, second) = layout("EP2"), layout("DP2")
    losses, *_ = run_distributed(next_losses, world, tmp_path, config(False, **first), True)
    for others in run_distributed(next_losses, world, tmp_path, config(False, **second), False):
        assert others == pytest.approx(losses, rel=1e-5)
