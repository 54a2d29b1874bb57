"""Which matrices FP8 takes and which stay in BF16: the arithmetic, and that it is the built model's."""

import pytest

from nemo_cascade.data.packing import document_multiple
from nemo_cascade.engine.config import MegatronConfig
from nemo_cascade.models import fp8
from nemo_cascade.models.fp8 import Fp8Config, attention_layers_and_mamba_before, matrices, matrices_in_bf16, unaligned
from nemo_cascade.models.presets import get_preset
from tests.helpers import run_distributed

NANO = get_preset("nano_30b_a3b")
MICRO_LAYOUTS = {
    "one": dict(world=1),
    "TP2": dict(world=2, tensor_model_parallel_size=2, sequence_parallel=True),
    "TP2 EP4": dict(world=4, tensor_model_parallel_size=2, expert_model_parallel_size=4, sequence_parallel=True),
    "PP2": dict(world=2, pipeline_model_parallel_size=2),
}


def layout(recipe="blockwise", **settings) -> MegatronConfig:
    names = Fp8Config.__dataclass_fields__
    own = {name: settings.pop(name) for name in list(settings) if name in names}
    return MegatronConfig(fp8_cfg=Fp8Config(enabled=True, fp8_recipe=recipe, **own), **settings)


def shapes_of_the_model(settings):
    """{(layer, name): (rows, columns, copies)} of what one rank holds of the torch model."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.engine.config import PolicyConfig

    parallel.init(settings)
    policy = Policy(PolicyConfig(model_name="micro", megatron_cfg=settings), seed=0)
    found = {}
    for layer in policy.model.decoder.layers:
        number = layer.layer_number - 1
        for name, parameter in layer.named_parameters():
            name = name.removesuffix(".weight")
            before, _, after = name.partition("local_experts.")
            name = before + after.partition(".")[2] if after else name
            shape = (*parameter.shape[:2],) if parameter.dim() > 1 else (0, 0)
            *_, copies = found.get((number, name), (0,))
            found[number, name] = *shape, copies + 1
    return found


@pytest.mark.parametrize("name", MICRO_LAYOUTS)
def test_the_matrices_are_those_of_the_built_model(name):
    settings = dict(MICRO_LAYOUTS[name])
    world = settings.pop("world")
    cfg = MegatronConfig(**settings)
    expected = {(m.layer, m.name): (m.rows, m.columns, m.copies) for m in matrices(get_preset("micro"), cfg)}
    for stage in run_distributed(shapes_of_the_model, world, cfg):
        here = {key: shape for key, shape in expected.items() if key[0] in {layer for layer, _ in stage}}
        assert here and {key: stage[key] for key in here} == here
        kinds = {name for _, name in stage if name.endswith(("proj", "qkv", "fc1", "fc2"))}
        assert kinds == {name for _, name in here}, "a matrix is missing from the table"


def test_nanos_attention_layers_and_the_mamba_layers_before_them():
    assert attention_layers_and_mamba_before(NANO.pattern) == {4, 5, 11, 12, 18, 19, 25, 26, 32, 33, 41, 42}
    kept = matrices_in_bf16(NANO, layout("tensorwise", attention_in_bf16=True))
    assert len(kept) == 6 * 2 + 6 * 2 and {NANO.pattern[layer] for layer, _ in kept} == {"M", "*"}


PATTERNS = {"M*E": {0, 1}, "ME*": {0, 2}, "*M": {0}, "MM**": {1, 2, 3}, "MEME": set()}


@pytest.mark.parametrize("pattern, layers", PATTERNS.items())
def test_before_means_the_last_mamba_layer_that_comes_earlier(pattern, layers):
    assert attention_layers_and_mamba_before(pattern) == layers


def kinds(found) -> dict[str, set[int]]:
    sides: dict[str, set[int]] = {}
    for matrix in found:
        sides.setdefault(matrix.name, set()).update((matrix.rows, matrix.columns))
    return sides


def test_blocks_of_128_leave_out_nanos_1856_and_10304():
    found = unaligned(NANO, layout("blockwise"))
    assert kinds(found) == {
        "mixer.in_proj": {10304, 2688},
        "mlp.experts.linear_fc1": {1856, 2688},
        "mlp.experts.linear_fc2": {1856, 2688},
    }
    assert len(found) == 23 * 3
    everything = list(matrices(NANO, MegatronConfig()))
    size = sum(m.rows * m.columns * m.copies for m in everything)
    assert sum(m.rows * m.columns * m.copies for m in found) / size > 0.9, "the experts are most of the network"


def test_the_other_recipes_take_all_of_nano_until_it_is_split_too_far():
    for recipe in ("tensorwise", "delayed", "mxfp8"):
        assert not unaligned(NANO, layout(recipe, expert_model_parallel_size=8))
    # 10304 / 4 = 2576 = 80.5 * 32 = 161 * 16
    split = dict(tensor_model_parallel_size=4, expert_model_parallel_size=8)
    assert kinds(unaligned(NANO, layout("mxfp8", **split))) == {"mixer.in_proj": {2576, 2688}}
    assert not unaligned(NANO, layout("tensorwise", **split))
    assert kinds(unaligned(NANO, layout("tensorwise", tensor_model_parallel_size=8, expert_model_parallel_size=8))) == {
        "mixer.in_proj": {1288, 2688}
    }


def test_layers_that_stay_in_bf16_anyway_need_not_fit():
    numbers = dict(num_layers_at_start_in_bf16=2, num_layers_at_end_in_bf16=0)
    first_two = {m.layer for m in unaligned(NANO, layout("blockwise", first_last_layers_bf16=True, **numbers))}
    assert first_two == {n for n, kind in enumerate(NANO.pattern) if kind in "ME"} - {0, 1}
    attention = {m.layer for m in unaligned(NANO, layout("blockwise", attention_in_bf16=True))}
    assert attention == {n for n, kind in enumerate(NANO.pattern) if kind in "ME"} - {4, 11, 18, 25, 32, 41}


def test_what_does_not_fit_is_kept_in_bf16_only_when_asked():
    assert matrices_in_bf16(NANO, layout("blockwise")) == set()
    kept = matrices_in_bf16(NANO, layout("blockwise", unaligned_in_bf16=True))
    assert kept == {(m.layer, m.name) for m in unaligned(NANO, layout("blockwise"))}
    disabled = MegatronConfig(fp8_cfg=Fp8Config(enabled=False, unaligned_in_bf16=True, attention_in_bf16=True))
    assert matrices_in_bf16(NANO, disabled) == set()


@pytest.mark.parametrize("recipe, multiple", [("tensorwise", 16), ("delayed", 16), ("mxfp8", 32), ("blockwise", 128)])
def test_packs_are_whole_blocks_on_every_rank(recipe, multiple):
    assert fp8.token_multiple(layout(recipe)) == multiple
    split = layout(recipe, tensor_model_parallel_size=2, context_parallel_size=4, sequence_parallel=True)
    assert fp8.token_multiple(split) == multiple * 2 * 4
    # Of which each document has 2 * CP equal chunks.
    assert fp8.token_multiple(split) % document_multiple(4) == 0
    assert fp8.token_multiple(MegatronConfig()) == 1
