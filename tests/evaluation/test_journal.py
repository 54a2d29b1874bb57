"""What is kept is kept whole, or said to be damaged."""

import pytest

from nemo_cascade.data.rows import DataError
from nemo_cascade.evaluation.journal import Journal, read


def test_a_torn_last_line_is_dropped_and_what_follows_is_whole(tmp_path):
    with Journal(tmp_path, "replies", 0, {}) as journal:
        journal.put("a", {"text": "one\u2028line"})
        journal.put("b", {"text": "two"})
    path = tmp_path / "replies_0.jsonl"
    for cut in range(1, len(path.read_bytes().splitlines()[1]) + 1):
        whole = path.read_bytes()
        path.write_bytes(whole[:-cut])
        assert read(tmp_path, "replies") == {"a": {"text": "one\u2028line"}}
        with Journal(tmp_path, "replies", 0, read(tmp_path, "replies")) as journal:
            journal.put("b", {"text": "two"})
        assert path.read_bytes() == whole


def test_all_ranks_files_are_read_and_each_writes_its_own(tmp_path):
    for rank, key in enumerate("ab"):
        with Journal(tmp_path, "replies", rank, {}) as journal:
            journal.put(key, {"rank": rank})
    with Journal(tmp_path, "verdicts", 0, {}) as journal:
        journal.put("c", {})
    assert read(tmp_path, "replies") == {"a": {"rank": 0}, "b": {"rank": 1}}


def test_any_other_line_that_is_damaged_is_named(tmp_path):
    with Journal(tmp_path, "replies", 0, {}) as journal:
        for key in "abc":
            journal.put(key, {})
    path = tmp_path / "replies_0.jsonl"
    path.write_text(path.read_text().replace('{"key": "b"', '{"kez": "b"'))
    with pytest.raises(DataError, match="replies_0.jsonl, line 2: not as it was written .* delete the line"):
        read(tmp_path, "replies")
