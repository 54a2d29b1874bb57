"""IFEval as lm-evaluation-harness scores it, on the replies that are recorded for single rules; skipped where it is not installed."""

import json
import random
import re
from pathlib import Path

import pytest

from nemo_cascade.environments.instruction_following import RULES, verify
from nemo_cascade.environments.response import response_of
from nemo_cascade.evaluation.benchmark import prepared
from nemo_cascade.evaluation.benchmarks import BENCHMARKS
from nemo_cascade.evaluation.benchmarks.instructions import of_instructions

RECORDED = Path(__file__).parents[1] / "environments" / "data" / "instruction_verdicts.jsonl"
# What the harness counts with a model of nltk's.
BY_NLTK = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}


def prompts() -> list[tuple[dict, str]]:
    """(row, reply): up to three of the recorded instructions a row, with arguments that both sides take for given."""
    rng, found = random.Random(0), []
    for line in RECORDED.read_text(encoding="utf-8").splitlines():
        reply, checks = json.loads(line)
        checks = [(name, kwargs) for oracle, name, kwargs, _ in checks if oracle == "lm-eval" and not RULES[name].problem(kwargs)]
        for some in (checks[:3], rng.sample(checks, min(2, len(checks)))):
            if some:
                row = {"prompt": "Write.", "instruction_id_list": [name for name, _ in some], "kwargs": [kwargs for _, kwargs in some]}
                found.append((row, reply))
    return found


def test_a_prompt_is_right_where_the_harness_says_so():
    harness = pytest.importorskip("lm_eval.tasks.ifeval.utils", reason="pip install lm-eval[ifeval]", exc_type=ImportError)
    nltk = pytest.importorskip("nltk")
    try:
        nltk.data.find("tokenizers/punkt_tab")
        unknown = set()
    except LookupError:
        unknown = BY_NLTK
    compared, differing, ours, theirs = 0, [], [], []
    for row, reply in prompts():
        if unknown & set(row["instruction_id_list"]):
            continue
        try:
            result = harness.process_results({"key": compared, **row}, [reply])
        except re.error:
            continue  # it takes some recorded keywords for patterns
        verdict = verify(prepared(BENCHMARKS["ifeval"], row), response_of(reply, thinking=False))
        compared += 1
        ours.append(verdict)
        theirs += result["inst_level_strict_acc"]
        if verdict["reward"] != float(result["prompt_level_strict_acc"]):
            differing.append((row, reply))
    assert compared > 300 and len(differing) <= 0.005 * compared, differing
    assert abs(of_instructions(ours)["instructions followed, percent"] - 100 * sum(theirs) / len(theirs)) < 0.5
