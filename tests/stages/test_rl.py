"""From rollouts to training samples: which groups make a batch, who is trained on, which teacher speaks."""

from types import SimpleNamespace

import pytest
import torch

from nemo_cascade.data.rows import DataError
from nemo_cascade.engine.batch import build_pack
from nemo_cascade.engine.config import MegatronConfig, PolicyConfig
from nemo_cascade.rollout.engine import nothing_to_do
from nemo_cascade.rollout.store import RolloutStore
from nemo_cascade.rollout.types import Group, Rollout
from nemo_cascade.stages import sampler as sampling
from nemo_cascade.stages.config import AdvantageEstimatorConfig, DataConfig, DatasetConfig, EnvConfig, GRPOConfig, LossConfig
from nemo_cascade.stages.context import LoopConfig
from nemo_cascade.stages.loss import make_loss
from nemo_cascade.stages.rl import distillation_samples, only_advantages_teach, reward_samples, with_gradient
from nemo_cascade.stages.prompts import Prompt
from nemo_cascade.stages.rollouts import make_requests, rollout_metrics
from nemo_cascade.stages.sampler import Sampler


def rollout(k=0, response=(5, 6, 11), finish_reason="stop", reward=None) -> Rollout:
    return Rollout("ab" * 32, k, [10, 3], list(response), [-0.5] * len(response), finish_reason, reward)


def group(rewards, domain="math", **settings) -> Group:
    return Group({"expected_answer": "7"}, domain, [rollout(k, reward=r, **settings) for k, r in enumerate(rewards)])


def mopd(domains=("math",), **settings) -> LoopConfig:
    return LoopConfig(grpo=GRPOConfig(**settings), data=DataConfig(train={domain: DatasetConfig() for domain in domains}))


def test_a_prompt_drawn_twice_asks_for_other_samples():
    prompt = Prompt("ab", "math", {}, [10, 3])
    asked = make_requests([prompt, Prompt("cd", "math", {}, [10, 4]), prompt], 2)
    assert [(r.prompt_id, r.sample) for r in asked] == [("ab", 0), ("ab", 1), ("cd", 0), ("cd", 1), ("ab", 2), ("ab", 3)]


def test_every_response_token_carries_its_advantage_and_no_prompt_token_is_trained():
    samples = reward_samples([group([1.0, 0.0])], GRPOConfig(num_generations_per_prompt=2, normalize_rewards=False))
    for sample, advantage in zip(samples, (0.5, -0.5)):
        assert sample.tokens == [10, 3, 5, 6, 11] and sample.loss_mask == [0, 0, 1, 1, 1]
        assert sample.fields["advantages"] == [0, 0, advantage, advantage, advantage]
        assert sample.fields["sampling_logprobs"] == [0, 0, -0.5, -0.5, -0.5]


def test_overlong_filtering_trains_on_finished_replies_but_compares_with_all():
    mixed = group([1.0, 0.0, 0.0, 0.0])
    mixed.rollouts[3].finish_reason = "length"
    settings = dict(num_generations_per_prompt=4, normalize_rewards=False)
    plain = reward_samples([mixed], GRPOConfig(**settings))
    assert [sum(sample.loss_mask) for sample in plain] == [3, 3, 3, 3]
    for masked in (GRPOConfig(overlong="mask", **settings), GRPOConfig(overlong_filtering=True, **settings)):
        filtered = reward_samples([mixed], masked)
        assert [sum(sample.loss_mask) for sample in filtered] == [3, 3, 3, 0]
        assert [s.fields["advantages"] for s in plain] == [s.fields["advantages"] for s in filtered]
    assert [sum(sample.loss_mask) for sample in distillation_samples([mixed], mopd(overlong="mask"))] == [3, 3, 3, 0]
    assert [sum(sample.loss_mask) for sample in distillation_samples([mixed], mopd(overlong="keep"))] == [3, 3, 3, 3]


def test_a_group_without_an_acceptable_reply_is_left_out_where_the_stage_says_so():
    settings = dict(num_generations_per_prompt=2, swe_group_threshold=0.5)
    samples = reward_samples([group([0.5, 0.0]), group([1.0, 0.0])], GRPOConfig(**settings))
    assert [sum(sample.loss_mask) for sample in samples] == [0, 0, 3, 3]


def mean_gradient(samples, settings: LossConfig) -> dict[tuple[int, int], float]:
    """(response's token, place) -> gradient of the loss's mean at that log-prob; tokens tell responses apart."""
    pack = build_pack(samples, range(len(samples)), 8, "cpu", dtype=torch.float64)
    logprobs = torch.linspace(-2, -1, len(pack.mask), dtype=torch.float64).requires_grad_()
    total, count, _ = make_loss(settings, distil=False)(logprobs, pack)
    (gradient,) = torch.autograd.grad(total / count, logprobs)
    places = zip(pack.segments.tolist(), pack.position_ids[0].tolist(), gradient.tolist())
    return {(samples[n].tokens[2], place): value for n, place, value in places if n >= 0 and value}


