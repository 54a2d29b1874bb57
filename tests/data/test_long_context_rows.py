"""Long contexts have the length asked for, one answer, and it may stand anywhere."""

import json
import random
import re
import subprocess
import sys
from functools import cache

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nemo_cascade import environments
from nemo_cascade.data.long_context import TASKS, LengthError, Measure, generate, rows, write
from nemo_cascade.data.long_context.__main__ import main
from nemo_cascade.data.long_context.prose import sentences, short_sentences
from nemo_cascade.data.long_context.words import ADJECTIVES, FIRST_NAMES, NOUNS
from nemo_cascade.data.rows import environment_of, load_rows, messages_of
from nemo_cascade.data.tokenizer import load_tokenizer, train_tokenizer
from tests.data.long_context_solver import solve

EVERY_TASK = pytest.mark.parametrize("task", TASKS)
# Where every task has room, by any of the tokenizers.
ROOMY = 4096


@cache
def tokenizer(name):
    """tiny; one of ours trained on these texts, with three times its vocabulary; one of another make, which puts a mark before
    every text, so that no count of a piece is its share of the whole."""
    if name == "tiny":
        return load_tokenizer("tiny")
    texts = [text_of(row) for row in rows(list(TASKS), load_tokenizer("tiny"), [ROOMY], 1)]
    if name == "trained":
        made = train_tokenizer(texts, vocab_size=2500)
    else:
        bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        bpe.decoder = decoders.Metaspace()
        special = ["<unk>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
        bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False))
        made = PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>")
    made.chat_template = load_tokenizer("tiny").chat_template
    return made


@cache
def measure(name="tiny"):
    return Measure(tokenizer(name))


def text_of(row):
    return "\n".join(message["content"] for message in messages_of(row))


def reward(row, answer):
    return environments.get(environment_of(row)).verify(row, environments.response_of(answer, thinking=False))["reward"]


@settings(max_examples=60)
@given(
    st.sampled_from(list(TASKS)),
    st.integers(ROOMY, 2 * ROOMY),
    st.integers(0, 10**6),
    st.sampled_from(["tiny", "trained", "marked"]),
)
def test_a_row_has_its_length_and_one_answer_that_a_reader_finds(task, length, seed, name):
    row = generate(task, measure(name), length, seed)
    ids = tokenizer(name).apply_chat_template(messages_of(row), add_generation_prompt=True, tokenize=True, return_dict=False)
    assert row["length"] == len(ids) and 0.98 * length <= len(ids) <= length
    assert environments.row_problem(row) is None
    assert reward(row, solve(messages_of(row))) == 1.0


@EVERY_TASK
def test_every_task_is_solved_by_reading_and_its_answers_differ(task):
    made = [generate(task, measure(), ROOMY, seed=1, number=number) for number in range(25)]
    assert all(reward(row, solve(messages_of(row))) == 1.0 for row in made)
    answers = [solve(messages_of(row)) for row in made]
    # A sum or a year may come twice.
    assert len(set(answers)) > (12 if task == "qa_many" else 22)


@EVERY_TASK
def test_the_answer_to_another_row_earns_nothing(task):
    made = [generate(task, measure(), ROOMY, seed=2, number=number) for number in range(10)]
    answers = [solve(messages_of(row)) for row in made]
    assert [
        (own, other) for row, own in zip(made, answers) for other in answers if own != other and reward(row, other) > 0
    ] == []


@EVERY_TASK
def test_to_copy_the_context_earns_nothing(task):
    earned = []
    for number in range(10):
        row = generate(task, measure(), ROOMY, seed=3, number=number)
        text, bound = text_of(row), row.get("answer_characters", 300)
        words = text.split("\n\n", 1)[-1]
        earned += [reward(row, words[at : at + bound]) for at in range(0, len(words), 499)]
        assert reward(row, text) == reward(row, words) == 0.0
        if "random_string_to_prepend" in row:
            assert reward(row, row["random_string_to_prepend"] + text) < 0.2
    # A needle may stand in a part that is copied.
    assert sum(earned) / len(earned) < 0.06


