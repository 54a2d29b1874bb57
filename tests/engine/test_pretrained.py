"""Weights that somebody else's run left: found from whatever folder leads to them, read at any layout, refused by name."""

import pytest

from nemo_cascade.engine import pretrained
from tests.engine.test_convert import build, stirred, write_folder
from tests.helpers import run_distributed


def touched(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("5")
    return folder


@pytest.mark.parametrize(
    "files, leads_to",
    [
        ([".metadata"], "."),
        (["policy/weights/.metadata"], "policy/weights"),
        (["policy/weights/iter_0000000/.metadata"], "policy/weights/iter_0000000"),
        (["latest_checkpointed_iteration.txt", "iter_0000004/.metadata", "iter_0000005/.metadata"], "iter_0000005"),
        (["weights/.metadata"], "weights"),
    ],
)
def test_a_distributed_checkpoint_is_found_from_what_leads_to_it(files, leads_to, tmp_path):
    assert pretrained.find(touched(tmp_path, *files)) == ("megatron", tmp_path / leads_to)


def test_the_tracker_may_name_a_release(tmp_path):
    touched(tmp_path, "release/.metadata", "iter_0000001/.metadata")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("release\n")
    assert pretrained.find(tmp_path)[1] == tmp_path / "release"


def test_a_hugging_face_folder_needs_its_weights(tmp_path):
    touched(tmp_path, "config.json")
    with pytest.raises(ValueError, match="holds no weights that are known"):
        pretrained.find(tmp_path)
    touched(tmp_path, "model.safetensors")
    assert pretrained.find(tmp_path) == pretrained.find(tmp_path, "hf") == ("hf", tmp_path)
    with pytest.raises(ValueError, match="is of format hf, not megatron"):
        pretrained.find(tmp_path, "megatron")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"no folder {tmp_path}/none"):
        pretrained.find(tmp_path / "none")


def begun(folder, form, settings):
    """What a first stage begins with when its config names the folder; the hash of its weights."""
    from nemo_cascade.stages.config import PretrainedConfig
    from nemo_cascade.stages.start import begin

    policy = stirred(build("micro", **settings))
    begin(policy, None, PretrainedConfig(str(folder), form))
    return policy.weights_hash()


@pytest.mark.parametrize("form, name", [("megatron", "policy"), (None, "policy"), ("hf", "hf"), (None, "hf")])
def test_a_stage_begins_with_weights_written_at_another_layout(form, name, tmp_path):
    (written, _) = run_distributed(write_folder, 2, tmp_path, 10**9, {"tensor_model_parallel_size": 2, "sequence_parallel": True})
    (found,) = run_distributed(begun, 1, tmp_path / name, form, {})
    both = run_distributed(begun, 2, tmp_path / name, form, {"expert_model_parallel_size": 2})
    assert {found, *both} == {written}


def refused(folder, model):
    policy = build(model)
    before = policy.weights_hash()
    try:
        policy.load_weights(folder)
    except ValueError as error:
        return str(error), policy.weights_hash() == before
    return None


def test_a_checkpoint_of_another_network_is_refused_tensor_by_tensor(tmp_path):
    run_distributed(write_folder, 1, tmp_path, 10**9, {})
    said, untouched = run_distributed(refused, 1, tmp_path / "policy" / "weights", "tiny")[0]
    assert "does not hold this model" in said and "embedding.word_embeddings.weight is [832, 32], the model's [832, 128]" in said
    assert untouched
