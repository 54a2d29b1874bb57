"""`nemo-cascade data` as a user calls it, and its output where a config names it."""

import shlex

import pytest
from released_files import follow, rl_folder, sft_folder, write_lines
from typer.testing import CliRunner

from nemo_cascade.cascade.cli import app
from nemo_cascade.data.prepare.catalogue import SETS


def call(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def keys_of(output: str) -> list[str]:
    """What a shell would make of the lines behind the table."""
    _, _, told = output.partition("for a config:\n")
    return [word for line in told.splitlines()[:-1] for word in shlex.split(line)]


def test_the_list_names_every_set_with_its_revision_and_stages():
    told = call("data", "list").stdout
    for released in SETS:
        assert f"{released.repository} @ {released.revision or 'no revision pinned'}" in told
        assert all(subset.name in told and subset.stage in told for subset in released.subsets)
    assert {subset.stage for released in SETS for subset in released.subsets} == {
        "sft", "if_rl", "multi_domain_rl", "mopd", "swe_rl", "swe_agentic_rl"
    }


@pytest.mark.parametrize("name", ["cascade-2-sft", "nvidia/Nemotron-Cascade-2-RL-data"])
def test_what_it_wrote_is_what_check_accepts_with_the_keys_that_it_told(name, tmp_path):
    is_sft = name.endswith("sft")
    (sft_folder if is_sft else rl_folder)(tmp_path / "in")
    own = ["--subset=chat", "--capacity=1024"] if is_sft else ["--subset=IF-RL", "--validation-share=0.3"]
    done = call("data", "prepare", name, "--from", tmp_path / "in", "--out", tmp_path / "out", *own)
    assert done.exit_code == 0, done.stderr
    keys = keys_of(done.stdout)
    assert len(keys) == 2
    assert ("1 no_answer" if is_sft else "1 unverifiable") in done.stdout
    checked = call("check", "--config-name=tiny", *keys)
    assert checked.exit_code == 0, checked.stderr
    again = call("data", "prepare", name, "--from", tmp_path / "in", "--out", tmp_path / "out", *own)
    assert again.stdout == done.stdout


def test_mistakes_end_with_a_line_and_code_2(tmp_path):
    write_lines(tmp_path / "in" / "IF-RL" / "train.jsonl", [follow(1)])
    for arguments, told in [
        (("cascade-3",), "no data set 'cascade-3'; there are cascade-2-sft, cascade-2-rl, cascade-1-swe"),
        (("cascade-2-rl", "--subset=IF"), "cascade-2-rl has no subset 'IF'; it has IF-RL, "),
        (("cascade-1-swe",), "nvidia/Nemotron-Cascade-RL-SWE: --revision must be a commit of 40 hexadecimal digits, not None"),
        (("cascade-2-rl", "--subset=IF-RL", "--from", tmp_path / "in", "--evaluation", tmp_path / "in"), "nothing is left"),
    ]:
        refused = call("data", "prepare", *arguments, "--out", tmp_path / "out")
        assert refused.exit_code == 2 and refused.stderr.startswith("nemo-cascade: ") and told in refused.stderr
