"""Demo tasks whose replies are run, and the one with a long input: right demonstrations in two ways, room for RL."""

import json

import pytest

from nemo_cascade import environments
from nemo_cascade.data.chat import encode, render_prompt
from nemo_cascade.data.demo import LEVELS, Domain, code_gen, long_context, prompt_of, swe_repair
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.environments import code_gen as code_gen_environment
from nemo_cascade.environments import long_context as long_context_environment
from nemo_cascade.environments import swe_repair as swe_repair_environment



def case(tasks, environment, count):
    name = environment.__name__.rpartition(".")[2]
    return name, (Domain(name, tasks.draw, tasks.demonstrate), environment, count)


# name: (domain, its environment, how many demonstrations to check at each level: fewer where each takes a process)
CASES = dict(
    [
        case(code_gen, code_gen_environment, 50),
        case(swe_repair, swe_repair_environment, 50),
        case(long_context, long_context_environment, 300),
    ]
)
EVERY_DOMAIN = pytest.mark.parametrize("name", CASES)
EVERY_LEVEL = pytest.mark.parametrize("level", LEVELS)


def reply(domain, row, number=0):
    """(thought, answer) of a demonstration."""
    message = domain.demonstration(row, number)["messages"][-1]
    return message["reasoning_content"], message["content"]


def reward(environment, row, answer):
    return environment.verify(row, environments.response_of(f"</think>{answer}"))["reward"]


def ways(domain, row):
    """The different demonstrations of a row."""
    return {reply(domain, row, number) for number in range(20)}


@EVERY_DOMAIN
@EVERY_LEVEL
def test_every_demonstration_earns_the_full_reward(name, level):
    domain, environment, count = CASES[name]
    for number, row in enumerate(domain.rows(count, "train", level=level)):
        assert environment.problem(row) is None
        assert reward(environment, row, reply(domain, row, number)[1]) == 1.0, row


@EVERY_DOMAIN
def test_another_rows_demonstration_seldom_earns_it(name):
    domain, environment, _ = CASES[name]
    rows = domain.rows(30, "train")
    assert sum(reward(environment, row, reply(domain, other)[1]) for row, other in zip(rows, rows[1:] + rows[:1])) < 12


@EVERY_DOMAIN
@EVERY_LEVEL
def test_rows_are_the_same_every_time_and_survive_a_file(name, level):
    domain = CASES[name][0]
    rows = domain.rows(20, "train", seed=3, level=level)
    assert rows == domain.rows(20, "train", seed=3, level=level) != domain.rows(20, "train", seed=4, level=level)
    for row in rows:
        assert domain.demonstration(json.loads(json.dumps(row))) == domain.demonstration(row)


@EVERY_DOMAIN
def test_both_ways_are_shown_about_equally_often(name):
    """The surer way is the longer one: statements, the line above, the quoted facts."""
    domain = CASES[name][0]
    surer = 0
    for row in domain.rows(400, "train", level="demo"):
        two = sorted(ways(domain, row), key=lambda way: len("".join(way)))
        assert len(two) == 2
        surer += reply(domain, row) == two[1]
    assert 150 < surer < 250


@EVERY_DOMAIN
def test_the_rl_level_goes_beyond_the_demonstrations(name):
    domain = CASES[name][0]
    longest = [max(len(prompt_of(row).split()) for row in domain.rows(200, "train", level=level)) for level in LEVELS]
    assert longest[0] < longest[1]


# ------------------------------------------------------------------------------------------------- one by one


def test_an_expression_without_its_parentheses_is_wrong():
    domain, environment, _ = CASES["code_gen"]
    nested = [
        (row, answer)
        for row in domain.rows(60, "train")
        for answer in {answer for _, answer in ways(domain, row)}
        if answer.startswith("print((")
    ]
    assert len(nested) > 20
    for row, answer in nested[:10]:
        flat = answer.replace("int(input())", "x").removeprefix("print").translate({ord("("): None, ord(")"): None})
        assert reward(environment, row, f"x = int(input())\nprint({flat})") == 0.0, row


