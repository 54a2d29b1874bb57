"""What the engine behind HTTP does about servers that break off, are late or refuse; vLLM itself is not needed here."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nemo_cascade.rollout import vllm_server
from nemo_cascade.rollout.engine import EngineError
from nemo_cascade.rollout.types import Request
from nemo_cascade.rollout.vllm_server import Http, rollout


@contextmanager
def serving(answer):
    """A server that calls answer(number of the request, its body) -> (status, text), or breaks off where that is None."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body)
            answered = answer(len(seen), body)
            if answered is None:
                self.connection.close()
                return
            status, text = answered
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()


def test_a_request_whose_connection_broke_is_sent_again_as_it_was(monkeypatch):
    monkeypatch.setattr(vllm_server, "PAUSES", (0.01, 0.01))
    with serving(lambda number, body: None if number < 3 else (200, '{"ok": 1}')) as (url, seen):
        assert Http(10, 4).post(url, "/v1/completions", {"seed": 5}).result() == {"ok": 1}
        assert seen == [{"seed": 5}] * 3
    with serving(lambda number, body: None) as (url, seen), pytest.raises(EngineError, match="is the server running"):
        Http(10, 4).post(url, "/v1/completions", {"seed": 5}).result()


def test_a_server_that_is_late_or_refuses_is_named_with_what_it_says():
    with serving(lambda number, body: time.sleep(2)) as (url, _), pytest.raises(EngineError, match=f"{url}/x gave no answer within 0 s"):
        Http(0.2, 4).post(url, "/x", {}).result()
    with serving(lambda number, body: (400, "too long")) as (url, seen), pytest.raises(EngineError, match="/x answered 400: too long"):
        Http(10, 4).post(url, "/x", {}).result()
    assert len(seen) == 1, "a refusal is not asked for again"


def test_no_more_requests_are_under_way_than_were_allowed():
    under_way, most = [0], [0]

    def answer(number, body):
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        time.sleep(0.05)
        under_way[0] -= 1
        return 200, "{}"

    with serving(answer) as (url, seen):
        http = Http(10, 3)
        for future in [http.post(url, "/x", {}) for _ in range(12)]:
            future.result()
        assert len(seen) == 12 and most[0] <= 3


def test_a_reply_keeps_the_servers_tokens_and_log_probs():
    choice = {"token_ids": [7, 2], "logprobs": {"token_logprobs": [-0.5, -0.25]}, "finish_reason": "stop", "text": "x"}
    found = rollout(Request("ab", 3, (5, 6)), choice)
    assert (found.prompt_id, found.sample, found.prompt, found.response) == ("ab", 3, [5, 6], [7, 2])
    assert (found.logprobs, found.finish_reason) == ([-0.5, -0.25], "stop")
