"""Whatever keeps a reply from a verdict: it is counted by its kind, no step is trained on it and no score has it in it."""

import threading

import pytest

from nemo_cascade.data.rows import DataError
from nemo_cascade.environments.endpoint import Silence
from nemo_cascade.environments.faults import KINDS, no_verdict, said_beside
from nemo_cascade.environments.genrm_compare import Comparison
from nemo_cascade.rollout.engine import nothing_to_do
from nemo_cascade.rollout.store import RolloutStore
from nemo_cascade.rollout.types import Group
from nemo_cascade.stages import sampler as sampling
from nemo_cascade.stages.config import EnvConfig, GenRMConfig, GRPOConfig, NemoGymConfig
from nemo_cascade.stages.judge import Judge
from nemo_cascade.stages.prompts import Prompt
from nemo_cascade.stages.rewards import Rewards
from nemo_cascade.stages.rl import reward_samples
from nemo_cascade.stages.rollouts import informative, rollout_metrics
from nemo_cascade.stages.sampler import Sampler
from nemo_cascade.stages.usable import refuse_faults
from nemo_cascade.stages.validation import score
from tests.environments.test_endpoint import Model, served
from tests.stages.test_judge import ROWS, TOKENIZER
from tests.stages.test_rewards import group as replies
from tests.stages.test_rl import group

SILENT = Silence("judge_unreachable")


def faulty(rewards, *kinds) -> Group:
    """A group with these rewards; for each kind one more reply, that has no verdict."""
    made = group([*rewards, *(0.0 for _ in kinds)])
    for rollout, kind in zip(made.rollouts[len(rewards) :], kinds):
        rollout.info = no_verdict(kind, KINDS[kind], 0.0)
    return made


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("settings", [{}, {"swe_group_threshold": 0.5}, {"overlong": "mask"}], ids=str)
def test_samples_are_those_of_a_step_without_the_replies_that_have_no_verdict(leave_one_out, settings):
    config = GRPOConfig(num_generations_per_prompt=5, use_leave_one_out_baseline=leave_one_out, **settings)
    cases = [([1.0, 0.0, 0.0, 0.5], ["verifier_timeout"]), ([1.0, 0.0], ["sandbox_lost", "tool_failed", "judge_unreadable"])]
    for rewards, kinds in cases:
        with_faults, without = reward_samples([faulty(rewards, *kinds)], config), reward_samples([faulty(rewards)], config)
        assert with_faults[: len(rewards)] == without
        assert all(not any(sample.loss_mask) and not any(sample.fields["advantages"]) for sample in with_faults[len(rewards) :])


def test_a_group_with_fewer_than_two_verdicts_teaches_nothing():
    for alone in (faulty([1.0], *["verifier_died"] * 3), faulty([], *["verifier_died"] * 4)):
        samples = reward_samples([alone, group([1.0, 0.0, 0.0, 1.0])], GRPOConfig())
        assert [any(sample.loss_mask) for sample in samples] == [False] * 4 + [True] * 4 and informative([alone]) == [False]
    assert informative([faulty([1.0, 0.0], "verifier_died"), faulty([1.0, 1.0], "verifier_died")]) == [True, False]


def test_faults_count_in_the_metrics_by_kind():
    groups = [faulty([1.0, 0.0], "verifier_timeout", "verifier_timeout"), faulty([1.0, 1.0, 1.0], "sandbox_lost")]
    metrics = rollout_metrics(groups)
    assert {name: count for name, count in metrics.items() if name.startswith("faults/")} == {
        "faults/verifier_timeout": 2,
        "faults/sandbox_lost": 1,
    }
    assert metrics["verifier_errors"] == 3 / 8 and metrics["reward"] == 4 / 8 and metrics["informative_groups"] == 0.5


def test_a_batch_with_too_many_faults_stops_the_step_with_their_kinds_and_counts():
    groups = [faulty([1.0, 0.0], "verifier_timeout", "verifier_timeout"), faulty([], *["sandbox_lost"] * 4)]
    refuse_faults(groups, 0.75, "here")
    refuse_faults([group([1.0, 0.0])], 0.0, "here")
    told = r"^stage if_rl, step 7: 6 of 8 replies have no verdict \(4 sandbox_lost, 2 verifier_timeout\), more than env.max_faults=0.5"
    with pytest.raises(DataError, match=told + ".*prompt (ab)+ of math, reply 2: its verifier took longer than it may"):
        refuse_faults(groups, 0.5, "stage if_rl, step 7")


def test_a_prompts_score_is_of_the_replies_with_a_verdict():
    assert score(faulty([1.0, 0.0], "verifier_timeout", "sandbox_lost")) == 0.5
    assert score(faulty([], "verifier_timeout")) is None


