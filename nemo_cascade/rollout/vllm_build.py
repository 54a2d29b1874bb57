"""vLLM's engines in a process that trains: built once for all stages with one network and settings, on its groups of ranks.

What building one changes of the process is put back, and what shutting one down would take with it is left.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import os
import secrets
import tempfile
import warnings
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from nemo_cascade.engine import parallel
from nemo_cascade.models.config import ModelConfig
from nemo_cascade.models.hf_config import hf_config
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.engine import EngineError, at_work
from nemo_cascade.rollout.vllm_shard import Shard, sharing_problems

# Keys and values, and Mamba's states, of all running requests on a CPU; vLLM lets requests wait that find no room.
CPU_CACHE_BYTES = 2**29
# Prompt tokens that a CPU reads at once, if no single sequence may be longer.
PREFILL_TOKENS = 4096

STREAMS = ("Stream", "Event", "stream", "current_stream", "set_stream")

_engines: dict[str, object] = {}


class Ranks(NamedTuple):
    """This rank's groups: those that hold one engine with it, and those of the same place in the other engines."""

    holders: dist.ProcessGroup | None
    sharing: dist.ProcessGroup


@cache
def ranks_of(size: int, everyone: dist.ProcessGroup) -> Ranks:
    """The groups of engines of `size` neighbouring ranks, made once, by all ranks together; vLLM deals ranks out in this way, too."""
    world = everyone.size()
    if world % size:
        raise ValueError(f"policy.generation.vllm_cfg.tensor_parallel_size: {size} does not divide the {world} ranks")
    if size == 1:
        return Ranks(None, everyone)
    holders, _ = dist.new_subgroups_by_enumeration([[*range(first, first + size)] for first in range(0, world, size)])
    sharing, _ = dist.new_subgroups_by_enumeration([[*range(place, world, size)] for place in range(size)])
    return Ranks(holders, sharing)


def shard_of(config: GenerationConfig, rank: int) -> Shard:
    size = config.vllm_cfg.tensor_parallel_size
    return Shard(rank % size, size, config.vllm_cfg.expert_parallel_size > 1)


def engine_for(preset: ModelConfig, config: GenerationConfig, precision: str):
    """This process's vLLM for a network and these settings, built where there is none yet; all ranks call this together.

    One with other settings takes the place of the one before. Its weights mean nothing until they are pushed.
    """
    args = engine_args(preset, config, precision)
    key = json.dumps([dataclasses.asdict(preset), args], sort_keys=True, default=str)
    if key not in _engines:
        if problems := list(sharing_problems(preset, shard_of(config, 0))):
            raise ValueError(f"policy.generation.vllm_cfg.tensor_parallel_size: {'; '.join(problems)}")
        discard()
        if discard not in parallel.before_shutdown:
            parallel.before_shutdown.append(discard)  # its groups of ranks end with this world
        _engines[key] = build(preset, args, precision)
    return _engines[key]


def engine_args(preset: ModelConfig, config: GenerationConfig, precision: str) -> dict:
    """vLLM's EngineArgs; `policy.generation.vllm_kwargs` has the last word."""
    gpu = torch.cuda.is_available()
    args = dict(
        dtype=precision,
        load_format="dummy",
        skip_tokenizer_init=True,
        generation_config="vllm",
        distributed_executor_backend="external_launcher",
        tensor_parallel_size=config.vllm_cfg.tensor_parallel_size,
        enable_expert_parallel=config.vllm_cfg.expert_parallel_size > 1,
        max_model_len=config.vllm_cfg.max_model_len or preset.max_sequence_length,
        max_num_seqs=config.max_batch_size,
        logprobs_mode="processed_logprobs",
        mamba_ssm_cache_dtype="float32",
        enable_prefix_caching=False,
        enforce_eager=config.vllm_cfg.enforce_eager or not gpu,
        disable_log_stats=True,
        seed=0,
    )
    if gpu:
        args |= dict(enable_sleep_mode=True, gpu_memory_utilization=config.vllm_cfg.gpu_memory_utilization)
    else:
        # Prompts are read whole: after a part of one vLLM winds back the generator of its reply, which a CPU's cannot.
        args |= dict(enable_chunked_prefill=False, max_num_batched_tokens=max(args["max_model_len"], PREFILL_TOKENS))
        args |= dict(kv_cache_memory_bytes=CPU_CACHE_BYTES)
    return args | config.vllm_kwargs


def discard() -> None:
    """Shuts down the engine that is there, at once: were it left to the garbage collector, that might take the groups of the next one."""
    for engine in _engines.values():
        engine.engine_core.shutdown()
    _engines.clear()


def leave_world() -> None:
    """What vLLM does when an engine is shut down, but for torch's process group, which is the trainer's, too."""
    from vllm.distributed import parallel_state

    if dist.is_initialized():  # else this process has ended its work, and its groups are gone
        parallel_state.destroy_model_parallel()
        if parallel_state._WORLD is not None:
            parallel_state._WORLD.destroy()
            parallel_state._WORLD = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def build(preset: ModelConfig, args: dict, precision: str):
    """A vLLM engine in this process, on top of the process groups that are there."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    with undisturbed(), tempfile.TemporaryDirectory() as folder, told():
        from vllm import EngineArgs
        from vllm.v1.engine import core
        from vllm.v1.engine.llm_engine import LLMEngine

        from nemo_cascade.rollout import vllm_cpu

        core.cleanup_dist_env_and_memory = leave_world
        if not torch.cuda.is_available():
            vllm_cpu.register()  # also where this package is not installed and so no plugin of vLLM's
            vllm_cpu.keep_weights_readable()
            vllm_cpu.leave_memory_unbound()
            vllm_cpu.name_shared_memory(parallel.broadcast(f"nemo_cascade_{secrets.token_hex(8)}"))
        (Path(folder) / "config.json").write_text(json.dumps(hf_config(preset, precision)))
        return LLMEngine.from_engine_args(EngineArgs(model=folder, **args))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Puts back what vLLM changes of the process: random states, torch's choice of threads and default type, and, on a CPU, the streams
    that `engine.cpu` gives megatron-core, which vLLM replaces by less. Its remarks on what a CPU lacks, once a rank, are left out."""
    if not torch.cuda.is_available() and "VLLM_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("vllm").setLevel(logging.ERROR)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads, dtype = torch.set_num_threads, torch.get_default_dtype()
        streams = {name: getattr(torch.cuda, name) for name in STREAMS}
        try:
            yield
        finally:
            torch.set_num_threads = threads
            for name, value in streams.items():
                setattr(torch.cuda, name, value)
            torch.set_default_dtype(dtype)


@contextlib.contextmanager
def told(running: Collection[str] = ()) -> Iterator[None]:
    """What vLLM raises, as an EngineError that names this rank and what it was running, in the order in which it was added."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        place = f"vLLM on rank {parallel.rank()} failed{at_work(running)}"
        raise EngineError(f"{place}: {type(error).__name__}: {error}") from error
