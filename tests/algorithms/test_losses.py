import pytest
import torch

from nemo_cascade.algorithms import importance_weights, kl_penalty, negative_log_likelihood, policy_gradient_loss

SEGMENTS = torch.tensor([4, 4, 4, 9, 9, -1])
MASK = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 0.0])


def log_ratio(*ratios):
    return torch.tensor(ratios).log(), torch.zeros(len(ratios))


def test_icepop_drops_tokens_outside_the_band_and_keeps_the_raw_ratio_inside():
    train, sampling = log_ratio(0.49, 0.51, 1.0, 1.99, 2.01)
    weights = importance_weights(train, sampling, torch.ones(5), mode="icepop", low=0.5, high=2.0)
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.51, 1.0, 1.99, 0.0]))


def test_tis_clamps_where_icepop_drops():
    train, sampling = log_ratio(0.1, 1.5, 9.0)
    weights = importance_weights(train, sampling, torch.ones(3), mode="tis", low=0.5, high=2.0)
    torch.testing.assert_close(weights, torch.tensor([0.5, 1.5, 2.0]))


def test_masked_tokens_weigh_nothing_even_where_the_ratio_overflows():
    weights = importance_weights(
        torch.tensor([0.0, 0.0]), torch.tensor([-1e6, 0.0]), torch.tensor([0.0, 1.0]), mode="tis", low=0.5, high=2.0
    )
    assert weights.tolist() == [0.0, 1.0]


def test_an_unknown_weight_mode_is_refused():
    with pytest.raises(ValueError, match="icepop"):
        importance_weights(torch.zeros(1), torch.zeros(1), torch.ones(1), mode="ice", low=0.5, high=2.0)


def test_weights_by_response_ask_for_the_responses():
    for how in ({"mode": "seq-mask-tis"}, {"mode": "tis", "sequence_level": True}):
        with pytest.raises(ValueError, match="by response: give segments"):
            importance_weights(torch.zeros(1), torch.zeros(1), torch.ones(1), low=0.5, high=2.0, **how)


@pytest.mark.parametrize("aggregate", ["token", "sequence", "group"])
def test_a_pack_without_tokens_has_a_loss_of_nothing(aggregate):
    none = torch.zeros(0, requires_grad=True)
    total, count = policy_gradient_loss(none, none, none, none.detach(), none.long(), aggregate=aggregate)
    total.backward()
    assert total == 0 and count == 0


def test_token_aggregation_counts_trained_tokens():
    logprobs = torch.tensor([-5.0, -1.0, -2.0, -4.0, -7.0, -9.0])
    total, count = policy_gradient_loss(logprobs, torch.ones(6), torch.ones(6), MASK, SEGMENTS, aggregate="token")
    assert (total.item(), count.item()) == (7.0, 3.0)


def test_sequence_aggregation_averages_each_response_over_its_own_tokens():
    logprobs = torch.tensor([-5.0, -1.0, -2.0, -4.0, -7.0, -9.0])
    total, count = policy_gradient_loss(logprobs, torch.ones(6), torch.ones(6), MASK, SEGMENTS, aggregate="sequence")
    assert (total.item(), count.item()) == (1.5 + 4.0, 2.0)


@pytest.mark.parametrize("aggregate", ["token", "sequence"])
def test_the_gradient_is_that_of_reinforce(aggregate):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(6)
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)
    weights = torch.rand(6, generator=generator, dtype=torch.float64)
    mask = MASK.double()
    logprobs = logits.log_softmax(-1)[torch.arange(6), labels]
    total, count = policy_gradient_loss(logprobs, advantages, weights, mask, SEGMENTS, aggregate=aggregate)
    (total / count).backward()
    share = {"token": mask / 3, "sequence": mask / torch.tensor([2, 2, 2, 1, 1, 1]).double() / 2}[aggregate]
    onehot = torch.nn.functional.one_hot(labels, 11)
    expected = -(share * weights * advantages)[:, None] * (onehot - logits.softmax(-1)).detach()
    torch.testing.assert_close(logits.grad, expected)


def test_packing_does_not_change_the_mean():
    """One pack of two responses equals two packs of one, because sums and counts are added before dividing."""
    generator = torch.Generator().manual_seed(2)
    logprobs, advantages = -torch.rand(6, generator=generator), torch.randn(6, generator=generator)
    for aggregate in ("token", "sequence"):
        whole = policy_gradient_loss(logprobs, advantages, torch.ones(6), MASK, SEGMENTS, aggregate=aggregate)
        parts = [
            policy_gradient_loss(logprobs[s], advantages[s], torch.ones(6)[s], MASK[s], SEGMENTS[s], aggregate=aggregate)
            for s in (slice(0, 3), slice(3, 6))
        ]
        torch.testing.assert_close(parts[0][0] + parts[1][0], whole[0])
        torch.testing.assert_close(parts[0][1] + parts[1][1], whole[1])


def test_sft_loss_sees_assistant_tokens_only():
    total, count = negative_log_likelihood(torch.tensor([-5.0, -1.0, -2.0]), torch.tensor([0.0, 1.0, 1.0]))
    assert (total.item(), count.item()) == (3.0, 2.0)


def categorical(seed: int) -> torch.Tensor:
    return torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_the_mean_of_a_kl_estimate_is_the_divergence(kind):
    policy, reference = (categorical(seed).log_softmax(-1) for seed in (1, 2))
    divergence = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * kl_penalty(policy, reference, kind)).sum(), divergence)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_the_mean_gradient_of_a_kl_estimate_is_the_one_it_says(kind):
    logits, reference = categorical(1).requires_grad_(), categorical(2).log_softmax(-1)
    policy = logits.log_softmax(-1)
    expected = {
        "k1": 0 * policy.sum(),
        "k2": (policy.exp() * (policy - reference)).sum(),
        "k3": (reference.exp() * (reference - policy)).sum(),
    }[kind]
    mean = (policy.exp().detach() * kl_penalty(policy, reference, kind)).sum()
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (mean, expected)]
    torch.testing.assert_close(*gradients)


def test_an_unknown_kl_estimator_is_refused():
    with pytest.raises(ValueError, match="k3"):
        kl_penalty(torch.zeros(1), torch.zeros(1), "k4")
