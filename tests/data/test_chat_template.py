"""The shipped chat template against the rules of Nemotron's protocol: typed out literally, and by a second renderer in Python."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_cascade.data import chat
from nemo_cascade.data.tokenizer import STOP_IDS, load_tokenizer

TOKENIZER = load_tokenizer("tiny")

USAGE = (
    "A call is written like this, one block for each call:\n\n<tool_call>\n<function=function_name>\n<parameter=first_parameter>\n"
    "value\n</parameter>\n<parameter=second_parameter>\na value\nof several lines\n</parameter>\n</function>\n</tool_call>\n\n"
    "<IMPORTANT>\n- Keep exactly to this form: <function=...> inside <tool_call></tool_call>.\n- Give every required parameter.\n"
    "- Say what you have to say before the call; write nothing after it.\n"
    "- Without a fitting function, answer directly and do not mention functions.\n</IMPORTANT>"
)
TOOLS_HEAD = "# Tools\n\nThese functions can be called to answer the request:\n\n<tools>\n"

WEATHER = {
    "name": "weather",
    "description": "  Weather of a city.\n",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": " A city "},
            "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
            "days": {"type": "integer", "minimum": 1, "items": {"a": [1, 2]}},
        },
        "required": ["city"],
    },
}
TOOLS = {
    "none": None,
    "openai": [{"type": "function", "function": WEATHER}],
    "responses": [{"type": "function", **WEATHER}],
    "two": [WEATHER, {"name": "stop", "parameters": {"type": "object", "properties": {}}}],
    "bare": [{"name": "bare"}],
}


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def assistant(text=None, thought=None, calls=()):
    message = {"role": "assistant", "content": text}
    if thought is not None:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
    return message


def tool(text):
    return {"role": "tool", "content": text}


ROME = ("weather", {"city": "Rome"})
MIXED = ("weather", {"city": "two\nlines", "days": 3, "near": {"a": [1, "x"]}, "flag": True, "nothing": None})

# ------------------------------------------------------------------------------------------------ literals, typed by hand

LITERALS = {
    "a system block is always there": ([user("hi")], {}, "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"),
    "a system text is trimmed": (
        [system("  Be kind.\n"), user("hi")],
        {},
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n",
    ),
    "generation prefix with thinking": (
        [user("hi")],
        {"add_generation_prompt": True},
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n",
    ),
    "generation prefix without thinking": (
        [user("hi")],
        {"add_generation_prompt": True, "enable_thinking": False},
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think></think>",
    ),
    "an answer without tags gets the empty pair": (
        [user("hi"), assistant(" yes ")],
        {},
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think></think>yes<|im_end|>\n",
    ),
    "a thought field becomes a think block": (
        [user("hi"), assistant("yes", " hm ")],
        {},
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\nyes<|im_end|>\n",
    ),
    "a thought written in the content stays": (
        [user("hi"), assistant("<think>\nhm\n</think>\nyes")],
        {},
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\nyes<|im_end|>\n",
    ),
    "a past thought goes, the newline behind it stays": (
        [user("a"), assistant("yes", "hm"), user("b")],
        {},
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think></think>\nyes<|im_end|>\n"
        "<|im_start|>user\nb<|im_end|>\n",
    ),
    "a past answer without a thought has no newline": (
        [user("a"), assistant("yes"), user("b")],
        {},
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think></think>yes<|im_end|>\n"
        "<|im_start|>user\nb<|im_end|>\n",
    ),
    "a past thought stays when history is not cut": (
        [user("a"), assistant("yes", "hm"), user("b")],
        {"truncate_history_thinking": False},
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\nyes<|im_end|>\n"
        "<|im_start|>user\nb<|im_end|>\n",
    ),
    "a budget ends the last user message": (
        [user("a"), assistant("yes"), user("b")],
        {"reasoning_budget": 64},
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think></think>yes<|im_end|>\n"
        "<|im_start|>user\nb\n\n{thinking token budget: 64}<|im_end|>\n",
    ),
    "a tool call of the current turn keeps its thought": (
        [user("a"), assistant("", "hm", [ROME])],
        {},
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n"
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>\n<|im_end|>\n",
    ),
    "a past tool call without text": (
        [user("a"), assistant("", "hm", [ROME]), user("b")],
        {},
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think></think>\n"
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>\n<|im_end|>\n"
        "<|im_start|>user\nb<|im_end|>\n",
    ),
    "a past tool call with text is trimmed": (
        [user("a"), assistant(" So: ", "hm", [ROME]), user("b")],
        {},
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think></think>So:\n"
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>\n<|im_end|>\n"
        "<|im_start|>user\nb<|im_end|>\n",
    ),
    "consecutive tool results share a user block and do not end the turn": (
        [user("a"), assistant("", "hm", [ROME]), tool("sun"), tool("rain"), assistant("both", "so")],
        {},
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n"
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>\n<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nsun\n</tool_response>\n<tool_response>\nrain\n</tool_response>\n<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nso\n</think>\nboth<|im_end|>\n",
    ),
    "objects and lists are JSON, strings are raw": (
        [user("a"), assistant("x", None, [MIXED])],
        {},
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think></think>x\n"
        "<tool_call>\n<function=weather>\n<parameter=city>\ntwo\nlines\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        '<parameter=near>\n{"a": [1, "x"]}\n</parameter>\n<parameter=flag>\ntrue\n</parameter>\n<parameter=nothing>\nnull\n'
        "</parameter>\n</function>\n</tool_call>\n<|im_end|>\n",
    ),
    "tools stand in the system block, as XML": (
        [system("Be kind."), user("hi")],
        {"tools": TOOLS["openai"]},
        f"<|im_start|>system\nBe kind.\n\n{TOOLS_HEAD}<function>\n<name>weather</name>\n<description>Weather of a city.</description>\n"
        "<parameters>\n<parameter>\n<name>city</name>\n<type>string</type>\n<description>A city</description>\n</parameter>\n"
        '<parameter>\n<name>unit</name>\n<type>string</type>\n<enum>["C", "F"]</enum>\n<default>C</default>\n</parameter>\n'
        '<parameter>\n<name>days</name>\n<type>integer</type>\n<minimum>1</minimum>\n<items>{"a": [1, 2]}</items>\n</parameter>\n'
        f'<required>["city"]</required>\n</parameters>\n</function>\n</tools>\n\n{USAGE}<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n',
    ),
}


@pytest.mark.parametrize("name", LITERALS)
def test_rendered_as_typed_by_hand(name):
    messages, options, expected = LITERALS[name]
    tools = options.get("tools")
    assert chat.render(TOKENIZER, messages, tools, **{k: v for k, v in options.items() if k != "tools"}) == expected


# ------------------------------------------------------------------------------------------------ a second renderer


def expected_text(messages, tools, enable_thinking=True, truncate_history_thinking=True, reasoning_budget=None, prompt=False):
    """The protocol's rules in plain Python."""
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    head = (messages[0]["content"] or "").strip() if messages[0]["role"] == "system" else ""
    if tools:
        block = TOOLS_HEAD + "".join(expected_tool(t.get("function", t)) for t in tools) + f"</tools>\n\n{USAGE}"
        head = f"{head}\n\n{block}" if head else block
    out = [f"<|im_start|>system\n{head}<|im_end|>\n"]
    for i, message in enumerate(messages):
        role, text = message["role"], message["content"] or ""
        if role == "system":
            continue
        if role == "tool":
            if messages[i - 1]["role"] != "tool":
                out.append("<|im_start|>user\n")
            out.append(f"<tool_response>\n{text}\n</tool_response>\n")
            if i + 1 == len(messages) or messages[i + 1]["role"] != "tool":
                out.append("<|im_end|>\n")
        elif role == "user":
            if reasoning_budget is not None and i == last_user:
                text += f"\n\n{{thinking token budget: {reasoning_budget}}}"
            out.append(f"<|im_start|>user\n{text}<|im_end|>\n")
        else:
            out.append(expected_reply(message, past=truncate_history_thinking and i < last_user))
    if prompt:
        out.append("<|im_start|>assistant\n" + ("<think>\n" if enable_thinking else "<think></think>"))
    return "".join(out)


