import torch

from nemo_cascade.algorithms import group_advantages, informative_groups, swe_group_mask


def test_a_group_is_informative_when_its_rewards_differ():
    rewards = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.3, 0.3, 0.30001]])
    assert informative_groups(rewards).tolist() == [False, False, True, True]


def test_exactly_the_uninformative_groups_have_no_advantage():
    rewards = torch.randint(0, 2, (64, 3), generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(informative_groups(rewards), (group_advantages(rewards) != 0).any(dim=1))


def test_a_patch_must_be_better_than_the_threshold():
    rewards = torch.tensor([[0.0, 0.5], [0.0, 0.51], [-1.0, -1.0]])
    assert swe_group_mask(rewards).tolist() == [False, True, False]
    assert swe_group_mask(rewards, 0.4).tolist() == [True, True, False]
