"""Rewards from comparisons: a case by hand, an independent computation without tensors, and what must not matter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_cascade.algorithms import comparison_pairs, genrm_rewards
from nemo_cascade.algorithms.genrm import base_rewards, conciseness_bonus, length_term

PLAIN = dict(reasoning_coeff=0.0, answer_coeff=0.0, reasoning_bonus=0.0, answer_bonus=0.0)


def rewards(comparisons, thoughts, answers, **settings):
    """comparisons: [(i, j, score of i, score of j, ranking)]."""
    pairs, scores, rankings = ([c[:2] for c in comparisons], [c[2:4] for c in comparisons], [c[4] for c in comparisons])
    tensors = (torch.tensor(values) for values in (pairs, scores, rankings, thoughts, answers))
    return genrm_rewards(*tensors, **settings).tolist()


def test_all_pairs_compares_everybody_once_and_circular_everybody_twice():
    assert len(comparison_pairs(16, "all_pairs")) == 120
    assert comparison_pairs(3, "circular") == [(0, 1), (1, 2), (2, 0)]
    with pytest.raises(ValueError, match="cannot be compared"):
        comparison_pairs(1, "all_pairs")
    with pytest.raises(ValueError, match="not 'all'"):
        comparison_pairs(4, "all")


def test_a_reward_is_the_mean_score_and_a_tie_is_decided_by_the_ranking():
    comparisons = [(0, 1, 5, 3, 2), (0, 2, 4, 4, 1), (1, 2, 2, 2, 5)]
    # 0 against 2: 4 + 2.5 and 4 - 2.5; 1 against 2: 2 - 1.5 and 2 + 1.5.
    assert rewards(comparisons, [0, 0, 0], [9, 9, 9], **PLAIN) == pytest.approx([5.75, 1.75, 2.5])


def test_shorter_thoughts_and_answers_earn_more_and_the_terms_sum_to_nothing():
    assert length_term(torch.tensor([10, 20, 30])).tolist() == pytest.approx([0.5, 0.0, -0.5])
    assert length_term(torch.tensor([7, 7])).tolist() == [0.0, 0.0]
    equal = [(0, 1, 3, 3, 3.5)]
    settings = PLAIN | dict(reasoning_coeff=0.5, answer_coeff=0.25)
    assert rewards(equal, [10, 30], [8, 4], **settings) == pytest.approx([3 + 0.25 - 0.125, 3 - 0.25 + 0.125])


def test_only_a_good_reply_earns_the_bonus_of_being_shortest():
    base = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    assert conciseness_bonus(base, torch.tensor([9, 9, 1, 9, 9]), 0.2).tolist() == [0.0] * 5
    assert conciseness_bonus(base, torch.tensor([1, 9, 9, 9, 9]), 0.2).tolist() == [1.0, 0, 0, 0, 0]
    # An empty text is not short but missing.
    assert conciseness_bonus(base, torch.tensor([3, 0, 9, 9, 9]), 0.2).tolist() == [1.0, 0, 0, 0, 0]
    assert conciseness_bonus(base, torch.zeros(5), 0.2).tolist() == [0.0] * 5


def test_of_sixteen_the_best_three_may_earn_the_bonus():
    base = torch.arange(16.0)
    for place, earned in ((15, 1.0), (13, 1.0), (12, 0.0)):
        lengths = torch.full((16,), 9)
        lengths[place] = 1
        assert conciseness_bonus(base, lengths, 0.2).sum() == earned


def slow_rewards(comparisons, lengths_by_kind, coeff, bonus, top):
    """The same from the paper's words, without tensors."""
    group = len(lengths_by_kind[0])
    mine = [[] for _ in range(group)]
    for i, j, first, second, ranking in comparisons:
        extra = 3.5 - ranking if first == second else 0.0
        mine[i].append(first + extra)
        mine[j].append(second - extra)
    base = [sum(scores) / len(scores) for scores in mine]
    bar = sorted(base)[-max(1, int(group * top))]
    result = list(base)
    for lengths in lengths_by_kind:
        low, high = min(lengths), max(lengths)
        short = [1 - (x - low) / (high - low) if high > low else 0.0 for x in lengths]
        for i in range(group):
            result[i] += coeff * (short[i] - sum(short) / group if high > low else 0.0)
        written = [i for i in range(group) if lengths[i] > 0]
        if written:
            first = min(written, key=lambda i: (lengths[i], i))
            result[first] += bonus if base[first] >= bar else 0.0
    return result


@given(st.data())
def test_rewards_equal_a_computation_without_tensors(data):
    group = data.draw(st.integers(2, 9))
    strategy = data.draw(st.sampled_from(["all_pairs", "circular"]))
    comparisons = [
        (i, j, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6)))
        for i, j in comparison_pairs(group, strategy)
    ]
    lengths = [data.draw(st.lists(st.integers(0, 30), min_size=group, max_size=group)) for _ in range(2)]
    top = data.draw(st.sampled_from([0.2, 0.5, 1.0]))
    ours = rewards(comparisons, *lengths, top_percentile=top)
    assert ours == pytest.approx(slow_rewards(comparisons, lengths, 0.5, 0.5, top), abs=1e-9)


def test_what_is_said_about_nobody_changes_nothing():
    pairs, scores, rankings = torch.tensor([[0, 1]]), torch.tensor([[4, 2]]), torch.tensor([1])
    assert base_rewards(pairs, scores, rankings, 2).tolist() == [4.0, 2.0]
