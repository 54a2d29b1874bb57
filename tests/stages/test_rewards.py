"""What a reply earns, whole or cut, and from whom: its verifier, a server of NeMo Gym or a judge."""

import pytest

from nemo_cascade import environments
from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.data.rows import DataError
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.environments import genrm, swe_repair
from nemo_cascade.environments.endpoint import EndpointConfig
from nemo_cascade.rollout.types import Group, Rollout
from nemo_cascade.stages import rewards
from nemo_cascade.stages.config import EnvConfig, NemoGymConfig
from nemo_cascade.stages.prompts import thinking
from nemo_cascade.stages.rewards import Rewards, reply_text, verify_all
from tests.environments.test_endpoint import served
from tests.environments.test_equivalence import Equal
from tests.environments.test_gym import serving
from tests.helpers import run_distributed

TOKENIZER = load_tokenizer("tiny")
SUM = {"question": "Add 3 4", "expected_answer": "7", "agent_ref": {"name": "math_simple_agent"}}
LETTER = {"reference_reply": "Hello, come.", "agent_ref": {"name": "genrm_compare_simple_agent"}}
RIGHT, WRONG = "3 and 4</think>\\boxed{7}", "3 and 4</think>\\boxed{8}"


def encoded(text, finish_reason="stop", k=0) -> Rollout:
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    tokens = [*tokens, 11] if finish_reason == "stop" else tokens
    return Rollout("ab" * 32, k, [10, 3], tokens, [-0.5] * len(tokens), finish_reason)


def group(row, *texts, finish_reason="stop") -> Group:
    return Group(row, "a_domain", [encoded(text, finish_reason, k) for k, text in enumerate(texts)])


def earned(groups) -> list[list[float]]:
    return [[rollout.reward for rollout in group.rollouts] for group in groups]


class Judge:
    """Says how it was asked."""

    def reward_groups(self, groups):
        self._say(groups, 3.5)

    def reward_by_reference(self, groups):
        self._say(groups, 0.5)

    def _say(self, groups, reward):
        for rollout in (rollout for group in groups for rollout in group.rollouts):
            rollout.reward, rollout.info = reward, {"judge_readable": True}


def test_a_reply_is_verified_without_its_stop_token_and_with_its_special_ones():
    assert reply_text(encoded(RIGHT), TOKENIZER) == RIGHT
    assert reply_text(encoded(RIGHT, "length"), TOKENIZER) == RIGHT


@pytest.mark.parametrize(
    ("text", "finish_reason", "expected"),
    [(RIGHT, "stop", 1.0), (WRONG, "stop", 0.0), ("\\boxed{7}", "stop", 0.0), (RIGHT, "length", 0.0)],
    ids=["right", "wrong", "never out of its thought", "cut at the limit"],
)
def test_a_verifier_rewards_whole_replies(text, finish_reason, expected):
    asked = group(SUM, text, finish_reason=finish_reason)
    Rewards(TOKENIZER).fill([asked])
    assert asked.rollouts[0].reward == expected


def test_a_reply_that_may_not_think_is_all_answer():
    asked = group({**SUM, "enable_thinking": False}, "\\boxed{7}", "\\boxed{8}")
    Rewards(TOKENIZER).fill([asked])
    assert earned([asked]) == [[1.0, 0.0]]


@pytest.mark.parametrize(
    "mode, verified, judged",
    [("reward_zero", [0.0, 0.0], [0.0, 0.0]), ("mask", [1.0, 0.0], [3.5, 3.5]), ("keep", [1.0, 0.0], [3.5, 3.5])],
)
def test_a_cut_reply_earns_nothing_or_keeps_what_it_was_given(mode, verified, judged):
    cut = [group(row, RIGHT, WRONG, finish_reason="length") for row in (SUM, LETTER)]
    whole = [group(row, RIGHT, WRONG) for row in (SUM, LETTER)]
    Rewards(TOKENIZER, Judge(), overlong=mode).fill(cut + whole)
    assert earned(cut) == [verified, judged]
    assert earned(whole) == [[1.0, 0.0], [3.5, 3.5]]