@pytest.mark.parametrize("token_level", [True, False], ids=["token mean", "sequence mean"])
def test_rollouts_without_an_advantage_are_left_out_and_the_gradient_stays(token_level):
    rewards, lengths = ([1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]), (1, 4, 2, 7, 3, 1, 5, 2)
    groups = [group(pair) for pair in rewards]
    for token, (rollout_, length) in enumerate(zip((r for g in groups for r in g.rollouts), lengths), start=5):
        rollout_.response, rollout_.logprobs = [token] * length, [-0.5] * length
    # A reply cut short is masked, and counts in no mean.
    groups[3].rollouts[1].finish_reason = "length"
    config = GRPOConfig(num_generations_per_prompt=2, overlong="mask")
    samples, settings = reward_samples(groups, config), LossConfig(token_level_loss=token_level)
    kept = with_gradient(samples, token_level)
    assert [sample.tokens[2] for sample in kept] == [5, 6, 11]
    expected, got = mean_gradient(samples, settings), mean_gradient(kept, settings)
    assert expected.keys() == got.keys() and [expected[k] for k in got] == pytest.approx(list(got.values()), rel=1e-12)


def test_a_batch_that_teaches_nothing_keeps_one_sample():
    (kept,) = with_gradient(reward_samples([group([1.0, 1.0])], GRPOConfig(num_generations_per_prompt=2)), True)
    assert sum(kept.loss_mask) == 3 and set(kept.fields["advantages"]) == {0.0}


@pytest.mark.parametrize(
    "loss, router",
    [
        ({"reference_policy_kl_penalty": 0.03}, {}),
        ({}, {"moe_router_load_balancing_type": "seq_aux_loss", "moe_aux_loss_coeff": 1e-4}),
        ({}, {"moe_router_bias_update_rate": 1e-3}),
        ({}, {"model_overrides": {"moe_z_loss_coeff": 1e-3}}),
    ],
    ids=["kl penalty", "balancing loss", "expert bias", "z loss"],
)
def test_where_more_than_advantages_teaches_every_rollout_is_trained_on(loss, router):
    def teach(loss, router):
        policy = PolicyConfig(megatron_cfg=MegatronConfig(**router))
        return only_advantages_teach(SimpleNamespace(loss_fn=LossConfig(**loss), policy=policy))

    assert teach({}, {}) and not teach(loss, router)


class Numbers:
    """Prompts 0, 1, 2, ..."""

    def __init__(self):
        self.drawn = 0

    def next(self, n):
        self.drawn += n
        return list(range(self.drawn - n, self.drawn))


class Scripted(Sampler):
    """Answers prompt i with the i-th pair of rewards."""

    def __init__(self, rewards):
        self.rewards = rewards

    def groups(self, step, prompts, group_size, draw=0):
        assert group_size == 2
        return [group(self.rewards[i % len(self.rewards)]) for i in prompts]


def dynamic(**settings):
    return GRPOConfig(num_prompts_per_step=2, num_generations_per_prompt=2, use_dynamic_sampling=True, **settings)


def test_dynamic_sampling_draws_until_the_batch_is_full_of_informative_groups():
    prompts = Numbers()
    kept, metrics = Scripted([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.5], [0.0, 1.0]]).batch(1, prompts, dynamic())
    assert [[r.reward for r in g.rollouts] for g in kept] == [[1.0, 0.0], [1.0, 0.5]]
    assert prompts.drawn == 6 and metrics["dynamic_sampling_num_gen_batches"] == 3
    assert metrics["reward"] == pytest.approx(5.5 / 12) and metrics["filtered_reward"] == 2.5 / 4


def test_dynamic_sampling_stops_where_prompts_teach_nothing():
    with pytest.raises(DataError, match="6 prompts gave 0 groups .* not 2"):
        Scripted([[1.0, 1.0]]).batch(1, Numbers(), dynamic(dynamic_sampling_max_gen_batches=3))


def test_dynamic_sampling_draws_on_where_no_reply_is_acceptable():
    kept, metrics = Scripted([[0.5, 0.0], [1.0, 0.0]]).batch(1, Numbers(), dynamic(swe_group_threshold=0.5))
    assert [[r.reward for r in g.rollouts] for g in kept] == [[1.0, 0.0]] * 2 and metrics["groups_taught"] == 1.0


