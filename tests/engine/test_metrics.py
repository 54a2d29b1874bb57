"""What a loss measures on packs becomes one number for all packs and ranks, or none where there was nothing to measure."""

import torch

from nemo_cascade.engine.metrics import extreme_of
from tests.helpers import run_distributed


def measured(packs_of_ranks):
    import torch.distributed as dist

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.engine.metrics import global_metrics

    parallel.init(MegatronConfig())
    mine = packs_of_ranks[dist.get_rank()]
    results = [{name: torch.tensor(pair, dtype=torch.float64) for name, pair in pack.items()} for pack in mine]
    return global_metrics(results, dist.group.WORLD)


def test_means_extremes_and_what_is_of_nothing():
    inf = float("inf")

    def pack(total, count, lowest, highest):
        return {
            "loss": (0.0, 0),
            "error": (total, count),
            "error_min": (lowest, count),
            "max_error": (highest, count),
            "math/reverse_kl": (0.0, 0),
            "entropy_min": (inf, 0),
        }

    ranks = [[pack(3.0, 2, 1.0, 2.0), pack(0.0, 0, inf, -inf)], [pack(9.0, 2, 0.1 + 0.2, 8.0)]]
    for found in run_distributed(measured, 2, ranks):
        assert found == {"loss": 0.0, "error": 3.0, "error_min": 0.1 + 0.2, "max_error": 8.0}


def test_extremes_are_told_by_the_first_or_the_last_word_of_a_name():
    names = ("probs_ratio_min", "max_seq_mult_prob_error", "math/reverse_kl", "minimum_length", "a/min_b")
    assert [extreme_of(name) for name in names] == [-1, 1, 0, 0, -1]
