"""A stage whose policy is played by scripted agents: what they do goes through prompts, turns, sandbox, rewards, disk, loss and metrics."""

import json
from pathlib import Path

import pytest

from nemo_cascade import environments
from nemo_cascade.data import repositories
from nemo_cascade.data.chat import render_tool_call
from nemo_cascade.data.demo import ensure, swe_agentic
from nemo_cascade.data.rows import prompt_id
from nemo_cascade.environments.python_tool import DEFINITION, NAME
from tests.helpers import run_distributed


def bash(command: str) -> str:
    return "</think>" + render_tool_call({"name": "execute_bash", "arguments": {"command": command}})


FINISH = "</think>" + render_tool_call({"name": "finish", "arguments": {"message": "done"}})


def patched(row: dict) -> str:
    return bash(f"git apply - <<'END'\n{row['golden_patch']}END")


# How skilled agents are, what each does for a row turn by turn, what it earns, and how its rollout ends.
SKILLS = [
    ("mends it and says so", lambda row: [bash("ls && cat README.md"), patched(row), FINISH], 1.0, "stop"),
    ("mends it, and breaks all", lambda row: [patched(row), bash("for f in */*.py; do echo 'raise ValueError' > $f; done"), FINISH], 0.0, "stop"),
    ("mends it at its last turn", lambda row: [bash("ls"), bash("ls"), patched(row)], 1.0, "turns"),
    ("waits for ever", lambda row: [bash("sleep 1000"), bash("ls"), FINISH], 0.0, "stop"),
    ("only talks", lambda row: ["</think>It is mended."], 0.0, "stop"),
    ("calls what there is not", lambda row: ["</think>" + render_tool_call({"name": "browse", "arguments": {}}), FINISH], 0.0, "stop"),
]


def played(skills: list, rows: list[dict]) -> dict:
    """What is said in each conversation, as `Scripted` has it."""
    return {(prompt_id(row), number): does(row) for row in rows for number, (_, does, *_) in enumerate(skills)}


