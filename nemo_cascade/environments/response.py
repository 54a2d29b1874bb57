"""A reply as an OpenAI Responses object, and the answer inside one: what every verifier reads."""

END_OF_THOUGHT = "</think>"


def response_of(text: str, thinking: bool = True) -> dict:
    """A sampled reply as the `response` of a `/verify` call: its thought as a reasoning item, the rest as the message.

    With thinking=True the prompt ended inside a thought, so a reply that never closes it has no message at all.
    """
    thought, answer = split_reply(text, thinking)
    output = [{"type": "reasoning", "summary": [{"type": "summary_text", "text": thought}]}] if thinking else []
    if answer is not None:
        content = [{"type": "output_text", "text": answer, "annotations": []}]
        output.append({"type": "message", "role": "assistant", "status": "completed", "content": content})
    return {"object": "response", "output": output}


def split_reply(text: str, thinking: bool = True) -> tuple[str, str | None]:
    """(thought, answer) of a sampled reply; the answer is None when a thought was begun and never closed."""
    if not thinking:
        return "", text
    thought, closed, answer = text.rpartition(END_OF_THOUGHT)
    return (thought, answer) if closed else (text, None)


def answer_of(response: dict) -> str:
    """The message text of a response, without a thought that was left in it; empty when there is no message."""
    return text_of(response).strip()


def text_of(response: dict) -> str:
    """The same with the space around it, for what a space can change."""
    texts = [
        part.get("text", "")
        for item in response.get("output", [])
        if item.get("type") == "message"
        for part in item.get("content", [])
        if part.get("type") == "output_text"
    ]
    return "".join(texts).rpartition(END_OF_THOUGHT)[2]


def last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...} of a text, braces inside balanced; None without one."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for end in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : end].strip()
    return None
