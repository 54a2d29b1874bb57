"""Work shared out among ranks: the same on all of them, errors too."""

import pytest

from tests.helpers import run_distributed


def shared(count):
    import torch.distributed as dist

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig

    parallel.init(MegatronConfig())
    mine = []

    def squares(numbers):
        mine.extend(numbers)
        for number in numbers:
            if number in (5, 8):
                raise ValueError(f"row {number}")
        return [(number, number**2) for number in numbers]

    try:
        made = parallel.share_out(squares, list(range(count)))
    except ValueError as error:
        made = str(error)
    dist.barrier()
    return made, mine


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_work_that_is_shared_out_comes_back_whole_and_in_order(count):
    everything = [(number, number**2) for number in range(count)]
    ranks = run_distributed(shared, 2, count)
    assert [made for made, _ in ranks] == [everything, everything]
    assert [mine for _, mine in ranks] == [list(range(0, count, 2)), list(range(1, count, 2))]


@pytest.mark.parametrize("count, told", [(6, "row 5"), (12, "row 8")])
def test_an_error_on_one_rank_is_raised_on_every_rank_that_of_the_lowest_first(count, told):
    assert [made for made, _ in run_distributed(shared, 2, count)] == [told, told]
