"""The commands as a user starts them, killed by SIGKILL, and what they refuse."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from nemo_cascade.cascade.strict import ConfigErrors
from nemo_cascade.environments.endpoint import EndpointConfig
from nemo_cascade.scaling.best_of_n import BestOfNConfig
from nemo_cascade.scaling.cli import app
from nemo_cascade.scaling.config import load_scale_config
from nemo_cascade.scaling.journal import Memory
from nemo_cascade.scaling.problems import load_problems
from nemo_cascade.scaling.proposers import EndpointProposer, seed_of
from nemo_cascade.scaling.run import JOURNAL, RESULTS, run, table, told_total
from nemo_cascade.scaling.types import Ask, ScalingRefused
from nemo_cascade.scaling.work import Budget, Work
from tests.environments.test_endpoint import served
from tests.scaling.simulated import Rates, Simulated, uniform

ENDPOINT = ["endpoint.base_url=http://localhost:1/v1", "endpoint.model=m"]
SETTINGS = ["refine.candidates=4", "refine.verifications=3", "refine.keep=2", "refine.refinements=2", "refine.rounds=3"]


class ProofModel:
    """A server whose words depend on a request's seed and prompt. It kills `victim` when it gets its `fatal`-th request."""

    def __init__(self):
        self.seeds: list[int] = []
        self.bodies: list[dict] = []
        self.fatal, self.victim, self.lock = None, None, threading.Lock()

    def said(self, body) -> str:
        text, number = body["messages"][-1]["content"], uniform(body["seed"])
        if text.startswith("Examine"):
            return f"Hm.\n\\boxed{{{[0, 0.5, 1][int(3 * number)]}}}"
        return f"I think.</think>Proof {body['seed']}"

    def respond(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.seeds.append(body["seed"])
            self.bodies.append(body)
            if len(self.seeds) == self.fatal:
                os.kill(self.victim.pid, signal.SIGKILL)
        choice = {"message": {"content": self.said(body)}, "finish_reason": "stop"}
        payload = json.dumps({"choices": [choice], "usage": {"completion_tokens": 7}}).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(payload)))
        handler.end_headers()
        handler.wfile.write(payload)


def without_seconds(results: dict) -> dict:
    results = json.loads(json.dumps(results))
    for spent in [results["total"], *(one["spent"] for one in results["problems"].values())]:
        del spent["seconds"]
    return results


def test_a_killed_run_asks_nothing_that_it_has_heard_and_ends_as_if_it_had_not_been(tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"id": name, "statement": f"Prove {name}."}) + "\n" for name in ("three", "four")))
    model, out = ProofModel(), tmp_path / "out"
    with served(model) as url:
        overrides = [f"endpoint.base_url={url}", "endpoint.model=m", "endpoint.concurrency=3", *SETTINGS]
        command = [sys.executable, "-m", "nemo_cascade", "scale", "refine", str(problems), "--out", str(out), *overrides]
        for fatal in (9, None):
            known = heard(out / JOURNAL)
            before = len(model.seeds)
            model.fatal = fatal
            model.victim = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            told, errors = model.victim.communicate(timeout=120)
            assert model.victim.returncode == (0 if fatal is None else -signal.SIGKILL), errors
            assert known.isdisjoint(model.seeds[before:]) and (not before or known)
        # What was under way at the kill was lost.
        assert len(model.seeds) <= len(set(model.seeds)) + 3
        results = json.loads((out / RESULTS).read_text())
        config = load_scale_config("refine", None, overrides)
        undisturbed = run("refine", load_problems(problems, "refine"), config, EndpointProposer(config.endpoint), None, tmp_path / "other")
    assert without_seconds(results) == without_seconds(undisturbed)
    assert f"ok: {told_total(results)}: {out / RESULTS}" in told and "stopped by" in told
    assert results["total"]["tokens"] == 7 * results["total"]["generations"]
    chosen = results["problems"]["three"]
    assert chosen["text"].startswith("Proof ") and '"thought": "I think."' in (out / JOURNAL).read_text()
    refinements = [body["messages"][0]["content"] for body in model.bodies if "## Reviews" in body["messages"][0]["content"]]
    assert refinements and all("I think" not in text for text in refinements)


def heard(journal: Path) -> set[int]:
    """The seeds of what a journal's whole lines have."""
    lines = journal.read_bytes().splitlines(keepends=True)[1:] if journal.exists() else []
    return {int(seed_of(0, json.loads(line)["key"])[:8], 16) >> 1 for line in lines if line.endswith(b"\n")}


