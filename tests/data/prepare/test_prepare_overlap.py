"""Rows that repeat an evaluation prompt are found, and only those."""

import json

import pytest
from released_files import chat, sentence, write_lines, write_table

from nemo_cascade.data.prepare.overlap import Evaluations, read_evaluations, words_of
from nemo_cascade.data.rows import DataError

PROMPTS = {f"eval.jsonl:{number}": sentence(number, 25) for number in range(40)}


@pytest.fixture(scope="module")
def evaluations():
    return Evaluations(PROMPTS | {"eval.jsonl:99": "Who are you?"})


def test_a_copy_a_changed_copy_and_an_embedded_one_are_found(evaluations):
    text = PROMPTS["eval.jsonl:3"]
    words = text.split()
    changed = " ".join([*words[:12], "other", *words[13:]])
    assert evaluations.nearest([text]) == "eval.jsonl:3, 100% of it"
    assert evaluations.nearest([changed]) == "eval.jsonl:3, 56% of it"
    assert evaluations.nearest([f"{sentence(500, 200)} {text.upper()}! {sentence(501, 200)}"]).startswith("eval.jsonl:3")
    assert evaluations.nearest(["hello", f"**{text}**"]).startswith("eval.jsonl:3")


def test_what_shares_a_passage_only_is_kept(evaluations):
    words = PROMPTS["eval.jsonl:3"].split()
    assert evaluations.nearest([" ".join(words[:12])]) is None
    assert all(evaluations.nearest([sentence(number)]) is None for number in range(600, 700))
    assert evaluations.nearest([]) is None


def test_a_short_prompt_is_repeated_only_by_a_text_that_is_equal(evaluations):
    assert evaluations.nearest(["who are YOU"]) == "eval.jsonl:99, all of it"
    assert evaluations.nearest(["Who are you? Tell me."]) is None


def test_what_all_prompts_begin_with_tells_nothing():
    frame = "Answer the following question and put the last letter of your choice into a box at the very end please."
    framed = Evaluations({f"e:{number}": f"{frame} {sentence(number, 12)}" for number in range(40)})
    assert framed.nearest([f"{frame} {sentence(700, 12)}"]) is None
    assert framed.nearest([f"{frame} {sentence(7, 12)}"]).startswith("e:7")


def test_scripts_without_spaces_go_by_character():
    assert words_of("東京は日本 x²") == ["東", "京", "は", "日", "本", "x²"]


def test_prompts_are_read_from_every_shape_and_bad_ones_are_named(tmp_path):
    gym = {"responses_create_params": {"input": sentence(1)}}
    write_lines(tmp_path / "a" / "x.jsonl", [gym, "", chat(2), {"question": sentence(3), "answer": "7"}])
    write_table(tmp_path / "b.parquet", [{"problem": sentence(4)}])
    evaluations = read_evaluations(tmp_path)
    places = [(f"{tmp_path}/a/x.jsonl:{row}", row) for row in (1, 3, 4)]
    assert len(evaluations) == 4 and len(read_evaluations(None)) == 0
    for number, (place, _) in zip((1, 2, 3), places):
        assert evaluations.nearest([sentence(number)]) == f"{place}, 100% of it"
    assert evaluations.nearest([sentence(4)]).startswith(f"{tmp_path}/b.parquet:1")
    (tmp_path / "bad.jsonl").write_text(json.dumps({"answer": 7}) + "\n")
    with pytest.raises(DataError, match="bad.jsonl, row 1: no evaluation prompt"):
        read_evaluations(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no .jsonl or .parquet"):
        read_evaluations(tmp_path / "empty")
