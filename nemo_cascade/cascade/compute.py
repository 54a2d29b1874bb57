"""How a stage's layers are computed: whether its FP8 and its recomputation can be what the config says."""

from collections.abc import Callable, Iterator

from nemo_cascade.cascade.layout import SIZES
from nemo_cascade.engine.config import recompute_problems
from nemo_cascade.models import fp8
from nemo_cascade.models.config import ModelConfig
from nemo_cascade.models.presets import get_preset
from nemo_cascade.stages.context import LoopConfig


def problems(stage: LoopConfig, where: Callable[[str], str], swaps_weights: bool) -> Iterator[str]:
    """Lines "key: what is wrong; what to do". swaps_weights: other checkpoints pass through the policy's buffers."""
    cfg, preset = stage.policy.megatron_cfg, known_preset(stage.policy.model_name)
    if any((size := getattr(cfg, name)) is not None and size < 1 for name in SIZES):
        return  # reported as values out of range
    for key, text in recompute_problems(cfg, preset.num_layers if preset else None):
        yield f"{where(f'policy.megatron_cfg.{key}')}: {text}"
    if not cfg.fp8_cfg.enabled or preset is None or cfg.fp8_cfg.fp8_recipe not in fp8.MULTIPLE:
        return
    for key, text in fp8.problems(preset, cfg, stage.policy.precision, swaps_weights):
        yield f"{where(f'policy.{key}')}: {text}"


def known_preset(name: str) -> ModelConfig | None:
    """The stage's network; None where the layout's checks have said that there is none."""
    try:
        return get_preset(name)
    except ValueError:
        return None
