"""`nemo-cascade serve`: by the embedded engine, and by vLLM where there is an environment with it (NEMO_CASCADE_VLLM_PYTHON or .venv-vllm)."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.chat import vllm
from nemo_cascade.chat.embedded import is_checkpoint
from nemo_cascade.data.chat import render_tool_call
from nemo_cascade.data.tokenizer import SHIPPED
from tests.evaluation.test_from_checkpoint import written
from tests.helpers import run_distributed

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("NEMO_CASCADE_VLLM_PYTHON") or str(ROOT / ".venv-vllm" / "bin" / "python")
USER = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "run", "parameters": {"type": "object", "properties": {}}}}


@contextlib.contextmanager
def served(log: Path, *arguments: str, seconds: float):
    """(its address, the process), once it says that it serves."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "nemo_cascade", "serve", *arguments]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        until = time.monotonic() + seconds
        while not (found := re.search(r"^serving .*: (http://\S+)/ ", log.read_text(), re.MULTILINE)):
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-4000:]
            time.sleep(0.2)
        yield found[1], process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def events(answer: httpx.Response) -> list[dict]:
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n") if line]


def test_a_checkpoint_is_served_without_vllm_and_sigterm_ends_it(weights, tmp_path):
    arguments = [str(weights / "sft" / "step_1"), "--no-vllm", "--port", "0", "--name", "mine"]
    with served(tmp_path / "log", *arguments, seconds=240) as (url, process):
        assert "<title>chat</title>" in httpx.get(url).text and httpx.get(f"{url}/info").json() == {"model": "mine", "tools": []}
        body = {"model": "mine", "messages": USER, "max_tokens": 12, "temperature": 0}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).json()
        assert answer["usage"]["completion_tokens"] == 12 and answer["choices"][0]["message"]["reasoning_content"]
        told = events(httpx.post(f"{url}/chat", json={"messages": USER, "settings": {"max_tokens": 12, "temperature": 0}}, timeout=120))
        assert told[0]["type"] == "begin" and told[-1]["messages"][0]["reasoning_content"] == answer["choices"][0]["message"]["reasoning_content"]
        assert httpx.get(url, headers={"Host": "elsewhere.example"}).status_code == 400
        process.terminate()
        assert process.wait(60) == 0, (tmp_path / "log").read_text()


def test_vllm_is_started_with_the_familys_parsers_and_the_users_flags_last():
    command = vllm.command(Path("/x/python"), Path("/models/nano"), "nano", "0.0.0.0", 80, ["--max-model-len", "4096"])
    assert command[:3] == ["/x/python", "-m", "vllm.entrypoints.openai.api_server"] and command[-2:] == ["--max-model-len", "4096"]
    flags = dict(zip(command, command[1:]))
    assert flags["--reasoning-parser"] == "nemotron_v3" and flags["--tool-call-parser"] == "qwen3_coder"
    assert flags["--mamba-ssm-cache-dtype"] == "float32" and "--enable-auto-tool-choice" in command
    assert json.loads(flags["--reasoning-config"])["reasoning_end_str"] == "</think>"


def test_what_cannot_be_served_is_refused(tmp_path):
    with pytest.raises(RunRefused, match="no Python that starts"):
        vllm.python_with_vllm(tmp_path / "python")
    if find_spec("vllm") is None:
        assert vllm.python_with_vllm(None) is None
        with pytest.raises(RunRefused, match="vLLM is not installed there"):
            vllm.python_with_vllm(Path(sys.executable))
    with pytest.raises(RunRefused, match="no policy/ there and no config.json"):
        is_checkpoint(tmp_path)
    (tmp_path / "step_3" / "policy").mkdir(parents=True)
    with pytest.raises(RunRefused, match="did you mean .*step_3"):
        is_checkpoint(tmp_path)
    with pytest.raises(RunRefused, match="config.yaml beside it"):
        vllm.folder_of(tmp_path / "step_3", None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunRefused, match="no tokenizer there"):
        vllm.folder_of(tmp_path, None)
    (tmp_path / "hf" / "step_3").mkdir(parents=True)
    with pytest.raises(RunRefused, match="no Hugging Face folder; name another with --export"):
        vllm.folder_of(tmp_path / "step_3", None)


on_vllm = pytest.mark.skipif(not Path(PYTHON).is_file(), reason="no vLLM: make test-vllm makes its environment")


@pytest.mark.slow
@on_vllm
def test_vllms_parsers_read_thoughts_and_calls_as_the_chat_template_has_them():
    arguments = {"code": "a = 5\nprint(a)\n", "times": 3}
    call = render_tool_call({"name": "run", "arguments": arguments})
    texts = [[True, f"hm\n</think>\nI run it.\n{call}\n"], [False, f"{call}\n{call}"], [False, "It is 4."], [True, "hm\n</think>\nIt is 4."]]
    command = [PYTHON, str(Path(__file__).with_name("vllm_parsers.py")), str(SHIPPED / "tiny"), json.dumps(texts)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600)
    lines = [line.removeprefix("parsed ") for line in done.stdout.splitlines() if line.startswith("parsed ")]
    told = [(thought, (content or "").strip(), calls) for thought, content, calls in map(json.loads, lines)]
    assert told == [
        ("hm", "I run it.", [["run", arguments]]),
        (None, "", [["run", arguments]] * 2),
        (None, "It is 4.", []),
        ("hm", "It is 4.", []),
    ], done.stderr[-3000:]


@pytest.mark.slow
@on_vllm
def test_vllms_own_server_serves_a_checkpoint_with_thoughts_budget_and_page(tmp_path):
    """Random weights: their text says nothing, but where a thought ends is counted. vLLM's attention on a CPU has no heads as small as
    those of the other tests."""
    run_distributed(written, 1, tmp_path, "tiny")
    more = ["--max-model-len", "1024", "--kv-cache-memory-bytes", str(128 << 20), "--max-num-seqs", "4"]
    options = ["--vllm-python", PYTHON, "--export", str(tmp_path / "exported"), "--port", "0", "--name", "mine"]
    arguments = [str(tmp_path / "sft" / "step_1"), *options, "--", *more]
    with served(tmp_path / "log", *arguments, seconds=1200) as (url, process):
        assert [entry["id"] for entry in httpx.get(f"{url}/v1/models").json()["data"]] == ["mine"]

        def message(**options) -> dict:
            body = {"model": "mine", "messages": USER, "max_tokens": 24, "temperature": 0, **options}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=300)
            assert answer.is_success, answer.text
            return answer.json()["choices"][0]["message"]

        thought = message()
        assert thought["reasoning"] and not thought["content"]
        plain = message(chat_template_kwargs={"enable_thinking": False}, tools=[TOOL])
        assert plain["content"] and not plain.get("reasoning")
        short = message(thinking_token_budget=4)
        assert short["reasoning"] and short["content"] and len(short["reasoning"]) < len(thought["reasoning"])
        settings = {"max_tokens": 24, "temperature": 0, "budget": 4}
        told = events(httpx.post(f"{url}/chat", json={"messages": USER, "settings": settings}, timeout=300))
        (said,) = told[-1]["messages"]
        assert said["content"] == short["content"].lstrip() and said["reasoning_content"] == short["reasoning"]
        process.terminate()
        assert process.wait(60) == 0, (tmp_path / "log").read_text()[-3000:]
