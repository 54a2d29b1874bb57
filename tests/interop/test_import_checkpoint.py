"""What NeMo RL trained becomes a finished stage: the same weights, scored here, with where they come from; or it is refused.

The step_N is of our weights in NeMo RL's layout (Bridge's `iter_0000000` below policy/weights, tokenizer, config, training_info).
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from nemo_cascade.cascade.manifest import DONE, RUNNING, Manifest
from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.data.rows import DataError
from nemo_cascade.data.tokenizer import SHIPPED
from tests.cascade.test_halves import config_of, write_rows
from tests.engine.test_convert import build, stirred, write_folder
from tests.helpers import run_distributed


class Killed(BaseException):
    """Stands for a kill."""


def cascade_in(folder: Path, **of_rl):
    """SFT and a step of RL on few rows, of which two prompts are scored."""
    settings = {"max_num_steps": 1, "num_prompts_per_step": 2, "num_generations_per_prompt": 2}
    cascade = config_of(folder, **{f"grpo.{key}": value for key, value in settings.items()}, **of_rl)
    cascade.validation.num_prompts = 2
    for stage in cascade.stages.values():
        stage.data.validation = dict(cascade.stages["if_rl"].data.train)
    return cascade


def results(folder: Path) -> str:
    """nemo/step_7 and hf of the same weights; their hash."""
    digest = write_folder(folder, 10**9, {})
    step = folder / "nemo" / "step_7"
    weights = step / "policy" / "weights" / "iter_0000000"
    weights.parent.mkdir(parents=True)
    (folder / "policy" / "weights").rename(weights)
    (weights / "run_config.yaml").write_text("{}\n")
    shutil.copytree(SHIPPED / "tiny", step / "policy" / "tokenizer")
    (step / "training_info.json").write_text(json.dumps({"consumed_samples": 448, "current_step": 7, "total_steps": 7}))
    trained = {"sft": {"max_num_steps": 7}, "policy": {"megatron_cfg": {"optimizer": {"lr": 0.5, "weight_decay": 0.0}}}}
    (step / "config.yaml").write_text(yaml.safe_dump(trained))
    return digest


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder with results and rows, hash of the weights)"""
    folder = tmp_path_factory.mktemp("made")
    write_rows(folder, "aeiorstnlmpq")
    return folder, run_distributed(results, 1, folder)[0]


@pytest.fixture
def folder(made, tmp_path):
    """Rows in a place of one's own."""
    for name in ("sft", "rows"):
        shutil.copy(made[0] / f"{name}.jsonl", tmp_path)
    return tmp_path


def imported(cascade, name, source, kill=False):
    """What the command does; a refusal as its text."""
    from nemo_cascade.cascade import runner
    from nemo_cascade.interop import import_checkpoint as door

    def killed(*_):
        raise Killed

    scored = runner.default_score
    try:
        found = door.find(cascade, name, source)
        if kill:
            runner.default_score = lambda _: killed
        return door.run(cascade, name, found, door.differences(found, cascade, name))
    except (RunRefused, Killed) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        runner.default_score = scored


def gone_on(cascade):
    """The run itself."""
    from nemo_cascade.cascade import runner

    try:
        return runner.run(cascade)
    except DataError as error:
        return str(error)


def test_a_step_of_nemo_rl_becomes_a_finished_stage_that_the_next_one_starts_from(made, folder):
    (source, digest), cascade = made, cascade_in(folder)
    run_distributed(imported, 2, cascade, "sft", source / "nemo" / "step_7")
    record = Manifest.load(folder / "run").stages["sft"]
    assert (record.status, record.checkpoint_hash, record.checkpoint) == (DONE, digest, "01-sft/step_1")
    assert record.handover == {"reloaded": 0.0, "hf": None, "served": None} and record.scores["words"]["n"] == 2
    kept = record.imported
    assert (kept["form"], kept["step"], kept["path"]) == ("megatron", 7, str(source / "nemo" / "step_7")) and len(kept["files_hash"]) == 64
    assert sorted(kept["differences"]) == ["policy.megatron_cfg.optimizer.lr 0.01 -> 0.5", "sft.max_num_steps 1 -> 7"]
    assert not (folder / "run" / record.checkpoint / "policy" / "optimizer").exists()
    info = json.loads((folder / "run" / record.checkpoint / "training_info.json").read_text())
    assert info["imported"] == kept, "sealed with the checkpoint"
    run_distributed(gone_on, 2, cascade)
    after = Manifest.load(folder / "run").stages
    assert (after["if_rl"].status, after["if_rl"].parent, after["sft"].checkpoint_hash) == (DONE, "sft", digest)
    assert after["if_rl"].imported is None
    (told,) = run_distributed(imported, 1, cascade, "sft", source / "nemo" / "step_7")
    assert told.startswith("RunRefused: stage sft of ") and "is finished" in told


def test_a_hugging_face_folder_does_as_well_and_a_kill_before_the_scores_costs_nothing(made, folder):
    (source, digest), cascade = made, cascade_in(folder)
    assert run_distributed(imported, 1, cascade, "sft", source / "hf", True) == ["Killed: "]
    record = Manifest.load(folder / "run").stages["sft"]
    written = (folder / "run" / record.directory / "step_1").stat().st_mtime_ns
    assert record.status == RUNNING
    (told,) = run_distributed(gone_on, 1, cascade)
    assert "did not come to its end; give `nemo-cascade import-checkpoint` again" in told
    run_distributed(imported, 1, cascade, "sft", source / "hf")
    record = Manifest.load(folder / "run").stages["sft"]
    assert (record.status, record.checkpoint_hash, record.imported["form"], record.imported["step"]) == (DONE, digest, "hf", None)
    assert (folder / "run" / record.checkpoint).stat().st_mtime_ns == written, "read once"


def other_network(folder: Path) -> None:
    from nemo_cascade.models.hf_folder import write_hf

    policy = stirred(build("tiny"))
    write_hf(policy.hf_weights(), policy.preset, folder)


def test_what_cannot_be_that_stages_weights_is_refused_and_leaves_none_behind(made, folder):
    source, cascade = made[0], cascade_in(folder)
    nemo = Path(shutil.copytree(source / "nemo" / "step_7", folder / "step_7"))
    tokenizer = nemo / "policy" / "tokenizer" / "tokenizer.json"
    words = json.loads(tokenizer.read_text())
    words["model"]["merges"] = words["model"]["merges"][:-1]
    tokenizer.write_text(json.dumps(words))
    run_distributed(other_network, 1, folder / "other")
    for place, part in (
        (folder / "none", "import-checkpoint: no folder "),
        (folder, "holds no weights that are known"),
        (nemo, "its tokens are other ones"),
        (folder / "other", "another network: "),
    ):
        (told,) = run_distributed(imported, 1, cascade, "sft", place)
        assert told.startswith("RunRefused: ") and part in told, told
    assert not list((folder / "run").glob("01-sft/*step_*"))


def test_a_stage_that_was_trained_here_is_not_written_over(made, folder):
    cascade = cascade_in(folder)
    manifest = Manifest(folder / "run")
    manifest.add("sft").status = RUNNING
    manifest.save()
    begun = manifest.directory("sft") / "step_1"
    begun.mkdir(parents=True)
    (begun / "training_info.json").write_text(json.dumps({"step": 1}))
    (told,) = run_distributed(imported, 1, cascade, "sft", made[0] / "hf")
    assert "was trained here for some steps" in told