def test_rewards_that_differ_in_single_precision_only_are_informative():
    assert rollout_metrics([group([1.0, 1.0 + 3e-8])])["informative_groups"] == 1.0


def test_every_draw_has_noise_of_its_own_and_is_replayed_with_its_rewards_from_its_own_file(tmp_path, monkeypatch):
    seeds, rewarded = [], []

    def sampled(policy, engine, prompts, group_size, seed, turns, ended, watch):
        seeds.append(seed)
        return lambda: [group([None, None]) for _ in prompts]

    class TeachesAtTheSecondDraw:
        env = EnvConfig()

        def begin(self, rows):
            return nothing_to_do

        def fill(self, groups):
            rewarded.append(len(groups))
            for g in groups:
                g.rollouts[0].reward, g.rollouts[1].reward = 1.0, float(len(rewarded) % 2)

    class Same:
        def next(self, n):
            return [Prompt("ab" * 32, "math", {}, [10, 3])] * n

    monkeypatch.setattr(sampling, "begin_groups", sampled)
    config, rewards = dynamic(), TeachesAtTheSecondDraw()
    drawn = [Sampler(None, None, rewards, RolloutStore(tmp_path), seed=3).batch(step, Same(), config)[0] for step in (1, 2)]
    assert len(set(seeds)) == len(seeds) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_{n}.jsonl" for n in ("1", "1_1", "2", "2_1")]
    again = [Sampler(None, None, rewards, RolloutStore(tmp_path), seed=3).batch(step, Same(), config)[0] for step in (1, 2)]
    assert again == drawn and [r.reward for r in again[0][0].rollouts] == [1.0, 0.0]
    assert len(seeds) == 4 and rewarded == [2] * 4, "a replayed step samples and verifies nothing"


def test_without_dynamic_sampling_every_group_is_trained_on():
    prompts = Numbers()
    config = GRPOConfig(num_prompts_per_step=2, num_generations_per_prompt=2)
    kept, metrics = Scripted([[0.0, 0.0]]).batch(1, prompts, config)
    assert len(kept) == prompts.drawn == 2 and "filtered_reward" not in metrics


def test_distillation_trains_on_every_reply_whatever_its_reward():
    samples = distillation_samples([group([0.0, 0.0]), group([1.0, None])], mopd())
    assert len(samples) == 4 and all(sum(sample.loss_mask) == 3 for sample in samples)


def lesson(config, lengths: dict[str, list[int]]):
    """The pack of a distillation batch, whose teacher says 0.5 more of math's tokens and 0.25 less of the others'."""
    groups = []
    for domain, of_domain in lengths.items():
        for length in of_domain:
            groups.append(Group({}, domain, [rollout(response=[5] * length)]))
    samples = distillation_samples(groups, config)
    for sample, domain in zip(samples, (g.domain for g in groups)):
        sample.fields["teacher_logprobs"] = [-0.5 if domain == "math" else -1.25] * len(sample.tokens)
    return build_pack(samples, range(len(samples)), 8, "cpu", dtype=torch.float64)


@pytest.mark.parametrize("token_level", [True, False], ids=["token mean", "sequence mean"])
def test_domains_have_their_shares_of_a_distillations_gradient_however_long_their_replies_are(token_level):
    lengths, shares = {"math": [7, 9], "mcqa": [1, 2, 2]}, {"math": 1.0, "mcqa": 3.0, "code_gen": 5.0}
    config = mopd(shares, adv_estimator=AdvantageEstimatorConfig("opd", shares))
    config.loss_fn.token_level_loss = token_level
    pack = lesson(config, lengths)
    logprobs = torch.full_like(pack.mask, -1.0).requires_grad_()
    total, count, metrics = make_loss(config.loss_fn, True, list(shares))(logprobs, pack)
    (gradient,) = torch.autograd.grad(total / count, logprobs)
    of_math = pack.fields["domain"] == 0
    assert gradient[of_math & (pack.mask > 0)].sum().item() == pytest.approx(-0.5 * 1 / 4)
    assert gradient[~of_math].sum().item() == pytest.approx(0.25 * 3 / 4)
    # Metrics are of the tokens as they are; of a domain without any, there is none to be logged.
    told = {name: (a.item(), b.item()) for name, (a, b) in metrics.items() if name.endswith("reverse_kl")}
    assert told == {"math/reverse_kl": (-8.0, 16), "mcqa/reverse_kl": (1.25, 5), "code_gen/reverse_kl": (0, 0)}
    assert metrics["teacher_student_logprob_gap_mean"][0].item() == 8.0 - 1.25


