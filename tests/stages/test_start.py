"""A cascade's first stage begins with the weights of the Hugging Face folder that its model is."""

from tests.helpers import run_distributed
from tests.models.test_hf import build, stirred


def written(folder):
    from nemo_cascade.models.hf_folder import write_hf

    policy = stirred(build("micro"))
    write_hf(policy.hf_weights(), policy.preset, folder)
    return policy.weights_hash()


def begun(folder, run_dir):
    """Weights of a first stage: of a folder's model, and of a preset's."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.stages.context import LoopConfig, StageRun
    from nemo_cascade.stages.start import resume_or_begin

    hashes = []
    for model in (str(folder), "micro"):
        policy = build(model)
        assert resume_or_begin(StageRun("sft", LoopConfig(), run_dir, seed=0), policy) is None
        hashes.append(policy.weights_hash())
        parallel.shutdown()
    parallel.init(policy.config.megatron_cfg)
    return hashes


def test_the_first_stage_begins_with_the_folders_weights(tmp_path):
    (there,) = run_distributed(written, 1, tmp_path / "hf")
    (tmp_path / "run").mkdir()
    ((from_folder, fresh),) = run_distributed(begun, 1, tmp_path / "hf", tmp_path / "run")
    assert from_folder == there != fresh