def test_one_process_at_a_time_writes_a_journal(tmp_path):
    program = (
        "import sys\nfrom pathlib import Path\nfrom nemo_cascade.scaling.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]), {})\nprint('has it', flush=True)\nsys.stdin.read()\n"
    )
    path = tmp_path / JOURNAL
    command = [sys.executable, "-c", program, str(path)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "has it\n"
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert "another process is writing it" in second.stderr
    finally:
        first.kill()
        first.wait()


class Replies:
    """A server that says what it was told to, of each request in turn."""

    def __init__(self, *answers):
        self.answers, self.bodies = list(answers), []

    def respond(self, handler):
        self.bodies.append(json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
        payload = json.dumps(self.answers.pop(0)).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(payload)))
        handler.end_headers()
        handler.wfile.write(payload)


def answer(message: dict, finish: str = "stop", **more) -> dict:
    return {"choices": [{"message": message, "finish_reason": finish}], **more}


@pytest.mark.parametrize(
    "said, thinking, text, thought, tokens",
    [
        (answer({"content": "so</think>\n42"}, usage={"completion_tokens": 5}), True, "42", "so", 5),
        (answer({"content": "42", "reasoning_content": "so"}), True, "42", "so", 9),
        (answer({"content": None, "reasoning": "so"}, "length"), True, "", "so", 9),
        (answer({"content": "so I thi"}, "length"), True, "", "so I thi", 9),
        (answer({"content": "so I thi"}, "length"), False, "so I thi", "", 9),
        (answer({"content": "42"}, usage={"completion_tokens": "many"}), True, "42", "", 9),
    ],
)
def test_a_reply_is_its_answer_its_thought_and_its_tokens(said, thinking, text, thought, tokens):
    server, replies = Replies(said), []
    with served(server) as url:
        proposer = EndpointProposer(EndpointConfig(base_url=url, model="m"), thinking=thinking)
        proposer.propose([Ask("p/a", [{"role": "user", "content": "?"}], max_tokens=9)], lambda _, reply: replies.append(reply), None)
    (reply,), (body,) = replies, server.bodies
    assert (reply.text, reply.thought, reply.tokens, reply.fault) == (text, thought, tokens, None)
    assert body["max_tokens"] == 9 and 0 <= body["seed"] < 2**31
    assert ("chat_template_kwargs" in body) == (not thinking)


def test_equal_prompts_are_asked_each_for_itself_and_what_is_late_is_given_up():
    released, keys = threading.Event(), []

    class Slow(ProofModel):
        def said(self, body):
            released.wait(60)
            return "text"

    model = Slow()
    with served(model) as url:
        proposer = EndpointProposer(EndpointConfig(base_url=url, model="m"))
        asks = [Ask(f"p/{name}", [{"role": "user", "content": "?"}], 9) for name in "abc"]
        proposer.propose(asks, lambda ask, _: keys.append(ask.key), 0.5)
        assert keys == []
        released.set()
        model.seeds.clear()
        proposer.propose(asks, lambda ask, _: keys.append(ask.key), None)
    assert sorted(keys) == ["p/a", "p/b", "p/c"] and len(set(model.seeds)) == 3


GOOD = {"inputs": ["1\n"], "outputs": ["1\n"]}


@pytest.mark.parametrize(
    "method, row, line",
    [
        ("refine", {}, "row 1: no statement (a text)"),
        ("refine", {"statement": "x", "id": "a/b"}, "row 1: id 'a/b' may have letters, digits"),
        ("icpc", {"statement": "x", "language": "rust"}, "row 1: language 'rust' is none of python"),
        ("icpc", {"statement": "x"}, "row 1: tests: no unit_tests with inputs and outputs"),
        ("icpc", {"statement": "x", "tests": GOOD, "samples": {"inputs": []}}, "row 1: samples: no unit_tests with"),
        ("ioi", {"statement": "x"}, "row 1: no subtasks (a list of objects)"),
        ("ioi", {"statement": "x", "subtasks": [{"name": "a", "points": 0, "tests": GOOD}]}, "subtask a: points must be"),
        ("ioi", {"statement": "x", "subtasks": [{"name": "a", "points": 1}] * 2}, "each subtask needs a name of its own"),
        ("best_of_n", {"responses_create_params": {"input": "x"}}, "row 1: no environment: neither agent_ref.name"),
    ],
)
def test_a_bad_problem_is_refused_by_file_row_and_reason(method, row, line, tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ScalingRefused) as refused:
        load_problems(path, method)
    assert str(refused.value).startswith(f"{path}, row 1: ") and line in str(refused.value)
    path.write_text("\n")
    with pytest.raises(ScalingRefused, match="no (usable row|problem) in this file"):
        load_problems(path, method)


