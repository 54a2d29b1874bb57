"""SFT rows: what is stored as text becomes what the template knows, and what cannot be trained on is named."""

import pytest
from released_files import CALL, chat, with_tools

from nemo_cascade.data.chat import conversation_to_samples
from nemo_cascade.data.prepare.conversations import to_conversation
from nemo_cascade.data.prepare.outcome import Unusable
from nemo_cascade.data.tokenizer import load_tokenizer

ASK = {"role": "user", "content": "Why?"}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


def samples(tokenizer, row: dict) -> list[tuple[list[int], list[int]]]:
    return [(sample.tokens, sample.loss_mask) for sample in conversation_to_samples(tokenizer, to_conversation(row)[0])]


def trained(tokenizer, sample) -> str:
    return tokenizer.decode([token for token, trained in zip(*sample) if trained])


def answered(**message) -> dict:
    return {"messages": [ASK, {"role": "assistant", **message}]}


def test_a_thought_is_the_same_wherever_it_is_stored(tokenizer):
    """The reference is the row as released, rendered without any change."""
    inline = answered(content="<think>\nBecause.\n</think>\nSo.")
    reference = [(s.tokens, s.loss_mask) for s in conversation_to_samples(tokenizer, inline)]
    stored = [
        inline,
        answered(content="Because.\n</think>\nSo."),
        answered(content="<think>Because.</think>\n\nSo."),
        *(answered(content="So.", **{name: "Because."}) for name in ("reasoning_content", "reasoning", "thinking", "thought")),
        answered(content=[{"type": "text", "text": "So."}], reasoning="Because.\n", reasoning_content=None),
        {"messages": [{"role": "human", "content": "Why?"}, {"role": "gpt", "content": "So.", "thinking": "Because."}]},
    ]
    assert all(samples(tokenizer, row) == reference for row in stored)


def test_no_thought_is_the_empty_thought(tokenizer):
    plain = samples(tokenizer, answered(content="So."))
    empty = ["<think></think>So.", "<think>\n\n</think>\n\nSo.", "</think>So."]
    assert all(samples(tokenizer, answered(content=text)) == plain for text in empty)
    assert trained(tokenizer, plain[0]) == "So.<|im_end|>"


def test_a_tool_result_under_role_user_does_not_cut_the_thoughts_before_it(tokenizer):
    row = with_tools(1)
    conversation, mended = to_conversation(row)
    assert [message["role"] for message in conversation["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert conversation["messages"][2]["tool_calls"] == [{"function": {"name": "look", "arguments": {"word": "river"}}}]
    assert mended == {"tool_results": 1, "calls_inline": 1}
    (sample,) = samples(tokenizer, row)
    text = tokenizer.decode(sample[0])
    assert text.index("first thought") < text.index("<tool_response>\nit is wide\n</tool_response>") < text.index("second thought")
    assert "first thought" in trained(tokenizer, sample) and "it is wide" not in trained(tokenizer, sample)
    # As released, the result is a new request: two samples, the second without the first thought.
    assert len(conversation_to_samples(tokenizer, row)) == 2


def test_several_results_are_several_and_an_untagged_one_follows_a_call():
    asked, called = ASK, {"role": "assistant", "content": CALL}
    two = {"role": "user", "content": "<tool_response>\na\n</tool_response>\n<tool_response>\nb\n</tool_response>"}
    end = {"role": "assistant", "content": "Done."}
    messages = to_conversation({"messages": [asked, called, two, called, {"role": "user", "content": "raw"}, end]})[0]["messages"]
    assert [(m["role"], m["content"]) for m in messages if m["role"] == "tool"] == [("tool", "a"), ("tool", "b"), ("tool", "raw")]


@pytest.mark.parametrize(
    "content", ["New Terminal Output:\n$ ls", "EXECUTION RESULT of [bash]:\nok", "see <tool_response>x</tool_response>?"]
)
def test_what_a_harness_or_a_person_says_stays_the_users(content):
    rows = [ASK, {"role": "assistant", "content": "ls"}, {"role": "user", "content": content}, {"role": "assistant", "content": "k"}]
    assert [m["role"] for m in to_conversation({"messages": rows})[0]["messages"]] == ["user", "assistant", "user", "assistant"]


def test_a_call_that_the_template_would_write_otherwise_stays_text():
    odd = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    message = to_conversation(answered(content=odd))[0]["messages"][1]
    assert message == {"role": "assistant", "content": odd}


def test_each_turn_is_a_sample_with_the_thoughts_of_its_own(tokenizer):
    found = samples(tokenizer, chat(3, turns=3))
    assert len(found) == 3
    for turn, sample in enumerate(found):
        text = tokenizer.decode(sample[0])
        assert [f"thought 3 {other}" in text for other in range(3)] == [other == turn for other in range(3)]


def test_tools_and_arguments_stored_as_text_are_read():
    tool = '[{"type": "function", "function": {"name": "look", "parameters": {}}}]'
    call = {"type": "function", "function": {"name": "look", "arguments": '{"word": "x"}'}}
    conversation = to_conversation(answered(content=None, tool_calls=[call]) | {"tools": tool})[0]
    assert conversation["tools"][0]["function"]["name"] == "look"
    assert conversation["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"word": "x"}


UNUSABLE = {
    "no_messages": [{}, {"messages": "hi"}],
    "no_answer": [
        {"messages": []},
        {"messages": [ASK]},
        {"messages": [ASK, {"role": "assistant", "content": "k"}, ASK]},
        answered(content="<think>only a thought</think>"),
        answered(content=" "),
    ],
    "malformed": [
        {"messages": ["hi"]},
        {"messages": [{"role": "critic", "content": "x"}]},
        answered(content=7),
        answered(content=[{"type": "image"}]),
        answered(content="", tool_calls=[{"function": {"name": "f", "arguments": "{half"}}]),
        answered(content="k") | {"tools": "{half"},
        answered(content="k") | {"tools": ["f"]},
    ],
    "thought_without_end": [answered(content="<think>and so on")],
    "thoughts_nested": [answered(content="<think>a</think>b</think>c"), answered(content="x<think>a</think>b")],
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_a_row_that_cannot_be_trained_on_is_dropped_for_its_reason(reason):
    for row in UNUSABLE[reason]:
        with pytest.raises(Unusable) as told:
            to_conversation(row)
        assert told.value.reason == reason, row
