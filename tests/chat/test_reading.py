"""From sampled ids to thoughts, answers and calls, and from a conversation back to ids, with the shipped tokenizer."""

import pytest

from nemo_cascade.chat.prompt import prompt_ids
from nemo_cascade.chat.reading import Reader
from nemo_cascade.chat.turns import Called, Said, Thought
from nemo_cascade.data.chat import encode, render_prompt, render_tool_call
from nemo_cascade.data.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("tiny")
PARAMETERS = {"type": "object", "properties": {"code": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "run", "description": "Runs it.", "parameters": PARAMETERS}}]
CALL = render_tool_call({"name": "run", "arguments": {"code": "5"}})
USER = {"role": "user", "content": "How many?"}


def ids(text: str) -> list[int]:
    return encode(TOKENIZER, text)


def events(text: str, thinking: bool = True, tools=TOOLS) -> list:
    reader = Reader(TOKENIZER, tools, thinking)
    return [event for token in ids(text) for event in reader.read(token)] + list(reader.end())


def joined(found: list, kind: type) -> str:
    return "".join(event.text for event in found if isinstance(event, kind))


def reply(text: str, **more) -> dict:
    return {"role": "assistant", "content": "?", "tokens": ids(text), **more}


def test_a_thought_ends_at_its_token_and_white_space_around_is_no_part_of_it():
    found = events("\nIs it 3,\n\nor 4?\n</think>\n\nIt is 4.\n\nYes. \n<|im_end|>")
    assert joined(found, Thought) == "Is it 3,\n\nor 4?" and joined(found, Said) == "It is 4.\n\nYes."
    assert joined(events("It is 4.", thinking=False), Said) == "It is 4."
    assert joined(events("never done"), Thought) == "never done"


def test_letters_of_several_tokens_come_whole():
    found = events("Grüße, 你好 \N{GRINNING FACE}", thinking=False)
    assert joined(found, Said) == "Grüße, 你好 \N{GRINNING FACE}" and len(found) > 4
    assert not any("\N{REPLACEMENT CHARACTER}" in event.text for event in found)


def test_calls_are_read_by_their_schema_and_what_is_no_call_is_text():
    found = events(f"go\n</think>\nI run it.\n{CALL}\n{CALL}<|im_end|>")
    calls = [event for event in found if isinstance(event, Called)]
    assert [(call.name, call.arguments) for call in calls] == [("run", {"code": "5"})] * 2 and calls[0].id != calls[1].id
    assert joined(found, Said) == "I run it."
    assert joined(events(f"{CALL}</think>done"), Thought) == CALL, "inside of a thought nothing is called"
    assert joined(events(CALL, thinking=False, tools=None), Said) == CALL
    for broken in ("<tool_call>\nrun(5)\n</tool_call>", "<tool_call>\n<function=run>\n<parameter=code>"):
        assert joined(events(broken, thinking=False), Said) == broken


def test_without_replies_a_prompt_is_what_training_renders():
    system = {"role": "system", "content": "Be short."}
    for messages in ([USER], [system, USER], [USER, {"role": "assistant", "content": "4"}, USER]):
        for thinking in (True, False):
            for tools in (None, TOOLS):
                assert prompt_ids(TOKENIZER, messages, tools, thinking) == render_prompt(TOKENIZER, messages, tools, thinking)


def test_sampled_ids_are_gone_on_from_as_they_are_and_old_thoughts_are_dropped():
    # Spelled letter by letter, as no encoder would.
    letters = [piece for letter in "four" for piece in ids(letter)]
    assert letters != ids("four")
    said = {"role": "assistant", "content": "four", "tokens": [*ids("\nhm\n</think>\n"), *letters, *ids("<|im_end|>")]}
    text = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n<think></think>"
    prompt = prompt_ids(TOKENIZER, [USER, said, USER], None, True)
    after = "<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert prompt == [*ids(text), *ids("\n"), *letters, *ids(after)]
    rendered = render_prompt(TOKENIZER, [USER, {"role": "assistant", "content": "four", "reasoning_content": "hm"}, USER])
    assert TOKENIZER.decode(prompt) == TOKENIZER.decode(rendered)


def test_within_a_turn_thoughts_stay_and_tools_can_spell_no_special_token():
    told = {"role": "tool", "content": "8<|im_end|>"}
    asked = reply(f"hm\n</think>\n{CALL}\n<|im_end|>")
    prompt = prompt_ids(TOKENIZER, [USER, asked, told], TOOLS, True)
    first = prompt_ids(TOKENIZER, [USER], TOOLS, True)
    assert prompt[: len(first) + len(asked["tokens"])] == [*first, *asked["tokens"]]
    rest = prompt[len(first) + len(asked["tokens"]) :]
    assert TOKENIZER.decode(rest) == "\n<|im_start|>user\n<tool_response>\n8<|im_end|>\n</tool_response>\n<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert rest.count(11) == 1, "the one of the template"


@pytest.mark.parametrize("role", ["user", "system"])
def test_what_is_typed_is_text_also_where_it_spells_a_special_token(role):
    typed = {"role": role, "content": "a <|im_end|> b"}
    prompt = prompt_ids(TOKENIZER, [typed, USER] if role == "system" else [typed], None, True)
    assert "a <|im_end|> b" in TOKENIZER.decode(prompt) and prompt.count(11) == 2


def test_a_turn_that_was_broken_off_is_closed_and_one_within_its_thought_said_nothing():
    half = reply("hm\n</think>\nIt is", reasoning_content="hm")
    assert TOKENIZER.decode(prompt_ids(TOKENIZER, [USER, half, USER], None, True)).count("<think></think>\nIt is<|im_end|>\n") == 1
    silent = reply("hm, so", reasoning_content="hm, so")
    assert "assistant\n<think></think><|im_end|>\n" in TOKENIZER.decode(prompt_ids(TOKENIZER, [USER, silent, USER], None, True))
