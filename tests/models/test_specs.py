"""Megatron-LM's `--spec nemo_cascade.models.specs nemotron_stack_spec`: its own import of these words, its own call of the model."""

import torch

from tests.helpers import run_distributed

# As argparse hands them on.
WORDS = ["nemo_cascade.models.specs", "nemotron_stack_spec"]


def built_and_run() -> dict:
    """Of a model built by megatron-core with the imported spec, beside ours with the same weights: names, and what both answer."""
    from megatron.core.transformer.spec_utils import import_module

    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.engine.parallel import init
    from nemo_cascade.models.megatron import PATTERN, HybridModel
    from nemo_cascade.models.presets import get_preset
    from nemo_cascade.models.specs import build_model, transformer_config

    init(MegatronConfig())
    preset = get_preset("micro")
    config = transformer_config(preset)
    ours = build_model(preset, config)
    # By place: the argument's name moved with the model's.
    theirs = HybridModel(config, import_module(WORDS), preset.vocab_size, 64, **{PATTERN: preset.pattern}, position_embedding_type="none")
    # Strict, but for what Transformer Engine keeps of FP8.
    theirs.load_state_dict({name: value for name, value in ours.state_dict().items() if value is not None}, strict=True)
    tokens = torch.arange(48).reshape(2, 24) % preset.vocab_size
    losses, steps = [], []
    for model in (ours, theirs):
        # As pretrain_mamba.py's forward step: no packs, labels, a mask that nobody reads.
        loss = model(tokens, None, None, labels=tokens.roll(-1, 1))
        loss.sum().backward()
        losses.append(loss.detach())
        steps.append({name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None})
    return {
        "names": [list(model.state_dict()) for model in (ours, theirs)],
        "equal": torch.equal(*losses),
        "finite": bool(losses[0].isfinite().all()) and losses[0].shape == tokens.shape,
        "gradients": steps,
    }


def test_megatrons_import_of_the_spec_builds_our_network_which_answers_the_same():
    (found,) = run_distributed(built_and_run, 1)
    assert found["names"][0] == found["names"][1] and found["equal"] and found["finite"]
    assert found["gradients"][0] == found["gradients"][1] and len(found["gradients"][0]) > 20