class Scripted(Judge):
    """Compares by what it is told: (first, second) -> an answer, or silence."""

    def __init__(self, answer):
        super().__init__(None, TOKENIZER, GenRMConfig())
        self.answer = answer

    def compare(self, asked):
        return [self.answer(first, second) for _, first, second in asked]


def by_length(first, second):
    return Comparison(1 + len(first) % 5, 1 + len(second) % 5, 3)


def test_comparisons_that_did_not_come_are_as_if_they_had_not_been_asked_for():
    texts = [f"</think>{'a' * n}" for n in (1, 2, 3, 9)]
    lost = replies(ROWS[0], *texts, "</think>lost")
    Scripted(lambda a, b: SILENT if "lost" in (a, b) else by_length(a, b)).reward_groups([lost])
    without = replies(ROWS[0], *texts)
    Scripted(by_length).reward_groups([without])
    assert [r.reward for r in lost.rollouts[:4]] == [r.reward for r in without.rollouts]
    assert [r.fault for r in lost.rollouts] == [None] * 4 + ["judge_unreachable"]
    assert lost.rollouts[0].info == {"judge_readable": 0.6} and lost.rollouts[4].info["judge_readable"] == 0.0
    # One that is only sometimes heard has the mean of what was.
    some = replies(ROWS[0], *texts)
    Scripted(lambda a, b: SILENT if (a, b) == ("a", "aa") else by_length(a, b)).reward_groups([some])
    assert all(rollout.fault is None for rollout in some.rollouts)
    nobody = replies(ROWS[0], *texts)
    Scripted(lambda a, b: SILENT).reward_groups([nobody])
    assert [(r.fault, r.reward) for r in nobody.rollouts] == [("judge_unreachable", 0.0)] * 4


def test_a_win_over_the_reference_that_nobody_told_is_none():
    row = {**ROWS[0], "reference_reply": "aaa"}
    asked = replies(row, "</think>aaaa", "</think>lost")
    Scripted(lambda a, b: SILENT if "lost" in (a, b) else by_length(a, b)).reward_by_reference([asked])
    assert [r.fault for r in asked.rollouts] == [None, "judge_unreachable"]


def test_only_a_fault_of_our_kinds_is_one():
    assert said_beside(no_verdict("sandbox_lost", "gone", 0.0)) == {"fault": "sandbox_lost", "verifier_error": "gone"}
    for odd in (None, False, "mine", ["sandbox_lost"], {"a": 1}):
        assert said_beside({"reward": 1.0, "fault": odd, "note": "well"}) == {"note": "well"}


class Stuck(Model):
    """A server of NeMo Gym that never answers about one reply."""

    def __init__(self):
        super().__init__()
        self.over = threading.Event()

    def respond(self, handler):
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        self.asked.append(b"hang" in body)
        if b"hang" in body:
            self.over.wait(60)
            return handler.connection.close()
        handler.send_response(200)
        handler.send_header("Content-Length", "13")
        handler.end_headers()
        handler.wfile.write(b'{"reward": 1}')


def test_a_server_that_never_answers_about_a_reply_holds_up_no_step():
    model = Stuck()
    for texts, found, most in ((["fine", "hang"], [None, "verifier_timeout"], 4.0), (["hang"], ["verifier_timeout"], 0.5)):
        asked = replies({"agent_ref": {"name": "far_away_simple_agent"}, "enable_thinking": False}, *texts)
        with served(model) as url:
            env = EnvConfig(nemo_gym=NemoGymConfig(servers={"far_away": url.removesuffix("/v1")}, timeout=most))
            Rewards(TOKENIZER, env=env).fill([asked])
            model.over.set()
        assert [rollout.fault for rollout in asked.rollouts] == found
        assert f"verify took longer than {most:g} s" in next(r.info["verifier_error"] for r in asked.rollouts if r.fault)
        model.over.clear()
    assert model.asked.count(True) == 2, "nobody waits for it a second time"


def test_a_step_with_too_many_faults_keeps_nothing(tmp_path, monkeypatch):
    class Broken:
        env = EnvConfig(max_faults=0.25)

        def begin(self, rows):
            return nothing_to_do

        def fill(self, groups):
            for made in groups:
                made.rollouts = faulty([1.0, 0.0], "verifier_died").rollouts

    monkeypatch.setattr(sampling, "begin_groups", lambda *_, **how: lambda: [group([None] * 3)])
    sampler = Sampler(None, None, Broken(), RolloutStore(tmp_path / "if_rl" / "rollouts"), seed=3)
    with pytest.raises(DataError, match=r"^stage if_rl, step 2: 1 of 3 replies have no verdict \(1 verifier_died\).*env.max_faults=0.25"):
        sampler.groups(2, [Prompt("ab" * 32, "math", {}, [10, 3])], 3)
    assert sampler.store.load("2") is None
