"""What a user is told when a command or a config is not what was meant: each problem once, by the name of what was given."""

import json
import re

import pytest
import typer
from typer.testing import CliRunner

from nemo_cascade import last_words
from nemo_cascade.cascade import cli
from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import ConfigErrors, load_config
from nemo_cascade.cascade.problems import merged
from nemo_cascade.models.presets import PRESETS

LAYOUT = "policy.megatron_cfg."


def problems(*overrides: str, name: str = "tiny", world_size: int | None = 2) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load_config(compose_config(name, overrides), world_size)
    return caught.value.problems


def refusal(*arguments: str, capsys) -> list[str]:
    """The lines of a command that is refused, without their program's name."""
    with pytest.raises(SystemExit) as end:
        cli.app(list(arguments), standalone_mode=False)
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("nemo-cascade: ") for line in lines), lines
    return [line.removeprefix("nemo-cascade: ") for line in lines]


# -------------------------------------------------------------------------------- one problem of many stages


def test_a_problem_that_stages_have_alike_is_one_line_that_names_them():
    told = [
        "cascade.stages.a.grpo.x: must be >= 1, got 0; set it: to 1",
        "policy.y: wrong",
        "cascade.stages.b.grpo.x: must be >= 1, got 0; set it: to 1",
        "cascade.stages.b.grpo.x: must be >= 1, got -1",
        "cascade.stages.c: unknown stage",
        "policy.y: wrong",
    ]
    assert merged(told, ["a", "b", "c"]) == [
        "cascade.stages.<stage>.grpo.x (in a, b): must be >= 1, got 0; set it: to 1",
        "policy.y: wrong",
        "cascade.stages.b.grpo.x: must be >= 1, got -1",
        "cascade.stages.c: unknown stage",
    ]
    assert merged(told, ["a", "b"])[0].startswith("cascade.stages.<stage>.grpo.x (in all 2 stages): must be")


def test_a_mistake_in_some_stages_is_told_once_and_so_is_one_in_all():
    given = [f"cascade.stages.{name}.policy.generation.top_p=3" for name in ("sft", "if_rl")]
    recompute = [f"cascade.stages.{name}.{LAYOUT}moe_router_dtype=fp3" for name in load_config(compose_config("tiny")).order]
    assert problems(*given, *recompute) == [
        f"cascade.stages.<stage>.{LAYOUT}moe_router_dtype (in all 11 stages): 'fp3' is not a choice; did you mean fp32?",
        "cascade.stages.<stage>.policy.generation.top_p (in sft, if_rl): must be in (0, 1], got 3.0",
    ]


def test_a_width_of_experts_that_tensor_ranks_split_is_told_of_the_key_that_was_given():
    tensor = (f"{LAYOUT}tensor_model_parallel_size=3", f"{LAYOUT}sequence_parallel=true")
    found = problems(*tensor, world_size=4)
    assert not [line for line in found if "expert_tensor" in line]
    (line,) = [line for line in found if "moe_ffn_hidden_size 128 = 3 * 42 + 2" in line]
    assert line.startswith(f"{LAYOUT}tensor_model_parallel_size: 3 does not divide tiny's num_attention_heads")
    (line,) = [line for line in found if "started processes" in line]
    assert "multiply to 3" in line
    (line,) = problems(f"{LAYOUT}expert_tensor_parallel_size=3", world_size=3)
    assert line == f"{LAYOUT}expert_tensor_parallel_size: 3 does not divide tiny's moe_ffn_hidden_size 128 = 3 * 42 + 2"


# -------------------------------------------------------------------------------- what is not there


def test_a_students_folder_that_is_not_there_is_no_unknown_model_and_its_tokenizer_is_not_told_beside_it(tmp_path):
    found = [line for line in problems(name="mopd", world_size=8) if line.startswith("policy.")]
    said = "name the Hugging Face folder of the model to train, or one of " + ", ".join(PRESETS)
    assert found == [f"policy.model_name: no folder /models/student; {said}"]
    (line,) = problems(f"policy.model_name={tmp_path}")
    assert line.startswith(f"policy.model_name: {tmp_path} has no config.json") and "pretrained_checkpoint" in line
    (line,) = problems("policy.model_name=tiny", "policy.tokenizer.name=/models/none")
    assert line.startswith("policy.tokenizer.name: /models/none is neither a folder nor shipped") and "tokenizer.json" in line


def test_a_config_that_is_not_there_is_told_by_the_option_that_was_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("defaults: [tiny, _self_]\n")
    for arguments, expected in (
        (["--config", "nosuch.yaml"], "--config nosuch.yaml: no file nosuch.yaml"),
        (["--config", "mien.yaml"], "--config mien.yaml: no file mien.yaml; did you mean mine.yaml?"),
        (["--config", "smoke.yaml"], "--config smoke.yaml: no file smoke.yaml; the package's own is --config-name=smoke"),
        (["--config-dir", "nosuch"], "--config-dir nosuch: no such folder; name the one that your configs are in"),
    ):
        (line,) = refusal("check", *arguments, capsys=capsys)
        assert line.startswith(expected)
    cli.app(["check", "--config", "mine"], standalone_mode=False)
    assert "ok: 11 stages" in capsys.readouterr().out


def test_what_is_no_key_value_is_told_how_to_write_it(capsys):
    found = refusal("check", "policy.precision", "=", "float32", "smoke", "~cascade.judge", capsys=capsys)
    how = "an override is key=value, without spaces; write"
    assert found == [
        f"policy.precision: {how} policy.precision=VALUE",
        f"=: {how} key=value",
        f"float32: {how} float32=VALUE",
        f"smoke: {how} smoke=VALUE, or --config-name=smoke",
    ]


# -------------------------------------------------------------------------------- help


@pytest.mark.parametrize("columns", [80, 120])
def test_help_cuts_nothing_off_and_breaks_no_sentence_but_at_the_edge(columns):
    commands = typer.main.get_command(cli.app).commands
    overview = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": str(columns)}).output
    for name, command in commands.items():
        first = command.help.partition("\n")[0]
        assert first.endswith(".") and f"{name.ljust(max(map(len, commands)))}  {first}\n" in overview
        told = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": str(columns)}).output
        assert "…" not in told and first in told
        assert all(len(line) <= 80 for line in told.splitlines())
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        assert all(f"  {option}" in told or f", {option}" in told for option in options)
        # What is left of a paragraph's line must be too short for the next line's first word.
        lines = re.split(r"^(?:Arguments|Options):$", told, flags=re.MULTILINE)[0].splitlines()
        for line, following in zip(lines, lines[1:]):
            if line.startswith("  ") and following.startswith("  ") and "torchrun" not in following:
                assert len(line) + 1 + len(following.split()[0]) > 76, (line, following)


# -------------------------------------------------------------------------------- last words


def test_last_words_are_left_for_torchrun_alone(tmp_path, monkeypatch):
    monkeypatch.delenv(last_words.ERROR_FILE, raising=False)
    last_words.leave("nobody asks")
    monkeypatch.setenv(last_words.ERROR_FILE, str(tmp_path / "error.json"))
    last_words.leave("one\ntwo")
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == "one\ntwo"
    monkeypatch.setenv(last_words.ERROR_FILE, str(tmp_path / "none" / "error.json"))
    last_words.leave("a folder that is not there is no reason to fail")
