"""What may be read from a stage's files."""

import json

import pytest

from nemo_cascade import sandbox
from nemo_cascade.data.rows import DataError
from nemo_cascade.environments import code_gen
from nemo_cascade.environments.endpoint import EndpointConfig
from nemo_cascade.stages.config import DataConfig, DatasetConfig, EnvConfig
from nemo_cascade.stages.data import load_domains


def domains(tmp_path, **settings):
    row = {**code_gen.EXAMPLES[0][0], "agent_ref": {"name": "code_gen_simple_agent"}}
    row["responses_create_params"] = {"input": [{"role": "user", "content": "Double it."}]}
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return load_domains(DataConfig(train={"code": DatasetConfig(str(path))}, **settings), "train", kind="rl")


def test_rows_whose_replies_are_programs_are_read_where_there_is_a_sandbox(tmp_path):
    assert len(domains(tmp_path)["code"].rows) == 1


@pytest.mark.parametrize("on_bad_row", ["stop", "skip"])
def test_without_a_sandbox_such_rows_stop_the_run_whatever_is_done_about_bad_rows(tmp_path, monkeypatch, on_bad_row):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sandbox, "_current", None)
    with pytest.raises(sandbox.SandboxUnavailable, match="bubblewrap is not installed; apt-get install bubblewrap"):
        domains(tmp_path, on_bad_row=on_bad_row)


def test_free_answers_are_read_where_a_judge_is_named(tmp_path):
    row = {"expected_answer": "a boy", "needs_judge": True, "agent_ref": {"name": "long_context_simple_agent"}}
    row["responses_create_params"] = {"input": [{"role": "user", "content": "Who?"}]}
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row) + "\n")
    data = DataConfig(train={"far": DatasetConfig(str(path))})
    with pytest.raises(DataError, match="row 1: a judge has to be asked.*name one under env.judges.long_context"):
        load_domains(data, "train", kind="rl")
    env = EnvConfig(judges={"long_context": EndpointConfig("http://judge:8000/v1", "large")})
    assert len(load_domains(data, "train", kind="rl", env=env)["far"].rows) == 1
