"""Conversations as tokens, and replies as messages: the chat template applied, and undone.

What the model will write is always encoded apart from what it is given, because a byte-pair merge across that border would
train on tokens that sampling can never produce.
"""

import json
import re

from nemo_cascade.data.sample import Sample

_CALL_END, _PARAMETER_END = "</function>\n</tool_call>", "\n</parameter>\n"
_CALL = re.compile(rf"<tool_call>\n<function=([^>\n]+)>\n(.*?){_CALL_END}", re.DOTALL)
_PARAMETER = re.compile(rf"<parameter=([^>\n]+)>\n(.*?){_PARAMETER_END}", re.DOTALL)


def render(tokenizer, messages: list[dict], tools: list[dict] | None, **options) -> str:
    """The template's text. Tool calls whose arguments are a JSON string (OpenAI's form) are read first: the template needs a mapping."""
    return tokenizer.apply_chat_template([_readable(m) for m in messages], tools=tools, tokenize=False, **options)


def render_prompt(
    tokenizer, messages: list[dict], tools: list[dict] | None = None, enable_thinking: bool = True, **options
) -> list[int]:
    """Ids of a conversation up to and including the generation prefix. BOS is never put in front."""
    text = render(tokenizer, messages, tools, add_generation_prompt=True, enable_thinking=enable_thinking, **options)
    return encode(tokenizer, text)


def encode(tokenizer, text: str) -> list[int]:
    """Ids of a text as it stands."""
    # What transformers wraps round it takes as long again.
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def conversation_to_samples(tokenizer, row: dict) -> list[Sample]:
    """Training samples of an SFT row: one for each user turn, so that dropped thoughts are dropped as in inference.

    Trained on: what the model writes in the assistant messages after the sample's last user message, the closing token
    included, the generation prefix not. Raises ValueError when the template renders a turn so that no prefix of it is a prompt.
    """
    messages, tools = row["messages"], row.get("tools")
    users = [place for place, message in enumerate(messages) if message["role"] == "user"] or [-1]
    samples = []
    for user, end in zip(users, [*users[1:], len(messages)]):
        replies = [place for place in range(user + 1, end) if messages[place]["role"] == "assistant"]
        if replies:
            samples.append(_sample(tokenizer, messages[: replies[-1] + 1], tools, replies))
    return samples


def _sample(tokenizer, messages: list[dict], tools, replies: list[int]) -> Sample:
    whole = render(tokenizer, messages, tools)
    pieces, position = [], 0
    for place in replies:
        start = len(_prefix(tokenizer, messages, tools, place, whole))
        upto = whole if place == len(messages) - 1 else render(tokenizer, messages[: place + 1], tools)
        end = len(upto.rstrip("\n"))
        if whole[:end] != upto[:end]:
            raise ValueError(f"the chat template changes message {place} when later ones follow; it cannot be trained on")
        pieces += [(whole[position:start], 0), (whole[start:end], 1)]
        position = end
    tokens, mask = [], []
    for text, trained in pieces:
        ids = encode(tokenizer, text)
        tokens += ids
        mask += [trained] * len(ids)
    return Sample(tokens, mask)


def _prefix(tokenizer, messages: list[dict], tools, place: int, whole: str) -> str:
    """The prompt after which the model writes message `place`: with a thought to come, or without."""
    for enable_thinking in (True, False):
        prefix = render(tokenizer, messages[:place], tools, add_generation_prompt=True, enable_thinking=enable_thinking)
        if whole.startswith(prefix):
            return prefix
    raise ValueError(f"the chat template renders message {place} so that neither generation prefix begins it")


# ---------------------------------------------------------------------------------------------------- replies


def parse_reply(text: str, tools: list[dict] | None = None) -> dict:
    """A sampled reply (what follows the generation prefix, without its stop token) as an assistant message.

    {"role", "content"} and where present "reasoning_content", "tool_calls" [{"name", "arguments"}], "malformed_tool_calls" (number of
    <tool_call> blocks that could not be read). Never raises: a model may write anything.
    """
    thought, closed, rest = text.rpartition("</think>")
    message: dict = {"role": "assistant"}
    if closed:
        message["reasoning_content"] = thought.strip()
    calls = [parse_tool_call(match[0], tools) for match in _CALL.finditer(_up_to_last(_CALL_END, rest))]
    malformed = rest.count("<tool_call>") - len(calls) + sum(call is None for call in calls)
    message["content"] = re.sub(r"<tool_call>.*?(</tool_call>|$)", "", rest, flags=re.DOTALL).strip()
    if any(calls):
        message["tool_calls"] = [call for call in calls if call is not None]
    if malformed:
        message["malformed_tool_calls"] = malformed
    return message


def render_tool_call(call: dict) -> str:
    """{"name", "arguments"} in the model's protocol: strings raw, everything else as JSON.

    Raises ValueError for a string that contains the closing tag on a line of its own, which no reader could tell apart.
    """
    lines = [f"<tool_call>\n<function={call['name']}>\n"]
    for name, value in call["arguments"].items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if "\n</parameter>\n" in f"{text}\n" or "</function>" in text or "</tool_call>" in text:
            raise ValueError(f"argument {name} of {call['name']} contains the protocol's own closing tag")
        lines.append(f"<parameter={name}>\n{text}\n</parameter>\n")
    return "".join([*lines, "</function>\n</tool_call>"])


def parse_tool_call(text: str, tools: list[dict] | None = None) -> dict | None:
    """The first call of a text as {"name", "arguments"}, None when there is none that can be read.

    A parameter that the tool's JSON schema calls a string stays as it stands. Without a schema a value that is JSON (other than a
    JSON string) is read as JSON, so the text 5 becomes the number 5; with one, text where a number should be stays text.
    """
    match = _CALL.search(_up_to_last(_CALL_END, text))
    if match is None:
        return None
    name, body = match[1], match[2]
    given = _up_to_last(_PARAMETER_END, body)
    if body[len(given) :].strip() or _PARAMETER.sub("", given).strip():
        return None
    strings = _string_parameters(name, tools)
    arguments = {
        key: value if key in strings else _json_or_text(value) for key, value in _PARAMETER.findall(given)
    }
    return {"name": name, "arguments": arguments}


def _up_to_last(end: str, text: str) -> str:
    """The text through the last `end`, empty without one. Beyond it every opening tag would be searched to the end in vain."""
    head, found, _ = text.rpartition(end)
    return head + found


def _string_parameters(name: str, tools: list[dict] | None) -> set[str]:
    functions = [tool.get("function", tool) for tool in tools or []]
    parameters = next((f.get("parameters") or {} for f in functions if f.get("name") == name), {})
    properties = (parameters.get("properties") or {}).items()
    return {key for key, schema in properties if isinstance(schema, dict) and schema.get("type") == "string"}


def _json_or_text(text: str):
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # an integer of thousands of digits is no JSONDecodeError
        return text
    return text if isinstance(value, str) else value


def _readable(message: dict) -> dict:
    calls = message.get("tool_calls")
    if not calls:
        return message
    read = []
    for call in calls:
        function = dict(call.get("function", call))
        if isinstance(function.get("arguments"), str):
            function["arguments"] = json.loads(function["arguments"])
        read.append({"function": function})
    return {**message, "tool_calls": read}
