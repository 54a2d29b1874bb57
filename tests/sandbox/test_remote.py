"""A sandbox on another host is the same sandbox: same results, same errors, nothing without the token."""

import contextlib
import dataclasses
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import pytest

from nemo_cascade import sandbox
from nemo_cascade.cascade import checks
from nemo_cascade.sandbox import Call, HostFailed, Limits, Program, RemoteSandbox, Sandbox, SandboxError, SandboxUnavailable
from nemo_cascade.sandbox import http_server, remote, wire

PATIENT = Limits(seconds=60.0)
PROGRAMS = [
    Program("python", "import sys\nprint(input(), open('f').read(), sys.argv[1:])", stdin="é", files={"f": "x"}, args=("y",)),
    Program("python", "def f(*a, **k): return a, k", call=Call("f", (1, (2,), {3: {4}}), {"b": b"\0"})),
    Program("python", "print(Counter('aab'))\n1 / 0", contest=True),
    Program("cpp", "#include <cstdio>\nint main() { puts(\"hi\"); return 3; }"),
    Program("cpp", "int main() { return x; }"),
    Program("shell", "echo $0; exit 9"),
]


@pytest.fixture(scope="module")
def server():
    with Sandbox(workers=2) as own, http_server.SandboxServer(own, "token") as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.fixture
def client(server):
    with RemoteSandbox(server.url, "token") as made:
        yield made


def told(result):
    return dataclasses.replace(result, seconds=0.0, stderr=result.stderr.replace("\n", " "))


def test_results_are_those_of_the_host_itself(server, client):
    assert [told(result) for result in client.run_many(PROGRAMS, PATIENT)] == [
        told(result) for result in server.sandbox.run_many(PROGRAMS, PATIENT)
    ]
    assert client.run(PROGRAMS[1], PATIENT).value() == ((1, (2,), {3: {4}}), {"b": b"\0"})


def test_limits_travel(client):
    endless = Program("python", "print(1, flush=True)\nwhile True: pass")
    result = client.run(endless, Limits(seconds=1.0))
    assert result.timed_out and result.stdout == "1\n"


def test_it_says_how_many_programs_it_runs_at_a_time(client, server):
    assert client.workers == 2 and client.probe()[server.url]["python"].startswith("3.")


def test_without_the_token_nothing_is_run(server):
    for token in ("wrong", "token2", "tokeñ"):
        with pytest.raises(SandboxUnavailable, match="answers 401: a bearer token is needed"):
            RemoteSandbox(server.url, token).run(Program("python", ""))
    for header in ({}, {"Authorization": "token"}, {"Authorization": "Basic token"}):
        assert request(server, "POST", "/run", wire.ask(PROGRAMS[0], PATIENT), header)[0] == 401
        assert request(server, "GET", "/health", None, header)[0] == 401


def request(server, method, path, body=None, headers={"Authorization": "Bearer token"}):
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    answer = reply.status, json.loads(reply.read())
    connection.close()
    return answer


GOOD = json.loads(wire.ask(PROGRAMS[0], PATIENT))


@pytest.mark.parametrize(
    "body, said",
    [
        (b"", "JSONDecodeError"),
        (b"[]", "TypeError"),
        (b"{}", "KeyError: 'program'"),
        (b"[" * 100_000, "RecursionError"),
        ({**GOOD, "limits": {"seconds": 0}}, "limit seconds is 0"),
        ({**GOOD, "limits": {"hours": 1}}, "unexpected keyword argument 'hours'"),
        ({**GOOD, "limits": {"seconds": 1e5, "memory": 2**40}}, "limits over this server's: seconds > 300.0, memory > "),
        ({**GOOD, "program": {**GOOD["program"], "language": "perl"}}, "language 'perl'"),
        ({**GOOD, "program": {**GOOD["program"], "files": {"../x": ""}}}, "leads out of the program's folder"),
        ({**GOOD, "program": {**GOOD["program"], "stdin": 3}}, "must be texts"),
        ({**GOOD, "program": {**GOOD["program"], "files": {"x": 3}}}, "must be texts"),
        ({**GOOD, "program": {**GOOD["program"], "call": ["f", '{"set": [[]]}']}}, "not a value"),
    ],
)
def test_a_request_that_is_none_is_told_and_the_next_is_served(server, client, body, said):
    status, answer = request(server, "POST", "/run", body if isinstance(body, bytes) else json.dumps(body))
    assert status == 400 and said in answer["error"]
    assert client.run(PROGRAMS[0], PATIENT).ok


def test_other_paths_and_sizes_are_refused(server):
    assert request(server, "GET", "/")[0] == 404 and request(server, "POST", "/", b"{}")[0] == 404
    for length in ("-1", "x", str(http_server.MAX_BODY + 1)):
        assert request(server, "POST", "/run", b"", {"Authorization": "Bearer token", "Content-Length": length})[0] == 413


