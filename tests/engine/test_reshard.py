"""What one layout saved, weights and optimizer, another goes on with: the next losses are the same."""

import pytest

from nemo_cascade.engine.config import PolicyConfig
from tests.engine.test_layouts import LAYOUTS, config, samples_for
from tests.helpers import run_distributed


def next_losses(directory, policy_config: PolicyConfig, save: bool):
    """Three losses after two steps, which are taken and saved here or read."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.stages.sft import sft_loss

    parallel.init(policy_config.megatron_cfg)
    policy = Policy(policy_config, seed=0, max_num_steps=5)
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
def alone(tmp_path_factory):
    """A checkpoint of one process and its next losses."""
    directory = tmp_path_factory.mktemp("alone")
    return directory, run_distributed(next_losses, 1, directory, config(True), True)[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_goes_on_where_one_process_stopped(name, alone):
    directory, losses = alone
    layout = dict(LAYOUTS[name])
    for others in run_distributed(next_losses, layout.pop("world"), directory, config(True, **layout), False):
        assert others == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_process_goes_on_where_a_layout_stopped(name, tmp_path):
    layout = dict(LAYOUTS[name])
    losses = run_distributed(next_losses, layout.pop("world"), tmp_path, config(True, **layout), True)
    (others,) = run_distributed(next_losses, 1, tmp_path, config(True), False)
    assert others == pytest.approx(losses[0], rel=1e-5)
    assert others[-1] < others[0], "the test would not notice a step that does nothing"
