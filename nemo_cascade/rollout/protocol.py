"""Calls of tools, and what tools say, in the tokens of a chat template."""

from nemo_cascade.data.chat import encode, parse_reply, render

# Stands where a tool's words come, in a conversation that is rendered only to see what the template puts around them.
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"
# Characters of an answer that a model sees; of a longer one its beginning and its end.
MAX_ANSWER = 20_000
_ASKED = [
    {"role": "user", "content": "?"},
    {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]},
]


class ToolProtocol:
    """What stands between two turns of a model. Raises ValueError where the template cannot say it.

    Turns are never rendered again: what the model wrote stays the tokens that it sampled, and what it is told is appended.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self._pieces: dict[tuple[int, bool], list[list[int]]] = {}

    def calls(self, tokens: list[int], tools: list[dict] | None) -> list[dict]:
        """[{"name", "arguments"}, ...] that a finished turn makes, its stop token left out. What cannot be read is none."""
        text = self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return parse_reply(text, tools).get("tool_calls", [])

    def told(self, answers: list[str], thinking: bool) -> list[int]:
        """The ids between a turn's stop token and the next turn: the answers, one a call, and the generation prefix.

        An answer is text whatever it says: no special token can be written by a tool.
        """
        first, *others = self._around(len(answers), thinking)
        ids = [*first]
        for answer, after in zip(answers, others):
            ids += self.plain(answer) + after
        return ids

    def _around(self, count: int, thinking: bool) -> list[list[int]]:
        """The ids before, between and after `count` answers."""
        if (count, thinking) not in self._pieces:
            asked = render(self.tokenizer, _ASKED, None).rstrip("\n")
            whole = [*_ASKED, *[{"role": "tool", "content": _MARK}] * count]
            text = render(self.tokenizer, whole, None, add_generation_prompt=True, enable_thinking=thinking)
            texts = text.removeprefix(asked).split(_MARK)
            if not text.startswith(asked) or len(texts) != count + 1:
                raise ValueError("the chat template does not append what tools say to the turn that called them")
            self._pieces[count, thinking] = [encode(self.tokenizer, piece) for piece in texts]
        return self._pieces[count, thinking]

    def plain(self, text: str) -> list[int]:
        """Ids of a text none of which is a special token, whatever it spells."""
        backend, text = self.tokenizer.backend_tokenizer, text.encode(errors="replace").decode()
        before, backend.encode_special_tokens = backend.encode_special_tokens, True
        try:
            return backend.encode(text, add_special_tokens=False).ids
        finally:
            backend.encode_special_tokens = before


def shortened(answer: str) -> str:
    """What a model is shown of a tool's answer."""
    if len(answer) <= MAX_ANSWER:
        return answer
    half = MAX_ANSWER // 2
    return f"{answer[:half]}\n... {len(answer) - 2 * half} characters left out ...\n{answer[-half:]}"
