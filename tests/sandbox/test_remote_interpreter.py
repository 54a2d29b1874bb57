"""An interpreter on another host is the same interpreter, stays on its host, and is told, not tried again, where that is lost."""

import threading

import psutil
import pytest

from nemo_cascade import sandbox
from nemo_cascade.environments.python_tool import PythonTool
from nemo_cascade.sandbox import HostFailed, RemoteSandbox, Sandbox, SandboxError, SandboxUnavailable, remote_interpreter
from nemo_cascade.sandbox.http_server import SandboxServer
from tests.sandbox.test_remote import request

SECONDS = 60.0


@pytest.fixture(scope="module")
def servers():
    """Two hosts."""
    with Sandbox(workers=2) as one, Sandbox(workers=2) as other:
        serving = [SandboxServer(sandbox, "token") for sandbox in (one, other)]
        threads = [threading.Thread(target=server.serve_forever) for server in serving]
        for thread in threads:
            thread.start()
        yield serving
        for server, thread in zip(serving, threads):
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture
def client(servers):
    with RemoteSandbox(",".join(server.url for server in servers), "token") as made:
        yield made


def worker_of(server, python):
    """The process of the server that runs it."""
    return psutil.Process(server.held._all[python._place[1]]._worker.process.pid)


def test_names_stay_and_are_nobody_elses(client):
    one, other = client.interpreter(), client.interpreter()
    assert one.run("x = 20").output == "" and one.run("print('so')\nx + 1").output == "so\n21\n"
    assert "NameError" in other.run("x").output
    ended = one.run("import os; print('gone', flush=True); os._exit(3)")
    assert (ended.output, ended.status, ended.limit) == ("gone\n", 3, None) and "NameError" in one.run("x").output
    assert one.run("'\udcff'").output == "'?'\n", "what is no text is told as on this host"
    one.close()
    other.close()
    with pytest.raises(SandboxError, match="closed"):
        one.run("1")


def test_a_host_without_a_place_is_passed_over_and_without_any_one_waits(servers, client, monkeypatch):
    monkeypatch.setattr(remote_interpreter, "GLANCE", 0.01)
    first, second = (server.sandbox._places for server in servers)
    monkeypatch.setattr(first, "free", 0)
    monkeypatch.setattr(second, "free", 1)
    one, two, three = client.interpreter(), client.interpreter(), client.interpreter()
    assert one.begin() and one._place[0] == servers[1].url and not two.begin(wait=False)
    told = []
    thread = threading.Thread(target=lambda: told.append(two.run("'waited'").output))
    waiting = threading.Thread(target=lambda: told.append(pytest.raises(SandboxError, three.begin).match("closed")))
    for each in (waiting, thread):
        each.start()
    three.close()
    waiting.join(SECONDS)
    assert told == [True]
    one.close()
    thread.join(SECONDS)
    assert told[1:] == ["'waited'\n"]
    two.close()
    assert (first.free, second.free) == (0, 1)


def test_closed_in_the_middle_of_a_call_it_ends_at_once(servers, client):
    python = client.interpreter()
    python.run("1")
    ended, held = [], next(server.held for server in servers if server.url == python._place[0])
    inner = held._all[python._place[1]]
    thread = threading.Thread(target=lambda: ended.append(pytest.raises(SandboxError, python.run, "while True: pass")))
    thread.start()
    while inner._using.acquire(blocking=False):
        inner._using.release()
    python.close()
    thread.join(SECONDS)
    assert len(ended) == 1 and held._all == {} and held._used == {}


def test_one_that_its_host_lost_is_told_and_the_next_call_begins_anew(servers, client):
    python = client.interpreter()
    python.run("x = 1")
    server = next(server for server in servers if server.url == python._place[0])
    worker_of(server, python).children()[0].kill()
    with pytest.raises(HostFailed, match=f"the sandbox at {server.url} ended an interpreter, and with it what it knew"):
        python.run("x")
    assert "NameError" in python.run("x").output
    # As after a host that was started again.
    server = next(server for server in servers if server.url == python._place[0])
    server.held.close(python._place[1])
    with pytest.raises(HostFailed, match="has no such interpreter"):
        python.run("1")
    assert python.run("1").output == "1\n"
    python.close()


def test_what_nobody_calls_any_more_makes_room(servers, client, monkeypatch):
    for server in servers:
        monkeypatch.setattr(server.sandbox._places, "free", 1)
    left = [client.interpreter(), client.interpreter()]
    assert all(python.run("x = 1").status is None for python in left)
    new = client.interpreter()
    assert not new.begin(wait=False)
    monkeypatch.setattr(remote_interpreter, "FORGOTTEN", 0.0)
    assert new.run("'there'").output == "'there'\n"
    with pytest.raises(HostFailed):
        next(python for python in left if python._place[0] == new._place[0]).run("x")
    for python in (new, *left):
        python.close()
    assert [server.sandbox._places.free for server in servers] == [1, 1]


@pytest.mark.parametrize(
    "path, body, status, said",
    [
        ("", b"{}", 400, "KeyError: 'limits'"),
        ("", b'{"limits": {"seconds": 1e5}}', 400, "limits over this server's: seconds > 300.0"),
        ("/ab", b'{"code": 3}', 400, "code must be a text"),
        ("/ab", b'{"code": "1"}', 500, "no such interpreter"),
        ("/ab/cd", b'{"code": "1"}', 404, "no /interpreters/ab/cd"),
    ],
)
def test_a_request_that_is_none_is_told(servers, path, body, status, said):
    told = request(servers[0], "POST", f"/interpreters{path}", body)
    assert told[0] == status and said in told[1]["error"]
    assert request(servers[0], "POST", f"/interpreters{path}", body, {"Authorization": "Bearer other"})[0] == 401
    assert request(servers[0], "DELETE", "/interpreters/ab", headers={})[0] == 401


def test_a_host_that_has_not_what_they_offer_is_named(servers, client, monkeypatch):
    def lacking(limits=None):
        raise SandboxUnavailable("programs that need sympy cannot be run: pip install sympy")

    monkeypatch.setattr(servers[1].sandbox, "interpreter", lacking)
    with pytest.raises(SandboxUnavailable, match=f"the sandbox at {servers[1].url}: programs that need sympy"):
        client.interpreter()


def test_the_tool_of_a_conversation_uses_the_hosts_that_were_chosen(servers, monkeypatch):
    monkeypatch.setenv("NEMO_CASCADE_SANDBOX_TOKEN", "token")
    sandbox.use(servers[0].url)
    try:
        tool = PythonTool()
        assert tool.call({"code": "n = 41"}) == "" and tool.call({"code": "n + 1"}) == "42"
        assert len(servers[0].held._all) == 1
        tool.close()
        assert servers[0].held._all == {}
    finally:
        sandbox.use(None)
