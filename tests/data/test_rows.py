"""Rows: good ones arrive whole, bad ones are named by file and number, in one line."""

import json

import pytest

from nemo_cascade.data.rows import DataError, environment_of, load_rows, messages_of, prompt_id, tools_of

GOOD = {
    "responses_create_params": {"input": [{"role": "user", "content": "What is 1+1?"}]},
    "agent_ref": {"type": "responses_api_agents", "name": "math_simple_agent"},
    "expected_answer": "2",
    "unheard_of": {"kept": True},
}
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
KNOWN = ["math", "mcqa"]


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_good_rows_keep_every_key(tmp_path):
    rows, reading = load_rows(write(tmp_path / "a.jsonl", GOOD, "", GOOD), "rl", environments=KNOWN)
    assert rows == [GOOD, GOOD] and reading.numbers == [1, 3]


BAD_RL = {
    "not JSON": '{"half": ',
    "not an object": [1, 2],
    "no prompt": {**GOOD, "responses_create_params": {}},
    "empty string prompt": {**GOOD, "responses_create_params": {"input": "  "}},
    "empty list prompt": {**GOOD, "responses_create_params": {"input": []}},
    "blank messages": {**GOOD, "responses_create_params": {"input": [{"role": "user", "content": " "}]}},
    "message without role": {**GOOD, "responses_create_params": {"input": [{"content": "x"}]}},
    "ends with the answer": {**GOOD, "responses_create_params": {"input": CHAT["messages"]}},
    "unknown environment": {**GOOD, "agent_ref": {"name": "chess_simple_agent"}},
    "no environment": {"responses_create_params": {"input": "hello"}},
}


@pytest.mark.parametrize("case", BAD_RL)
def test_a_bad_row_stops_with_one_line_naming_file_and_row(case, tmp_path):
    path = write(tmp_path / "bad.jsonl", GOOD, BAD_RL[case])
    with pytest.raises(DataError) as error:
        load_rows(path, "rl", environments=KNOWN)
    message = str(error.value)
    assert str(path) in message and "row 2" in message and "\n" not in message


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_the_first_bad_row_is_told_whoever_finds_it(bad, tmp_path):
    """The environments look at all rows together, after those that no environment could read."""
    rows = [GOOD, GOOD, GOOD, BAD_RL["not JSON"]]
    rows[bad - 1] = {**GOOD, "odd": True}
    with pytest.raises(DataError, match=f"row {bad}: odd"):
        load_rows(
            write(tmp_path / "odd.jsonl", *rows),
            "rl",
            environments=KNOWN,
            unverifiable=lambda rows: ["odd" if "odd" in row else None for row in rows],
        )


@pytest.mark.parametrize("row", [{}, {"messages": []}, {"messages": CHAT["messages"][:1]}, {"messages": "hi"}])
def test_a_conversation_without_an_answer_is_a_bad_row(row, tmp_path):
    with pytest.raises(DataError, match="row 1"):
        load_rows(write(tmp_path / "sft.jsonl", row), "sft")


def test_skip_counts_and_lists_what_it_left_out(tmp_path):
    path = write(tmp_path / "mixed.jsonl", GOOD, *BAD_RL.values(), GOOD)
    rows, reading = load_rows(path, "rl", on_bad_row="skip", environments=KNOWN)
    assert len(rows) == 2 and len(reading.skipped) == len(BAD_RL)
    assert all(line.startswith(f"{path}:{number} ") for number, line in enumerate(reading.skipped, start=2))


@pytest.mark.parametrize("lines", [[], [BAD_RL["not JSON"]]])
def test_a_file_without_a_usable_row_is_an_error_even_when_skipping(lines, tmp_path):
    with pytest.raises(DataError, match="no usable row"):
        load_rows(write(tmp_path / "empty.jsonl", *lines), "rl", on_bad_row="skip", environments=KNOWN)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="absent.jsonl: no such file"):
        load_rows(tmp_path / "absent.jsonl", "rl")


def test_a_plain_string_is_a_user_message():
    row = {"responses_create_params": {"input": "hello"}}
    assert messages_of(row) == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "keys, name",
    [
        ({"schema_str": "{}"}, "structured_outputs"),
        ({"ground_truth": [], "id": 3}, "workplace_assistant"),
        ({"instruction_id_list": ["a"], "kwargs": [{}]}, "instruction_following"),
        ({"expected_answer": "B", "options": [{"A": "x"}]}, "mcqa"),
        ({"expected_answer": "4"}, "math"),
    ],
)
def test_rows_without_agent_ref_are_told_by_their_keys(keys, name):
    assert environment_of({"responses_create_params": {"input": "x"}, **keys}) == name


def test_responses_tools_become_chat_tools():
    flat = {"type": "function", "name": "f", "parameters": {}, "strict": True}
    assert tools_of({"responses_create_params": {"tools": [flat]}}) == [
        {"type": "function", "function": {"name": "f", "parameters": {}}}
    ]
    assert tools_of(GOOD) is None


def test_the_prompt_id_depends_on_content_not_on_key_order():
    shuffled = dict(reversed(list(GOOD.items())))
    assert prompt_id(shuffled) == prompt_id(GOOD) != prompt_id({**GOOD, "expected_answer": "3"})
    assert int(prompt_id(GOOD), 16) > 0