def test_a_bad_config_is_refused_with_all_that_is_wrong():
    overrides = ["endpoint.model=m", "refine.candidats=3", "ioi.rounds=3", "refine.rounds=0", "checkpoint=x"]
    with pytest.raises(ConfigErrors) as refused:
        load_scale_config("refine", None, overrides)
    assert refused.value.problems == [
        "refine.candidats: unknown key; did you mean candidates?",
        "ioi: `scale refine` does not read it; remove it",
    ]
    with pytest.raises(ConfigErrors) as refused:
        load_scale_config("refine", None, [overrides[0], *overrides[3:]])
    told = "\n".join(refused.value.problems)
    assert all(part in told for part in ("endpoint.base_url: not given", "refine.rounds: 0 must be above 0", "checkpoint: only"))
    with pytest.raises(ConfigErrors, match="one of the two answers"):
        load_scale_config("refine", None, ["budget.seconds=3"])
    with pytest.raises(ConfigErrors) as refused:
        load_scale_config("refine", None, [f"policy.{key}" for key in ("precision=int4", "generation.backend=vllm", "generation.max_new_tokens=0")])
    told = "\n".join(refused.value.problems)
    assert all(part in told for part in ("precision: int4 is none of", "max_new_tokens: 0 must", "only megatron samples"))


def test_the_paper_s_numbers_are_the_defaults():
    config = load_scale_config("ioi", None, ["endpoint.base_url=http://x/v1", "endpoint.model=m"])
    proofs = config.refine
    assert (proofs.candidates, proofs.verifications, proofs.keep, proofs.critiques, proofs.refinements) == (128, 64, 32, 8, 4)
    assert (proofs.rounds, proofs.enough, config.ioi.rounds, config.ioi.candidates) == (8, 0.99999, 50, 40)
    assert (config.icpc.candidates, config.endpoint.temperature, config.endpoint.top_p) == (1000, 1.0, 0.95)


def test_a_refusal_is_lines_and_code_2(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    # It changes this process's logging for good.
    monkeypatch.setattr("nemo_cascade.cascade.cli.quiet_logs", lambda: None)
    here = ["endpoint.base_url=http://127.0.0.1:1/v1", "endpoint.model=m"]
    (tmp_path / "problems.jsonl").write_text('{"statement": "x"}\n')
    said = {"none.jsonl": "none.jsonl: No such file or directory\n", "problems.jsonl": "http://127.0.0.1:1/v1/models cannot"}
    for file, line in said.items():
        with pytest.raises(SystemExit) as end:
            app(["refine", file, "--out", "out", *here])
        told = capfd.readouterr()
        assert end.value.code == 2 and told.out == "" and told.err.startswith(f"nemo-cascade: {line}")
    assert not (tmp_path / "out").exists()


def test_every_method_has_its_table():
    spent = dict(generations=3, tokens=5, verdicts=1, faults=0, seconds=1.0)
    common = {"spent": spent, "stopped": "max_tokens", "score": None, "chosen": None}
    own = {
        "best_of_n": {"mean": None, "best": None},
        "refine": {"rounds": []},
        "ioi": {"score": 1.0, "full": 2, "submissions": 1, "subtasks": {"a": {"points": 1.0}}},
        "icpc": {"solved": False, "submissions": 4, "penalty": None},
    }
    shown = {"best_of_n": "reward", "refine": "rounds", "ioi": "1 of 2", "icpc": "penalty"}
    for method, more in own.items():
        console = Console(width=200, file=io.StringIO())
        console.print(table({"method": method, "problems": {"p": {**common, **more}}}))
        text = console.file.getvalue()
        assert shown[method] in text and "max_tokens" in text


def test_what_the_documentation_shows_works(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    (tmp_path / "problems.jsonl").write_text(json.dumps(json.loads(re.search("```json\n(.*?)```", text, re.DOTALL)[1])))
    assert load_problems(tmp_path / "problems.jsonl", "ioi")["sums"]["subtasks"][1]["points"] == 70
    own: dict = {}
    exec(re.search("```python\n(.*?)```", text, re.DOTALL)[1], own)
    row = {"responses_create_params": {"input": "x"}}
    rates = Rates(lambda case: float(case.key == "p/c2"))
    work = Work("p", Simulated(lambda ask: ask.key), rates, Budget(), Memory(), clock=rates.clock)
    assert own["first_right"](row, work, BestOfNConfig(n=5)) == "p/c2" and work.spent.generations == 3
    # Every command, up to the files that it names.
    for line in re.findall("nemo-cascade scale (.*)", text):
        method, _, _, _, *rest = line.partition("   #")[0].split()
        overrides = [part for part in rest if "=" in part] + ENDPOINT * ("--config" in rest)
        load_scale_config(method.replace("-", "_"), None, overrides)
    for overrides in re.findall("`((?:refine|ioi|icpc|best_of_n)\\.[^`]*=[^`]*)`", text):
        load_scale_config(overrides.split(".")[0], None, [*ENDPOINT, *overrides.split()])