def test_metrics_are_means_over_rollouts_and_by_domain():
    metrics = rollout_metrics([group([1.0, 0.0]), group([1.0, 1.0], domain="mcqa", finish_reason="length")])
    assert metrics["reward"] == 0.75 and metrics["math/reward"] == 0.5 and metrics["mcqa/reward"] == 1.0
    assert metrics["informative_groups"] == 0.5 and metrics["truncation_rate"] == 0.5
    assert metrics["verifier_errors"] == 0.0 and "judge_readable" not in metrics
    failed, judged = group([1.0, 0.0]), group([3.0, 4.0])
    failed.rollouts[0].info = {"verifier_error": "took longer than 10 s"}
    for rollout, readable in zip(judged.rollouts, (1.0, 0.5)):
        rollout.info = {"judge_readable": readable}
    metrics = rollout_metrics([failed, judged])
    assert metrics["verifier_errors"] == 0.25 and metrics["judge_readable"] == 0.75
    assert metrics["mean_gen_tokens_per_sample"] == 3


class FakePack:
    def __init__(self, **fields):
        self.fields, self.mask = fields, torch.tensor([1.0, 1.0, 1.0, 0.0])
        self.segments = torch.tensor([0, 0, 1, -1])


def test_the_gradient_of_the_rl_loss_is_minus_the_advantage_by_token():
    pack = FakePack(advantages=torch.tensor([2.0, 2.0, -1.0, 9.0]), sampling_logprobs=torch.full((4,), -1.0))
    logprobs = torch.full((4,), -1.0, requires_grad=True)
    total, count, _ = make_loss(LossConfig(), distil=False)(logprobs, pack)
    (gradient,) = torch.autograd.grad(total, logprobs)
    assert gradient.tolist() == [-2.0, -2.0, 1.0, 0.0] and count == 3


@pytest.mark.parametrize("token_level, weight", [(True, 1.0), (False, 0.5)], ids=["by token", "by response"])
def test_the_kl_term_pulls_towards_the_reference_in_the_losss_own_mean(token_level, weight):
    reference = torch.tensor([-1.0, -2.0, -0.5, 9.0])
    pack = FakePack(advantages=torch.zeros(4), sampling_logprobs=torch.full((4,), -1.0), reference_logprobs=reference)
    logprobs = torch.full((4,), -1.0, requires_grad=True)
    settings = LossConfig(token_level_loss=token_level, reference_policy_kl_penalty=0.1)
    total, _, metrics = make_loss(settings, distil=False)(logprobs, pack)
    (gradient,) = torch.autograd.grad(total, logprobs)
    # d k3 / d log pi = 1 - pi_ref / pi; response 0 has two tokens, response 1 has one.
    away, towards = 1 - torch.tensor(-1.0).exp().item(), 1 - torch.tensor(0.5).exp().item()
    assert gradient.tolist() == pytest.approx([0.0, 0.1 * weight * away, 0.1 * towards, 0.0])
    assert metrics["kl_penalty"][1] == 3


def test_a_padding_token_that_is_all_but_impossible_does_not_spoil_the_kl_term():
    zeros = torch.zeros(4)
    pack = FakePack(advantages=zeros, sampling_logprobs=zeros, reference_logprobs=zeros)
    logprobs = torch.tensor([0.0, 0.0, 0.0, -1000.0], requires_grad=True)
    total, _, _ = make_loss(LossConfig(reference_policy_kl_penalty=0.1), distil=False)(logprobs, pack)
    (gradient,) = torch.autograd.grad(total, logprobs)
    assert total == 0.0 and gradient.tolist() == [0.0] * 4


def test_distillation_pulls_towards_the_teacher_and_drops_ratios_outside_the_band():
    sampled = torch.tensor([-1.0, -1.0 - 1.1, -1.0, -1.0])
    pack = FakePack(teacher_logprobs=torch.tensor([-0.5, -0.5, -3.0, -1.0]), sampling_logprobs=sampled)
    logprobs = torch.full((4,), -1.0, requires_grad=True)
    settings = LossConfig(
        token_level_loss=False,
        use_importance_sampling_correction=True,
        truncated_importance_sampling_type="icepop",
        truncated_importance_sampling_ratio_min=0.5,
        truncated_importance_sampling_ratio=2.0,
    )
    total, count, metrics = make_loss(settings, distil=True)(logprobs, pack)
    (gradient,) = torch.autograd.grad(total, logprobs)
    # Response 0 has two tokens, the second with ratio e^1.1 > 2: dropped, but it still counts in the response's length.
    assert gradient.tolist() == pytest.approx([-0.5 / 2, 0.0, 2.0, 0.0]) and count == 2
    assert metrics["is_oob_ratio"][0] == 1