def test_a_host_that_does_not_answer_is_told(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with pytest.raises(SandboxError, match=f"the sandbox at {url} cannot be reached: ConnectionRefusedError"):
        RemoteSandbox(url, "token").run(PROGRAMS[0])


def test_a_host_that_is_gone_is_replaced_by_another(server, monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        gone = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with RemoteSandbox(f"{gone}, {server.url}/", "token") as client:
        assert all(client.run(PROGRAMS[0], PATIENT).ok for _ in range(5))


@contextlib.contextmanager
def saying(status, body):
    """A host that answers every run with that."""

    class Handler(http_server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http_server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as host:
        thread = threading.Thread(target=host.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{host.server_port}"
        host.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (500, b'{"error": "no memory", "lost": false}', SandboxError, "answers 500: no memory"),
        (500, b'{"error": "killed", "lost": true}', HostFailed, "answers 500: killed"),
        (503, b"<html>", SandboxError, "answers 503: <html>"),
        (200, b"[" * 100_000, SandboxError, r"what is no result: \[\["),
        (200, b'{"colour": 1}', SandboxError, "what is no result"),
        (200, b"[1]", SandboxError, "what is no result"),
    ],
)
def test_a_sick_host_is_replaced_by_another_and_alone_is_named(server, monkeypatch, status, body, kind, words):
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    with saying(status, body) as sick:
        with RemoteSandbox(f"{sick},{server.url}", "token") as client:
            assert all(client.run(PROGRAMS[0], PATIENT).ok for _ in range(3))
        with RemoteSandbox(sick, "token") as client, pytest.raises(SandboxError, match=words) as told:
            client.run(PROGRAMS[0], PATIENT)
    assert isinstance(told.value, HostFailed) == (kind is HostFailed)


def test_a_host_that_cannot_isolate_is_told_at_once(server):
    with saying(501, b'{"error": "no bubblewrap"}') as without:
        with RemoteSandbox(f"{without},{server.url}", "token") as client, pytest.raises(SandboxUnavailable, match="no bubblewrap"):
            client.run(PROGRAMS[0], PATIENT)


def test_a_connection_that_breaks_is_made_anew(server):
    """As one does that a server or a router closed while nothing was sent."""
    with RemoteSandbox(server.url, "token") as client:
        for _ in range(3):
            assert client.run(PROGRAMS[0], PATIENT).ok
            vars(client._local)[server.url].sock.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("url", ["", "localhost:80", "ftp://x", "http://"])
def test_what_is_no_url_is_told(url):
    with pytest.raises(ValueError, match="sandbox.url"):
        RemoteSandbox(url, "token")


def test_the_token_must_be_there(monkeypatch):
    monkeypatch.delenv(wire.TOKEN, raising=False)
    with pytest.raises(SandboxUnavailable, match=f"sandbox.url is set and {wire.TOKEN} is not"):
        RemoteSandbox("http://127.0.0.1:1")
    with pytest.raises(ValueError, match="without a token"):
        http_server.SandboxServer(None, "")


def test_the_sandbox_of_a_process_is_the_one_that_was_chosen(server, monkeypatch):
    monkeypatch.setattr(sandbox, "_current", None)
    monkeypatch.setattr(sandbox, "_chosen", None)
    monkeypatch.setenv(wire.TOKEN, "token")
    assert isinstance(sandbox.get(), Sandbox)
    sandbox.use(server.url)
    assert isinstance(sandbox.get(), RemoteSandbox) and sandbox.get() is sandbox.get()
    assert sandbox.get().run(PROGRAMS[0], PATIENT).ok
    sandbox.use(None)
    monkeypatch.setenv(sandbox.URL, server.url)
    assert isinstance(sandbox.get(), RemoteSandbox)
    sandbox.use(None)


@pytest.mark.parametrize("host, loopback", [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("node7", False)])
def test_which_addresses_others_can_reach(host, loopback):
    assert http_server.is_loopback(host) is loopback


# ------------------------------------------------------------------------------------------------- the command


def serve(*options, token=None):
    environment = {key: value for key, value in os.environ.items() if key != wire.TOKEN}
    environment |= {wire.TOKEN: token} if token else {}
    command = [sys.executable, "-m", "nemo_cascade", "sandbox-serve", "--port", "0", *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("token", "number"), [("of my own", 2), (None, 2), (None, 15)], ids=["given", "made", "terminated"])
def test_the_command_serves_until_it_is_stopped(token, number):
    serving = serve("--workers", "1", token=token)
    line = serving.stdout.readline()
    assert line.startswith("ok: 1 programs at a time with Python 3."), line + serving.stderr.read()
    made = token or serving.stdout.readline().strip().removeprefix(f"{wire.TOKEN}=")
    with RemoteSandbox(line.split()[-1], made) as client:
        assert len(made) > 8 and client.run(PROGRAMS[0], PATIENT).ok
    serving.send_signal(number)
    assert serving.wait(60) == 0


def test_the_command_listens_to_others_only_with_a_token_of_ones_own(tmp_path):
    refused = serve("--host", "0.0.0.0")
    assert refused.wait(60) == 2 and "others can reach it; set NEMO_CASCADE_SANDBOX_TOKEN" in refused.stderr.read()
    refused = serve("--token-file", str(tmp_path / "none"))
    assert refused.wait(60) == 2 and "No such file" in refused.stderr.read()


def test_a_wrong_url_in_a_config_is_told():
    from nemo_cascade.stages.config import SandboxConfig

    assert checks.sandbox_problems(SandboxConfig("http://a:1, https://b/x"), str) == []
    assert checks.sandbox_problems(SandboxConfig(None), str) == []
    (problem,) = checks.sandbox_problems(SandboxConfig("http://a:1,b:2"), str)
    assert problem.startswith("sandbox.url: 'b:2' is not http://host:port")
