"""Agents under the chat template that Nemotron 3 Nano's own tokenizer brings, which TRL's package carries; its code is not used.

On our small tokenizer, whose special tokens are the same ones under the same ids.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest

from nemo_cascade.data.chat import render, render_tool_call
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.rollout.protocol import ToolProtocol
from nemo_cascade.rollout.types import Request, Rollout, SamplingParams
from tests.helpers import run_distributed
from tests.rollout.test_agent import END, NOTE, Scripted, Tools, ids

TRL = find_spec("trl")
TEMPLATE = Path(TRL.submodule_search_locations[0], "chat_templates", "nemotron_3_nano.jinja") if TRL else None
pytestmark = pytest.mark.skipif(TEMPLATE is None, reason="no TRL: pip install --no-deps -r requirements/alone.txt")
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Note it."}]


def tokenizer():
    real = load_tokenizer("tiny")
    real.chat_template = TEMPLATE.read_text()
    return real


def call(text: str) -> dict:
    return {"name": "note", "arguments": {"text": text}}


def turn(thought: str | None, *calls: dict, content: str = "") -> dict:
    """What a model says, as a message."""
    message = {"role": "assistant", "content": content}
    return message | ({"reasoning_content": thought} if thought else {}) | ({"tool_calls": list(calls)} if calls else {})


def sampled(thought: str | None, *calls: dict, content: str = "") -> str:
    """The same as it samples it after the generation prefix, by the template's rules."""
    said = "".join(f"{render_tool_call(one)}\n" for one in calls) or content
    return f"{thought}\n</think>\n{said}" if thought else f"\n{said}" if calls else said


@pytest.mark.parametrize("thought", ["hm", None])
@pytest.mark.parametrize("answers", [["one"], ["one", "two"], ["", "\n a\n"], ["</tool_response>\n<|im_end|>"]])
def test_what_tools_say_stands_where_the_real_template_puts_it(thought, answers):
    real = tokenizer()
    calls = [call(f"{number}") for number in range(len(answers))]
    whole = [*ASKED, turn(thought, *calls), *({"role": "tool", "content": said} for said in answers)]
    how = dict(add_generation_prompt=True, enable_thinking=thought is not None)
    before = render(real, ASKED, [NOTE], **how)
    told = ToolProtocol(real).told(answers, thought is not None)
    assert before + sampled(thought, *calls) + "<|im_end|>" + real.decode(told) == render(real, whole, [NOTE], **how)


def twenty_turns():
    """What the engine was asked after each turn, the rollout, and the sample that is trained on."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.rollout.agent import Talk, converse
    from nemo_cascade.stages.rl import rollout_sample

    parallel.init(MegatronConfig())
    real = tokenizer()
    prompt = ids(render(real, ASKED, [NOTE], add_generation_prompt=True, enable_thinking=True))
    engine = Scripted({("ab", 0): [*(sampled(f"thought {n}", call(f"{n}")) for n in range(19)), sampled("so", content="Done.")]})
    talk = Talk(ToolProtocol(real), lambda request: (Tools(), True), turns=50, tokens=8000)
    (rollout,) = converse(engine, [Request("ab", 0, tuple(prompt))], SamplingParams(max_new_tokens=200), talk)
    return [request.prompt for request in engine.asked], rollout, rollout_sample(rollout, True, advantages=1.0)


def test_twenty_turns_read_as_the_real_template_has_them_and_are_trained_token_by_token_as_they_were_sampled():
    ((asked, rollout, sample),) = run_distributed(twenty_turns, 1)
    assert isinstance(rollout, Rollout) and rollout.info == {"turns": 20, "tool_calls": 19, "tool_errors": 0}
    whole = rollout.prompt + rollout.response
    assert sample.tokens == whole and len(asked) == 20
    real, messages = tokenizer(), [*ASKED]
    for number, prompt in enumerate(asked):
        assert tuple(whole[: len(prompt)]) == prompt, "nothing is tokenized again"
        assert real.decode(prompt) == render(real, messages, [NOTE], add_generation_prompt=True, enable_thinking=True), number
        messages += [turn(f"thought {number}", call(f"{number}")), {"role": "tool", "content": f"noted {number}"}]
    assert real.decode(whole) + "\n" == render(real, [*messages[:-2], turn("so", content="Done.")], [NOTE])
    own = [token for token, on in zip(sample.tokens, sample.loss_mask) if on]
    said = [*(sampled(f"thought {n}", call(f"{n}")) for n in range(19)), sampled("so", content="Done.")]
    assert own == [token for text in said for token in [*ids(text), END]]


def test_calls_in_the_real_templates_words_are_read():
    real = tokenizer()
    text = render(real, [*ASKED, turn("hm", call("a\nb"), call("5"))], [NOTE])
    reply = text[text.rindex("<think>") :].removeprefix("<think>\n").removesuffix("<|im_end|>\n")
    assert ToolProtocol(real).calls(ids(reply), [NOTE]) == [call("a\nb"), call("5")]
