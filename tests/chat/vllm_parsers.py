"""Run by an interpreter that has vLLM: TOKENIZER JSON -> what its parsers of this family make of [[enable_thinking, text], ...]."""

import json
import sys

from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager

from nemo_cascade.chat.vllm import CALLS, THOUGHTS

PROPERTIES = {"code": {"type": "string"}, "times": {"type": "integer"}}
TOOL = {"type": "function", "function": {"name": "run", "parameters": {"type": "object", "properties": PROPERTIES}}}


def main(folder: str, texts: list) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for thinking, text in texts:
        template = {"enable_thinking": thinking}
        messages = [{"role": "user", "content": "?"}]
        request = ChatCompletionRequest(model="m", messages=messages, tools=[TOOL], chat_template_kwargs=template)
        reader = ReasoningParserManager.get_reasoning_parser(THOUGHTS)(tokenizer, chat_template_kwargs=template)
        thought, rest = reader.extract_reasoning(text, request)
        found = ToolParserManager.get_tool_parser(CALLS)(tokenizer, request.tools).extract_tool_calls(rest or "", request)
        calls = [[call.function.name, json.loads(call.function.arguments)] for call in found.tool_calls]
        print("parsed", json.dumps([thought, found.content, calls]))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
