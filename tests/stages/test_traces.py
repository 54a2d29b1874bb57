"""What is kept of a step's rollouts to be read: which ones, as which texts, with what they earned."""

import json

import pytest

from nemo_cascade.data.sample import Sample
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.rollout.types import Group, Rollout
from nemo_cascade.stages.config import DataConfig, DatasetConfig, GRPOConfig
from nemo_cascade.stages.context import LoopConfig, StageRun
from nemo_cascade.stages.rl import distillation_samples, reward_samples
from nemo_cascade.stages.traces import LONGEST_VALUE, Traces, chosen, token_ends

REPLY = "<think>\nred, then blue: é 🙂\n</think>\nThe colour is <b>green</b>.<|im_end|>"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


def group(rewards, domain="math", tokens=(5, 11), prompt=(10, 3), row=None) -> Group:
    rollouts = [
        Rollout("ab" * 32, k, list(prompt), list(tokens), [-0.25] * len(tokens), "stop", reward, {"extracted_answer": k})
        for k, reward in enumerate(rewards)
    ]
    return Group(row or {"expected_answer": "7"}, domain, rollouts)


def traces(folder, tokenizer, count=8, rank=0) -> Traces:
    config = LoopConfig()
    config.logger.rollouts_per_step = count
    return Traces(StageRun(name="math_rl", config=config, dir=folder, seed=1, rank=rank), tokenizer)


def written(folder, step=3) -> list[dict]:
    return [json.loads(line) for line in (folder / "traces" / f"step_{step}.jsonl").read_text().splitlines()]


def test_a_reply_is_kept_as_text_with_reward_and_advantage(tmp_path, tokenizer):
    tokens = tokenizer(REPLY, add_special_tokens=False)["input_ids"]
    prompt = tokenizer("<|im_start|>user\n1 + 2<|im_end|>\n", add_special_tokens=False)["input_ids"]
    groups = [group([1.0, 0.0], tokens=tokens, prompt=prompt)]
    samples = reward_samples(groups, GRPOConfig(num_generations_per_prompt=2, normalize_rewards=False))
    traces(tmp_path, tokenizer).write(3, groups, samples)
    right, wrong = written(tmp_path)
    assert "".join(right["pieces"]) == REPLY and right["prompt"] == "<|im_start|>user\n1 + 2<|im_end|>\n"
    assert (right["reward"], right["advantage"], wrong["reward"], wrong["advantage"]) == (1.0, 0.5, 0.0, -0.5)
    assert right["length"] == len(tokens) and right["verdict"] == {"extracted_answer": 0}
    assert right["row"] == {"expected_answer": "7"} and right["domain"] == "math" and right["trained"]
    assert sum(right["logprobs"]) == pytest.approx(-0.25 * len(tokens)) and "gaps" not in right


def test_a_taught_reply_has_the_teachers_gap_of_each_token(tmp_path, tokenizer):
    groups = [group([1.0])]
    samples = distillation_samples(groups, LoopConfig(data=DataConfig(train={"math": DatasetConfig()})))
    samples[0].fields["teacher_logprobs"] = [0.0, 0.0, -1.25, -0.05]
    traces(tmp_path, tokenizer).write(3, groups, samples)
    (line,) = written(tmp_path)
    assert line["gaps"] == [-1.0, 0.2] and line["advantage"] is None


def test_a_character_of_several_tokens_is_one_piece(tokenizer):
    tokens = tokenizer("a🙂b", add_special_tokens=False)["input_ids"]
    assert len(tokens) > 3
    ends = token_ends(tokenizer, tokens)
    starts = [0, *ends[:-1]]
    assert [tokenizer.decode(tokens[a:b]) for a, b in zip(starts, ends)] == ["a", "🙂", "b"]


@pytest.mark.parametrize("cut", range(1, 6))
def test_pieces_make_the_whole_text_wherever_a_reply_was_cut(tokenizer, cut):
    tokens = tokenizer("é 🙂 é", add_special_tokens=False)["input_ids"][:cut]
    ends = token_ends(tokenizer, tokens)
    assert "".join(tokenizer.decode(tokens[a:b]) for a, b in zip([0, *ends[:-1]], ends)) == tokenizer.decode(tokens)


def test_a_tokenizer_that_reads_tokens_otherwise_alone_gives_one_piece():
    class Words:
        """Drops the space before its first token, as SentencePiece does."""

        def decode(self, tokens, **_options):
            return " ".join(str(token) for token in tokens)

        def batch_decode(self, rows, **options):
            return [self.decode(row, **options) for row in rows]

    assert token_ends(Words(), [4, 5, 6]) == [3]


def test_the_best_and_the_worst_reply_of_a_group_come_first_and_domains_take_turns():
    groups = [group([0, 1, 0.5]), group([1, 0.5, 0]), group([0.5, 0, 1], domain="mcqa")]
    assert chosen(groups, 4) == [(0, 1), (0, 0), (2, 2), (2, 1)]
    assert chosen(groups, 7) == [(0, 1), (0, 0), (2, 2), (2, 1), (1, 0), (1, 2), (0, 2)]
    assert len(chosen(groups, 100)) == 9 == len(set(chosen(groups, 100)))


def test_a_step_that_is_repeated_has_the_same_file(tmp_path, tokenizer):
    groups = [group([1.0, 0.0])]
    samples = reward_samples(groups, GRPOConfig(num_generations_per_prompt=2))
    kept = traces(tmp_path, tokenizer)
    kept.write(3, groups, samples)
    path = tmp_path / "traces" / "step_3.jsonl"
    first = path.read_bytes()
    path.write_bytes(first[:40])
    kept.write(3, groups, samples)
    assert path.read_bytes() == first


@pytest.mark.parametrize("settings", [{"count": 0}, {"rank": 1}])
def test_nothing_is_written_where_nothing_is_asked_for_or_by_another_rank(tmp_path, tokenizer, settings):
    sample = Sample([1, 2], [0, 1])
    traces(tmp_path, tokenizer, **settings).write(3, [group([1.0])], [sample])
    assert list(tmp_path.iterdir()) == []


def test_long_values_of_a_row_are_cut(tmp_path, tokenizer):
    groups = [group([1.0, 0.0], row={"hidden_tests": ["assert " * 1000], "responses_create_params": {"input": []}})]
    traces(tmp_path, tokenizer).write(3, groups, reward_samples(groups, GRPOConfig(num_generations_per_prompt=2)))
    row = written(tmp_path)[0]["row"]
    assert list(row) == ["hidden_tests"] and len(row["hidden_tests"]) < LONGEST_VALUE + 10
