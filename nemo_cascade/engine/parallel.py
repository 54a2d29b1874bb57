"""The process world: torch.distributed and megatron-core's parallel groups, set up once and torn down once.

Works under torchrun and in a plain process (world of one). Nothing here knows about models.
"""

import datetime
import os
from collections.abc import Callable

from nemo_cascade.engine import cpu

cpu.install()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed  # noqa: E402

from nemo_cascade.engine.config import MegatronConfig, layout_problems  # noqa: E402

# What holds groups of ranks beside megatron-core's, and lets go of them before the world ends.
before_shutdown: list[Callable[[], None]] = []


def init(config: MegatronConfig, seed: int = 0, timeout: float = 30.0) -> None:
    """Joins the world torchrun describes (or makes one of a single process) and builds megatron-core's groups.

    timeout: minutes that a collective may take. Raises ValueError naming the keys when the layout cannot be run.
    """
    alone = "MASTER_ADDR" not in os.environ
    if alone:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    problems = layout_problems(config, int(os.environ["WORLD_SIZE"]))
    if problems:
        raise ValueError("\n".join(f"policy.megatron_cfg: {problem}" for problem in problems))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    cpu.set_threads(local_world)
    cpu.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        # A process by itself needs no address, and so cannot find its port taken.
        world = dict(store=dist.HashStore(), rank=0, world_size=1) if alone else {}
        dist.init_process_group(cpu.distributed_backend(), timeout=datetime.timedelta(minutes=timeout), **world)
    build_groups(config)
    set_seed(seed)


def build_groups(config: MegatronConfig) -> None:
    """megatron-core's parallel groups over the ranks of torch.distributed's world."""
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.pipeline_model_parallel_size,
        context_parallel_size=config.context_parallel_size,
        expert_model_parallel_size=config.expert_model_parallel_size,
        expert_tensor_parallel_size=config.expert_tensor_parallel,
    )


def set_seed(seed: int) -> None:
    """torch's and megatron-core's random states, apart for pipeline stages, the latter for tensor- and expert-parallel ranks too."""
    # Else each stage would draw its layers from the same stream; 100 is also Megatron-LM's step.
    seed += 100 * parallel_state.get_pipeline_model_parallel_rank()
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)


def shutdown() -> None:
    """Leaves the world; a later `init` in the same process starts from nothing."""
    if dist.is_initialized():
        dist.barrier()
        for leave in before_shutdown:
            leave()
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def rank() -> int:
    """This process's place in the world (0 in a plain process)."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are (1 in a plain process)."""
    return dist.get_world_size() if dist.is_initialized() else 1


def broadcast(value):
    """Rank 0's `value` on every rank (any picklable object)."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def first_not_none(value):
    """The `value` of the lowest rank that has one, on every rank (any picklable object); None where no rank has."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    # A number is enough as long as nobody has anything, which is nearly always.
    anyone = torch.tensor(int(value is not None), device="cuda")
    dist.all_reduce(anyone, op=dist.ReduceOp.MAX)
    if not anyone:
        return None
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return next(value for value in values if value is not None)


def share_out(function, items: list) -> list:
    """function(items), a list with an entry for each item, of which every rank makes its share; the same on all ranks.

    An error on one rank is raised on all of them, that of the lowest rank first, so that none waits for another.
    """
    world = world_size()
    try:
        share = function(items[rank() :: world]), None
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks must not wait for ever
        share = [], error
    shares = [share] * world
    if world > 1:
        dist.all_gather_object(shares, share)
    for _, error in shares:
        if error is not None:
            raise error
    return [shares[number % world][0][number // world] for number in range(len(items))]


def on_rank_0(action):
    """action() of rank 0, on every rank, none of which goes on before; an error there is raised on all of them."""
    return share_out(lambda once: [action() for _ in once], [None])[0]


def broadcast_from_last_stage(tensor: torch.Tensor) -> None:
    """The last pipeline stage's values into every stage's `tensor` (any shape, the same on all), in place."""
    group = parallel_state.get_pipeline_model_parallel_group()
    if group.size() > 1:
        dist.broadcast(tensor, parallel_state.get_pipeline_model_parallel_last_rank(), group=group)


def object_from_last_stage(value):
    """The last pipeline stage's `value` on every stage (any picklable object)."""
    group = parallel_state.get_pipeline_model_parallel_group()
    if group.size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, parallel_state.get_pipeline_model_parallel_last_rank(), group=group)
    return box[0]


def raise_anywhere(error: Exception | None) -> None:
    """Raises, on every rank, the error of the lowest rank that has one; all ranks call this."""
    for raised in gathered(error):
        if raised is not None:
            raise raised


def union(names: list[str]) -> list[str]:
    """The names that any rank has, sorted, on every rank."""
    return sorted({name for mine in gathered(names) for name in mine})


def gathered(value) -> list:
    """Every rank's `value` (any picklable object), by rank, on every rank."""
    everyone = [value] * world_size()
    if len(everyone) > 1:
        dist.all_gather_object(everyone, value)
    return everyone


def barrier() -> None:
    """Waits for every rank."""
    if dist.is_initialized():
        dist.barrier()