GENRM = {**genrm.EXAMPLES[0][0], "agent_ref": {"name": "genrm_simple_agent"}}
PATCH = {**next(row for row, *_ in swe_repair.EXAMPLES if row.get("reward_mode")), "agent_ref": {"name": "swe_repair_simple_agent"}}


@pytest.mark.parametrize(
    "row, worst",
    [
        (GENRM, ["no verdict"]),
        ({**GENRM, "grading_mode": "distance"}, ["no verdict", '{"score_1": 1, "score_2": 5, "ranking": 6}']),
        ({**GENRM, "grading_mode": "distance", "expected_scores": {"score_1": 1, "score_2": 5, "ranking": 6}},
         ["no verdict", '{"score_1": 5, "score_2": 1, "ranking": 1}']),
        (PATCH, ["no patch", "sums.py\n<<<<<<< SEARCH\nnot there\n=======\nx\n>>>>>>> REPLACE"]),
        ({**PATCH, "reward_mode": "judge"}, ["no patch"]),
        (SUM, ["</think>\\boxed{8}"]),
    ],
    ids=["agreement", "distance", "the farthest distance", "similarity", "judge", "math"],
)  # fmt: skip
def test_no_whole_reply_earns_less_than_a_cut_one(row, worst):
    cut, whole = (group(row, *(f"</think>{text}" for text in worst), finish_reason=reason) for reason in ("length", "stop"))
    Rewards(TOKENIZER).fill([cut, whole])
    assert max(earned([cut])[0]) <= min(earned([whole])[0]) <= 0.0


@pytest.mark.parametrize("alone, reward", [(False, 3.5), (True, 0.5)], ids=["in a group", "alone"])
def test_only_rows_that_need_a_judge_go_to_it(alone, reward):
    groups = [group(SUM, RIGHT, WRONG), group(LETTER, "a", "b"), group(SUM, WRONG, RIGHT)]
    Rewards(TOKENIZER, Judge(), alone=alone).fill(groups)
    assert earned(groups) == [[1.0, 0.0], [reward] * 2, [0.0, 1.0]]
    assert groups[1].rollouts[0].info == {"judge_readable": True} and "judge_readable" not in groups[0].rollouts[0].info


def test_rows_that_need_a_judge_are_refused_without_one():
    with pytest.raises(DataError, match="a_domain: its replies are compared by a judge; set cascade.judge.stage"):
        Rewards(TOKENIZER).fill([group(SUM, RIGHT), group(LETTER, "a", "b")])


def programs() -> list[Group]:
    """Right programs, wrong ones, broken ones and one that never ends, between sums."""
    domain, groups = DOMAINS["code_gen"], []
    for row in domain.rows(3, "train"):
        right = domain.demonstration(row)["messages"][-1]["content"]
        texts = [f"</think>{text}" for text in (right, right.replace("print(", "print(1 + "), "print(", right)]
        groups += [group(row, *texts), group(SUM, RIGHT, WRONG)]
    groups[0].rollouts.append(encoded("</think>while True: pass"))
    return groups


def test_programs_verified_side_by_side_get_the_verdicts_they_get_one_after_another():
    asked = programs()
    together = verify_all(asked, TOKENIZER)
    for group, verdicts in zip(asked, together, strict=True):
        for rollout, verdict in zip(group.rollouts, verdicts, strict=True):
            response = environments.response_of(reply_text(rollout, TOKENIZER), thinking(group.row))
            assert verdict == environments.get(environments.environment_of(group.row)).verify(group.row, response)
    earned_by = [[verdict["reward"] for verdict in verdicts] for verdicts in together]
    assert earned_by[::2] == [[1.0, 0.0, 0.0, 1.0, 0.0]] + [[1.0, 0.0, 0.0, 1.0]] * 2
    assert earned_by[1::2] == [[1.0, 0.0]] * 3


