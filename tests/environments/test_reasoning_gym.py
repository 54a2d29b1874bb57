"""Reasoning Gym: its own scorers judge, faulty data sets are refused, and no answer is run as code."""

import builtins
import inspect
import json

import pytest

from nemo_cascade.data.reasoning_gym import main, names, rows
from nemo_cascade.data.rows import load_rows
from nemo_cascade.environments import names as registered, response_of, row_problem
from nemo_cascade.environments.reasoning_gym import FAULTY, extracted, problem, verify


def score(row: dict, answer: str) -> float:
    return verify(row, response_of(f"<answer>{answer}</answer>", thinking=False))["reward"]


@pytest.mark.parametrize(
    "name", ["chain_sum", "countdown", "n_queens", "string_insertion", "simple_integration", "polynomial_multiplication"]
)
def test_the_answer_of_an_entry_is_right_and_another_entrys_is_not(name):
    one, other = rows(name, "train", 2, seed=1)
    assert problem(one) is None and score(one, one["answer"]) == 1.0
    assert score(one, other["answer"]) < 1.0 and score(one, "") == 0.0


@pytest.mark.parametrize(
    "text, answer",
    [
        ("<answer> 7\n</answer>", "7"),
        ("<answer>6</answer> <answer>7</answer>.", "7"),
        ("<answer>7</answer> </answer>", "7"),
        ("<answer>7</answer> <answer>8", "7"),
        ("<answer>a <answer>b</answer>", "a <answer>b"),
        ("\\boxed{7} \\boxed{8}", "7"),
        (" seven ", "seven"),
        ("<answer>", "<answer>"),
    ],
)
def test_the_answer_is_what_stands_in_the_last_tag_or_the_first_box(text, answer):
    assert extracted(text) == answer


HARMFUL = [
    "__import__('os').system('touch {}')",
    "[open('{}', 'w') for _ in '1']",
    'exec(\'open("{}", "w")\')',
    "().__class__.__base__",
]


@pytest.mark.parametrize(
    "name",
    [
        "string_insertion",
        "spiral_matrix",
        "binary_matrix",
        "n_queens",
        "countdown",
        "polynomial_multiplication",
        "simple_integration",
        "intermediate_integration",
    ],
)
@pytest.mark.parametrize("code", HARMFUL)
def test_an_answer_is_never_run_as_code(name, code, tmp_path):
    (row,) = rows(name, "train", 1)
    assert score(row, code.replace("{}", str(tmp_path / "made"))) == 0.0
    assert list(tmp_path.iterdir()) == []


def test_every_data_set_that_runs_its_answers_is_known():
    """In the source of the package: whatever evaluates text must be among those that are checked first."""
    from reasoning_gym.factory import DATASETS

    running = {
        name
        for name, (kind, _) in DATASETS.items()
        if any(call in inspect.getsource(kind.score_answer) for call in ("eval(", "exec(", "parse_expr(", "sympify("))
    }
    checked = {"string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "countdown", "polynomial_multiplication"}
    checked |= {"simple_integration", "intermediate_integration", "number_sorting"}
    assert running - set(FAULTY) == checked


@pytest.mark.parametrize(
    "name, key",
    [
        ("number_sorting", "answer"),
        ("polynomial_multiplication", "answer"),
        ("bitwise_arithmetic", "problem"),
        ("simple_integration", "integrand"),
        ("intermediate_integration", "integrand"),
    ],
)
def test_a_row_is_never_run_as_code(name, key, tmp_path):
    for row in rows(name, "train", 20):
        assert problem(row) is None and score(row, row["answer"]) == 1.0
    for code in [*HARMFUL, "9**9**9**9", "(0x9**0x9)**0x99", "0x1 << 0x3 * 0xfff", "0x1 << 0xffffffff", None, 7, ["x"]]:
        code = code.replace("{}", str(tmp_path / "made")) if isinstance(code, str) else code
        other = {**row, "answer": code} if key == "answer" else {**row, "metadata": {**row["metadata"], key: code}}
        assert problem(other) is not None, code
        # An answer that the scorer would read itself, so that the row's turn comes.
        with pytest.raises(ValueError, match="evaluated"):
            score(other, row["answer"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["string_insertion", "spiral_matrix", "binary_matrix"])
def test_a_row_cannot_allow_code_as_an_answer(name, tmp_path):
    (row,) = rows(name, "train", 1)
    code = HARMFUL[0].replace("{}", str(tmp_path / "made"))
    assert score({**row, "metadata": {**row["metadata"], "valid_answers": [code]}}, code) == 0.0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_data_sets_are_refused_with_the_reason(name):
    row = {"question": "?", "answer": "!", "metadata": {"source_dataset": name}}
    assert FAULTY[name] in problem(row)
    with pytest.raises(ValueError, match="choose another data set"):
        rows(name, "train", 1)
    assert name not in names()


@pytest.mark.parametrize(
    "row, said",
    [
        ({}, "no question"),
        ({"question": "?", "metadata": {"source_dataset": "sheep"}, "answer": "1"}, "'sheep' is no data set"),
        ({"question": "?", "metadata": {"source_dataset": "gcd"}, "answer": None}, "no answer"),
    ],
)
def test_a_row_that_cannot_be_verified_is_told(row, said):
    assert said in problem(row)


def test_where_the_package_is_missing_the_row_says_what_to_install(monkeypatch):
    (row,), load = rows("gcd", "train", 1), builtins.__import__

    def missing(name, *arguments, **more):
        if name == "reasoning_gym":
            raise ImportError(name)
        return load(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert problem(row) == "Reasoning Gym is not installed; pip install reasoning-gym"
    with pytest.raises(ValueError, match="pip install reasoning-gym"):
        names()


def test_rows_are_written_that_can_be_read_and_verified(tmp_path):
    arguments = ["--out", str(tmp_path), "--data-sets", "gcd", "chain_sum", "--train-rows", "6", "--validation-rows", "2"]
    main([*arguments, "--settings", '{"chain_sum": {"min_terms": 2, "max_terms": 2}}'])
    texts = [(tmp_path / f"{split}.jsonl").read_text(encoding="utf-8") for split in ("train", "validation")]
    read, _ = load_rows(tmp_path / "train.jsonl", "rl", environments=registered())
    assert len(read) == 12 and [len(text.splitlines()) for text in texts] == [12, 4]
    assert all(row_problem(row) is None and score(row, row["answer"]) == 1.0 for row in read)
    questions = [{json.loads(line)["question"] for line in text.splitlines()} for text in texts]
    assert not questions[0] & questions[1] and len(questions[0]) == 12
    assert all(row["metadata"]["num_terms"] == 2 for row in read if row["metadata"]["source_dataset"] == "chain_sum")
    main([*arguments, "--settings", '{"chain_sum": {"min_terms": 2, "max_terms": 2}}'])
    assert texts[0] == (tmp_path / "train.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--data-sets", "gcd"], "--out and --data-sets"),
        (["--out", "x", "--data-sets", "sheep"], "'sheep' is no data set"),
        (["--out", "x", "--data-sets", "rush_hour"], "gives its own answer no reward"),
        (["--out", "x", "--data-sets", "gcd", "--settings", '{"gcd": {"wool": 1}}'], "does not take the settings"),
        (
            ["--out", "x", "--data-sets", "coin_flip", "--settings", '{"coin_flip": {"min_trials": 2, "max_trials": 2}}'],
            "ask for fewer",
        ),
    ],
)
def test_what_cannot_be_written_is_told_in_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(arguments)
    assert said in capsys.readouterr().err
