"""A conversation as the ids that a model goes on from.

What it wrote itself stays the ids that it sampled, of earlier turns without the thoughts, which the chat template drops. What it was told
is text whatever it says: no special token can be spelled by a user, a system prompt or a tool.
"""

import uuid

from nemo_cascade.data.chat import encode, render
from nemo_cascade.data.tokenizer import REQUIRED, SPECIAL, STOP_IDS
from nemo_cascade.rollout.protocol import ToolProtocol, shortened

END_OF_THOUGHT, END_OF_TURN = REQUIRED["</think>"], REQUIRED["<|im_end|>"]


def prompt_ids(tokenizer, messages: list[dict], tools: list[dict] | None, thinking: bool) -> list[int]:
    """Ids up to and including the generation prefix. Of messages without special tokens and `tokens`: what `data.chat.render_prompt` gives.

    Raises ValueError for messages that the template cannot say.
    """
    users = [place for place, message in enumerate(messages) if message["role"] == "user"]
    now = users[-1] + 1 if users else len(messages)
    replies = [message for message in messages[now:] if message["role"] == "assistant"]
    if not replies or not all("tokens" in message for message in replies):
        return _rendered(tokenizer, messages, tools, thinking)
    # Since the user last spoke everything stays as it was, thoughts too.
    ids, protocol = _rendered(tokenizer, messages[:now], tools, thinking), ToolProtocol(tokenizer)
    answers: list[str] = []
    for message in [*messages[now:], None]:
        if message is not None and message["role"] == "tool":
            answers.append(shortened(message["content"]))
            continue
        if answers:
            ids += protocol.told(answers, thinking)
            answers = []
        if message is not None:
            ids += _closed(message["tokens"])
    return ids


def _closed(tokens: list[int]) -> list[int]:
    """A turn with its stop token; one that was broken off has none."""
    return [*tokens] if tokens and tokens[-1] in STOP_IDS else [*tokens, END_OF_TURN]


def _rendered(tokenizer, messages: list[dict], tools: list[dict] | None, thinking: bool) -> list[int]:
    """The template's text, with ids put in for what it must not encode."""
    mark, kept, shown = uuid.uuid4().hex, [], []
    for message in messages:
        ids = _own(tokenizer, message)
        if ids is None:
            shown.append(message)
            continue
        shown.append({**message, "content": f"{mark}-{len(kept)}-"})
        # They stand among the ids.
        if "tokens" in message:
            shown[-1].pop("tool_calls", None)
        kept.append((shown[-1]["content"], ids, "tokens" in message))
    text = render(tokenizer, shown, tools, add_generation_prompt=True, enable_thinking=thinking)
    result: list[int] = []
    for name, ids, sampled in kept:
        before, found, text = text.partition(name)
        if not found:
            raise ValueError("the chat template leaves out or changes a message; begin the conversation anew")
        # White space at the beginning of an answer is the model's, too.
        result += encode(tokenizer, before.rstrip() if sampled else before) + ids
    return result + encode(tokenizer, text)


def _own(tokenizer, message: dict) -> list[int] | None:
    """The ids of a message's content that its text would not be encoded to; None where it is as good."""
    if "tokens" in message:
        tokens = message["tokens"][:-1] if message["tokens"][-1:] and message["tokens"][-1] in STOP_IDS else message["tokens"]
        thought = tokens.index(END_OF_THOUGHT) + 1 if END_OF_THOUGHT in tokens else None
        if thought is None:
            # Broken off within its thought, it said nothing.
            return [] if message.get("reasoning_content") is not None else [*tokens]
        return tokens[thought:]
    content = message.get("content") or ""
    if message["role"] == "assistant" or not any(token in content for token in SPECIAL):
        return None
    return ToolProtocol(tokenizer).plain(content)
