"""Our rules say what lm-evaluation-harness, IFBench and NeMo Gym say of the same replies, as record_ifeval.py wrote."""

import json
from collections import Counter
from pathlib import Path

import pytest

from nemo_cascade.environments.instruction_following import RULES, verify
from nemo_cascade.environments.instruction_following.examples import IFBENCH, IFEVAL, row_of
from nemo_cascade.environments.response import response_of

RECORDED = [
    json.loads(line) for line in (Path(__file__).parent / "data" / "instruction_verdicts.jsonl").open(encoding="utf-8")
]
PAIRS = [
    (oracle, name, kwargs, reply, follows) for reply, checks in RECORDED for oracle, name, kwargs, follows in checks
]
HERE = [pair for pair in PAIRS if RULES[pair[1]].problem(pair[2]) is None or pair[0] == "nemo-gym"]
UNCHECKED = {name for name, rule in RULES.items() if rule.missing()}


@pytest.mark.parametrize("oracle, pairs", [("lm-eval", 2000), ("ifbench", 1150), ("nemo-gym", 15)])
def test_verdicts_are_those_of_the_oracle(oracle, pairs):
    compared = [pair for pair in HERE if pair[0] == oracle and pair[1] not in UNCHECKED]
    differing = [
        (name, kwargs, reply)
        for _, name, kwargs, reply, follows in compared
        if verify(row_of(name, kwargs), response_of(reply, thinking=False))["follow_instruction_list"] != [follows]
    ]
    assert len(compared) >= pairs and not differing


def test_every_type_was_followed_and_not_followed():
    seen = Counter((name, follows) for _, name, _, _, follows in PAIRS)
    for name in {name for name, *_ in (*IFEVAL, *IFBENCH)} - {"words:start_verb"}:
        assert seen[name, True] and seen[name, False], name


def test_of_all_recorded_only_what_no_reply_could_follow_is_refused():
    refused = [RULES[name].problem(kwargs) for _, name, kwargs, *_ in PAIRS if name not in UNCHECKED]
    refused = [problem for problem in refused if problem and "must be a whole number" not in problem]
    assert len(refused) < 10 and all("nothing is there to copy" in problem for problem in refused)