def expected_reply(message, past):
    text = (message["content"] or "").strip()
    if "reasoning_content" in message:
        text = f"<think>\n{message['reasoning_content'].strip()}\n</think>\n{text}"
    elif not ("<think>" in text or "</think>" in text):
        text = f"<think></think>{text}"
    calls = message.get("tool_calls", [])
    if past:
        rest = text[text.rindex("</think>") + len("</think>") :]
        text = "<think></think>" + (rest.strip() if calls else rest)
    if not calls:
        return f"<|im_start|>assistant\n{text}<|im_end|>\n"
    body = "".join(chat.render_tool_call(call["function"]) + "\n" for call in calls)
    return f"<|im_start|>assistant\n{text.strip()}\n{body}<|im_end|>\n"


def expected_tool(function):
    def field(name, value):
        return f"<{name}>{value if isinstance(value, str) else json.dumps(value)}</{name}>\n"

    parameters = function.get("parameters", {})
    out = ["<function>\n", field("name", function["name"])]
    if "description" in function:
        out.append(field("description", function["description"].strip()))
    out.append("<parameters>\n")
    for name, schema in parameters.get("properties", {}).items():
        out.append("<parameter>\n" + field("name", name))
        out += [field(k, v.strip() if isinstance(v, str) else v) for k, v in ordered(schema)]
        out.append("</parameter>\n")
    if "required" in parameters:
        out.append(field("required", parameters["required"]))
    return "".join(out) + "</parameters>\n</function>\n"


def ordered(schema):
    first = [k for k in ("type", "description", "enum") if k in schema]
    return [(k, schema[k]) for k in [*first, *(k for k in schema if k not in first)]]


