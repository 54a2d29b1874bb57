"""What a stage hands on is what it had in memory, or the cascade stops and says what is not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from nemo_cascade.cascade.config import HandoverConfig
from nemo_cascade.data.hashes import json_hash
from tests.engine.cases import layout
from tests.helpers import run_distributed

CONFIG = HandoverConfig()


def saved(folder: Path, settings: dict) -> Path:
    """A checkpoint of a policy after a step, as a stage writes it, in a world of its layout."""
    from nemo_cascade.engine import checkpoint
    from nemo_cascade.stages.sft import sft_loss
    from tests.engine.test_layouts import config, made, samples_for

    policy = made(config(True, **settings))
    policy.train_step(samples_for(policy), sft_loss)
    return checkpoint.save(policy, folder, {})


def reloaded(folder: Path, final: Path, settings: dict, handover: HandoverConfig = CONFIG, serve=None) -> dict:
    """`handover.reload` of a stage in `folder`; what it wrote."""
    from nemo_cascade.cascade import handover as module
    from nemo_cascade.engine import parallel
    from nemo_cascade.stages.context import LoopConfig, StageRun
    from tests.engine.test_layouts import config

    policy_config = config(True, **settings)
    if not torch.distributed.is_initialized():
        parallel.init(policy_config.megatron_cfg)
    stage = StageRun(name="sft", config=LoopConfig(policy=policy_config), dir=folder, seed=0, rank=parallel.rank())
    module.reload(stage, final, handover, serve)
    parallel.barrier()
    assert not list(folder.glob("tmp_*"))
    return json.loads((folder / module.FILE).read_text())


def saved_and_reloaded(folder: Path, settings: dict) -> dict:
    return reloaded(folder, saved(folder, settings), settings)


@pytest.mark.parametrize("name", ["one", "TP2", "EP2", "PP2", "CP2", "DP2", "TP2+EP2"])
def test_what_was_saved_is_read_again_without_any_difference_at_every_layout(name, tmp_path):
    world, settings = layout(name)
    for found in run_distributed(saved_and_reloaded, world, tmp_path, settings):
        assert found == {"reloaded": 0.0, "hf": 0.0, "served": None}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint of one process."""
    return run_distributed(saved, 1, tmp_path_factory.mktemp("written"), {})[0]


def refused(*arguments) -> str:
    """What `reloaded` says no to, the same on every rank."""
    from nemo_cascade.cascade.handover import HandoverError

    with pytest.raises(HandoverError) as error:
        reloaded(*arguments)
    return str(error.value)


@pytest.fixture
def damaged(written, tmp_path):
    """A copy to be damaged, in a stage's folder of its own."""
    return Path(shutil.copytree(written, tmp_path / written.name))


def shards(final: Path) -> list[Path]:
    return sorted((final / "policy" / "weights").glob("*.distcp"))


def flip_a_byte(final: Path) -> None:
    """One in the middle of the longest tensor."""
    weights = final / "policy" / "weights"
    stored = FileSystemReader(weights).read_metadata().storage_data.values()
    longest = max(stored, key=lambda place: place.length)
    path = weights / longest.relative_path
    content = bytearray(path.read_bytes())
    content[longest.offset + longest.length // 2] ^= 0x40
    path.write_bytes(content)


def test_a_byte_that_changed_on_the_disk_stops_the_cascade(damaged):
    flip_a_byte(damaged)
    (told,) = run_distributed(refused, 1, damaged.parent, damaged, {})
    assert told.startswith(f"stage sft: {damaged}/policy/weights, read again, ") and "--from-stage sft" in told


def test_other_log_probs_than_before_the_save_are_told_with_token_and_both_values(damaged):
    probe = json.loads((damaged / "probe.json").read_text())
    was = probe["logprobs"][2][5]
    probe["logprobs"][2][5] -= 1.0
    (damaged / "probe.json").write_text(json.dumps(probe))
    (told,) = run_distributed(refused, 1, damaged.parent, damaged, {})
    assert f"{damaged}/policy/weights, read again, gives token 5 (id {probe['tokens'][2][5]}) of probe sequence 2" in told
    assert f"the log-prob {was:.6f} instead of {was - 1:.6f}, with a bound of 0;" in told
    (found,) = run_distributed(reloaded, 1, damaged.parent, damaged, {}, HandoverConfig(max_logprob_error=1.1))
    assert found["reloaded"] == pytest.approx(1.0)


def test_a_change_that_no_log_prob_shows_is_found_by_the_hash(damaged):
    info = json.loads((damaged / "training_info.json").read_text())
    del info["seal"]
    other = info | {"weights_hash": "0" * 64}
    (damaged / "training_info.json").write_text(json.dumps(other | {"seal": json_hash(other)}))
    (told,) = run_distributed(refused, 1, damaged.parent, damaged, {})
    assert f"has the hash {info['weights_hash']}, but {'0' * 64} was written" in told


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_shard_that_is_cut_or_gone_stops_the_cascade(damaged, damage):
    (path, *_) = shards(damaged)
    path.write_bytes(path.read_bytes()[:100]) if damage == "cut" else path.unlink()
    (told,) = run_distributed(refused, 1, damaged.parent, damaged, {})
    assert told.startswith(f"stage sft: {damaged}/policy cannot be read: ")


def reversed_experts(*arguments) -> str:
    """Experts leave for Hugging Face's names in the wrong order, and the first of them come back in the right one."""
    from nemo_cascade.engine import policy
    from nemo_cascade.models.hf import hf_tensors

    def wrong(weights, preset):
        return hf_tensors(((n, w.flip(0) if ".experts.experts." in n else w) for n, w in weights), preset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "hf_tensors", wrong)
        return refused(*arguments)


@pytest.mark.parametrize("name", ["one", "EP2"])
def test_experts_in_the_wrong_order_are_found_on_the_way_through_hugging_faces_form(damaged, name):
    world, settings = layout(name)
    for told in run_distributed(reversed_experts, world, damaged.parent, damaged, settings):
        assert "written as a Hugging Face folder and read from it, gives token" in told and "cascade.handover.hf=false" in told
    for found in run_distributed(reloaded, world, damaged.parent, damaged, settings, HandoverConfig(hf=False)):
        assert found["hf"] is None


def test_another_layout_than_the_one_that_saved_may_round_otherwise(written, tmp_path):
    world, settings = layout("TP2")
    for found in run_distributed(reloaded, world, tmp_path, written, settings, HandoverConfig(hf=False)):
        assert 0.0 < found["reloaded"] < 1e-3


def test_a_checkpoint_that_has_no_probe_is_held_to_its_hash(damaged):
    (damaged / "probe.json").unlink()
    (found,) = run_distributed(reloaded, 1, damaged.parent, damaged, {})
    assert found == {"reloaded": None, "hf": 0.0, "served": None}


def served_badly(policy):
    """An engine that was given the weights, all but exactly."""
    from nemo_cascade.engine import probe

    return lambda tokens: [[value - 0.1 for value in row] for row in probe.take(policy, tokens).logprobs]


def test_an_engine_that_samples_from_other_weights_stops_the_cascade(damaged):
    (told,) = run_distributed(refused, 1, damaged.parent, damaged, {}, CONFIG, served_badly)
    assert "given to the engine that samples, gives token" in told and "cascade.handover.max_logprob_error_elsewhere" in told
    (found,) = run_distributed(reloaded, 1, damaged.parent, damaged, {}, HandoverConfig(max_logprob_error_elsewhere=0.11), served_badly)
    assert found["served"] == pytest.approx(0.1)
