"""What may be read from a stage's files."""

import json

import pytest

from nemo_cascade.data.rows import DataError
from nemo_cascade.environments import code_gen
from nemo_cascade.stages.config import DataConfig, DatasetConfig
from nemo_cascade.stages.data import load_domains


def domains(tmp_path, **settings):
    row = {**code_gen.EXAMPLES[0][0], "agent_ref": {"name": "code_gen_simple_agent"}}
    row["responses_create_params"] = {"input": [{"role": "user", "content": "Double it."}]}
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return load_domains(DataConfig(train={"code": DatasetConfig(str(path))}, **settings), "train", kind="rl")


def test_a_row_cannot_vouch_for_the_programs_that_answer_it(tmp_path):
    with pytest.raises(DataError, match="train.jsonl, row 1: .* set data.trusted_demo=true if the rows are your own"):
        domains(tmp_path)


def test_the_config_can_vouch_for_them(tmp_path):
    assert len(domains(tmp_path, trusted_demo=True)["code"].rows) == 1
