"""A judge in the policy's own buffers answers as itself, leaves no trace and favours no place; its words become rewards."""

import contextlib
import dataclasses
import hashlib
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from nemo_cascade.algorithms import comparison_pairs, genrm_rewards
from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.data.rows import prompt_id
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.environments.genrm_compare import Comparison, judge_messages, parse
from nemo_cascade.rollout.types import Group, Rollout, SamplingParams
from nemo_cascade.stages.config import GenRMConfig
from tests.environments.test_endpoint import Model, served
from tests.helpers import run_distributed

TOKENIZER = load_tokenizer("tiny")
ROWS = DOMAINS["preference"].rows(6, "train")
# Without a thought, because an untrained model never ends one.
CONFIG = GenRMConfig(judge_max_new_tokens=12, judge_enable_thinking=False)
ALL = ("Hello, come.", "Dear Anna, please come.", "Hello, please come at noon.")


def rollout(row, text, k=0) -> Rollout:
    tokens = [*TOKENIZER.encode(text, add_special_tokens=False), 11]
    return Rollout(prompt_id(row), k, [10, 3], tokens, [-0.5] * len(tokens), "stop")


def group(row, *texts) -> Group:
    return Group(row, "preference", [rollout(row, text, k) for k, text in enumerate(texts)])


# -------------------------------------------------------------------------------- with two real models