@EVERY_TASK
def test_the_same_seed_and_number_give_the_same_row_whatever_else_is_made(task):
    alone = generate(task, Measure(tokenizer("tiny")), ROOMY, 7, 1)
    others = list(rows([*TASKS][:2] + [task], tokenizer("tiny"), [ROOMY + 100, ROOMY], 2, 7))
    same = [row for row in others if row["subset"] == task and row["length"] <= ROOMY]
    assert alone in same
    assert generate(task, measure(), ROOMY, 7, 2) != alone != generate(task, measure(), ROOMY, 8, 1)


def test_a_row_is_the_same_in_another_process():
    """Python's hashes of texts differ from one to the next."""
    command = (
        "import json; from nemo_cascade.data.long_context import *; from nemo_cascade.data.tokenizer import load_tokenizer\n"
        f"print(json.dumps([generate(task, Measure(load_tokenizer('tiny')), {ROOMY}) for task in TASKS]))"
    )
    told = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    assert json.loads(told) == [generate(task, measure(), ROOMY) for task in TASKS]


# --------------------------------------------------------------------------------------------------- where needles are


def places(row):
    """Where the middle of what the answer needs stands, 0 to 1, by looking for it in the text."""
    text = text_of(row)
    if row["subset"].startswith("mrcr"):
        said = [row["expected_answer"].removeprefix(row["random_string_to_prepend"])]
    elif row["subset"].startswith("qa"):
        question = text.rpartition("\n\n")[2]
        said = [at[0] for at in re.finditer(r"Document \d+: (.+)\n.+", text) if at[1] in question]
    elif row["subset"] == "vt":
        said = [f"LET {name} = " for name in row["outputs"]]
    else:
        said = [f" is {value}." for value in row["outputs"]]
    return [(text.index(part) + len(part) / 2) / len(text) for part in said]


PLACED = [task for task in TASKS if task not in ("cwe", "fwe")]


@pytest.mark.parametrize("task", PLACED)
def test_what_is_asked_for_stands_anywhere(task):
    # A document or a reply takes a good part of a short context.
    length = 8000 if task.startswith(("qa", "mrcr")) else 2048
    found = [place for number in range(80) for place in places(generate(task, measure(), length, seed=4, number=number))]
    # Kolmogorov and Smirnov's distance from even, at which one in a thousand even samples would be refused; what stands round
    # the context, and that nothing begins at its very end, move places by a little.
    ordered, n = sorted(found), len(found)
    assert max(abs(place - (rank + 0.5) / n) for rank, place in enumerate(ordered)) < 1.95 / n**0.5 + 0.05
    assert ordered[0] < 0.1 and ordered[-1] > 0.9


@pytest.mark.parametrize("task", ["niah_multivalue", "niah_multiquery"])
def test_several_needles_are_spread_over_the_whole_context(task):
    for number in range(30):
        quarters = [int(4 * place) for place in places(generate(task, measure(), 2 * ROOMY, seed=5, number=number))]
        assert len(quarters) == 4 and len(set(quarters)) >= 3 and max(quarters) - min(quarters) >= 2


@pytest.mark.parametrize("task", [task for task in PLACED if task != "qa_many"])
def test_a_row_says_where(task):
    for number in range(20):
        row = generate(task, measure(), 2 * ROOMY, seed=6, number=number)
        told, found = sorted(row["depths"]), sorted(places(row))
        if task == "qa_2":  # the town's document is not named in the question
            assert any(abs(depth - found[0]) < 0.08 for depth in told)
        else:
            assert all(abs(a - b) < 0.08 for a, b in zip(told, found, strict=True))


def test_each_of_the_same_requests_is_asked_for():
    made = [generate("mrcr_4", measure(), ROOMY, seed=7, number=number) for number in range(100)]
    meant = [re.match(r"Repeat the (\w+)", messages_of(row)[-1]["content"])[1] for row in made]
    assert all(meant.count(ordinal) > 12 for ordinal in ("first", "second", "third", "fourth"))


# ----------------------------------------------------------------------------------------------- filler and other rows


def test_filler_says_nothing_that_a_question_could_be_about():
    source, short = sentences(random.Random(0)), short_sentences(random.Random(0))
    text = "".join(next(source) + next(short) for _ in range(20_000))
    assert not re.search(r"[\d\-{}<>\\]", text)
    assert not re.search(r"\b(number|word|identifier) of|LET |Document|born|mayor|founded|river|bridges", text)
    assert len(set(text.split(". "))) > 15_000


