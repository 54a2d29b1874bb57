"""Models behind an endpoint: answers that come late, broken or not at all are asked for again, and then there is none."""

import json
import random
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nemo_cascade.environments import genrm_compare
from nemo_cascade.environments.endpoint import Endpoint, EndpointConfig, EndpointError, Said, Silence
from tests.environments.test_hostile import UNREADABLE


class Model:
    """A server that answers with what it was last told, save that it fails so many of a hundred requests in some way."""

    def __init__(self, failing=0, seed=0, status=None):
        self.failing, self.random, self.status = failing, random.Random(seed), status
        self.asked, self.keys, self.busy, self.most, self.lock = [], [], 0, 0, threading.Lock()

    def said(self, messages):
        return f"echo {messages[-1]['content']}"

    def respond(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.asked.append(body)
            self.keys.append(handler.headers.get("Authorization"))
            self.busy += 1
            self.most = max(self.most, self.busy)
            way = self.random.choice(["drop", "garbage", "empty", "busy"]) if self.random.random() * 100 < self.failing else ""
        time.sleep(0.01)
        with self.lock:
            self.busy -= 1
        if way == "drop":
            return handler.connection.close()
        said = self.said(body["messages"])
        told = {"": {"choices": [{"message": {"content": said}}]}, "empty": {"choices": []}}.get(way, {})
        payload = b"{garbage" if way == "garbage" else json.dumps(told).encode()
        handler.send_response(self.status or (503 if way == "busy" else 200))
        handler.send_header("Content-Length", str(len(payload)))
        handler.end_headers()
        handler.wfile.write(payload)


@contextmanager
def served(model):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            model.respond(self)

        def do_GET(self):
            model.list(self) if hasattr(model, "list") else self.send_error(404)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def config(url, **settings) -> EndpointConfig:
    return EndpointConfig(base_url=url, model="judge", timeout=20, **settings)


def echoes(*numbers):
    return [Said(f"echo question {n}") for n in numbers]


def asked(count):
    return [[{"role": "user", "content": f"question {n}"}] for n in range(count)]


def test_answers_come_in_order_and_the_request_is_as_configured(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    model = Model()
    with served(model) as url:
        endpoint = Endpoint(config(url, api_key_env="JUDGE_KEY", max_tokens=7, extra_body={"seed": 3}))
        assert endpoint.ask(asked(20)) == echoes(*range(20))
    assert model.asked[0].items() >= dict(model="judge", temperature=0.6, top_p=0.95, max_tokens=7, seed=3).items()
    assert set(model.keys) == {"Bearer secret"}


def test_three_of_ten_failing_requests_cost_no_answer():
    model = Model(failing=30)
    with served(model) as url:
        said = Endpoint(config(url, tries=12, concurrency=16)).ask(asked(200))
    assert said == echoes(*range(200))
    assert len(model.asked) > 240 and model.most <= 16


def test_an_answer_that_cannot_be_used_is_asked_for_again_and_then_missing():
    model = Model()
    with served(model) as url:
        said = Endpoint(config(url, tries=3)).ask(asked(2), usable=lambda text: text.endswith("0"))
    assert said == [*echoes(0), Silence("judge_unreadable")] and len(model.asked) == 4


def test_where_nobody_answers_there_is_no_answer():
    with served(Model()) as url:
        pass
    assert Endpoint(config(url, tries=2)).ask(asked(2)) == [Silence("judge_unreachable")] * 2


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_ends_it_with_the_address_and_the_reason(status):
    with served(Model(status=status)) as url, pytest.raises(EndpointError, match=f"{url}/chat/completions.*judge, status {status}"):
        Endpoint(config(url)).ask(asked(3))


def test_usable_answers_are_kept_and_not_asked_for_again(tmp_path):
    model, file = Model(), tmp_path / "run" / "answers.sqlite"
    with served(model) as url:
        first = Endpoint(config(url, tries=1), file).ask(asked(5), usable=lambda text: "3" not in text)
        assert first[3] == Silence("judge_unreadable") and len(model.asked) == 5
        again = Endpoint(config(url, tries=1), file).ask(asked(6))
        assert again == echoes(*range(6)) and len(model.asked) == 7
        Endpoint(config(url, tries=1, temperature=0.0), file).ask(asked(1))
        assert len(model.asked) == 8, "another temperature is another question"


def test_lone_surrogates_and_control_characters_of_a_reply_can_be_asked_about(tmp_path):
    with served(Model()) as url:
        (said,) = Endpoint(config(url), tmp_path / "answers").ask([[{"role": "user", "content": "a\ud800\x00\x1b"}]])
    assert said.text == "echo a?\x00\x1b"


def choice(**fields) -> str:
    return json.dumps({"choices": [{"message": {"content": "YES"}, **fields}]})


def likely(logprob="-0.1", token='"YES"', tops="[]") -> str:
    place = f'{{"token": {token}, "logprob": {logprob}, "top_logprobs": {tops}}}'
    return f'{{"choices": [{{"message": {{"content": "YES"}}, "logprobs": {{"content": [{place}]}}}}]}}'


GARBAGE = {
    "no gzip": (choice(), {"Content-Encoding": "gzip"}),
    "no deflate": (choice(), {"Content-Encoding": "deflate"}),
    "nested": ("[" * 100_000, {}),
    "nested inside": (choice(note=json.loads("[" * 900 + "]" * 900)), {}),
    "no UTF-8": ("\xff\xfe\x00", {}),
    "NaN": (choice(note=float("nan")), {}),
    "endless number": ('{"choices": 1' + "0" * 5000 + "}", {}),
    "list": ("[]", {}),
    "null": ("null", {}),
    "no text": ('{"choices": [{"message": {"content": [1]}}]}', {}),
    "no message": ('{"choices": [{"message": null}]}', {}),
    "choices by name": ('{"choices": {"a": 1}}', {}),
    "a large log-prob": (likely("1e6"), {}),
    "a larger one": (likely("1" + "0" * 400), {}),
    "an infinite one": (likely("1e999"), {}),
    "a log-prob of words": (likely('"x"'), {}),
    "no token": (likely(token="7"), {}),
    "a token of tokens": (likely(token='["YES"]'), {}),
    "no likely tokens": (likely(tops="null"), {}),
    "an odd charset": ("{", {"Content-Type": "application/json; charset=base64"}),
    "a body that ends early": (choice(), {"Content-Length": "9999"}),
}


class Babbling(Model):
    """Answers with garbage, one kind after the other, before it says something; or never says anything."""

    def __init__(self, kinds, always=False):
        super().__init__()
        self.kinds, self.always = list(kinds), always

    def respond(self, handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        with self.lock:
            kind = self.kinds[min(len(self.asked), len(self.kinds) - 1)] if self.always or len(self.asked) < len(self.kinds) else None
            self.asked.append(kind)
        body, headers = GARBAGE[kind] if kind is not None else (choice(), {})
        body = body.encode("latin-1")
        handler.send_response(200)
        for name, value in {"Content-Length": str(len(body)), "Connection": "close", **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True


@pytest.fixture
def at_once(monkeypatch):
    """No pause between tries."""
    monkeypatch.setattr("nemo_cascade.environments.endpoint.random.uniform", lambda *_: 0.0)


def test_all_kinds_of_garbage_are_asked_about_again(at_once):
    model = Babbling(GARBAGE)
    with served(model) as url:
        endpoint = Endpoint(config(url, tries=len(GARBAGE) + 1, logprobs=True))
        assert endpoint.ask(asked(1)) == [Said("YES")]
    assert model.asked == [*GARBAGE, None]


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_to_the_end_is_no_answer(at_once, kind):
    with served(Babbling([kind], always=True)) as url:
        expected = Silence("judge_unreachable" if kind == "a body that ends early" else "judge_unreadable")
        assert Endpoint(config(url, tries=2, logprobs=True)).ask(asked(2)) == [expected] * 2


def test_a_judge_that_was_talked_into_scores_that_no_reader_takes_is_asked_again_and_then_undecided(at_once):
    model = Model()
    with served(model) as url:
        for text in UNREADABLE:
            model.said = lambda _, text=text: text
            assert Endpoint(config(url, tries=2)).ask(asked(1), genrm_compare.readable) == [Silence("judge_unreadable")], text[:40]
    assert len(model.asked) == 2 * len(UNREADABLE)


def test_garbage_instead_of_a_list_of_models_says_nothing():
    listing = Listing()
    with served(listing) as url:
        for body in ("[" * 100_000, '{"data": [{"id": [7]}, {"id": "judge"}]}', '{"data": 7}', '{"data": NaN}'):
            listing.payload = body.encode()
            assert Endpoint(config(url)).trouble() is None


class Refusing(Model):
    """Refuses what is about number 3, as a server refuses what is longer than its model reads."""

    def respond(self, handler):
        self.status = None
        body = handler.rfile.peek(10_000)
        self.status = 400 if b"question 3" in body else None
        super().respond(handler)


def test_one_refused_question_costs_its_own_answer_only():
    with served(Refusing()) as url:
        endpoint = Endpoint(config(url, concurrency=1))
        assert endpoint.ask(asked(5)) == [*echoes(0, 1, 2), Silence("judge_refused"), *echoes(4)]
        assert endpoint.ask(asked(4)[3:]) == [Silence("judge_refused")]
        with pytest.raises(EndpointError, match="status 400"):
            Endpoint(config(url)).ask(asked(4)[3:])


class Sure(Model):
    def respond(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.asked.append(body)
        likely = [{"token": "YES", "logprob": -0.1}, {"token": "NO", "logprob": -2.5}]
        logprobs = {"content": [{"token": "YES", "logprob": -0.1, "top_logprobs": likely}]} if body.get("logprobs") else None
        payload = json.dumps({"choices": [{"message": {"content": "YES"}, "logprobs": logprobs}]}).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(payload)))
        handler.end_headers()
        handler.wfile.write(payload)


def test_probabilities_come_and_are_kept_where_they_are_asked_for(tmp_path):
    model, file = Sure(), tmp_path / "answers.sqlite"
    with served(model) as url:
        (plain,) = Endpoint(config(url), file).ask(asked(1))
        (said,) = Endpoint(config(url, logprobs=True), file).ask(asked(1))
        (again,) = Endpoint(config(url, logprobs=True), file).ask(asked(1))
    assert plain == Said("YES") and model.asked[1]["top_logprobs"] == 20
    assert said == again and len(model.asked) == 2
    ((token, likely),) = said.tokens
    assert token == "YES" and likely == pytest.approx({"YES": 0.9048, "NO": 0.0821}, abs=1e-4)


class Listing(Model):
    payload = b'{"data": [{"id": "judge"}]}'

    def list(self, handler):
        payload = self.payload
        handler.send_response(self.status or 200)
        handler.send_header("Content-Length", str(len(payload)))
        handler.end_headers()
        handler.wfile.write(payload)


def test_an_endpoint_that_cannot_be_asked_is_told_before_anything_is_asked():
    with served(Listing()) as url:
        assert Endpoint(config(url)).trouble() is None
        other = Endpoint(EndpointConfig(base_url=url, model="jugde")).trouble()
        assert other == f"{url}/models has no model 'jugde', only judge"
    assert "cannot be reached" in Endpoint(config(url)).trouble()
    with served(Listing(status=401)) as url:
        assert "refuses the key" in Endpoint(config(url)).trouble()
    with served(Model()) as url:
        assert Endpoint(config(url)).trouble() is None, "no list of models says nothing"
