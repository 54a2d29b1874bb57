"""A server of NeMo Gym is an environment like others, and ours can be such a server: the same row, reply and reward."""

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import uvicorn

from nemo_cascade import environments
from nemo_cascade.environments.gym import GymClient, GymError, complete
from nemo_cascade.environments.serve import application
from nemo_cascade.environments.workers import Verifiers
from tests.environments.plugin import plugin  # noqa: F401 - a fixture

# The first request waits for its verifier's process to start, which takes long on a busy machine.
CALLER = httpx.Client(timeout=120)


@contextlib.contextmanager
def serving(names):
    """The address of our environments, served by a real HTTP server in a thread."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(application(names, workers=1), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def answering(answers):
    """The address of a server that gives these (status, body) in turn, the last one for ever; and what it was sent."""
    sent, busy, most = [], [0], [0]
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                sent.append((self.path, body))
                status, told = answers[min(len(sent), len(answers)) - 1]
                busy[0] += 1
                most[0] = max(most[0], busy[0])
            time.sleep(0.02)
            with lock:
                busy[0] -= 1
            if status is None:
                self.connection.close()
                return
            told, headers = told if isinstance(told, tuple) else (told, {})
            told = told.encode() if isinstance(told, str) else json.dumps(told).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(told)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent, most
    finally:
        server.shutdown()
        server.server_close()


ROW = {"expected_answer": "7", "responses_create_params": {"input": [{"role": "user", "content": "3 + 4"}]}}
RIGHT, WRONG = (environments.response_of(f"so</think>\\boxed{{{n}}}") for n in (7, 8))


def test_the_same_row_and_reply_earn_the_same_here_and_over_http():
    with serving(["math", "mcqa"]) as url, Verifiers(1) as here:
        assert CALLER.get(url).json() == {"environments": ["math", "mcqa"]}
        pairs = [(ROW, RIGHT), (ROW, WRONG)] * 20
        assert GymClient(f"{url}/math/").verify_all(pairs) == here.verify(pairs)
        for row, reply, reward in environments.get("mcqa").EXAMPLES:
            told = GymClient(f"{url}/mcqa").verify(row, environments.response_of(reply, False))
            assert told["reward"] == reward and "extracted_answer" in told


def test_a_verdict_has_the_whole_body_as_gyms_has():
    with serving(["math"]) as url:
        sent = {**ROW, "id": 3, "response": complete(RIGHT)}
        told = CALLER.post(f"{url}/math/verify", json=sent).json()
        assert told.items() >= sent.items() and told["reward"] == 1.0
        assert CALLER.post(f"{url}/math/seed_session", json={}).json() == {}
        verdicts = {"verify_responses": [told, {**told, "reward": 0.0}]}
        assert CALLER.post(f"{url}/math/aggregate_metrics", json=verdicts).json()["agent_metrics"]["mean/reward"] == 0.5


def test_a_request_that_is_none_is_refused_with_a_reason():
    row = '"expected_answer": "7", "response": {"output": []}'
    bodies = ["", "{", "[]", "{}", '{"response": 3}', '{"response": {}}', '{"response": {"output": []}}', "\xff"]
    bodies += ["[" * 100_000, f'{{{row}, "n": NaN}}', f'{{{row}, "n": 1e999}}', f'{{{row}, "n": {"[" * 900}{"]" * 900}}}']
    bodies += [f'{{{row}, "n": 1{"0" * 5000}}}', '{"expected_answer": {}, "response": {"output": []}}']
    with serving(["math"]) as url:
        for body in bodies:
            for path in ("verify", "aggregate_metrics"):
                answer = CALLER.post(f"{url}/math/{path}", content=body.encode("latin-1"))
                assert answer.status_code == 422 and "wanted" in answer.json()["detail"] or "mend" in answer.json()["detail"]
        huge = '{"verify_responses": [{"reward": 1e308}, {"reward": 1e308}, {"reward": 1e308}]}'
        assert CALLER.post(f"{url}/math/aggregate_metrics", content=huge).status_code == 422


def test_a_reply_that_hangs_its_verifier_is_answered_and_so_is_the_next(plugin):
    response = environments.response_of("hang", False)
    with serving([plugin]) as url:
        client = GymClient(f"{url}/{plugin}")
        assert client.verify({}, response)["reward"] == -1.0
        assert client.verify({}, environments.response_of("fine", False))["reward"] == 1.0


def test_what_needs_a_judge_is_not_served():
    with pytest.raises(KeyError, match="a judge compares its replies"):
        application(["genrm_compare"])


def test_a_server_that_fails_now_and_then_is_asked_again():
    with answering([(None, ""), (503, "busy"), (200, {"reward": 1, "note": "late", "expected_answer": "7"})]) as (url, sent, _):
        assert GymClient(url).verify(ROW, RIGHT) == {"reward": 1.0, "note": "late"}
    assert [path for path, _ in sent] == ["/verify"] * 3
    assert sent[0][1].items() >= ROW.items() and sent[0][1]["response"]["output"][0]["type"] == "reasoning"


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([(422, "no such row")], "refuses a reply, status 422: no such row"),
        ([(500, "a bug")], "has not answered in 2 tries, the last time status 500: a bug"),
        ([(None, "")], "has not answered in 2 tries"),
        ([(200, {"score": 1})], "has not answered in 2 tries, the last time without a reward: {"),
        ([(200, "hello")], "has not answered in 2 tries, the last time without a reward: hello"),
    ],
)
def test_a_server_that_does_not_answer_is_named(answers, words):
    with answering(answers) as (url, _, _), pytest.raises(GymError, match=f"{url}/verify {words}"):
        GymClient(url, tries=2).verify(ROW, RIGHT)


GARBAGE = [
    ('{"reward": 1}', {"Content-Encoding": "gzip"}),
    "[" * 100_000,
    '{"reward": 1' + "0" * 400 + "}",
    '{"reward": 1' + "0" * 5000 + "}",
    '{"reward": NaN}',
    '{"reward": 1e999}',
    '{"reward": [1]}',
    '{"reward": 1, "note": ' + "[" * 900 + "]" * 900 + "}",
    "[1]",
    "\x00",
    ("{}", {"Content-Type": "text/html; charset=base64"}),
]


@pytest.mark.parametrize("body", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_asked_about_again(body):
    with answering([(200, body), (200, {"reward": 1})]) as (url, sent, _):
        assert GymClient(url).verify(ROW, RIGHT) == {"reward": 1.0} and len(sent) == 2


@pytest.mark.parametrize("answer", [(200, "[" * 100_000), (200, GARBAGE[0]), (500, "a bug"), (422, "no such reply")])
def test_a_reply_that_a_server_cannot_take_costs_itself_only_and_is_counted(answer):
    with answering([(200, {"reward": 1}), answer]) as (url, _, _):
        asked = [(ROW, RIGHT), ({**ROW, "agent_ref": {"name": "finance_simple_agent"}}, RIGHT)]
        first, second = GymClient(url, concurrency=1, tries=2).verify_all(asked)
    assert first == {"reward": 1.0} and second["reward"] == 0.0 and url in second["verifier_error"]


def test_a_server_that_goes_away_is_not_charged_to_replies():
    with answering([(200, {"reward": 1}), (503, "busy")]) as (url, _, _), pytest.raises(GymError, match="status 503: busy; is it"):
        GymClient(url, concurrency=1, tries=2).verify_all([(ROW, RIGHT), (ROW, WRONG)])


def test_lone_surrogates_of_a_reply_go_both_ways(plugin):
    said = environments.response_of("fine \ud800\x00", False)
    with serving([plugin]) as url:
        assert GymClient(f"{url}/{plugin}").verify({"note": "\udfff"}, said)["reward"] == 1.0
        # As a client sends it that escapes them.
        told = CALLER.post(f"{url}/{plugin}/verify", content=json.dumps({"response": said}))
    assert told.status_code == 200
    assert told.json()["response"]["output"][0]["content"][0]["text"] == "fine ?\x00"


def test_no_more_requests_are_under_way_than_allowed():
    with answering([(200, {"reward": 1})]) as (url, sent, most):
        GymClient(url, concurrency=3).verify_all([(ROW, RIGHT)] * 30)
    assert len(sent) == 30 and 1 < most[0] <= 3


def test_a_completed_response_has_what_openais_schema_asks_for():
    done = complete(RIGHT)
    assert {"id", "created_at", "model", "object", "output", "parallel_tool_calls", "tool_choice", "tools"} <= done.keys()
    assert [item["type"] for item in done["output"]] == ["reasoning", "message"]
    assert all(item["id"] for item in done["output"]) and done["output"][1]["status"] == "completed"
