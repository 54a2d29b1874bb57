"""Any rank of any layout on one CPU: megatron-core's groups over torch's fake backend, the model on the meta device.

Nothing is sent and no weights exist, but the groups are those that megatron-core builds and the model is the one that
`build_model` builds there, so what a rank holds is counted, not computed. All ranks of a pipeline stage hold the same
amounts, because tensor, expert and data parallel divide evenly or are refused (`cascade.layout`): one rank a stage is
built.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator

from nemo_cascade.engine import cpu

cpu.install()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

from nemo_cascade.engine import parallel  # noqa: E402
from nemo_cascade.engine.config import MegatronConfig, PolicyConfig  # noqa: E402
from nemo_cascade.engine.gather import leaves, sharded_state_dict  # noqa: E402
from nemo_cascade.engine.memory import RankModel, Tensors  # noqa: E402
from nemo_cascade.engine.policy import model_settings  # noqa: E402
from nemo_cascade.models.presets import get_preset  # noqa: E402
from nemo_cascade.models.specs import build_model, transformer_config  # noqa: E402


def rank_models(config: PolicyConfig, world_size: int) -> tuple[RankModel, ...]:
    """One rank of each pipeline stage, first stage first. The layout must be legal (`cascade.layout`)."""
    stages = config.megatron_cfg.pipeline_model_parallel_size
    return tuple(rank_model(config, world_size, stage * world_size // stages) for stage in range(stages))


def rank_model(config: PolicyConfig, world_size: int, rank: int) -> RankModel:
    """What rank `rank` of the layout holds."""
    with built(config, world_size, rank) as model:
        return counted(model, config, world_size)


def counted(model: torch.nn.Module, config: PolicyConfig, world_size: int) -> RankModel:
    """What the rank that this process is, or pretends to be, holds with this model."""
    parameters = dict(model.named_parameters())
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    return RankModel(
        pipeline_stage=parallel_state.get_pipeline_model_parallel_rank(),
        ranks=world_size // config.megatron_cfg.pipeline_model_parallel_size,
        layers="".join(model.decoder.layer_type_list),
        tensors=_sorted_out(parameters, config.megatron_cfg.freeze_moe_router),
        buffers=sum(t.numel() * t.element_size() for name, t in state.items() if name not in parameters),
        whole=_whole(model, parameters),
        largest=max(p.numel() * p.element_size() for p in parameters.values()),
        data_parallel=parallel_state.get_data_parallel_world_size(with_context_parallel=True),
        expert_data_parallel=parallel_state.get_expert_data_parallel_world_size(),
    )


# What is not built in a plan: values, and what needs Transformer Engine but is counted from the config, or not at all.
UNBUILT = dict(
    perform_initialization=False,
    fp8=None,
    fp8_param=False,
    first_last_layers_bf16=False,
    moe_router_padding_for_quantization=False,
    recompute_granularity=None,
    recompute_method=None,
    recompute_num_layers=None,
    recompute_modules=None,
)


@contextlib.contextmanager
def built(config: PolicyConfig, world_size: int, rank: int) -> Iterator[torch.nn.Module]:
    """The model of rank `rank` on the meta device; inside, this process is that rank."""
    cfg, preset = config.megatron_cfg, get_preset(config.model_name)
    settings = model_settings(config) | UNBUILT
    with pretend(cfg, world_size, rank):
        # Experts that tensor parallel does not cut warn that they have no sequence parallel; it is the layout's.
        with torch.device("meta"), warnings.catch_warnings(action="ignore", category=UserWarning):
            model = build_model(preset, transformer_config(preset, **settings, **cfg.model_overrides))
        yield model


@contextlib.contextmanager
def pretend(config: MegatronConfig, world_size: int, rank: int) -> Iterator[None]:
    """Inside, this process is `rank` of `world_size` in the layout; afterwards there is no world, as before.

    Raises RuntimeError where there is one already, or a GPU, on which megatron-core would put things.
    """
    if dist.is_initialized():
        raise RuntimeError("this process is in a world already; plan in a process of its own")
    if torch.cuda.is_available():
        raise RuntimeError("the planner builds on no device at all; hide the GPUs from it: CUDA_VISIBLE_DEVICES=")
    new_group = dist.new_group

    def fake_group(ranks, **_):
        # Of a thousand groups a rank is in some twenty, and as everywhere gets no others.
        return new_group(ranks, backend="fake") if rank in ranks else dist.GroupMember.NON_GROUP_MEMBER

    with torch.random.fork_rng(devices=[]):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        dist.new_group = fake_group
        try:
            parallel.build_groups(config)
            parallel.set_seed(0)
            yield
        finally:
            dist.new_group = new_group
            parallel_state.destroy_model_parallel()
            dist.destroy_process_group()


def _sorted_out(parameters: dict[str, torch.nn.Parameter], freeze_router: bool) -> tuple[Tensors, ...]:
    counts: dict[tuple[int, bool, bool], int] = {}
    for name, parameter in parameters.items():
        # The mark by which megatron-core's DistributedDataParallel puts a parameter among the experts'.
        expert = not getattr(parameter, "allreduce", True)
        sort = parameter.element_size(), expert, not (freeze_router and name.endswith("router.weight"))
        counts[sort] = counts.get(sort, 0) + parameter.numel()
    return tuple(Tensors(count, *sort) for sort, count in sorted(counts.items()))


def _whole(model, parameters: dict) -> int:
    """Parameters of the stage's part of the model, each once, from the places that checkpoints give to the shards."""
    whole: dict[str, int] = {}
    for name, entry in sharded_state_dict(model).items():
        if name in parameters:
            for part in leaves(entry.build()) if isinstance(entry, ShardedTensorFactory) else [entry]:
                whole[part.key] = math.prod(part.global_shape)
    return sum(whole.values())
