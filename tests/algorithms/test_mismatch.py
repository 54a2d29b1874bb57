"""Each metric of how sampling and training differ, beside its formula in Python's own floats."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_cascade.algorithms import importance_weights, mismatch_metrics, ratio_metrics, weight_metrics
from tests.algorithms.test_formulas import few, packs, responses, tensors

K = {"k1": lambda d: -d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(d) - 1 - d}


def told(metrics) -> dict:
    """Means and extremes, without those of nothing."""
    return {
        name: (a if name.startswith(("m", "probs_ratio_m", "probs_ratio_clamped_m")) and not name.startswith("mean") else a / b).item()
        for name, (a, b) in metrics.items()
        if b > 0
    }


@few
@given(packs(), st.sampled_from(sorted(K)))
def test_mismatch_metrics(pack, kind):
    segments, mask, train, sampled, _ = pack
    parts = responses(segments, mask)
    found = told(mismatch_metrics(*tensors(train, sampled, mask), torch.tensor(segments), kl_kind=kind))
    if not parts:
        assert found == {}
        return
    trained = [i for part in parts for i in part]

    def mean(value):
        return statistics.fmean(value(train[i], sampled[i]) for i in trained)

    def to_mixture(p, q):
        middle = math.log((math.exp(p) + math.exp(q)) / 2)
        return (K["k3"](p - middle) + K["k3"](q - middle)) / 2

    by_response = [statistics.fmean(math.exp(abs(train[i] - sampled[i])) for i in part) for part in parts]
    assert found == pytest.approx(
        {
            "token_mult_prob_error": mean(lambda p, q: math.exp(abs(p - q))),
            "gen_kl_error": mean(lambda p, q: K[kind](p - q)),
            "policy_kl_error": mean(lambda p, q: K[kind](q - p)),
            "js_divergence_error": mean(to_mixture),
            "approx_entropy": mean(lambda p, q: -math.exp(p - q) * p),
            "mean_seq_mult_prob_error": statistics.fmean(by_response),
            "max_seq_mult_prob_error": max(by_response),
            "min_seq_mult_prob_error": min(by_response),
        },
        abs=1e-12,
    )


@few
@given(packs(), st.sampled_from(["none", "full", "tis", "icepop", "seq-mask-tis"]), st.booleans())
def test_weight_metrics(pack, mode, sequence_level):
    segments, mask, train, sampled, _ = pack
    sequence_level = sequence_level and mode != "seq-mask-tis"
    values, band = tensors(train, sampled, mask), dict(low=0.8, high=1.3, sequence_level=sequence_level)
    found = told(weight_metrics(*values, torch.tensor(segments), mode=mode, **band))
    parts = responses(segments, mask)
    if not parts:
        assert found == {}
        return
    used = importance_weights(*values, torch.tensor(segments), mode="full" if mode == "none" else mode, **band)
    raw = importance_weights(*values, torch.tensor(segments), mode="full", sequence_level=sequence_level)
    units = [part[0] for part in parts] if sequence_level else [i for part in parts for i in part]
    expected = {"sampling_importance_ratio": statistics.fmean(used[i].item() for i in units)}
    if mode in ("tis", "icepop"):
        trained = [i for part in parts for i in part]
        expected["is_oob_ratio"] = statistics.fmean(not 0.8 <= raw[i].item() <= 1.3 for i in trained)
    if mode == "seq-mask-tis":
        geometric = [math.exp(statistics.fmean(train[i] - sampled[i] for i in part)) for part in parts]
        expected["is_oob_ratio"] = statistics.fmean(not 0.8 <= mean <= 1.3 for mean in geometric)
    assert found == pytest.approx(expected, abs=1e-12)


@few
@given(packs(), st.booleans())
def test_ratio_metrics(pack, sequence_ratio):
    segments, mask, current, previous, _ = pack
    clipping = dict(clip_low=0.2, clip_high=0.28, sequence_ratio=sequence_ratio)
    found = told(ratio_metrics(*tensors(current, previous, mask), torch.tensor(segments), **clipping))
    ratios = []
    for part in responses(segments, mask):
        for i in part:
            of = part if sequence_ratio else [i]
            ratios.append(math.exp(statistics.fmean(current[k] - previous[k] for k in of)))
    expected = {}
    for name, values in (("probs_ratio", ratios), ("probs_ratio_clamped", [min(max(r, 0.8), 1.28) for r in ratios])):
        if values:
            expected |= {name: statistics.fmean(values), f"{name}_min": min(values), f"{name}_max": max(values)}
    assert found == pytest.approx(expected)
