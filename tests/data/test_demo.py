"""Demo domains: right demonstrations, disjoint splits, harder RL level, the same rows every time."""

import json

import pytest

from nemo_cascade import environments
from nemo_cascade.data.demo import DOMAINS, is_validation, prompt_of, write
from nemo_cascade.data.rows import environment_of, load_rows

EVERY_DOMAIN = pytest.mark.parametrize("domain", DOMAINS.values(), ids=list(DOMAINS))
# All but letters, which only a judge can compare (tests/data/test_demo_preference.py).
VERIFIED = {name: domain for name, domain in DOMAINS.items() if domain.environment != "genrm_compare"}
EVERY_VERIFIED = pytest.mark.parametrize("domain", VERIFIED.values(), ids=list(VERIFIED))


def reward(row, answer):
    return environments.get(environment_of(row)).verify(row, environments.response_of(f"</think>{answer}"))["reward"]


def some_rows(domain, level="rl"):
    """Fewer where every reply starts a process."""
    slow = getattr(environments.get(domain.environment or domain.name), "IN_THREADS", False)
    return domain.rows(30 if slow else 300, "train", level=level)


@EVERY_VERIFIED
@pytest.mark.parametrize("level", ["demo", "rl"])
def test_every_demonstration_earns_the_full_reward(domain, level):
    for row in some_rows(domain, level):
        if environments.row_problem(row) and domain.name == "preference_pairs" and level == "demo":
            continue  # two equal letters: something to learn from, nothing to agree with
        assert reward(row, domain.demonstration(row)["messages"][-1]["content"]) == 1.0, row


@EVERY_VERIFIED
def test_another_rows_demonstration_seldom_earns_it(domain):
    rows = some_rows(domain)
    others = rows[1:] + rows[:1]
    answers = [domain.demonstration(row)["messages"][-1]["content"] for row in others]
    assert sum(reward(row, answer) for row, answer in zip(rows, answers)) / len(rows) < 0.4


@EVERY_DOMAIN
def test_training_and_validation_share_no_prompt_at_any_level(domain):
    validation = {prompt_of(row) for row in domain.rows(300, "validation")}
    assert len(validation) == 300 and all(map(is_validation, validation))
    for level in ("demo", "rl"):
        assert not validation & {prompt_of(row) for row in domain.rows(1000, "train", level=level)}


@EVERY_DOMAIN
def test_the_rl_level_goes_beyond_the_demonstrations(domain):
    """Its prompts or answers reach lengths that no demonstration has."""
    def longest(level):
        rows = domain.rows(500, "train", level=level)
        return max(len((prompt_of(row) + domain.demonstration(row)["messages"][-1]["content"]).split()) for row in rows)

    assert longest("rl") > longest("demo")


@EVERY_DOMAIN
def test_rows_are_the_same_every_time_and_differ_by_seed(domain):
    assert domain.rows(20, "train", seed=3) == domain.rows(20, "train", seed=3) != domain.rows(20, "train", seed=4)


def test_too_many_rows_are_refused_not_repeated():
    with pytest.raises(ValueError, match="ask for fewer"):
        DOMAINS["instruction_following"].rows(1000, "validation", level="demo")


def test_the_written_files_pass_the_loader(tmp_path):
    write(tmp_path, train_rows=20, validation_rows=10, sft_rows=30)
    for name in DOMAINS:
        for split, kind, count in (("train", "rl", 20), ("validation", "rl", 10), ("sft", "sft", 30)):
            rows, reading = load_rows(tmp_path / name / f"{split}.jsonl", kind, environments=environments.names())
            assert len(rows) == count and not reading.skipped
        assert json.loads((tmp_path / name / "train.jsonl").read_text().splitlines()[0])["domain"] == name