def test_equal_replies_to_a_row_are_verified_once(monkeypatch):
    asked = []
    real = rewards.verifiers(0).verify
    monkeypatch.setattr(rewards.verifiers(0), "verify", lambda pairs: asked.append(len(pairs)) or real(pairs))
    assert [[v["reward"] for v in told] for told in verify_all([group(SUM, RIGHT, WRONG, RIGHT), group(SUM, RIGHT)], TOKENIZER)] == [
        [1.0, 0.0, 1.0],
        [1.0],
    ]
    assert asked == [3]


def test_a_server_of_nemo_gym_verifies_what_the_config_gives_it():
    served = {**SUM, "agent_ref": {"name": "far_away_simple_agent"}}
    groups = [group(served, RIGHT, WRONG, RIGHT), group(SUM, WRONG)]
    with serving(["math"]) as url:
        env = EnvConfig(nemo_gym=NemoGymConfig(servers={"far_away": f"{url}/math"}))
        Rewards(TOKENIZER, env=env).fill(groups)
    assert earned(groups) == [[1.0, 0.0, 1.0], [0.0]]
    assert groups[0].rollouts[0].info["extracted_answer"] == "7"


def test_a_judge_has_the_last_word_on_what_the_verifier_does_not_find_equal_and_is_asked_once(tmp_path):
    model = Equal()
    groups = [group({**SUM, "expected_answer": "3 km"}, "a</think>1 km", "b</think>\\boxed{9}", "c</think>\\boxed{9}")]
    with served(model) as url:
        env = EnvConfig(judges={"math": EndpointConfig(url, "judge")})
        Rewards(TOKENIZER, env=env, answers=tmp_path / "answers").fill(groups)
        assert earned(groups) == [[0.0, 0.0, 0.0]] and len(model.asked) == 2
        groups = [group({**SUM, "expected_answer": "3 km"}, "a</think>It is km 3000", "b</think>\\boxed{9}")]
        Rewards(TOKENIZER, env=env, answers=tmp_path / "answers").fill(groups)
    assert len(model.asked) == 3, "answers are kept"
    assert [rollout.info.get("judge_readable") for rollout in groups[0].rollouts] == [True, True]


def test_no_judge_is_asked_about_a_cut_reply_that_earns_nothing_anyhow():
    row, said = {**SUM, "expected_answer": "3 km"}, "a</think>\\boxed{9}"
    for overlong, asked in (("reward_zero", 1), ("mask", 2)):
        groups = [group(row, said), group({**row, "question": "How far?"}, said, finish_reason="length")]
        groups[0].rollouts.append(encoded(said, "length", 1))
        with served(Equal()) as url:
            Rewards(TOKENIZER, env=EnvConfig(judges={"math": EndpointConfig(url, "judge")}), overlong=overlong).fill(groups)
        heard = ["judge_readable" in rollout.info for one in groups for rollout in one.rollouts]
        assert heard == [True, True, asked == 2], overlong


def on_a_rank(_):
    import torch.distributed as dist

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig

    parallel.init(MegatronConfig())
    asked = [group(SUM, RIGHT, WRONG, RIGHT, RIGHT), group(LETTER, "a", "b"), group(SUM, WRONG), group(SUM, RIGHT)]
    pool = rewards.verifiers(0)
    answers, real = [], pool.verify
    pool.verify = lambda pairs: answers.extend([dist.get_rank()] * len(pairs)) or real(pairs)
    try:
        Rewards(TOKENIZER, Judge()).fill(asked)
    finally:
        del pool.verify
    return earned(asked), answers


def test_one_rank_verifies_a_group_equal_replies_once_and_all_hear_the_same():
    (first, here), (second, there) = run_distributed(on_a_rank, 2, None)
    assert first == second == [[1.0, 0.0, 1.0, 1.0], [3.5, 3.5], [0.0], [1.0]]
    # Two different replies of the first group and the only one of the third; the only one of the second.
    assert (here, there) == ([0, 0, 0], [1])
