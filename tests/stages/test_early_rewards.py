"""Replies are verified while others are still sampled, each once, with the same verdicts as afterwards."""

import dataclasses

from nemo_cascade.stages import rewards
from nemo_cascade.stages.rewards import Rewards
from tests.helpers import run_distributed
from tests.stages.test_rewards import RIGHT, SUM, TOKENIZER, WRONG, encoded, group

TEXTS = [RIGHT, WRONG, RIGHT, "no thought is closed"]


def asked_groups():
    """Two prompts with four replies each."""
    groups = [group({**SUM, "expected_answer": answer}, *TEXTS) for answer in ("7", "8")]
    for number, asked in enumerate(groups):
        for rollout in asked.rollouts:
            rollout.prompt_id = f"{number:064x}"
    return groups


def early_and_late(world):
    """Rewards as they are filled after the first three replies of each rank's prompt were verified early, and how many replies
    this rank's verifiers were asked about, early and late."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig

    parallel.init(MegatronConfig())
    verifiers, asked = rewards.verifiers(0), {"early": 0, "late": 0}
    begin, verify = verifiers.begin, verifiers.verify

    def counted(when, real):
        def call(pairs):
            asked[when] += len(pairs)
            return real(pairs)

        return call

    groups, made = asked_groups(), Rewards(TOKENIZER)
    verifiers.begin = counted("early", begin)
    take = made.begin({asked.rollouts[0].prompt_id: asked.row for asked in groups})
    for mine in groups[parallel.rank() :: world]:
        for rollout in mine.rollouts[:3]:
            take([dataclasses.replace(rollout)])
    verifiers.begin, verifiers.verify = begin, counted("late", verify)
    made.fill(groups)
    verifiers.verify = verify
    return [[(rollout.reward, rollout.info) for rollout in group.rollouts] for group in groups], asked


def test_what_was_verified_early_is_not_asked_again_and_all_ranks_hear_of_it():
    ((alone, asked),) = run_distributed(early_and_late, 1, 1)
    assert [[reward for reward, _ in told] for told in alone] == [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
    assert asked == {"early": 4, "late": 2}, "equal replies once; the fourth of each prompt afterwards"
    for told, asked in run_distributed(early_and_late, 2, 2):
        assert told == alone and asked == {"early": 2, "late": 1}


def a_rank_whose_verifier_cannot_run(_):
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.sandbox import SandboxUnavailable

    parallel.init(MegatronConfig())
    made = Rewards(TOKENIZER)

    def unavailable():
        raise SandboxUnavailable("no isolation here")

    if parallel.rank() == 1:
        rewards.verifiers(0).begin = lambda pairs: unavailable
    made.begin({"ab" * 32: SUM})([encoded(RIGHT)])
    try:
        made.fill([group(SUM, RIGHT)])
    except SandboxUnavailable as error:
        return str(error)
    finally:
        rewards.verifiers.cache_clear()


def test_an_error_of_one_rank_is_raised_on_all():
    assert run_distributed(a_rank_whose_verifier_cannot_run, 2, 0) == ["no isolation here"] * 2
