"""Nothing is trained on what is no number, or on a reward that its environment cannot give."""

import math

import pytest

from nemo_cascade.data.rows import DataError
from nemo_cascade.data.sample import Sample
from nemo_cascade.rollout.store import RolloutStore
from nemo_cascade.rollout.types import Group, Rollout
from nemo_cascade.stages.config import AdvantageEstimatorConfig, GRPOConfig
from nemo_cascade.stages.prompts import Prompt
from nemo_cascade.stages.sampler import Sampler
from nemo_cascade.stages.usable import refuse_unusable_logprobs, refuse_unusable_rollouts


def group(reward=1.0, logprobs=(-0.5, -1.0), environment="math"):
    row = {"responses_create_params": {"input": "2+2"}, "expected_answer": "4", "agent_ref": {"name": environment}}
    first = Rollout("ab", 0, [1], [5, 2], [-0.1, -0.2], "stop", reward=0.0)
    return Group(row, "sums", [first, Rollout("ab", 1, [1], [5, 2], list(logprobs), "stop", reward=reward)])


@pytest.mark.parametrize("reward", [math.nan, math.inf, -0.01, 1.01])
def test_a_reward_outside_of_its_range_names_stage_step_prompt_and_reply(reward):
    with pytest.raises(DataError, match=rf"^stage if_rl, step 7, prompt ab of sums, reply 1: its reward is {reward}.*0 to 1"):
        refuse_unusable_rollouts([group(), group(reward)], "stage if_rl, step 7")


@pytest.mark.parametrize("odd", [math.nan, -math.inf, math.inf])
def test_a_logprob_that_is_no_number_is_named(odd):
    with pytest.raises(DataError, match=f"reply 1: token 1 was sampled with the log-prob {odd}"):
        refuse_unusable_rollouts([group(logprobs=(-0.5, odd))], "stage if_rl, step 7")


def test_of_a_servers_rewards_only_numbers_are_asked():
    refuse_unusable_rollouts([group(reward=-3.0, environment="math")], "here", elsewhere=["math"])
    with pytest.raises(DataError, match="its reward is nan"):
        refuse_unusable_rollouts([group(reward=math.nan)], "here", elsewhere=["math"])


def test_sound_rollouts_pass():
    refuse_unusable_rollouts([group(0.0), group(1.0), group(0.5)], "here")


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["teacher_logprobs", "reference_logprobs"])
def test_anothers_logprob_is_looked_at_where_it_teaches(field, odd):
    def looked_at(mask):
        sample = Sample([1, 2, 3], mask, {field: [odd, -1.0, -2.0]}, name="prompt ab, reply 4")
        refuse_unusable_logprobs([sample], field, "t/step_3", "stage 07-mopd, step 2")

    looked_at([0, 1, 1])
    with pytest.raises(DataError, match=f"^stage 07-mopd, step 2, prompt ab, reply 4: {field} is {odd} at token 0; the weights of t/step_3"):
        looked_at([1, 1, 1])


@pytest.mark.parametrize("normalize", [True, False])
def test_a_group_of_one_names_stage_step_and_prompt_and_nothing_is_sampled(tmp_path, normalize):
    class One:
        def next(self, n):
            return [Prompt("ab", "sums", {}, [1])] * n

    def sampler(**settings):
        config = GRPOConfig(num_prompts_per_step=2, num_generations_per_prompt=1, normalize_rewards=normalize, **settings)
        return Sampler(None, None, None, RolloutStore(tmp_path / "03-if_rl" / "rollouts"), seed=1).batch(7, One(), config)

    with pytest.raises(DataError, match="^stage 03-if_rl, step 7, prompt ab of sums: a group of one reply has no baseline"):
        sampler()
    # Where teachers give the advantages it is asked for its replies, here of an engine that there is not.
    with pytest.raises(AttributeError):
        sampler(adv_estimator=AdvantageEstimatorConfig("opd"))
