"""Fresh weights that talk: token by token, within a budget, interrupted, from a checkpoint or a Hugging Face folder, and over HTTP."""

import contextlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest

from nemo_cascade.chat.conversation import Conversation
from nemo_cascade.chat.embedded import Embedded
from nemo_cascade.chat.tools import TOOLS
from nemo_cascade.chat.turns import ChatError, Ended, Said, Settings, Thought, Told
from nemo_cascade.data.chat import encode, render_tool_call
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.environments.python_tool import NAME
from nemo_cascade.rollout.types import Request, Rollout, SamplingParams
from tests.chat.scripted import serving
from tests.helpers import run_distributed

USER = [{"role": "user", "content": "hello"}]
SETTINGS = Settings(max_tokens=24, seed=5, top_p=1.0)


def talked(folder) -> dict:
    """What a checkpoint says in many ways, and what the folder with the same weights says."""
    from nemo_cascade.chat.embedded import opened
    from nemo_cascade.chat.vllm import folder_of
    from nemo_cascade.rollout.engine import generate

    model = opened(folder / "sft" / "step_1", [])
    seen: dict = {"name": model.name}

    def said(settings=SETTINGS, messages=USER) -> tuple[list, list[int]]:
        turn = model.turn(messages, None, settings)
        return list(turn), turn.tokens

    seen["one"], seen["again"] = said(), said()
    seen["other"] = said(Settings(max_tokens=24))[1]
    greedy = Settings(temperature=0, max_tokens=24)
    request = Request("ab", 0, tuple(model.prompt(USER, None, True)))
    (rollout,) = generate(model.engine, [request], SamplingParams(0.0, 1.0, 24))
    seen["greedy"] = said(greedy)[1], rollout.response
    for budget in (0, 4):
        seen[budget] = said(Settings(budget=budget, max_tokens=24, seed=5, top_p=1.0))
    with contextlib.closing(iter(model.turn(USER, None, SETTINGS))) as events:
        next(events), next(events)
    seen["after closing"] = model.engine.busy(), said()[1]
    seen["interrupted"] = interrupted(model)
    seen["after Ctrl-C"] = model.engine.busy(), said()[1]
    talk = Conversation(model)
    for text in ("hello", "and now?"):
        list(talk.answer(text, SETTINGS))
    seen["messages"] = talk.messages
    seen["served"] = over_http(model)
    for name, messages in (("long", USER * 3000), ("foreign", [*USER, {"role": "assistant", "content": "", "tokens": [10**6]}])):
        with contextlib.suppress(ChatError):
            list(model.turn(messages, None, SETTINGS))
            seen[name] = "answered"
    model.close()
    exported = [folder_of(folder / "sft" / "step_1", None) for _ in range(2)]
    model = opened(exported[1], [])
    seen["exported"] = said()[1], exported
    model.close()
    model = opened(folder / "hf", [])
    seen["folder"] = said()[1]
    return seen


def interrupted(model) -> int:
    """Ctrl-C in the middle of a forward pass; how many ids there were."""
    step, turn = model.engine.step, model.turn(USER, None, SETTINGS)

    def pressed():
        if len(turn.tokens) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    model.engine.step = pressed
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        list(turn)
    except KeyboardInterrupt:
        return len(turn.tokens)
    finally:
        model.engine.step = step
        signal.signal(signal.SIGINT, before)
    return -1


def over_http(model) -> list[str]:
    """Four requests at once and a streamed one: their texts."""
    from nemo_cascade.chat.server import application

    body = {"messages": USER, "max_tokens": 24, "seed": 5, "top_p": 1.0, "chat_template_kwargs": {"enable_thinking": False}}
    with serving(application(model)) as url, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).json(), range(4)))
    return [answer["choices"][0]["message"]["content"] for answer in answers]


@pytest.fixture(scope="module")
def seen(weights):
    (found,) = run_distributed(talked, 1, weights)
    return found


def text(events: list, kind: type) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


def test_a_seed_says_the_same_again_and_without_one_it_is_another(seen):
    events, tokens = seen["one"]
    assert len(tokens) == 24 and seen["again"][1] == tokens != seen["other"]
    assert isinstance(events[-1], Ended) and events[-1].tokens == 24 and len(events) > 5
    assert seen["greedy"][0] == seen["greedy"][1], "streamed, it is what the engine says at once"
    assert seen["name"] == "sft-step_1" and seen["folder"] == tokens


def test_a_thought_ends_at_its_budget_and_the_answer_follows_in_the_same_turn(seen):
    events, tokens = seen[4]
    assert tokens[:4] == seen["one"][1][:4] and tokens.index(13) == 4 and len(tokens) == 24
    assert text(events, Thought) and text(events, Said) and events[-1].reason == "length"
    events, tokens = seen[0]
    assert tokens[0] == 13 and not text(events, Thought) and text(events, Said)


def test_a_turn_that_is_broken_off_leaves_nothing_behind(seen):
    assert seen["interrupted"] in (3, 4)
    for when in ("after closing", "after Ctrl-C"):
        assert seen[when] == (False, seen["one"][1])


def test_replies_keep_their_ids_and_requests_at_once_are_answered_in_turn(seen):
    assert [message["role"] for message in seen["messages"]] == ["user", "assistant"] * 2
    assert seen["messages"][1]["tokens"] == seen["one"][1] and len(seen["messages"][3]["tokens"]) == 24
    assert len(set(seen["served"])) == 1 and len(seen["served"]) == 4 and seen["served"][0]


def test_a_checkpoint_is_exported_once_with_its_tokenizer_and_says_the_same(seen, weights):
    tokens, folders = seen["exported"]
    assert tokens == seen["one"][1] and folders == [weights / "sft" / "hf" / "step_1"] * 2


def test_what_it_cannot_read_is_refused(seen):
    assert "long" not in seen and "foreign" not in seen


class Dictated:
    """An engine that replies what is written."""

    def __init__(self, *replies: list[int]):
        self.replies, self.prompts = list(replies), []

    def sync(self, policy) -> None:
        pass

    def add(self, requests, params) -> None:
        self.prompts += [list(request.prompt) for request in requests]

    def step(self) -> list[Rollout]:
        response = self.replies.pop(0)
        return [Rollout("", 0, [], response, [0.0] * len(response), "stop")]

    def abort(self, ids) -> None:
        pass


def test_a_model_calls_python_and_goes_on_from_its_own_ids():
    tokenizer = load_tokenizer("tiny")
    call = render_tool_call({"name": NAME, "arguments": {"code": "print(6 * 7)"}})
    first, second = (encode(tokenizer, text) for text in (f"so\n</think>\n{call}\n<|im_end|>", "fine\n</think>\nIt is 42.<|im_end|>"))
    engine = Dictated(first, second)
    policy = SimpleNamespace(
        tokenizer=tokenizer, config=SimpleNamespace(max_total_sequence_length=8192), preset=SimpleNamespace(vocab_size=832)
    )
    talk = Conversation(Embedded(policy, engine, "dictated"), TOOLS["python"])
    events = list(talk.answer("6 * 7?", Settings()))
    talk.close()
    assert [event.text for event in events if isinstance(event, Told)] == ["42"] and text(events, Said) == "It is 42."
    told = "\n<|im_start|>user\n<tool_response>\n42\n</tool_response>\n<|im_end|>\n<|im_start|>assistant\n<think>\n"
    prompt, after = engine.prompts
    assert after == [*prompt, *first, *encode(tokenizer, told)]
    assert events[-1] == Ended("stop", len(after), len(second))
