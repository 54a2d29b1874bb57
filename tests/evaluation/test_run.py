"""What is asked again and what is not, what a result leaves out, and what is refused before anybody is asked."""

import io
import json

import pytest
from rich.console import Console

from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.data.hashes import json_hash
from nemo_cascade.environments.endpoint import EndpointConfig, EndpointError
from nemo_cascade.environments.faults import no_verdict
from nemo_cascade.evaluation import command, results, run, scoring
from nemo_cascade.evaluation.benchmark import prepared
from nemo_cascade.evaluation.benchmarks import BENCHMARKS, SUITES, chosen
from nemo_cascade.evaluation.results import remarks, table
from nemo_cascade.evaluation.served import Served
from tests.environments.test_endpoint import served
from tests.evaluation.scripted import Scripted

ROWS = [
    {"responses_create_params": {"input": f"Letter {letter}? \\boxed{{}}"}, "options": [{"A": "a"}, {"B": "b"}], "expected_answer": letter}
    for letter in "ABA"
]


class Here:
    """`replies.Source` that always answers B, and remembers what it was asked."""

    name, rank, ranks = "here", 0, 1

    def __init__(self, identity="here", silent=0):
        self.identity, self.silent, self.asked = identity, silent, []

    def share(self, function, items):
        return function(items)

    def close(self):
        pass

    def answer(self, samples, settings, heard):
        self.asked = [(sample.row["expected_answer"], sample.number) for sample in samples]
        text = {"type": "message", "content": [{"type": "output_text", "text": "\\boxed{B}"}]}
        replies = {}
        for sample in samples[self.silent :]:
            finish = "length" if sample.number else "stop"
            replies[sample.key] = {"response": {"output": [text]}, "finish": finish, "tokens": 4}
            heard(sample, replies[sample.key])
        return replies


class AtOnce:
    """`Verifiers` without processes."""

    def __init__(self):
        self.count = 0

    def submit(self, row, response):
        from concurrent.futures import Future

        from nemo_cascade.environments.workers import _verify_one

        self.count += 1
        future = Future()
        future.set_result(_verify_one("mcqa", row, response))
        return future


def data(tmp_path, rows=ROWS):
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    (folder / "gpqa_diamond.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def gpqa(tmp_path, source, rows=ROWS, **changed):
    """(what was asked, replies verified, the result)."""
    parts = run.asked([BENCHMARKS["gpqa_diamond"]], data(tmp_path, rows), None, {"samples": 2, **changed}, judge=False)
    verifiers = AtOnce()
    (result,) = run.evaluate(parts, source, verifiers, tmp_path / "out", Console(quiet=True))
    return source.asked, verifiers.count, result


def test_only_what_has_changed_is_asked_and_scored_again(tmp_path):
    everything = [(letter, number) for letter in "ABA"[:2] for number in range(2)]
    asked, verified, result = gpqa(tmp_path, Here())
    assert asked == everything and verified == 4, "the third row is the first again"
    assert 100 * result.estimate.score == 50.0 and (result.prompts, result.samples) == (2, 4)
    assert gpqa(tmp_path, Here())[:2] == ([], 0)
    assert gpqa(tmp_path, Here(), samples=3)[:2] == ([("A", 2), ("B", 2)], 2)
    assert gpqa(tmp_path, Here(), temperature=0.5)[:2] == (everything, 4)
    assert gpqa(tmp_path, Here("another model"))[:2] == (everything, 4)
    changed = [ROWS[0], {**ROWS[1], "question": "?"}]
    assert gpqa(tmp_path, Here(), changed)[:2] == ([("B", 0), ("B", 1)], 2)
    assert gpqa(tmp_path, Here())[:2] == ([], 0), "all that was said before is still there"


def test_the_result_says_what_was_left_out_and_is_whole_the_next_time(tmp_path):
    _, _, result = gpqa(tmp_path, Here(silent=1))
    assert (result.without_reply, result.unscored, result.pass_at_k) == (1, 1, None)
    assert result.truncated == 2 / 3 and result.mean_tokens == 4
    assert "GPQA-Diamond: 1 samples count in no score (1 without a reply); the same command tries again" in remarks([result])
    asked, _, result = gpqa(tmp_path, Here())
    assert asked == [("A", 0)] and (result.unscored, result.pass_at_k) == (0, 50.0)


def test_the_papers_number_stands_beside_real_rows_with_what_differs(tmp_path):
    _, _, result = gpqa(tmp_path, Here(), max_tokens=64)
    told = result.as_json()
    assert told["paper"]["score"] == 76.1 and told["paper"]["settings that differ"] == ["samples 2, not 8", "max_tokens 64, not 131072"]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table([result]))
    shown = console.export_text()
    assert "76.1*" in shown and "avg@2" in shown
    (line,) = remarks([result])
    assert line == "* GPQA-Diamond, the paper's table 1: here samples 2, not 8; here max_tokens 64, not 131072"