def test_no_word_is_part_of_another_so_that_no_answer_is_part_of_another():
    for words in (ADJECTIVES, NOUNS, FIRST_NAMES):
        assert len(set(words)) == len(words)
    assert [(a, b) for a in NOUNS for b in NOUNS if a != b and b.startswith(a)] == []
    assert [(a, b) for a in ADJECTIVES for b in ADJECTIVES if a != b and b.endswith(a)] == []


def test_no_wrong_output_is_part_of_an_answer():
    for row in rows(list(TASKS), tokenizer("tiny"), [ROOMY], 5, seed=8):
        outputs, wrong = row.get("outputs", []), row.get("wrong_outputs", [])
        assert not any(other in text or text in other for text in outputs for other in wrong)
        assert len(set(outputs)) == len(outputs) and len(set(wrong)) == len(wrong)


@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_3", "cwe", "fwe", "vt"])
@pytest.mark.parametrize("length", [512, 700, 1024])
def test_short_contexts_have_their_length_too(task, length):
    row = generate(task, measure(), length)
    assert 0.98 * length <= row["length"] <= length and reward(row, solve(messages_of(row))) == 1.0


@pytest.mark.parametrize("task", TASKS)
def test_what_is_too_short_for_a_task_is_told_with_what_it_needs(task):
    with pytest.raises(LengthError, match=rf"task {task} of 60 tokens: needs at least \d+ tokens"):
        generate(task, measure(), 60)


@pytest.mark.slow
@EVERY_TASK
def test_a_million_tokens(task):
    row = generate(task, measure(), 1_000_000)
    assert 980_000 <= row["length"] <= 1_000_000 and reward(row, solve(messages_of(row))) == 1.0


# ------------------------------------------------------------------------------------------------------- command line


def test_the_command_writes_rows_that_can_be_trained_on(tmp_path, capsys):
    out = tmp_path / "new" / "long.jsonl"
    arguments = ["--out", str(out), "--lengths", "1500", "2048", "--tasks", "vt", "qa_1", "mrcr_2", "--rows", "2"]
    assert main([*arguments, "--seed", "3"]) == 0
    told = capsys.readouterr().out
    assert re.fullmatch(r".*long\.jsonl: 12 rows, 3 tasks at 2 lengths, 1,4\d\d to 2,0\d\d tokens, 0\.\d MB\n", told)
    made, _ = load_rows(out, "rl", environments=environments.names())
    assert len(made) == 12 and not any(map(environments.row_problem, made))
    before = out.read_bytes()
    assert main([*arguments, "--seed", "4"]) == 0 and out.read_bytes() != before
    assert main([*arguments, "--seed", "3"]) == 0 and out.read_bytes() == before


def test_a_command_that_cannot_be_carried_out_leaves_what_was_there(tmp_path, capsys):
    out = tmp_path / "long.jsonl"
    out.write_text("before")
    assert main(["--out", str(out), "--lengths", "4096", "100", "--tasks", "vt"]) == 2
    assert "task vt of 100 tokens: needs at least" in capsys.readouterr().err
    assert main(["--out", str(out), "--lengths", "4096", "--tokenizer", "nowhere"]) == 2
    assert "nowhere is neither a folder nor shipped" in capsys.readouterr().err
    assert out.read_text() == "before" and [path.name for path in tmp_path.iterdir()] == ["long.jsonl"]
    with pytest.raises(SystemExit):
        main(["--out", str(out), "--lengths", "4096", "--rows", "0"])


def test_help_names_every_task(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +{re.escape(task.description)}$", told, re.MULTILINE) for name, task in TASKS.items())


def test_rows_are_written_one_by_one(tmp_path):
    made = []

    def counted():
        for number in range(3):
            made.append(number)
            yield {"number": number}

    write(tmp_path / "x.jsonl", counted())
    assert made == [0, 1, 2] and (tmp_path / "x.jsonl").read_text() == '{"number": 0}\n{"number": 1}\n{"number": 2}\n'
