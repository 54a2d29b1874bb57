"""Demo tasks whose replies are run, and the one with a long input: right demonstrations in two ways, room for RL."""

from collections import Counter

import pytest

from nemo_cascade import environments
from nemo_cascade.data.chat import conversation_to_samples, render_prompt
from nemo_cascade.data.demo import DOMAINS, LEVELS, long_context, prompt_of
from nemo_cascade.data.demo.words import COLORS
from nemo_cascade.data.rows import environment_of, messages_of
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.environments.swe_repair.hidden_tests import failed_tests

EVERY_LEVEL = pytest.mark.parametrize("level", LEVELS)


def reward(row, answer):
    return environments.get(environment_of(row)).verify(row, environments.response_of(f"</think>{answer}"))["reward"]


def ways(domain, row):
    """The different (thought, answer) that a row is demonstrated by."""
    messages = [domain.demonstration(row, number)["messages"][-1] for number in range(60)]
    return {(m["reasoning_content"], m["content"]) for m in messages if "reasoning_content" in m}


@pytest.mark.parametrize("name, share", [("code_gen", 0.25), ("swe_repair", 0.5)])
def test_both_ways_are_shown_and_the_surer_one_as_often_as_the_task_says(name, share):
    """The surer way is the longer one: statements, the line above."""
    domain = DOMAINS[name]
    surer = 0
    for row in domain.rows(400, "train", level="demo"):
        two = sorted(ways(domain, row), key=lambda way: len("".join(way)))
        assert len(two) == 2
        message = domain.demonstration(row)["messages"][-1]
        surer += (message["reasoning_content"], message["content"]) == two[1]
    assert share - 0.1 < surer / 400 < share + 0.1


# ------------------------------------------------------------------------------------------------- one by one


def test_an_expression_without_its_parentheses_is_wrong():
    domain = DOMAINS["code_gen"]
    nested = [
        (row, answer)
        for row in domain.rows(60, "train")
        for answer in {answer for _, answer in ways(domain, row)}
        if answer.startswith("print((")
    ]
    assert len(nested) > 20
    for row, answer in nested[:10]:
        flat = answer.replace("int(input())", "x").removeprefix("print").translate({ord("("): None, ord(")"): None})
        assert reward(row, f"x = int(input())\nprint({flat})") == 0.0, row


def test_the_wrong_line_alone_fails_where_it_is_shared_and_the_line_above_never_does():
    domain = DOMAINS["swe_repair"]
    alone = {0.0: 0, 1.0: 0}
    for row in domain.rows(40, "train"):
        (path,), lines = row["files"], list(row["files"].values())[0].splitlines()
        place = lines.index(f"def {row['wrong_function']}(x):")
        above, old, new = lines[place], lines[place + 1], f"    return {row['right_formula']}"
        single = f"{path}\n<<<<<<< SEARCH\n{old}\n=======\n{new}\n>>>>>>> REPLACE"
        double = f"{path}\n<<<<<<< SEARCH\n{above}\n{old}\n=======\n{above}\n{new}\n>>>>>>> REPLACE"
        assert reward(row, double) == 1.0
        earned = reward(row, single)
        assert earned == float(lines.count(old) == 1)
        alone[earned] += 1
    assert alone[0.0] > 10 and alone[1.0] > 10


def test_demonstrations_of_repair_come_from_files_whose_lines_differ():
    for row in DOMAINS["swe_repair"].rows(200, "train", level="demo"):
        lines = list(row["files"].values())[0].splitlines()
        assert len(set(lines)) == len(lines)


def test_the_planted_bug_fails_its_own_test_only():
    for level in LEVELS:
        for row in DOMAINS["swe_repair"].rows(15, "train", level=level):
            names = row["fail_to_pass"] + row["pass_to_pass"]
            failed = failed_tests(row["files"], row["tests"], names)
            assert failed == row["fail_to_pass"] and len(names) == len(set(names))


@EVERY_LEVEL
def test_the_answer_is_the_colour_that_most_pages_name(level):
    """By a reader of its own, who knows the text and nothing else; all colours are answers."""
    answers = set()
    for row in DOMAINS["long_context"].rows(200, "train", level=level):
        *pages, question = prompt_of(row).split("\n")
        assert question == "Which color do most pages name?"
        named = Counter(page.split(".")[0].split(": ")[1] for page in pages)
        low, high = long_context.PAGES[level]
        assert low <= len(pages) <= high
        (first, count), *others = named.most_common()
        assert first == row["expected_answer"] and all(count > other for _, other in others)
        answers.add(first)
    assert answers == set(COLORS)


def test_leads_are_smaller_at_the_rl_level_and_filler_cannot_be_counted():
    leads, misled = {}, 0
    for level in LEVELS:
        shares = []
        for row in DOMAINS["long_context"].rows(200, "train", level=level):
            *pages, _ = prompt_of(row).split("\n")
            (_, first), *others = Counter(page.split(".")[0].split(": ")[1] for page in pages).most_common()
            shares.append((first - max([count for _, count in others], default=0)) / len(pages))
            words = Counter(word.strip(".") for word in prompt_of(row).split() if word.strip(".") in COLORS)
            misled += level == "rl" and words.most_common(1)[0][0] != row["expected_answer"]
        leads[level] = sum(shares) / len(shares)
    assert leads["rl"] < 0.2 < 0.4 < leads["demo"]
    assert misled > 60, "who counts colours in the filler too is often wrong"


def lengths(level):
    """(tokens of the prompt, tokens with the demonstration) of some rows."""
    domain, tokenizer = DOMAINS["long_context"], load_tokenizer("tiny")
    pairs = []
    for row in domain.rows(100, "train", level=level):
        (sample,) = conversation_to_samples(tokenizer, domain.demonstration(row))
        pairs.append((len(render_prompt(tokenizer, messages_of(row))), len(sample.tokens)))
    return pairs


def test_every_input_of_the_rl_level_is_long_and_longer_than_any_demonstration():
    shown = [whole for _, whole in lengths("demo")]
    assert max(shown) < 600 and min(shown) < 200, "demonstrations are short, but of many lengths"
    assert min(prompt for prompt, _ in lengths("rl")) > max(1024, *shown)


def test_the_long_input_is_long_whatever_texts_a_tokenizer_was_trained_on():
    for row in DOMAINS["long_context"].rows(5, "train"):
        # Each of these is a token at least.
        words = prompt_of(row).replace(".", " .").replace(":", " :").replace("\n", " NL ").split()
        assert len(words) > 1024
