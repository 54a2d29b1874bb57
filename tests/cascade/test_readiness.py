"""A row or a verifier that would spoil a stage is found before it begins, by name."""

from pathlib import Path

import pytest

from nemo_cascade import environments
from nemo_cascade.cascade import readiness
from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.cascade.readiness import SAMPLE, dry_pass, refuse_broken
from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.data.rows import DataError
from nemo_cascade.stages.config import EnvConfig, NemoGymConfig
from nemo_cascade.stages.data import Domain

VERIFY = """
import os

EXAMPLES = [({}, "good", 1.0), ({}, "bad", 0.0)]

def reference(row):
    return row.get("right")

def verify(row, response):
    if row.get("trap") == "raise":
        return row["not there"]
    if row.get("trap") == "exit":
        os._exit(7)
    if row.get("trap") == "nan":
        return {"reward": float("nan")}
    text = "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])
    return {"reward": float(text in ("good", row.get("good")))}
"""


@pytest.fixture
def trapped(tmp_path, monkeypatch):
    """The name of an environment of another package that fails where a row says so."""
    info = tmp_path / "trapped-1.0.dist-info"
    info.mkdir()
    (tmp_path / "trapped.py").write_text(VERIFY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trapped\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nemo_cascade.environments]\ntrapped = trapped\n")
    monkeypatch.syspath_prepend(tmp_path)
    environments._third_party.cache_clear()
    # Workers that are running already know no environment of this test.
    readiness.verifiers.cache_clear()
    yield "trapped"
    for workers in (readiness.verifiers(1),):
        workers.close()
    readiness.verifiers.cache_clear()
    environments._third_party.cache_clear()
    environments.get.cache_clear()


@pytest.fixture(autouse=True)
def nothing_was_tried_before():
    readiness._good.clear()
    yield
    readiness._good.clear()


def domain_of(name: str, *rows: dict) -> Domain:
    rows = [{"agent_ref": {"name": name}, "enable_thinking": False, **row} for row in rows]
    return Domain("math", Path("rows.jsonl"), rows, list(range(1, 2 * len(rows), 2)), 1.0)


ONE = EnvConfig(num_workers=1)


def test_rows_at_which_their_verifier_fails_are_named_and_no_others(trapped):
    rows = [{}] * 30 + [{"trap": "raise"}, {}, {"trap": "exit"}, {"trap": "nan"}]
    with pytest.raises(DataError) as refused:
        dry_pass(domain_of(trapped, *rows), ONE)
    raised, ended, no_number, remedy = str(refused.value).splitlines()
    assert raised.startswith("rows.jsonl, row 61: at a wrong reply to it the verifier of trapped raised KeyError: 'not there'")
    assert ended.startswith("rows.jsonl, row 65: ") and "exit status 7" in ended
    assert no_number.startswith("rows.jsonl, row 67: a wrong reply to it earns nan by trapped")
    assert remedy == "mend the rows, or set data.on_bad_row=skip to train on them as they are"
    assert len(dry_pass(domain_of(trapped, *rows), ONE, on_bad_row="skip")) == 3


def test_a_right_reply_that_a_row_tells_must_earn_more_than_a_wrong_one(trapped):
    rows = [{"right": "yes", "good": "yes"}, {"right": "yes", "good": "no"}, {}]
    with pytest.raises(DataError, match="row 3: its own right reply, 'yes', earns 0 by trapped; expected more than the 0 of a wrong"):
        dry_pass(domain_of(trapped, *rows), ONE)
    assert dry_pass(domain_of(trapped, rows[0], rows[2]), ONE) == []


def test_a_long_file_is_tried_in_places_spread_over_it_and_says_so(trapped, monkeypatch):
    monkeypatch.setattr(readiness, "MOST", 10)
    rows = [{} if place % 10 else {"trap": "raise"} for place in range(100)]
    (note, *_) = dry_pass(domain_of(trapped, *rows), ONE, on_bad_row="skip")
    assert note == "rows.jsonl: 10 of 100 rows of trapped were tried, spread over the file"


def test_a_server_that_does_not_answer_is_found(trapped, monkeypatch):
    monkeypatch.setattr(readiness.GymClient, "__init__", lambda self, url, **_: None)
    monkeypatch.setattr(readiness.GymClient, "verify_all", unreachable)
    env = EnvConfig(nemo_gym=NemoGymConfig(servers={trapped: "http://nowhere"}))
    with pytest.raises(DataError, match="the verifier of trapped fails: nobody is there"):
        dry_pass(domain_of(trapped, *[{}] * 3), env)


def unreachable(client, pairs):
    assert len(pairs) <= 2 * SAMPLE
    raise readiness.GymError("nobody is there")


@pytest.mark.parametrize("name", DOMAINS)
def test_demo_rows_are_ready(name):
    rows = DOMAINS[name].rows(3, "train")
    domain = Domain(name, Path("rows.jsonl"), rows, [1, 2, 3], 1.0)
    assert dry_pass(domain, EnvConfig(num_workers=1)) == []


@pytest.mark.parametrize("name", ["math", "mcqa", "tool_use", "long_context"])
def test_right_replies_are_told_by_demo_rows_of_domains_that_have_them(name):
    assert all(environments.reference(row) for row in DOMAINS[name].rows(3, "train"))


def test_an_environment_whose_examples_earn_something_else_is_refused_before_the_stage(trapped, monkeypatch):
    refuse_broken("math_rl", [trapped])
    readiness._good.clear()
    monkeypatch.setattr(environments.get(trapped), "verify", lambda row, response: {"reward": 0.0})
    with pytest.raises(RunRefused, match=r"stage math_rl: trapped, example 0 \('good' to \{\}\): earns 0 instead of 1"):
        refuse_broken("math_rl", [trapped])


def test_examples_are_tried_once_in_a_process_but_again_after_a_while_where_they_need_the_sandbox(trapped, monkeypatch):
    tried, now = [], [0.0]
    monkeypatch.setattr(environments, "self_test", lambda name: tried.append(name) or [])
    monkeypatch.setattr(readiness.time, "monotonic", lambda: now[0])
    for now[0] in (1000.0, 1010.0, 1000.0 + readiness.FRESH):
        refuse_broken("stage", [trapped, "code_gen"])
    assert sorted(tried) == ["code_gen", "code_gen", trapped]
