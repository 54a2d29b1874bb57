"""A judge behind an endpoint judges only when it agrees with known preferences, and its address may change under a run."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemo_cascade.cascade import agreement, runner
from nemo_cascade.cascade.config import JudgeConfig
from nemo_cascade.cascade.plan import HARMLESS, JUDGE_OF_REPLIES, RunRefused
from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.data.rows import messages_of
from nemo_cascade.engine.config import PolicyConfig
from nemo_cascade.environments import row_problem
from nemo_cascade.environments.endpoint import EndpointConfig
from nemo_cascade.stages.config import EnvConfig
from tests.environments.test_endpoint import Listing, Model, served

ROWS = [row for row in DOMAINS["preference_pairs"].rows(60, "validation") if row_problem(row) is None][:40]


class Knowing(Model):
    """Gives every fourth pair the wrong way round, and to every tenth no readable answer."""

    def said(self, messages):
        number = next(n for n, row in enumerate(ROWS) if messages_of(row)[-2:] == messages[-2:] and messages_of(row) == messages)
        scores = ROWS[number]["expected_scores"]
        if number % 10 == 1:
            return "both are nice"
        if number % 4 == 0:
            scores = {"score_1": scores["score_2"], "score_2": scores["score_1"], "ranking": 7 - scores["ranking"]}
        return json.dumps(scores)


@pytest.fixture
def judged(tmp_path):
    """(a cascade judged by a served model that agrees with 26 of 40 preferences, the model)."""
    file, model = tmp_path / "pairs.jsonl", Knowing()
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with served(model) as url:
        judge = JudgeConfig(endpoint=EndpointConfig(base_url=url, model="m", tries=2), agreement=str(file), min_agreement=0.6)
        yield SimpleNamespace(judge=judge, run_dir=str(tmp_path / "run")), model


def test_agreement_is_the_share_of_preferences_and_is_written_down(judged):
    cascade, _ = judged
    words = runner.agreement_of_endpoint(cascade)
    assert words == "the judge m agrees with 0.650 of 40 known preferences (4 of its answers could not be read)"
    written = json.loads((agreement.Path(cascade.run_dir) / agreement.FILE).read_text())
    assert written == {"model": "m", "agreement": 0.65, "pairs": 40, "unreadable": 4}


def test_rows_that_train_a_judge_measure_agreement_too(judged):
    cascade, _ = judged
    rows = [{**row, "grading_mode": "distance"} for row in ROWS]
    Path(cascade.judge.agreement).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert agreement.measure(cascade.judge, Path(cascade.run_dir))["agreement"] == 0.65


def test_a_judge_that_agrees_too_little_stops_the_run_before_it_begins(judged):
    cascade, _ = judged
    cascade.judge.min_agreement = 0.7
    with pytest.raises(RunRefused, match="agrees with 0.650 of 40.*less than cascade.judge.min_agreement=0.7"):
        runner.agreement_of_endpoint(cascade)


def test_a_run_that_goes_on_asks_only_what_was_not_answered(judged):
    cascade, model = judged
    runner.agreement_of_endpoint(cascade)
    before = len(model.asked)
    runner.agreement_of_endpoint(cascade)
    assert len(model.asked) - before == 2 * 4


def test_an_endpoint_that_refuses_is_a_refusal_of_the_run(judged):
    cascade, model = judged
    model.status = 404
    with pytest.raises(RunRefused, match="cascade.judge.endpoint: http.*status 404"):
        runner.agreement_of_endpoint(cascade)


def test_without_an_endpoint_nothing_is_asked():
    assert runner.agreement_of_endpoint(SimpleNamespace(judge=None)) is None
    assert runner.agreement_of_endpoint(SimpleNamespace(judge=JudgeConfig(stage="genrm"))) is None


def test_where_a_judge_is_served_may_change_under_a_run_and_which_one_may_not():
    assert "cascade.judge_endpoint.base_url".startswith(HARMLESS)
    assert not "cascade.judge_endpoint.model".startswith(HARMLESS)
    assert JUDGE_OF_REPLIES.fullmatch("env.judges.math.base_url") and not JUDGE_OF_REPLIES.fullmatch("env.judges.math.model")


def test_a_judge_of_replies_that_cannot_be_asked_stops_the_run_before_it_begins():
    with served(Listing()) as url:
        judges = {"math": EndpointConfig(url, "judge"), "long_context": EndpointConfig(url, "juge")}
        stages = {"rl": SimpleNamespace(env=EnvConfig(judges=judges), policy=PolicyConfig())}
        with pytest.raises(RunRefused, match=f"^env.judges.long_context: {url}/models has no model 'juge', only judge$"):
            runner.refuse_absent_servers(SimpleNamespace(stages=stages), ["rl"])
        runner.refuse_absent_servers(SimpleNamespace(stages=stages), [])
    with pytest.raises(RunRefused, match="env.judges.math: .*cannot be reached.*\nenv.judges.long_context: .*cannot be reached"):
        runner.refuse_absent_servers(SimpleNamespace(stages=stages), ["rl"])