def stage_of(directory: Path, rows: list[dict], said: dict):
    """Runs one step of an RL stage in which the agents say this; the lines of its metrics and its groups as they are on disk."""
    from megatron.core import parallel_state

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import PolicyConfig, SequencePackingConfig
    from nemo_cascade.environments.swe_agentic import shell
    from nemo_cascade.rollout.config import GenerationConfig
    from nemo_cascade.sandbox import Limits
    from nemo_cascade.stages import rl
    from nemo_cascade.stages.config import DataConfig, DatasetConfig, GRPOConfig
    from nemo_cascade.stages.context import LoopConfig, StageRun
    from nemo_cascade.stages.metrics import MetricsLog
    from tests.rollout.test_agent import Scripted

    class Playing(Scripted):
        def sharing(self):
            return parallel_state.get_data_parallel_group()

        def sync(self, policy):
            pass

        def rest(self):
            pass

    rl.make_engine = lambda policy: Playing(said)
    # Whoever waits for ever does not for long.
    shell.LIMITS = Limits(**{**vars(shell.LIMITS), "seconds": 8.0})
    policy = PolicyConfig(
        model_name="micro",
        max_total_sequence_length=4096,
        sequence_packing=SequencePackingConfig(train_mb_tokens=4096),
        generation=GenerationConfig(max_new_tokens=1200),
    )
    counts = dict(num_prompts_per_step=len(rows), num_generations_per_prompt=len(said) // len(rows))
    grpo = GRPOConfig(max_num_steps=1, max_rollout_turns=3, **counts)
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = LoopConfig(policy=policy, grpo=grpo, data=DataConfig(train={"agents": DatasetConfig(str(path))}, shuffle=False))
    parallel.init(policy.megatron_cfg)
    stage = directory / "01-agents"
    stage.mkdir()
    rl.run(StageRun(name="agents", config=config, dir=stage, seed=1))
    *groups, _seal = [json.loads(line) for line in (stage / "rollouts" / "step_1.jsonl").read_text().splitlines()]
    return MetricsLog(stage / "metrics.jsonl").read(), groups


@pytest.mark.slow
def test_scripted_agents_of_known_skill_earn_exactly_their_reward_in_a_stage_of_the_demos_repositories(tmp_path):
    rows = swe_agentic.rows("train")[:1]
    (((line,), groups),) = run_distributed(stage_of, 1, tmp_path, rows, played(SKILLS, rows))
    assert len(groups) == len(rows)
    for group in groups:
        for (name, _, reward, end), rollout in zip(SKILLS, group["rollouts"], strict=True):
            assert (rollout["reward"], rollout["finish_reason"]) == (reward, end), (name, rollout["info"])
        infos = {name: rollout["info"] for (name, *_), rollout in zip(SKILLS, group["rollouts"])}
        assert infos["mends it and says so"]["failed_tests"] == [] and infos["waits for ever"]["outcome"] == {"changed": {}, "deleted": []}
        assert [infos[name]["turns"] for name, *_ in SKILLS] == [3, 3, 3, 3, 1, 2]
    assert line["train/reward"] == pytest.approx(2 / 6) and line["train/agents/reward"] == pytest.approx(2 / 6)
    assert line["train/avg_turns_per_sample"] == pytest.approx(15 / 6) and line["train/max_turns_reached_rate"] == pytest.approx(1 / 6)
    assert line["train/tool_errors"] == line["train/verifier_errors"] == line["train/truncation_rate"] == 0.0
    assert line["train/groups_taught"] == 1.0 and line["train/grad_norm"] > 0


def code(text: str) -> str:
    return "</think>" + render_tool_call({"name": NAME, "arguments": {"code": text}})


COMPUTING = [
    ("computes", lambda row: [code("x = 123456789"), code("x * x"), f"</think>\\boxed{{{row['expected_answer']}}}"], 1.0, "stop"),
    ("computes on", lambda row: [code("x = 1"), code("x + 1"), code("x + 2")], 0.0, "turns"),
    ("leaves", lambda row: [code("exit()"), code("x"), "</think>\\boxed{0}"], 0.0, "stop"),
    ("knows it", lambda row: [f"</think>\\boxed{{{row['expected_answer']}}}"], 1.0, "stop"),
]


def test_agents_with_a_python_of_their_own_earn_by_their_answers_in_a_stage(tmp_path):
    row = {
        "agent_ref": {"name": "math_with_python_simple_agent"},
        "responses_create_params": {"input": [{"role": "user", "content": "The square of 123456789?"}], "tools": [DEFINITION]},
        "expected_answer": str(123456789**2),
    }
    (((line,), (group,)),) = run_distributed(stage_of, 1, tmp_path, [row], played(COMPUTING, [row]))
    assert [(r["reward"], r["finish_reason"]) for r in group["rollouts"]] == [(reward, end) for *_, reward, end in COMPUTING]
    assert line["train/avg_turns_per_sample"] == pytest.approx(10 / 4) and line["train/tool_errors"] == 0.0


def test_the_demos_repositories_are_among_its_files_each_in_one_split(tmp_path):
    ensure(tmp_path, train_rows=2, validation_rows=2, sft_rows=2)
    splits = ("train", "validation")
    train, held_out = ([json.loads(line) for line in (tmp_path / f"swe_agentic/{s}.jsonl").read_text().splitlines()] for s in splits)
    assert sorted(row["instance_id"] for row in train + held_out) == sorted(row["instance_id"] for row in repositories.rows())
    assert (len(train), len(held_out)) == (10, 4) and all(environments.row_problem(row) is None for row in held_out)
    assert not ensure(tmp_path, train_rows=2, validation_rows=2, sft_rows=2)
    # As in the folder of a run from before they were among them.
    (tmp_path / "swe_agentic/train.jsonl").unlink()
    assert not ensure(tmp_path, train_rows=2, validation_rows=2, sft_rows=2), "who takes rows away is told of it, and does not get them again"
    (tmp_path / "settings.json").write_text(json.dumps(dict(train_rows=2, validation_rows=2, sft_rows=2), sort_keys=True))
    assert ensure(tmp_path, train_rows=2, validation_rows=2, sft_rows=2) and (tmp_path / "swe_agentic/train.jsonl").is_file()
