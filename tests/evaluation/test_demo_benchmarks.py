"""Every benchmark on its demo rows, from the request to the table, with a model of known skill behind real HTTP."""

import json

import pytest
from rich.console import Console

from nemo_cascade.environments.endpoint import EndpointConfig
from nemo_cascade.environments.workers import Verifiers
from nemo_cascade.evaluation import results, run
from nemo_cascade.evaluation.benchmarks import BENCHMARKS
from nemo_cascade.evaluation.served import Served
from tests.environments.test_endpoint import served
from tests.evaluation.scripted import Scripted

QUIET = Console(quiet=True)
# Two prompts with two samples each; of the first prompt one is right, of the second both are.
RIGHT, EXPECTED = [1, 2], 75.0


@pytest.fixture(scope="module")
def verifiers():
    with Verifiers(1) as started:
        yield started


# These differ from another by name and settings only.
ALIKE = ("aime26", "hmmt_feb25", "aime26_python", "ifeval", "mmlu_pro")
# Whole test suites of repositories in the sandbox, and a shell before.
LONG = ("swe_bench_verified",)
DIFFERENT = [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in BENCHMARKS if name not in ALIKE]


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_model_of_known_skill_scores_exactly_that(name, verifiers, tmp_path):
    (part,) = run.asked([BENCHMARKS[name]], None, 2, {"samples": 2}, judge=True)
    model = Scripted(part.rows, RIGHT)
    with served(model) as url:
        judge = EndpointConfig(url, "judge")
        run.evaluate([part], Served(EndpointConfig(url, "scripted")), verifiers, tmp_path, QUIET, judge)
    told = json.loads((tmp_path / results.FILE).read_text())[0]
    if name == "arena_hard_v2":
        # Of the first prompt one win by much in both orders and one loss by little, of the second two wins by much.
        assert told["score"] == pytest.approx(100 * (0.75 * 8 + 1.0 * 12) / 20)
        assert model.judged == 6, "equal answers are judged once"
        assert told["also"]["characters of a reply"] == 3 / 4 * 10 + 1 / 4 * 14
    else:
        assert told["score"] == EXPECTED and told["pass_at_k"] == 100.0
    assert told["low"] <= told["score"] <= told["high"]
    assert (told["samples"], told["prompts"], told["unscored_share"], told["truncated_share"]) == (4, 2, 0.0, 0.0)
    assert told["paper"] is None, "demo rows are not the paper's"
    assert sorted(model.answered.values()) == [2, 2]
    settings = part.benchmark.settings
    for body in model.bodies:
        assert (body["temperature"], body["top_p"], body["max_tokens"]) == (settings.temperature, settings.top_p, settings.max_tokens)
        assert ("chat_template_kwargs" in body) == (not settings.thinking)
        assert (body["messages"][0] == {"role": "system", "content": settings.system}) == (settings.system is not None)
