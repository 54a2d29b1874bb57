"""The endpoint and the page's conversations over real sockets; the model's turns are scripted."""

import json
import threading
import time

import httpx
import pytest

from nemo_cascade.chat.conversation import BROKEN_OFF, Conversation
from nemo_cascade.chat.endpoint import Served
from nemo_cascade.chat.server import application
from nemo_cascade.chat.turns import Called, ChatError, Ended, Said, Settings, Thought, Told
from tests.chat.scripted import ANSWER, FOREVER, Scripted, calling, serving

USER = [{"role": "user", "content": "2 + 2?"}]
TOOL = {"type": "function", "function": {"name": "run", "parameters": {"type": "object", "properties": {}}}}


def chunks(answer: httpx.Response) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_a_completion_is_whole_or_streamed_with_thought_calls_and_usage():
    model = Scripted(calling("4"), ANSWER)
    with serving(application(model)) as url:
        assert [entry["id"] for entry in httpx.get(f"{url}/v1/models").json()["data"]] == ["scripted"]
        body = {"model": "scripted", "messages": USER, "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}}
        body |= {"max_tokens": 9, "thinking_token_budget": 3, "temperature": 0, "seed": 5}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body).json()
        (choice,) = answer["choices"]
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["reasoning_content"] == "I compute."
        (call,) = choice["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"code": "4"}
        assert answer["usage"] == {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
        assert model.asked[0] == (USER, [TOOL], Settings(False, 3, 0, 0.95, 9, 5))
        body = {"messages": USER, "stream": True, "stream_options": {"include_usage": True}}
        streamed = httpx.post(f"{url}/v1/chat/completions", json=body)
        assert streamed.headers["content-type"].startswith("text/event-stream") and streamed.text.endswith("data: [DONE]\n\n")
        *told, usage = chunks(streamed)
        deltas = [chunk["choices"][0]["delta"] for chunk in told]
        assert "".join(delta.get("content") or "" for delta in deltas) == "It is 4."
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Let me see."
        assert told[-1]["choices"][0]["finish_reason"] == "stop" and usage["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    "body, status, said",
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": ""}]}, 400, "messages\\[0\\]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "content"),
        ({"messages": USER, "model": "other"}, 404, "other"),
        ({"messages": USER, "n": 2, "stop": ["x"]}, 400, "n, stop"),
        ({"messages": USER, "temperature": "hot"}, 400, "temperature"),
        ({"messages": USER, "max_tokens": 2.5}, 400, "max_tokens"),
        ({"messages": USER, "chat_template_kwargs": {"thinking": True}}, 400, "enable_thinking"),
        ({"messages": USER, "tools": [{"name": 5}]}, 400, "tools"),
        ({"messages": USER}, 400, "too long"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(refusing, body, status, said):
    answer = httpx.post(f"{refusing}/v1/chat/completions", json=body)
    assert answer.status_code == status
    pytest.raises(ChatError, _raise, answer.json()["error"]["message"]).match(said)


def _raise(text: str):
    raise ChatError(text)


@pytest.fixture(scope="module")
def refusing():
    with serving(application(Scripted([ChatError("the conversation is too long")]))) as url:
        yield url


def test_a_form_of_another_site_is_refused_and_the_page_may_load_nothing(refusing):
    for path in ("/chat", "/stop", "/v1/chat/completions"):
        assert httpx.post(refusing + path, content=json.dumps({"messages": USER})).status_code == 415
    assert httpx.post(f"{refusing}/v1/chat/completions", content="{", headers={"Content-Type": "application/json"}).status_code == 400
    page = httpx.get(refusing)
    assert "default-src 'none'" in page.headers["content-security-policy"] and "http" not in page.text.lower().replace("http-equiv", "")


def test_an_endpoint_says_the_same_through_our_client_and_an_error_in_the_stream_is_raised():
    model = Scripted(ANSWER, calling("4"), [Said("half"), RuntimeError("out of memory")])
    with serving(application(model)) as url:
        served = Served(f"{url}/v1")
        assert served.name == "scripted"
        turn = served.turn(USER, [TOOL], Settings(thinking=False, seed=4))
        assert list(turn) == ANSWER
        assert turn.message == {"role": "assistant", "content": "It is 4.", "reasoning_content": "Let me see."}
        assert model.asked[0][2] == Settings(thinking=False, seed=4)
        called = served.turn([*USER, turn.message, *USER], [TOOL], Settings(budget=3))
        assert [type(event) for event in called] == [Thought, Called, Ended] and called.calls[0].arguments == {"code": "4"}
        assert model.asked[1][2].budget == 3
        broken = served.turn(USER, None, Settings())
        with pytest.raises(ChatError, match="out of memory"):
            list(broken)
        assert broken.message["content"] == "half"
        with pytest.raises(ChatError, match="no 'other' here"):
            list(Served(f"{url}/v1", "other").turn(USER, None, Settings()))
    with pytest.raises(ChatError, match="is it running"):
        Served(f"{url}/v1")


def test_v1_is_passed_on_to_the_server_that_has_the_model():
    with serving(application(Scripted(ANSWER))) as upstream:
        served = Served(f"{upstream}/v1")
        with serving(application(served, upstream=upstream)) as url:
            assert list(Served(f"{url}/v1").turn(USER, None, Settings())) == ANSWER
            assert httpx.post(f"{url}/v1/chat/completions", json={"messages": []}).status_code == 400
            assert httpx.get(f"{url}/v1/nothing").status_code == 404
    with serving(application(served, upstream=upstream)) as url:
        assert httpx.get(f"{url}/v1/models").status_code == 502


def test_names_stay_from_call_to_call_of_a_conversation_and_no_longer():
    model = Scripted(calling("x = 41"), calling("print(x + 1)"), ANSWER)
    talk = Conversation(model, application_tools()["python"])
    told = [event.text for event in talk.answer("compute", Settings()) if isinstance(event, Told)]
    assert told == ["", "42"]
    roles = [message["role"] for message in talk.messages]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert model.asked[0][1][0]["function"]["name"] == "stateful_python_code_exec"
    talk.close()
    model.asked.clear()
    model.turns = (calling("x"), ANSWER)
    assert any("NameError" in event.text for event in talk.answer("again", Settings()) if isinstance(event, Told))
    talk.close()


def application_tools() -> dict:
    from nemo_cascade.chat.tools import TOOLS

    return TOOLS


def test_a_call_is_stopped_in_its_middle_and_the_conversation_goes_on():
    model = Scripted(calling("import time\nprint(1)\ntime.sleep(60)"), calling("print(2)"), ANSWER)
    with serving(application(model, ["python"])) as url:
        lines = []
        with httpx.stream("POST", f"{url}/chat", json={"messages": USER, "tool": "python"}, timeout=60) as answer:
            for line in answer.iter_lines():
                lines += [json.loads(line.removeprefix("data: "))] if line else []
                if lines and lines[-1]["type"] == "call" and line:
                    threading.Thread(target=stop_soon, args=(url, lines[0]["conversation"])).start()
        assert [line["type"] for line in lines] == ["begin", "thought", "call", "messages"]
        said = lines[-1]["messages"]
        assert said[1] == {"role": "tool", "tool_call_id": "call_1", "content": BROKEN_OFF}
        body = {"messages": [*USER, *said, *USER], "tool": "python", "conversation": lines[0]["conversation"]}
        told = chunks(httpx.post(f"{url}/chat", json=body, timeout=60))
        assert [event["text"] for event in told if event["type"] == "result"] == ["2"]


def stop_soon(url: str, conversation: str) -> None:
    time.sleep(1)
    assert httpx.post(f"{url}/stop", json={"conversation": conversation}).json() == {"stopped": True}


def test_who_hangs_up_ends_the_answer():
    model = Scripted([FOREVER], ANSWER)
    with serving(application(model)) as url:
        for path, body in (("/chat", {"messages": USER}), ("/v1/chat/completions", {"messages": USER, "stream": True})):
            model.asked.clear()
            model.closed = 0
            with httpx.stream("POST", url + path, json=body) as answer:
                next(answer.iter_lines())
            until = time.monotonic() + 20
            while not model.closed:
                assert time.monotonic() < until
                time.sleep(0.02)
