"""Orders of visit: complete, deterministic, by share, and exactly resumable."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_cascade.data.loader import Loader, Mixture


@given(n=st.integers(1, 40), seed=st.integers(0, 5))
def test_every_epoch_visits_each_row_once(n, seed):
    loader = Loader(n, seed=seed)
    epochs = [loader.next(n) for _ in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert n < 8 or len({tuple(epoch) for epoch in epochs}) == 3


@given(n=st.integers(1, 30), batch=st.integers(1, 7), before=st.integers(0, 12))
def test_a_loader_goes_on_exactly_where_its_state_was_taken(n, batch, before):
    whole = Loader(n, batch, seed=1)
    for _ in range(before):
        whole.next()
    again = Loader(n, batch, seed=1)
    again.load_state_dict(whole.state_dict())
    assert [again.next() for _ in range(9)] == [whole.next() for _ in range(9)]


def test_without_shuffle_rows_come_in_file_order():
    assert Loader(3, 4, shuffle=False).next() == [0, 1, 2, 0]


def test_a_state_of_other_data_is_refused():
    loader = Loader(3)
    with pytest.raises(ValueError, match="5 rows"):
        loader.load_state_dict(Loader(5).state_dict())
    with pytest.raises(ValueError, match="at least one row"):
        Loader(0)


@given(st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4), st.integers(1, 200))
def test_a_mixture_holds_its_shares_to_within_a_draw(shares, count):
    mixture = Mixture({f"s{i}": (5, share) for i, share in enumerate(shares)})
    drawn = [name for name, _ in mixture.next(count)]
    for i, share in enumerate(shares):
        assert abs(drawn.count(f"s{i}") - count * share / sum(shares)) <= len(shares)


def test_a_mixture_resumes_exactly_and_refuses_other_sources():
    sources = {"math": (7, 0.3), "mcqa": (5, 0.7)}
    whole, again = Mixture(sources, seed=2), Mixture(sources, seed=2)
    whole.next(23)
    again.load_state_dict(whole.state_dict())
    assert again.next(40) == whole.next(40)
    with pytest.raises(ValueError, match="math"):
        Mixture({"math": (7, 1.0)}).load_state_dict(whole.state_dict())


def test_a_source_of_share_zero_is_never_drawn():
    mixture = Mixture({"a": (3, 1.0), "b": (3, 0.0)})
    assert {name for name, _ in mixture.next(50)} == {"a"}
