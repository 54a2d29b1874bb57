"""Gym's simple agent works at our office over HTTP: a cookie is a session, what tools say comes back as text, and the end counts."""

import json
import random

import httpx
import pytest

from nemo_cascade.data.demo import workplace_assistant as demo
from nemo_cascade.environments.sessions import Sessions
from nemo_cascade.environments.workplace_assistant import DEFINITIONS, MAX_CALLS
from nemo_cascade.environments.workplace_assistant.data import GENERATED, VARIABLE
from tests.environments.test_gym import serving

NAME = "workplace_assistant"
MAIL = {"recipient": "ines.bergqvist@fernhill.example", "subject": "Lunch", "body": "At noon?"}


# One, because to make one takes long; what cookies it keeps is forgotten.
_client = httpx.Client(timeout=60)


def row_of(*calls):
    expected = [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in calls]
    params = {"input": [{"role": "user", "content": "Do it."}], "tools": DEFINITIONS}
    fields = {"id": 1, "category": "mail", "environment_name": NAME, "workplace_data": GENERATED}
    return {"responses_create_params": params, "ground_truth": expected, **fields}


class Agent:
    """What Gym's simple agent does between a model and a resources server, in its order and with its cookies.

    Of cookies it keeps those of the last answer and no others. model(outputs so far) -> the next output items.
    """

    def __init__(self, url):
        self.url, self.cookies, self.output = url, {}, []

    def post(self, path, **body):
        _client.cookies.clear()
        _client.cookies.update(self.cookies)
        answer = _client.post(f"{self.url}{path}", **body)
        self.cookies = dict(answer.cookies)
        return answer

    def run(self, row, model):
        self.post("/seed_session", json=row).raise_for_status()
        while True:
            items = model(self.output)
            self.output = [*self.output, *items]
            calls = [item for item in items if item["type"] == "function_call"]
            if not calls:
                break
            for call in calls:
                answer = self.post(f"/{call['name']}", json=json.loads(call["arguments"]))
                self.output.append({"type": "function_call_output", "call_id": call["call_id"], "output": answer.text})
        return self.post("/verify", json={**row, "response": {"output": self.output}}).json()


def called(number, name, /, **arguments):
    return {"type": "function_call", "call_id": str(number), "name": name, "arguments": json.dumps(arguments)}


def message(text):
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": []}]}


@pytest.fixture(scope="module")
def url():
    with serving([NAME]) as address:
        yield address


def careful(seen):
    """Looks somebody up, writes to a name, is told that this is none, and writes to the address that was found."""
    told = [json.loads(item["output"])["output"] for item in seen if item["type"] == "function_call_output"]
    if not told:
        return [called(1, "company_directory_find_email_address", name="Ines"), called(2, "nothing", a=1)]
    if len(told) == 2:
        assert told == [[MAIL["recipient"]], "Error: there is no tool 'nothing'"]
        return [called(3, "email_send_email", **{**MAIL, "recipient": "Ines", "x": None})]
    if len(told) == 3:
        assert "not an e-mail address" in told[2]
        return [called(4, "email_send_email", **MAIL), called(5, "email_search_emails", query=MAIL["body"])]
    assert MAIL["recipient"] in str(told[4])
    return [message("Sent.")]


@pytest.mark.parametrize("prefix", ["", f"/{NAME}"], ids=["alone at the root", "under its name"])
def test_an_agent_sees_what_tools_say_and_earns_by_what_it_left(url, prefix):
    row = row_of(("email_send_email", MAIL))
    verdict = Agent(url + prefix).run(row, careful)
    assert verdict["reward"] == 1.0 and verdict.items() >= row.items()
    assert Agent(url + prefix).run(row, lambda seen: [message("Sent.")])["reward"] == 0.0


def test_a_session_sees_what_it_did_and_no_other_does(url):
    one, two = Agent(url), Agent(url)
    for agent in (one, two):
        agent.post("/seed_session", json=row_of())
    subject = {"query": "Zebra crossing"}
    one.post("/email_send_email", json={**MAIL, "subject": "Zebra crossing"})
    found = [agent.post("/email_search_emails", json=subject).json()["output"] for agent in (one, two)]
    assert "Zebra" in str(found[0]) and "Zebra" not in str(found[1])
    one.post("/seed_session", json=row_of())
    assert "Zebra" not in one.post("/email_search_emails", json=subject).text, "a new session is a fresh office"


def test_whatever_a_model_calls_comes_back_as_text(url):
    agent = Agent(url)
    agent.post("/seed_session", json=row_of())
    bodies = ["", "{", "[1]", "7", "null", '{"a": NaN}', "[" * 100_000, '{"name": ["x"]}', '{"name": "\\ud800"}', "\xff"]
    for path in ("/company_directory_find_email_address", "/a/b", "/%F0%9F%92%A5", "/__init__"):
        for body in bodies:
            answer = agent.post(path, content=body.encode("latin-1"))
            assert answer.status_code == 200 and "output" in answer.json(), (path, body[:20])
    for _ in range(MAX_CALLS):
        answer = agent.post("/nothing", json={})
    assert f"ends after {MAX_CALLS} calls" in answer.text


def test_without_a_session_and_for_a_bad_row_it_is_said_what_to_do(url, monkeypatch):
    stranger = Agent(url)
    stranger.cookies = {"workplace_assistant_session": "0" * 32}
    answer = stranger.post("/email_send_email", json=MAIL)
    assert answer.status_code == 400 and "seed_session" in answer.json()["detail"]
    monkeypatch.delenv(VARIABLE, raising=False)
    homeless = {key: value for key, value in row_of().items() if key != "workplace_data"}
    for body, words in ((b"[", "JSON"), (b"[]", "wanted"), (b"{}", "ground_truth"), (json.dumps(homeless).encode(), VARIABLE)):
        answer = httpx.post(f"{url}/seed_session", content=body)
        assert answer.status_code == 422 and words in answer.json()["detail"], answer.text


def test_sessions_are_bounded_in_number_and_age():
    now = [0.0]
    sessions = Sessions(most=3, idle=10.0, clock=lambda: now[0])
    first, second, third = (sessions.begin(name) for name in "abc")
    assert len({first, second, third}) == 3 and sessions.get(first) == "a"
    fourth = sessions.begin("d")
    assert [sessions.get(token) for token in (first, second, third, fourth)] == ["a", None, "c", "d"] and len(sessions) == 3
    now[0] = 9.0
    assert sessions.get(third) == "c"
    now[0] = 15.0
    assert [sessions.get(token) for token in (first, third, fourth)] == [None, "c", None] and len(sessions) == 1
    sessions.end(third)
    sessions.end(None)
    assert sessions.get(third) is None and sessions.get(None) is None and len(sessions) == 0


def test_the_demos_tasks_can_be_done_over_http(url):
    for seed in range(12):
        row = demo.draw(random.Random(seed), "hard")
        right = [called(n, call["name"], **json.loads(call["arguments"])) for n, call in enumerate(row["ground_truth"])]

        def model(seen, right=right):
            made = sum(item["type"] == "function_call" for item in seen)
            return [right[made]] if made < len(right) else [message("Done.")]

        assert Agent(url).run(row, model)["reward"] == 1.0