def build(seed, **layout):
    """A policy whose words depend on what it was asked, with its engine."""
    import torch.distributed as dist

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig, PolicyConfig, SequencePackingConfig
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.stages.rollouts import make_engine

    packing = SequencePackingConfig(train_mb_tokens=256)
    config = PolicyConfig(model_name="micro", sequence_packing=packing, megatron_cfg=MegatronConfig(**layout))
    if not dist.is_initialized():
        parallel.init(config.megatron_cfg)
    policy = Policy(config, seed=seed, max_num_steps=1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "norm" not in name:
                parameter.mul_(9.0)
    return policy, make_engine(policy)


def judge_of(policy, engine, checkpoint, config=CONFIG):
    from nemo_cascade.stages.judge import CheckpointJudge, Judge

    return Judge(CheckpointJudge(policy, engine, checkpoint, config), TOKENIZER, config)


def write_judge(checkpoint):
    policy, _ = build(seed=1)
    policy.save(checkpoint / "policy", optimizer=False)


def texts_of(policy, engine, asked) -> list[str]:
    """What a policy itself says, greedily, to the questions that a judge is asked."""
    from nemo_cascade.data.chat import render_prompt
    from nemo_cascade.rollout.engine import generate_global
    from nemo_cascade.rollout.types import Request
    from nemo_cascade.stages.rewards import reply_text

    prompts = [render_prompt(TOKENIZER, judge_messages(*question), enable_thinking=False) for question in asked]
    requests = [Request(f"{number:064x}", 0, tuple(prompt)) for number, prompt in enumerate(prompts)]
    params = SamplingParams(temperature=0.0, max_new_tokens=CONFIG.judge_max_new_tokens)
    return [reply_text(rollout, TOKENIZER) for rollout in generate_global(engine, requests, params)]


def answers(checkpoint, layout):
    """(what the judge's own model says, what the student says, what a judge in the student's buffers says)."""
    asked = [(row, first, second) for row in ROWS for first in ALL for second in ALL[:2]]
    own, engine = build(seed=0, **layout)
    own.load(checkpoint / "policy", optimizer=False)
    expected = texts_of(own, engine, asked)
    student, engine = build(seed=2, **layout)
    before, students_own = student.weights_hash(), texts_of(student, engine, asked)
    # As the texts they are: what an untrained model says cannot be read.
    with mock.patch("nemo_cascade.stages.judge.parse", str):
        heard = judge_of(student, engine, checkpoint).compare(asked)
    assert student.weights_hash() == before, "the student came back changed"
    assert texts_of(student, engine, asked) == students_own, "something of the judge is left in the engine"
    return expected, students_own, heard


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    run_distributed(write_judge, 1, folder)
    return folder


@pytest.mark.parametrize(
    "layout",
    [dict(world=1), dict(world=2), dict(world=2, tensor_model_parallel_size=2, sequence_parallel=True)],
    ids=str,
)
def test_a_judge_answers_as_its_own_model_does_and_leaves_the_student_as_it_was(layout, checkpoint):
    layout = dict(layout)
    found = run_distributed(answers, layout.pop("world"), checkpoint, layout)
    assert all(result == found[0] for result in found)
    expected, students_own, heard = found[0]
    assert heard == expected != students_own
    assert len(set(heard)) > len(ROWS), "a model that says one thing would hide errors"


def questions(checkpoint, _):
    student, engine = build(seed=2)
    a, b = ROWS[:2]
    asked = [(a, *ALL[:2]), (b, *ALL[:2]), (a, *ALL[:2]), (a, ALL[1], ALL[0]), (b, *ALL[:2])]
    judge = judge_of(student, engine, checkpoint)
    with mock.patch("nemo_cascade.stages.judge.parse", str), mock.patch.object(engine, "add", wraps=engine.add) as add:
        together = judge.compare(asked)
        sent = [request for call in add.call_args_list for request in call.args[0]]
        alone = [judge.compare([question])[0] for question in asked]
    return len(sent), together == alone, judge.compare([])


def test_equal_comparisons_are_asked_once_and_all_are_answered_in_order(checkpoint):
    assert run_distributed(questions, 1, checkpoint, None) == [(3, True, [])]


def rewarded(checkpoint):
    """Rewards of groups whose replies are compared in training and, alone, with a reference."""
    from nemo_cascade.stages.rewards import Rewards

    student, engine = build(seed=2)
    judge = judge_of(student, engine, checkpoint)
    found = []
    # Not all the same, so that replies earn differently.
    with mock.patch("nemo_cascade.stages.judge.parse", by_hash):
        for alone in (False, True):
            groups = [group(row, *(f"hm</think>{text}" for text in ALL)) for row in ROWS]
            Rewards(TOKENIZER, judge, alone=alone).fill(groups)
            found.append([[r.reward for r in group.rollouts] for group in groups])
    return found


def by_hash(text: str) -> Comparison:
    """A readable answer that depends on every sign of a text."""
    first, second, third = hashlib.sha256(text.encode()).digest()[:3]
    return Comparison(1 + first % 5, 1 + second % 5, 1 + third % 6)


def test_all_ranks_give_the_rewards_that_one_alone_gives(checkpoint):
    (one,) = run_distributed(rewarded, 1, checkpoint)
    assert run_distributed(rewarded, 2, checkpoint) == [one, one]
    in_groups, alone = one
    assert len({reward for rewards in in_groups for reward in rewards}) > len(ROWS)
    assert {reward for rewards in alone for reward in rewards} == {0.0, 1.0}


def guided(checkpoint):
    """(what a judge that never says anything readable says when it is guided, the log-probs of all that it may say)."""
    import itertools

    from nemo_cascade.data.chat import encode, render_prompt
    from nemo_cascade.data.sample import Sample
    from nemo_cascade.stages.judge import CheckpointJudge

    student, engine = build(seed=2)
    conversations = [judge_messages(row, *ALL[:2]) for row in ROWS[:2]]
    config = dataclasses.replace(CONFIG, judge_guided_json=True)
    said = CheckpointJudge(student, engine, checkpoint, config)(conversations)
    own, _ = build(seed=0)
    own.load(checkpoint / "policy", optimizer=False)
    ways = []
    for conversation in conversations:
        prompt = render_prompt(TOKENIZER, conversation, enable_thinking=False)
        texts = [f'{{"score_1": {a}, "score_2": {b}, "ranking": {c}' for a, b, c in itertools.product(range(1, 6), range(1, 6), range(1, 7))]
        replies = [encode(TOKENIZER, text) for text in texts]
        rows = own.logprobs([Sample(prompt + r, [0] * len(prompt) + [1] * len(r)) for r in replies])
        ways.append({text + "}": row[len(prompt) :] for text, row in zip(texts, rows)})
    return said, ways


def test_a_guided_judge_says_the_likeliest_value_of_each_field_in_turn(checkpoint):
    ((said, ways),) = run_distributed(guided, 1, checkpoint)
    for answer, of_all in zip(said, ways):
        assert parse(answer).readable and answer in of_all
        # Up to a field all that begin alike have the same log-probs, so the field's own decides among them.
        for end in ('"score_2"', '"ranking"', "}"):
            begun = answer[: answer.index(end)]
            rest = begun.rstrip(", ")[:-1]
            rivals = {text[: text.index(end)]: sum(logprobs[: tokens_of(text[: text.index(end)])]) for text, logprobs in of_all.items() if text.startswith(rest)}
            assert rivals[begun] == max(rivals.values()) and len(rivals) > 4


def tokens_of(text: str) -> int:
    return len(TOKENIZER.encode(text.rstrip(", }"), add_special_tokens=False))


def rewarded_by_an_endpoint(url, cache):
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.environments.endpoint import Endpoint, EndpointConfig
    from nemo_cascade.stages.judge import EndpointJudge, Judge
    from nemo_cascade.stages.rewards import Rewards

    parallel.init(MegatronConfig())
    endpoint = Endpoint(EndpointConfig(base_url=url, model="m", tries=2), cache / f"{parallel.rank()}.sqlite")
    judge = Judge(EndpointJudge(endpoint), TOKENIZER, CONFIG)
    groups = [group(row, *(f"hm</think>{text}" for text in ALL)) for row in ROWS]
    Rewards(TOKENIZER, judge).fill(groups)
    return [[(r.reward, r.info["judge_readable"]) for r in group.rollouts] for group in groups]


class Opinionated(Model):
    """A served judge: scores by length, after a thought that its server leaves in; of one reply it will not speak."""

    def said(self, messages):
        first, second = (len(message["content"]) for message in messages[-2:])
        if messages[-2]["content"] == ALL[2]:
            return "I would rather not."
        return f'</think>{{"score_1": {1 + min(first, 40) // 10}, "score_2": {1 + min(second, 40) // 10}, "ranking": 3}}'


def test_a_judge_behind_an_endpoint_rewards_alike_on_all_ranks_and_what_it_does_not_say_is_undecided(tmp_path):
    with served(Opinionated()) as url:
        one, two = run_distributed(rewarded_by_an_endpoint, 2, url, tmp_path / "answers")
        assert run_distributed(rewarded_by_an_endpoint, 1, url, tmp_path / "others") == [one]
    assert one == two
    for of_group in one:
        assert len({reward for reward, _ in of_group}) > 1
        assert all(readable == 1.0 for _, readable in of_group), "all pairs show the third reply second"


# -------------------------------------------------------------------------------- from words to rewards


SAID = '{"score_1": 4, "score_2": 2, "ranking": 1}'


@pytest.mark.parametrize(
    "thinks, said, heard",
    [
        (True, f"1 name\n2\n</think>\n{SAID}", Comparison(4, 2, 1)),
        (True, f"{SAID}, so it seems", Comparison(readable=False)),
        (True, f"{SAID}</think>the first", Comparison(readable=False)),
        (False, SAID, Comparison(4, 2, 1)),
    ],
    ids=["after its thought", "inside a thought that never ends", "inside its thought", "without a thought"],
)
def test_what_a_judge_says_is_read_after_its_thought(thinks, said, heard):
    asked = []

    def generate(engine, requests, params):
        asked.extend(TOKENIZER.decode(request.prompt) for request in requests)
        return [Rollout(r.prompt_id, 0, list(r.prompt), rollout(ROWS[0], said).response, [], "stop") for r in requests]

    policy = SimpleNamespace(tokenizer=TOKENIZER, weights_of=lambda checkpoint: contextlib.nullcontext())
    with mock.patch("nemo_cascade.stages.judge.generate_global", generate):
        judge = judge_of(policy, mock.Mock(), Path("genrm"), GenRMConfig(judge_enable_thinking=thinks))
        assert judge.compare([(ROWS[0], *ALL[:2])]) == [heard]
    assert asked[0].endswith("<think>\n" if thinks else "<think></think>") and ALL[0] in asked[0]


def judge_that_says(comparison, **settings):
    """A judge whose answer to (row, first, second) is scripted."""
    from nemo_cascade.stages.judge import Judge

    class Scripted(Judge):
        def compare(self, asked):
            return [comparison(*question) for question in asked]

    return Scripted(None, TOKENIZER, GenRMConfig(**settings))


def longer(row, first, second) -> Comparison:
    """Prefers the longer reply."""
    order = (len(first) > len(second)) - (len(first) < len(second))
    return Comparison(3 + order, 3 - order, 3.5)


@pytest.mark.parametrize("text, reward", [("long and longer", 1.0), ("short", 0.0), ("as long as", 0.5)])
def test_a_reply_alone_earns_its_win_over_the_reference_whatever_its_place(text, reward):
    rows = [{**row, "reference_reply": "0123456789"} for row in DOMAINS["preference"].rows(20, "train")]
    groups = [group(row, f"a thought\n</think>\n{text}") for row in rows]
    judge_that_says(longer).reward_by_reference(groups)
    assert [group.rollouts[0].reward for group in groups] == [reward] * 20
    assert groups[0].rollouts[0].info == {"judge_readable": True}


def test_an_answer_that_cannot_be_read_is_a_draw_and_told():
    asked = group(ROWS[0], "</think>a")
    judge_that_says(lambda *_: Comparison(readable=False)).reward_by_reference([asked])
    assert (asked.rollouts[0].reward, asked.rollouts[0].info) == (0.5, {"judge_readable": False})


def test_a_judge_that_loves_a_place_gives_half_of_the_prompts_a_win_and_each_prompt_always_the_same():
    groups = [group(row, "</think>a", "</think>b") for row in DOMAINS["preference"].rows(400, "train")]
    judge_that_says(lambda *_: Comparison(5, 1, 1)).reward_by_reference(groups)
    wins = [[rollout.reward for rollout in group.rollouts] for group in groups]
    assert all(first == second for first, second in wins)
    assert 160 < sum(first for first, _ in wins) < 240


@pytest.mark.parametrize("strategy", ["all_pairs", "circular"])
def test_a_groups_rewards_are_those_of_its_comparisons_and_of_the_lengths_of_its_texts(strategy):
    said = [("", "abc"), ("a long thought", "abcdef"), ("hm", "ab"), ("never closed", "")]
    replies = [f" {thought}\n</think>\n{answer} " for thought, answer in said[:3]] + ["never closed\n"]
    groups = [group(ROWS[0], *replies), group(ROWS[1], *replies[:2])]
    settings = dict(group_reasoning_length_penalty_coeff=0.3, group_answer_length_penalty_coeff=0.2, top_percentile=0.5)
    settings |= dict(reasoning_bonus=0.7, answer_bonus=0.4, comparison_strategy=strategy)

    def scripted(row, first, second):
        assert first.strip() == first and second.strip() == second
        return by_hash(f"{prompt_id(row)} {first} {second}")

    judge_that_says(scripted, **settings).reward_groups(groups)
    for row, one in zip(ROWS, groups):
        texts = said[: len(one.rollouts)]
        pairs = comparison_pairs(len(texts), strategy)
        heard = [scripted(row, texts[i][1], texts[j][1]) for i, j in pairs]
        expected = genrm_rewards(
            torch.tensor(pairs),
            torch.tensor([[c.score_1, c.score_2] for c in heard]),
            torch.tensor([c.ranking for c in heard]),
            torch.tensor([len(thought) for thought, _ in texts]),
            torch.tensor([len(answer) for _, answer in texts]),
            reasoning_coeff=0.3,
            answer_coeff=0.2,
            reasoning_bonus=0.7,
            answer_bonus=0.4,
            top_percentile=0.5,
        )
        assert [rollout.reward for rollout in one.rollouts] == expected.tolist()


def test_the_share_of_readable_answers_is_told_with_every_reply_of_a_group():
    asked = group(ROWS[0], "</think>a", "</think>b", "</think>c")
    judge_that_says(lambda row, first, second: Comparison(readable=first == "a")).reward_groups([asked])
    assert [rollout.info for rollout in asked.rollouts] == [{"judge_readable": 2 / 3}] * 3
