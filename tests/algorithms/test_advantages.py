import pytest
import torch

from nemo_cascade.algorithms import group_advantages, mopd_advantages, negative_log_likelihood


def test_group_advantages_are_the_z_scores_of_a_group():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 4.0]], dtype=torch.float64)
    expected = torch.tensor([[0.5, -0.5, -0.5, 0.5], [-1.0, -1.0, -1.0, 3.0]], dtype=torch.float64)
    expected = expected / torch.tensor([[(1 / 3) ** 0.5], [2.0]], dtype=torch.float64)
    torch.testing.assert_close(group_advantages(rewards), expected, rtol=1e-5, atol=0)


def test_a_group_of_equal_rewards_has_advantage_exactly_zero():
    # 0.1 summed ten times is not 1.0: the mean differs from the reward in the last bit.
    assert torch.equal(group_advantages(torch.full((1, 10), 0.1)), torch.zeros(1, 10))


def test_leave_one_out_takes_the_mean_of_the_others():
    advantages = group_advantages(torch.tensor([[3.0, 0.0, 0.0]]), normalize=False, leave_one_out=True)
    torch.testing.assert_close(advantages, torch.tensor([[3.0, -1.5, -1.5]]))


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="num_generations_per_prompt"):
        group_advantages(torch.ones(4, 1))


def test_mopd_advantage_is_the_masked_log_ratio_without_gradient():
    teacher = torch.tensor([-1.0, -2.0, -3.0])
    student = torch.tensor([-2.0, -1.0, -3.0], requires_grad=True)
    advantages = mopd_advantages(teacher, student, torch.tensor([1.0, 1.0, 0.0]))
    assert advantages.tolist() == [1.0, -1.0, 0.0] and not advantages.requires_grad


def test_the_mean_mopd_advantage_is_minus_the_reverse_kl():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    expectation = (student.exp() * mopd_advantages(teacher, student, torch.ones(7))).sum()
    reverse_kl = torch.nn.functional.kl_div(teacher, student, log_target=True, reduction="sum")
    torch.testing.assert_close(expectation, -reverse_kl)


@pytest.mark.parametrize("masked", [float("-inf"), float("nan")])
def test_what_is_masked_may_be_no_number(masked):
    teacher, student, mask = torch.tensor([-1.0, masked]), torch.tensor([-2.0, masked]), torch.tensor([1.0, 0.0])
    assert mopd_advantages(teacher, student, mask).tolist() == [1.0, 0.0]
    student.requires_grad_()
    loss, count = negative_log_likelihood(student, mask)
    loss.backward()
    assert (float(loss), float(count), student.grad.tolist()) == (2.0, 1.0, [-1.0, 0.0])
