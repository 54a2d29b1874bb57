"""Prompts are rendered when they are drawn; before training all are rendered once, to be checked."""

import json

import pytest

from nemo_cascade.data.rows import DataError
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.engine.config import PolicyConfig
from nemo_cascade.environments import mcqa
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.stages.config import DataConfig, DatasetConfig
from nemo_cascade.stages.data import load_domains
from nemo_cascade.stages.prompts import PromptSource, render
from tests.helpers import run_distributed

TOKENIZER = load_tokenizer("tiny")


def data_config(tmp_path, questions):
    path = tmp_path / "train.jsonl"
    row = {**mcqa.EXAMPLES[0][0], "agent_ref": {"name": "mcqa_simple_agent"}}
    lines = [json.dumps({**row, "responses_create_params": {"input": question}}) for question in questions]
    path.write_text("\n".join(lines) + "\n")
    return DataConfig(train={"mcqa": DatasetConfig(str(path))})


def policy_config(room):
    return PolicyConfig(max_total_sequence_length=room + 8, generation=GenerationConfig(max_new_tokens=8))


def test_drawn_prompts_are_those_that_were_checked(tmp_path):
    data, policy = data_config(tmp_path, ["Which one?", "And which now?", "The last?"]), policy_config(100)
    checked = {prompt.id: prompt for prompt in render(load_domains(data, "train", "rl")["mcqa"], TOKENIZER, policy)}
    drawn = PromptSource(data, TOKENIZER, policy, seed=1).next(6)
    assert len(checked) == 3 and all(prompt == checked[prompt.id] for prompt in drawn)
    assert {prompt.id for prompt in drawn} == set(checked)


def drawn_by_two(data, policy):
    source = PromptSource(data, TOKENIZER, policy, seed=1)
    return source.next(5) + source.next(0) + source.next(4)


def test_ranks_that_render_a_share_each_draw_what_one_draws(tmp_path):
    data, policy = data_config(tmp_path, ["Which one?", "And which now?", "The last?"]), policy_config(100)
    assert run_distributed(drawn_by_two, 2, data, policy) == [drawn_by_two(data, policy)] * 2


def test_a_prompt_without_room_for_a_reply_is_told_with_its_row(tmp_path):
    data = data_config(tmp_path, ["Which one?", "Which " * 50])
    with pytest.raises(DataError, match=r"train.jsonl, row 2: the prompt has \d+ tokens, but .* leaves 40"):
        render(load_domains(data, "train", "rl")["mcqa"], TOKENIZER, policy_config(40))
