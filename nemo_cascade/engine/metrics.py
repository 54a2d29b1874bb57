"""What a loss measured on each pack, over all packs and ranks."""

import torch
import torch.distributed as dist

# By the first or the last word of a metric's name.
EXTREMES = {"max": 1, "min": -1}


def global_metrics(results: list[dict[str, torch.Tensor]], group: dist.ProcessGroup) -> dict[str, float]:
    """Sum / count of every metric, from (sum, count) [2] a pack; of one named max or min the extreme of its first numbers.

    The ranks of `group` have other packs each and the same names. A mean of nothing is no number and left out, but for the loss, which
    is 0 then.
    """
    names = sorted(results[0])
    pairs = torch.stack([sum(result[name] for result in results) for name in names])
    dist.all_reduce(pairs, group=group)
    metrics = {
        name: total / count if count > 0 else 0.0
        for name, (total, count) in zip(names, pairs.tolist())
        if count > 0 or name == "loss"
    }
    signs = {name: sign for name in names if (sign := extreme_of(name))}
    if signs:
        best = torch.stack([torch.stack([sign * result[name][0] for result in results]).max() for name, sign in signs.items()])
        dist.all_reduce(best, op=dist.ReduceOp.MAX, group=group)
        extremes = {name: sign * value for (name, sign), value in zip(signs.items(), best.tolist())}
        metrics |= {name: value for name, value in extremes.items() if name in metrics}
    return metrics


def extreme_of(name: str) -> int:
    """1 of a metric that is a largest value, -1 of a smallest one, 0 of a mean."""
    words = name.rsplit("/")[-1].split("_")
    return EXTREMES.get(words[0]) or EXTREMES.get(words[-1]) or 0