def test_the_wrong_line_alone_fails_where_it_is_shared_and_the_line_above_never_does():
    domain, environment, _ = CASES["swe_repair"]
    alone = {0.0: 0, 1.0: 0}
    for row in domain.rows(40, "train"):
        (path,), lines = row["files"], list(row["files"].values())[0].splitlines()
        place = lines.index(f"def {row['wrong_function']}(x):")
        above, old, new = lines[place], lines[place + 1], f"    return {row['right_formula']}"
        single = f"{path}\n<<<<<<< SEARCH\n{old}\n=======\n{new}\n>>>>>>> REPLACE"
        double = f"{path}\n<<<<<<< SEARCH\n{above}\n{old}\n=======\n{above}\n{new}\n>>>>>>> REPLACE"
        assert reward(environment, row, double) == 1.0
        earned = reward(environment, row, single)
        assert earned == float(lines.count(old) == 1)
        alone[earned] += 1
    assert alone[0.0] > 20 and alone[1.0] > 2


def test_demonstrations_of_repair_come_from_files_whose_lines_differ():
    for row in CASES["swe_repair"][0].rows(200, "train", level="demo"):
        lines = list(row["files"].values())[0].splitlines()
        assert len(set(lines)) == len(lines)


def test_the_planted_bug_fails_its_own_test_only():
    for level in LEVELS:
        for row in CASES["swe_repair"][0].rows(15, "train", level=level):
            names = row["fail_to_pass"] + row["pass_to_pass"]
            failed = swe_repair_environment.failed_tests(row["files"], row["tests"], names, trusted_demo=True)
            assert failed == row["fail_to_pass"] and len(names) == len(set(names))


@EVERY_LEVEL
def test_following_the_pages_leads_to_the_answer(level):
    """By a reader of its own, who knows the text and nothing else."""
    domain, hops = CASES["long_context"][0], set()
    for row in domain.rows(200, "train", level=level):
        *pages, question = prompt_of(row).split("\n")
        facts = {page.split(": ")[0]: page.split(": ")[1].split(".")[0] for page in pages}
        assert len(facts) == len(pages) == long_context.PAGES[level]
        place, way = question.removesuffix(".").split()[-1], []
        while not place.isdigit():
            way.append(f"{place}: {facts[place]}")
            place = facts[place]
        assert place == row["expected_answer"] and way == row["way"]
        hops.add(len(way))
    low, high = long_context.HOPS[level]
    assert hops == set(range(low, high + 1))


@EVERY_LEVEL
def test_the_long_input_is_long_and_not_too_long(level):
    tokenizer = load_tokenizer("tiny")
    for row in CASES["long_context"][0].rows(5, "train", level=level):
        assert 1024 <= len(render_prompt(tokenizer, row["responses_create_params"]["input"])) <= 1200
        # Each of these is a token at least, whatever texts the tokenizer was trained on.
        words = prompt_of(row).replace(".", " .").replace(":", " :").replace("\n", " NL ").split()
        assert len(words) >= 1024


@EVERY_LEVEL
@pytest.mark.parametrize(
    "name, prompt, answer", [("code_gen", 80, 70), ("swe_repair", 160, 90), ("long_context", 1200, 60)]
)
def test_prompts_and_replies_stay_small(name, level, prompt, answer):
    """With the shipped tokenizer; one that is trained on these texts too needs half as many."""
    domain, tokenizer = CASES[name][0], load_tokenizer("tiny")
    for number, row in enumerate(domain.rows(100, "train", level=level)):
        assert len(render_prompt(tokenizer, row["responses_create_params"]["input"])) <= prompt
        assert len(encode(tokenizer, "</think>".join(reply(domain, row, number)))) <= answer
