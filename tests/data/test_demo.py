"""Demo domains: right demonstrations, disjoint splits, harder RL level, the same rows every time, room for all of it."""

import json

import pytest

from nemo_cascade import environments
from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.data.chat import conversation_to_samples, encode, render_prompt
from nemo_cascade.data.demo import DOMAINS, LEVELS, NON_THINKING_EVERY, is_validation, prompt_of, write
from nemo_cascade.data.rows import environment_of, load_rows, messages_of, rl_problem, tools_of
from nemo_cascade.data.tokenizer import load_tokenizer


def every(domains):
    return pytest.mark.parametrize("domain", [DOMAINS[name] for name in domains], ids=list(domains))


# Only a judge can compare letters; what is right to say about two of them, and both domains' rows, has tests in
# test_demo_preference.py.
VERIFIED = [name for name, domain in DOMAINS.items() if domain.environment != "genrm_compare"]
EVERY_DOMAIN = every(DOMAINS)
EVERY_LEVEL = pytest.mark.parametrize("level", LEVELS)
# How often a guess is right. Half of the removals are by place: one of 3 to 7, at the RL level.
CHANCE = {"mcqa": 0.25, "tool_use": 0.5 * sum(1 / n for n in range(3, 8)) / 5, "long_context": 0.25, "preference_pairs": 0.5}


def reply(demonstration):
    """What a model has to write to say the same, without the stop token."""
    message = demonstration["messages"][-1]
    thought = f"{message['reasoning_content']}\n</think>\n" if "reasoning_content" in message else ""
    return thought + message["content"]


def reward(row, text, thinking):
    return environments.get(environment_of(row)).verify(row, environments.response_of(text, thinking))["reward"]


def some_rows(domain, level="rl"):
    """Rows with their numbers, but no pairs of equally good letters, with which no judge could agree.

    Fewer where every reply starts a process.
    """
    slow = environments.in_threads(domain.environment or domain.name)
    rows = enumerate(domain.rows(30 if slow else 300, "train", level=level))
    pairs = domain.name == "preference_pairs"
    return [(number, row) for number, row in rows if not pairs or environments.row_problem(row) is None]


@every(VERIFIED)
@EVERY_LEVEL
def test_every_demonstration_earns_the_full_reward_from_its_own_environment(domain, level):
    for number, row in some_rows(domain, level):
        assert environments.row_problem(row) is None and rl_problem(row, {domain.environment or domain.name}) is None
        demonstration = domain.demonstration(row, number)
        thinks = "reasoning_content" in demonstration["messages"][-1]
        assert reward(row, reply(demonstration), thinks) == 1.0, row


@every(VERIFIED)
def test_another_rows_demonstration_earns_it_no_more_often_than_a_guess(domain):
    rows = [row for _, row in some_rows(domain)]
    others = [domain.demonstration(row)["messages"][-1]["content"] for row in rows[1:] + rows[:1]]
    earned = sum(reward(row, answer, thinking=False) for row, answer in zip(rows, others))
    assert earned / len(rows) < CHANCE.get(domain.name, 0.0) + 0.15


@EVERY_DOMAIN
def test_one_demonstration_in_ten_has_no_thought(domain):
    rows = domain.rows(3 * NON_THINKING_EVERY, "train", level="demo")
    shown = [domain.demonstration(row, number)["messages"][-1] for number, row in enumerate(rows)]
    without = [number for number, message in enumerate(shown) if "reasoning_content" not in message]
    assert without == [9, 19, 29]


@EVERY_DOMAIN
def test_a_demonstration_shows_the_tools_that_its_prompt_offers(domain):
    (row,) = domain.rows(1, "train", level="demo")
    demonstration = domain.demonstration(row)
    assert demonstration.get("tools") == tools_of(row)
    assert (tools_of(row) is not None) == (domain.name == "tool_use")


@EVERY_DOMAIN
def test_training_and_validation_share_no_prompt_at_any_level(domain):
    validation = {prompt_of(row) for row in domain.rows(300, "validation")}
    assert len(validation) == 300 and all(map(is_validation, validation))
    for level in LEVELS:
        assert not validation & {prompt_of(row) for row in domain.rows(1000, "train", level=level)}


@every(name for name in DOMAINS if not name.startswith("preference"))
def test_the_rl_level_goes_beyond_the_demonstrations(domain):
    """Its prompts or answers reach lengths that no demonstration has.

    Letters and pairs of them are as long at both levels: there the room for RL is what judges prefer.
    """

    def longest(level):
        rows = domain.rows(500, "train", level=level)
        return max(len((prompt_of(row) + domain.demonstration(row)["messages"][-1]["content"]).split()) for row in rows)

    assert longest("rl") > longest("demo")


@EVERY_DOMAIN
@EVERY_LEVEL
def test_rows_are_the_same_every_time_differ_by_seed_and_survive_a_file(domain, level):
    rows = domain.rows(20, "train", seed=3, level=level)
    assert rows == domain.rows(20, "train", seed=3, level=level) != domain.rows(20, "train", seed=4, level=level)
    for row in rows:
        assert domain.demonstration(json.loads(json.dumps(row))) == domain.demonstration(row)


@EVERY_DOMAIN
@EVERY_LEVEL
def test_prompts_and_right_replies_have_room_in_the_demo(domain, level):
    """Every demonstration also fits in as many tokens as RL lets a model write."""
    policy, tokenizer = compose_config("tiny").policy, load_tokenizer("tiny")
    for number, row in enumerate(domain.rows(100, "train", level=level)):
        demonstration = domain.demonstration(row, number)
        thinks = "reasoning_content" in demonstration["messages"][-1]
        prompt = render_prompt(tokenizer, messages_of(row), tools_of(row), enable_thinking=thinks)
        assert len(prompt) + policy.generation.max_new_tokens <= policy.max_total_sequence_length
        (sample,) = conversation_to_samples(tokenizer, demonstration)
        written = sample.tokens[len(prompt) :]
        assert len(written) <= policy.generation.max_new_tokens
        assert written[:-1] == encode(tokenizer, reply(demonstration))


def test_too_many_rows_are_refused_not_repeated():
    with pytest.raises(ValueError, match="ask for fewer"):
        DOMAINS["instruction_following"].rows(1000, "validation", level="demo")


def test_the_written_files_pass_the_loader_and_a_domain_may_have_numbers_of_its_own(tmp_path):
    own = {"math": {"sft_rows": 7, "validation_rows": 3}}
    write(tmp_path, train_rows=20, validation_rows=10, sft_rows=30, rows_of=own)
    for name in DOMAINS:
        counts = {"train_rows": 20, "validation_rows": 10, "sft_rows": 30} | own.get(name, {})
        for split, kind in (("train", "rl"), ("validation", "rl"), ("sft", "sft")):
            rows, reading = load_rows(
                tmp_path / name / f"{split}.jsonl",
                kind,
                environments=environments.names(),
                unverifiable=lambda rows: [environments.row_problem(row) for row in rows],
            )
            assert len(rows) == counts[f"{split}_rows"] and not reading.skipped
        assert json.loads((tmp_path / name / "train.jsonl").read_text().splitlines()[0])["domain"] == name