def test_a_reply_whose_verifier_fails_is_tried_again(tmp_path, monkeypatch):
    fails = lambda pairs, verifiers, judge, scored: [no_verdict("verifier_died", "", 0.0) for _ in pairs]  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(run, "score", fails)
        _, _, result = gpqa(tmp_path, Here())
    assert result.estimate is None and result.faults == {"verifier_died": 4} and result.as_json()["score"] is None
    asked, verified, result = gpqa(tmp_path, Here())
    assert (asked, verified, result.unscored) == ([], 4, 0)


def test_a_request_that_is_refused_costs_itself_and_all_refused_end_the_evaluation(tmp_path):
    rows = [prepared(BENCHMARKS["gpqa_diamond"], row) for row in ROWS[:2]]
    with served(Scripted(rows, [2, 2], refuses="Letter A")) as url:
        _, _, result = gpqa(tmp_path, Asking(url))
    assert (result.without_reply, result.estimate.score) == (2, 1.0)
    with served(Scripted(rows, [2, 2], refuses="Letter")) as url, pytest.raises(EndpointError, match="status 400.*too long"):
        gpqa(tmp_path, Asking(url))


class Asking(Served):
    """A served model."""

    asked = None

    def __init__(self, url):
        super().__init__(EndpointConfig(url, "scripted"))


def test_a_judge_decides_where_a_row_needs_one(monkeypatch):
    row = {"expected_answer": "the lamp", "needs_judge": True, "agent_ref": {"name": "long_context_simple_agent"}}
    response = {"output": [{"type": "message", "content": [{"type": "output_text", "text": "a light"}]}]}
    monkeypatch.setattr(scoring, "judge_all", lambda verified, judge: [{"reward": 1.0, "judge": judge} for _ in verified])
    scored = []
    verdicts = scoring.score([(row, response)], NoWorkers(), "the judge", lambda *told: scored.append(told))
    assert verdicts == [{"reward": 1.0, "judge": "the judge"}] and scored == [(0, verdicts[0])]


class NoWorkers(AtOnce):
    def submit(self, row, response):
        from concurrent.futures import Future

        from nemo_cascade import environments

        future = Future()
        future.set_result(environments.get("long_context").verify(row, response))
        return future


def test_everything_that_is_wrong_is_told_at_once(tmp_path):
    folder = data(tmp_path, [ROWS[0], {**ROWS[1], "expected_answer": "C"}])
    with pytest.raises(RunRefused) as refused:
        run.asked(chosen(["knowledge", "preference"]), folder, None, {}, judge=False)
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    assert "gpqa_diamond.jsonl, row 2: expected_answer 'C' is none of the options' letters A, B" in lines[0]
    assert "mmlu_pro.jsonl: no such file; it has rows of `mcqa`" in lines[1] and "arena_hard_v2.jsonl: no such file" in lines[2]
    with pytest.raises(RunRefused, match="arena_hard_v2: a judge has to be asked .* --judge URL --judge-model NAME"):
        run.asked(chosen(["arena_hard_v2"]), None, 1, {}, judge=False)


def test_options_that_contradict_each_other_are_told_at_once():
    none = dict.fromkeys(("checkpoint", "hf", "endpoint", "model", "judge", "judge_model", "overrides"))
    assert "nobody to ask" in command._contradictions(**none)[0]
    wrong = command._contradictions(**none | dict(hf="a", endpoint="b", judge="c", overrides=["policy.a=1"]))
    assert len(wrong) == 4 and "--hf and --endpoint: give one" in wrong[0]
    assert command._contradictions(**none | dict(endpoint="b", model="m")) == []


def test_suites_hold_every_benchmark_once_and_are_asked_for_in_any_way():
    assert [benchmark.name for benchmark in chosen(["all"])] == list(BENCHMARKS)
    assert sum(map(len, SUITES.values())) == len(BENCHMARKS)
    assert [benchmark.name for benchmark in chosen(["ifeval", "math"])] == ["aime25", "aime26", "hmmt_feb25", "ifeval"]
    with pytest.raises(KeyError, match="maths"):
        chosen(["maths"])


def test_two_samples_of_a_row_have_keys_of_their_own_and_a_restart_the_same(tmp_path):
    gpqa(tmp_path, Here())
    path = tmp_path / "out" / "gpqa_diamond" / "replies_0.jsonl"
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert len(set(keys)) == 4 and all(len(key) == len(json_hash("")) for key in keys)
    assert (tmp_path / "out" / results.FILE).is_file() and not list((tmp_path / "out").glob("run.lock"))
