"""Every function beside a slow one written from its formula in Python's own floats, over drawn shapes, masks, empty replies and
groups without variance; gradients beside finite differences."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_cascade.algorithms import (
    clipped_policy_gradient_loss,
    domain_weights,
    group_advantages,
    importance_weights,
    informative_groups,
    kl_penalty,
    mopd_advantages,
    overlong,
    policy_gradient_loss,
    reverse_kl,
    swe_group_mask,
)

few = settings(max_examples=60, deadline=None)


@st.composite
def packs(draw):
    """A pack as lists: responses of 0 to 5 tokens of which any are trained on, then padding; log-probs, advantages, weights."""
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    segments = [10 * number for number, length in enumerate(lengths) for _ in range(length)] + [-1] * draw(st.integers(1, 3))
    n, seed = len(segments), draw(st.integers(0, 2**31))
    mask = [float(segment >= 0 and draw(st.booleans())) for segment in segments]
    generator = torch.Generator().manual_seed(seed)
    current = (-3 * torch.rand(n, generator=generator, dtype=torch.float64)).tolist()
    previous = [value + draw(st.sampled_from([0.0, 0.1, -0.4, 1.5, -2.0])) for value in current]
    advantages = torch.randn(n, generator=generator, dtype=torch.float64).tolist()
    return segments, mask, current, previous, advantages


def tensors(*lists):
    return [torch.tensor(values, dtype=torch.float64) for values in lists]


def responses(segments, mask):
    """The indices of trained tokens, a list a response that has any."""
    found = {}
    for index, (segment, on) in enumerate(zip(segments, mask)):
        if on:
            found.setdefault(segment, []).append(index)
    return list(found.values())


def slow_mean(per_token, segments, mask, aggregate):
    """The mean itself, 0 where nothing is trained on."""
    parts = responses(segments, mask)
    if aggregate == "token":
        values = [per_token(index) for part in parts for index in part]
    else:
        values = [statistics.fmean(per_token(index) for index in part) for part in parts]
    return statistics.fmean(values) if values else 0.0


def mean(total, count):
    return float(total / count.clamp(min=1))


@few
@given(packs(), st.sampled_from(["none", "tis", "icepop", "seq-mask-tis"]))
def test_importance_weights(pack, mode):
    segments, mask, train, sampling, _ = pack
    low, high = (0.5, 2.0) if mode != "seq-mask-tis" else (0.9, 1.3)
    expected = [0.0] * len(mask)
    for part in responses(segments, mask):
        for index in part:
            ratio = math.exp(train[index] - sampling[index])
            geometric = math.prod(math.exp(train[i] - sampling[i]) for i in part) ** (1 / len(part))
            expected[index] = {
                "none": 1.0,
                "tis": min(max(ratio, low), high),
                "icepop": ratio if low <= ratio <= high else 0.0,
                "seq-mask-tis": ratio if low <= geometric <= high else 0.0,
            }[mode]
    found = importance_weights(*tensors(train, sampling, mask), torch.tensor(segments), mode=mode, low=low, high=high)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@few
@given(packs(), st.sampled_from(["token", "sequence", "group"]))
def test_policy_gradient_loss(pack, aggregate):
    segments, mask, current, weights, advantages = pack
    total, count = policy_gradient_loss(
        *tensors(current, advantages, weights, mask), torch.tensor(segments), aggregate=aggregate
    )
    slow = slow_mean(lambda i: -weights[i] * advantages[i] * current[i], segments, mask, aggregate)
    assert mean(total, count) == pytest.approx(slow, abs=1e-12)


def slow_clipped(current, previous, advantage, ratio, low, high, dual, cispo):
    clipped = min(max(ratio, 1 - low), 1 + high)
    if cispo:
        return -advantage * clipped * current
    loss = max(-advantage * ratio, -advantage * clipped)
    return min(loss, -advantage * dual) if dual is not None and advantage < 0 else loss


@few
@given(packs(), st.sampled_from([None, 1.5, 3.0]), st.booleans(), st.booleans(), st.sampled_from(["token", "sequence"]))
def test_clipped_policy_gradient_loss(pack, dual, cispo, sequence_ratio, aggregate):
    segments, mask, current, previous, advantages = pack
    part_of = {index: part for part in responses(segments, mask) for index in part}

    def per_token(i):
        of = part_of[i] if sequence_ratio else [i]
        ratio = math.exp(statistics.fmean(current[k] - previous[k] for k in of))
        return slow_clipped(current[i], previous[i], advantages[i], ratio, 0.2, 0.28, dual, cispo)

    options = dict(clip_low=0.2, clip_high=0.28, dual_clip=dual, cispo=cispo, sequence_ratio=sequence_ratio)
    values = tensors(current, previous, advantages, [1.0] * len(mask), mask)
    total, count = clipped_policy_gradient_loss(*values, torch.tensor(segments), aggregate=aggregate, **options)
    assert mean(total, count) == pytest.approx(slow_mean(per_token, segments, mask, aggregate), abs=1e-12)


@few
@given(packs(), st.sampled_from([None, 3.0]), st.booleans(), st.booleans())
def test_on_policy_every_clipped_form_has_reinforces_gradient(pack, dual, cispo, sequence_ratio):
    segments, mask, current, _, advantages = pack
    gradients = []
    for clipped in (False, True):
        logprobs = torch.tensor(current, dtype=torch.float64, requires_grad=True)
        others = tensors(advantages, [1.0] * len(mask), mask)
        if sequence_ratio:
            # One advantage a response, as rewards give: only then is the shared ratio's gradient each token's own.
            others[0] = torch.tensor(segments, dtype=torch.float64)
        if clipped:
            forms = dict(dual_clip=dual, cispo=cispo, sequence_ratio=sequence_ratio)
            args = (logprobs, logprobs.detach(), *others, torch.tensor(segments))
            total, _ = clipped_policy_gradient_loss(*args, aggregate="token", **forms)
        else:
            total, _ = policy_gradient_loss(logprobs, *others, torch.tensor(segments), aggregate="token")
        gradients.append(torch.autograd.grad(total, logprobs)[0])
    torch.testing.assert_close(*gradients)


@few
@given(packs(), st.sampled_from(["token", "sequence"]), st.booleans(), st.booleans())
def test_gradients_are_those_of_finite_differences(pack, aggregate, clipped, sequence_ratio):
    segments, mask, current, previous, advantages = pack
    # Away from the corners of the clipping, where there is no gradient.
    others = tensors(advantages, [1.0] * len(mask), mask)

    def loss(logprobs):
        if not clipped:
            return policy_gradient_loss(logprobs, *others, torch.tensor(segments), aggregate=aggregate)[0]
        args = (logprobs, torch.tensor(previous, dtype=torch.float64), *others, torch.tensor(segments))
        return clipped_policy_gradient_loss(*args, clip_low=0.21, clip_high=0.29, sequence_ratio=sequence_ratio, aggregate=aggregate)[0]

    assert torch.autograd.gradcheck(loss, torch.tensor(current, dtype=torch.float64, requires_grad=True), eps=1e-7, atol=1e-5)


@few
@given(packs(), st.sampled_from(["k1", "k2", "k3"]))
def test_kl_penalty(pack, kind):
    _, _, current, reference, _ = pack
    slow = {
        "k1": lambda p, q: p - q,
        "k2": lambda p, q: (q - p) ** 2 / 2,
        "k3": lambda p, q: math.exp(q - p) - 1 - (q - p),
    }[kind]
    found = kl_penalty(*tensors(current, reference), kind)
    torch.testing.assert_close(found, torch.tensor([slow(p, q) for p, q in zip(current, reference)], dtype=torch.float64))
    values = torch.tensor(current, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: kl_penalty(p, torch.tensor(reference, dtype=torch.float64), kind), values)


rewards = st.lists(
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, -1.0]), min_size=4, max_size=4), min_size=1, max_size=5
) | st.integers(2, 9).flatmap(lambda g: st.lists(st.lists(st.floats(-2, 2, width=32), min_size=g, max_size=g), min_size=1, max_size=4))


@few
@given(rewards, st.booleans(), st.booleans())
def test_group_advantages(rewards_PG, normalize, leave_one_out):
    settings = dict(normalize=normalize, leave_one_out=leave_one_out)
    found = group_advantages(torch.tensor(rewards_PG, dtype=torch.float64), **settings)
    for group, advantages in zip(rewards_PG, found.tolist()):
        if len(set(group)) == 1:
            assert advantages == [0.0] * len(group)
            continue
        for index, (reward, advantage) in enumerate(zip(group, advantages)):
            others = group[:index] + group[index + 1 :]
            expected = reward - statistics.fmean(others if leave_one_out else group)
            expected /= statistics.stdev(group) + 1e-6 if normalize else 1.0
            assert advantage == pytest.approx(expected, rel=1e-9, abs=1e-9)


@few
@given(rewards, st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_rollouts_without_a_reward_are_as_if_they_were_not_there(rewards_PG, normalize, leave_one_out, random):
    values, settings = torch.tensor(rewards_PG, dtype=torch.float64), dict(normalize=normalize, leave_one_out=leave_one_out)
    valid_PG = [[random.random() < 0.6 for _ in group] for group in rewards_PG]
    valid = torch.tensor(valid_PG)
    advantages = group_advantages(values, valid, **settings).tolist()
    informative, acceptable = informative_groups(values, valid).tolist(), swe_group_mask(values, valid_PG=valid).tolist()
    for place, (group, flags) in enumerate(zip(rewards_PG, valid_PG)):
        left = [reward for reward, flag in zip(group, flags) if flag]
        alone = torch.tensor([left], dtype=torch.float64)
        expected = iter(group_advantages(alone, **settings)[0].tolist() if len(left) > 1 else [0.0] * len(left))
        assert advantages[place] == pytest.approx([next(expected) if flag else 0.0 for flag in flags], rel=1e-12, abs=1e-12)
        assert [a for a, flag in zip(advantages[place], flags) if not flag] == [0.0] * flags.count(False)
        assert informative[place] == (len(set(left)) > 1) and acceptable[place] == any(reward > 0.5 for reward in left)
    whole = torch.ones_like(valid)
    assert torch.equal(group_advantages(values, whole, **settings), group_advantages(values, **settings))
    assert torch.equal(informative_groups(values, whole), informative_groups(values))


@few
@given(rewards)
def test_filters(rewards_PG):
    values = torch.tensor(rewards_PG, dtype=torch.float64)
    assert informative_groups(values).tolist() == [len(set(group)) > 1 for group in rewards_PG]
    assert swe_group_mask(values).tolist() == [max(group) > 0.5 for group in rewards_PG]


@few
@given(
    st.lists(st.tuples(st.floats(-2, 2, width=32), st.booleans()), max_size=6),
    st.sampled_from(["reward_zero", "mask", "keep"]),
    st.sampled_from([-10.0, -1.0, 0.0, 1.0]),
)
def test_overlong(replies, mode, least):
    rewards, cut = torch.tensor([r for r, _ in replies]), torch.tensor([c for _, c in replies], dtype=torch.bool)
    earned, trained = overlong(rewards, cut, mode, least)
    assert earned.tolist() == [min(0.0, least) if c and mode == "reward_zero" else r for r, c in replies]
    assert trained.tolist() == [not (c and mode == "mask") for _, c in replies]


# -------------------------------------------------------------------------------- distillation


@few
@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(0, 50), st.floats(0.1, 9)), min_size=1))
def test_domain_weights_give_each_domain_its_share_and_leave_the_mean_weight_at_one(domains):
    amounts, shares = ({name: pair[k] for name, pair in domains.items()} for k in (0, 1))
    found = domain_weights(amounts, shares)
    there = [name for name in domains if amounts[name] > 0]
    assert set(found) == set(there)
    if there:
        total = sum(amounts[name] for name in there)
        assert sum(found[name] * amounts[name] for name in there) == pytest.approx(total)
        for name in there:
            assert found[name] * amounts[name] / total == pytest.approx(shares[name] / sum(shares[n] for n in there))


def drawn(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@few
@given(st.integers(0, 6), st.integers(1, 9), st.integers(0, 99), st.sampled_from([1, 7, 2**24]))
def test_reverse_kl_and_its_gradient_in_chunks_of_any_size(tokens, vocab, seed, chunk):
    student, teacher = (2 * drawn((tokens, vocab), seed + k) for k in (0, 1000))
    expected = torch.nn.functional.kl_div(
        teacher.log_softmax(-1), student.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(reverse_kl(student, teacher, chunk=chunk), expected)
    if tokens:
        assert torch.autograd.gradcheck(lambda logits: reverse_kl(logits, teacher, chunk=chunk), student.requires_grad_())


def test_what_a_student_never_says_costs_nothing():
    student, teacher = torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.0, 0.0]])
    assert float(reverse_kl(student, teacher)) == pytest.approx(math.log(2))
    assert float(reverse_kl(student, torch.tensor([[0.0, -math.inf]]))) == 0.0


def test_bfloat16_logits_are_compared_in_float32():
    student, teacher = drawn((3, 11), 0).bfloat16(), drawn((3, 11), 1).bfloat16()
    found = reverse_kl(student.requires_grad_(), teacher)
    torch.testing.assert_close(found.detach(), reverse_kl(student.detach().float(), teacher.float()))
    found.sum().backward()
    assert found.dtype == torch.float32 and student.grad.dtype == torch.bfloat16


def test_mopds_gradient_is_a_sample_of_the_reverse_kls():
    """Averaged over 200,000 tokens drawn from a vocabulary of 7 it is the exact one within its standard error."""
    logits, teacher = drawn(7, 3).requires_grad_(), drawn(7, 4).log_softmax(-1)
    (exact,) = torch.autograd.grad(reverse_kl(logits[None], teacher[None]).sum(), logits)
    n = 200_000
    policy = logits.detach().softmax(-1)
    tokens = torch.multinomial(policy, n, replacement=True, generator=torch.Generator().manual_seed(5))
    advantages = mopd_advantages(teacher[tokens], policy.log()[tokens], torch.ones(n))
    # The gradient of -A log pi(y) by the logits is -A (1_y - pi), one row a sample.
    rows = -advantages[:, None] * (torch.nn.functional.one_hot(tokens, 7) - policy)
    error = rows.std(dim=0) / n**0.5
    assert ((rows.mean(dim=0) - exact).abs() < 4 * error).all()
    # And the loss has just these gradients.
    own = logits.detach().clone().requires_grad_()
    logprobs = own.log_softmax(-1)[tokens]
    ones = torch.ones(n, dtype=torch.float64)
    total, count = policy_gradient_loss(logprobs, advantages, ones, ones, torch.zeros(n, dtype=torch.int64), aggregate="token")
    (total / count).backward()
    torch.testing.assert_close(own.grad, rows.mean(dim=0))


def test_on_policy_grpo_is_reinforce_with_the_groups_advantage():
    logits, rewards_PG = drawn((3, 4, 5, 11), 6).requires_grad_(), torch.rand(3, 4, generator=torch.Generator().manual_seed(7)).double()
    tokens = torch.randint(0, 11, (3, 4, 5), generator=torch.Generator().manual_seed(8))
    logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    advantages = group_advantages(rewards_PG)[..., None].expand(3, 4, 5)
    ones, segments = torch.ones(60, dtype=torch.float64), torch.arange(12).repeat_interleave(5)
    flat = logprobs.flatten()
    weights = importance_weights(flat, flat.detach(), ones, segments, mode="icepop", low=0.5, high=2.0)
    total, count = policy_gradient_loss(flat, advantages.flatten(), weights, ones, segments, aggregate="token")
    (found,) = torch.autograd.grad(total / count, logits, retain_graph=True)
    spread = rewards_PG.std(dim=1, keepdim=True) + 1e-6
    (expected,) = torch.autograd.grad(-(((rewards_PG - rewards_PG.mean(1, keepdim=True)) / spread)[..., None] * logprobs).mean(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def split_vocabulary(student, teacher):
    """KL and gradient where each of two ranks has half of the vocabulary."""
    import torch.distributed as dist

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig

    parallel.init(MegatronConfig())
    mine = slice(dist.get_rank() * 5, (dist.get_rank() + 1) * 5)
    logits = student[:, mine].clone().requires_grad_()
    divergence = reverse_kl(logits, teacher[:, mine], group=dist.group.WORLD, chunk=12)
    (divergence * torch.arange(1.0, 5.0, dtype=torch.float64)).sum().backward()
    return divergence.detach(), logits.grad


def test_a_vocabulary_may_lie_on_several_ranks():
    from tests.helpers import run_distributed

    student, teacher = drawn((4, 10), 9), drawn((4, 10), 10)
    parts = run_distributed(split_vocabulary, 2, student, teacher)
    whole = student.clone().requires_grad_()
    expected = reverse_kl(whole, teacher)
    (expected * torch.arange(1.0, 5.0, dtype=torch.float64)).sum().backward()
    for divergence, _ in parts:
        torch.testing.assert_close(divergence, expected.detach())
    torch.testing.assert_close(torch.cat([gradient for _, gradient in parts], dim=1), whole.grad)