TURNS = {
    "plain": [user("a"), assistant("yes")],
    "thought": [user("a"), assistant("yes", "hm\nhm")],
    "empty thought": [user("a"), assistant("yes", "")],
    "thought in content": [user("a"), assistant("<think>hm</think> yes")],
    "only an end tag": [user("a"), assistant("hm</think>yes")],
    "call": [user("a"), assistant(None, "hm", [ROME]), tool("sun"), assistant("sun", "so")],
    "call without thought": [user("a"), assistant("Let me see.", None, [MIXED]), tool("sun"), assistant("sun")],
    "two calls": [user("a"), assistant("", "hm", [ROME, MIXED]), tool("sun"), tool(""), assistant("done")],
    "loop": [user("a"), assistant("", "1", [ROME]), tool("x"), assistant("more", "2", [ROME]), tool("y"), assistant("end", "3")],
    "unanswered": [user(" spaces stay ")],
}
OPTIONS = [{}, {"truncate_history_thinking": False}, {"reasoning_budget": 8}]
CONVERSATIONS = [
    (f"{head}/{first}/{second}/{tools}", [*opening, *TURNS[first], *TURNS.get(second, [])], TOOLS[tools])
    for (head, opening), (first, second, tools) in itertools.product(
        {"no system": [], "empty system": [system("")], "system": [system(" Be kind. ")]}.items(),
        [
            *((name, "", "none") for name in TURNS),
            *((name, "plain", "none") for name in TURNS),
            *((name, "unanswered", "openai") for name in TURNS),
            *(("call", "loop", tools) for tools in ("responses", "two", "bare")),
        ],
    )
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rendered_as_the_rules_say(options):
    assert len(CONVERSATIONS) >= 60
    for name, messages, tools in CONVERSATIONS:
        assert chat.render(TOKENIZER, messages, tools, **options) == expected_text(messages, tools, **options), name


@pytest.mark.parametrize("enable_thinking", [True, False])
def test_prompts_are_rendered_as_the_rules_say(enable_thinking):
    for name, messages, tools in CONVERSATIONS:
        if messages[-1]["role"] != "assistant":
            text = expected_text(messages, tools, enable_thinking=enable_thinking, prompt=True)
            ids = chat.render_prompt(TOKENIZER, messages, tools, enable_thinking=enable_thinking)
            assert TOKENIZER.decode(ids) == text, name


def test_arguments_as_a_json_string_render_like_the_mapping():
    call = {"function": {"name": "weather", "arguments": json.dumps(MIXED[1])}}
    messages = [user("a"), {"role": "assistant", "content": "x", "tool_calls": [call]}]
    assert chat.render(TOKENIZER, messages, None) == chat.render(TOKENIZER, [user("a"), assistant("x", None, [MIXED])], None)


# ------------------------------------------------------------------------------------------------ stop tokens, round trips


def test_stop_ids_are_eos_and_end_of_message():
    assert STOP_IDS == (2, 11)
    assert TOKENIZER.convert_tokens_to_ids(["</s>", "<|im_end|>"]) == [2, 11]


@given(st.text())
@settings(max_examples=300)
def test_any_text_survives_encoding(text):
    ids = chat.encode(TOKENIZER, text)
    assert TOKENIZER.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) == text


names = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=12)
# Hypothesis draws words of the source as well, closing tags among them, and those are refused.
strings = st.text().filter(lambda s: "</parameter>" not in s and "</function>" not in s and "</tool_call>" not in s)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner | strings, max_size=3) | st.dictionaries(strings, inner | strings, max_size=3),
    max_leaves=6,
)


@given(names, st.dictionaries(names, strings | json_values, max_size=4))
@settings(max_examples=400)
def test_a_call_is_read_back_as_it_was_written(name, arguments):
    schema = {key: {"type": "string"} for key, value in arguments.items() if isinstance(value, str)}
    tools = [{"name": name, "parameters": {"properties": schema}}]
    call = {"name": name, "arguments": arguments}
    assert chat.parse_tool_call(chat.render_tool_call(call), tools) == call


def test_a_string_that_holds_the_closing_tag_is_refused_not_corrupted():
    with pytest.raises(ValueError, match="argument x of f"):
        chat.render_tool_call({"name": "f", "arguments": {"x": "a\n</parameter>\nb"}})
    with pytest.raises(ValueError, match="argument x of f"):
        chat.render_tool_call({"name": "f", "arguments": {"x": {"deep": ["</tool_call>"]}}})


def test_replies_are_parsed_and_broken_calls_counted():
    good = chat.render_tool_call({"name": "weather", "arguments": {"city": "Rome"}})
    message = chat.parse_reply(f"hm\n</think>\nLook:\n{good}\n<tool_call>\n<function=weather", TOOLS["openai"])
    assert message == {
        "role": "assistant",
        "reasoning_content": "hm",
        "content": "Look:",
        "tool_calls": [{"name": "weather", "arguments": {"city": "Rome"}}],
        "malformed_tool_calls": 1,
    }
