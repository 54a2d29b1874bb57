"""megatron-core without CUDA: every place where it says cuda, a CPU answers.

`install()` must run before anything of `megatron.core` is imported. Where CUDA is present it only sees to mamba-ssm. What it
replaces elsewhere:

1. `torch.cuda`: device, stream, event, random-state and memory calls become their CPU counterparts or no-ops.
2. tensor factories and `.to` / `.cuda`: a device "cuda" means "cpu"; `Tensor.type()` says torch.cuda.FloatTensor, because
   mcore's optimizers and gradient buffers compare that string.
3. `all_to_all_single`: gloo wants split sizes as ints, mcore passes tensors.
4. the fuser: mcore's helpers are compiled by torch.compile at first use, which costs 4-20 s a process and gains nothing here.
5. random-state trackers: mcore reads and sets CUDA generator states by function; those functions use the CPU's.
6. remarks of mcore and torch that say nothing on a CPU (absent GPU libraries, two random states that are one here).
7. Adam: torch's keeps `step` per tensor, mcore's distributed optimizer saves and loads it per group, as TE's FusedAdam keeps it.
8. sorting tokens by expert: left out where they are sorted, as with every expert on one rank.
9. weights' gradients: Apex's kernel that adds them where mcore sums them up becomes the matrix product that does.
10. all gradients at once: their norm and their clipping in one call each, their all-reduce where they lie.
"""

import contextlib
import functools
import logging
import os
import warnings
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.utils._device import _device_constructors

from nemo_cascade.engine import mamba_ssm

_CPU = torch.device("cpu")
_FACTORIES = (
    "tensor zeros ones empty full arange rand randn randint as_tensor empty_like zeros_like ones_like full_like linspace eye"
)
_installed = False


def install() -> None:
    """Makes stock megatron-core run on this machine's CPU (once)."""
    global _installed
    if _installed:
        return
    _installed = True
    mamba_ssm.make_importable()
    if torch.cuda.is_available():
        return
    _silence()
    _replace_cuda_calls()
    _replace_devices()
    _replace_all_to_all()
    _switch_fuser_off()
    _replace_random_states()
    _replace_adam()
    _replace_moe_sort()
    _replace_weight_gradients()
    _replace_lists_of_gradients()


def distributed_backend() -> str:
    """The backend of torch.distributed for this machine."""
    return "nccl" if torch.cuda.is_available() else "gloo"


def set_device(local_rank: int) -> None:
    """Binds this process to its GPU; a CPU has nothing to bind."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)


def set_threads(local_world_size: int) -> None:
    """Shares the cores among the processes of this machine, unless OMP_NUM_THREADS already says how many each takes."""
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size))


class GroupStepAdam(torch.optim.Optimizer):
    """AdamW (decoupled decay) with `step` in the parameter group, the layout of TE's and Apex's FusedAdam.

    Formula: Loshchilov & Hutter 2019, algorithm 2, with bias correction. State per parameter: exp_avg, exp_avg_sq.
    """

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, adam_w_mode=True, capturable=False
    ):
        if not adam_w_mode:
            raise ValueError("only decoupled weight decay (AdamW) is implemented; set decoupled_weight_decay=true")
        if capturable:
            raise ValueError("a CPU captures no graphs; set optimizer_cuda_graph=false")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            group["step"] = group.get("step", 0) + 1
            self._update(group, parameters, [p.grad for p in parameters])

    def _update(self, group: dict, parameters: list, gradients: list) -> None:
        (beta1, beta2), step, lr = group["betas"], group["step"], group["lr"]
        for p in parameters:
            if "exp_avg" not in self.state[p]:
                self.state[p].update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        # One pass over memory, in its order, so it must be the same for all: four times as fast as operations on lists
        # (20 million numbers, one thread).
        torch._fused_adamw_(
            parameters,
            [g if g.stride() == p.stride() else torch.empty_like(p).copy_(g) for p, g in zip(parameters, gradients)],
            [self.state[p]["exp_avg"] for p in parameters],
            [self.state[p]["exp_avg_sq"] for p in parameters],
            [],
            [torch.tensor(float(step))] * len(parameters),
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


class _Stream:
    """A CPU has one order of execution, so a stream or an event has nothing to wait for."""

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    def record_event(self, *args):
        return _Stream()

    def query(self):
        return True

    def elapsed_time(self, other):
        return 0.0

    def _nothing(self, *args, **kwargs):
        return None

    wait_stream = wait_event = wait = synchronize = record = _nothing


def _replace_cuda_calls() -> None:
    def returning(value):
        # A new function each time: torch._dynamo keeps a table of torch's functions and refuses one that stands there twice.
        return lambda *args, **kwargs: value

    cuda = torch.cuda
    # The meta device inside `with torch.device("meta")`, so that a model of any size can be built.
    cuda.current_device = lambda: torch.get_default_device()
    for name in ("set_device", "synchronize", "empty_cache"):
        setattr(cuda, name, returning(None))
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved"):
        setattr(cuda, name, returning(0))
    cuda.memory_stats = lambda *args, **kwargs: {}
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    cuda.manual_seed = lambda seed: torch.manual_seed(seed)
    cuda.Stream, cuda.Event = type("Stream", (_Stream,), {}), type("Event", (_Stream,), {})
    cuda.current_stream = lambda *args, **kwargs: _Stream()
    cuda.default_stream = lambda *args, **kwargs: _Stream()
    cuda.stream = lambda stream: contextlib.nullcontext()


def _silence() -> None:
    for message in (
        ".*Falling back to.*",
        "full scope is deprecated",
        "The .grad attribute of a Tensor that is not a leaf",
        "`torch.distributed.(all_gather_into|reduce_scatter)_tensor` is deprecated",
        "`load_state_dict` is deprecated",
        "Please use DTensor instead",
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("megatron.core.tensor_parallel.random").setLevel(logging.ERROR)


def _says_cuda(device) -> bool:
    return device is not None and str(device).startswith("cuda")


def _replace_devices() -> None:
    def on_cpu(factory):
        @functools.wraps(factory)
        def make(*args, **kwargs):
            if _says_cuda(kwargs.get("device")):
                kwargs["device"] = torch.get_default_device()
            return factory(*args, **kwargs)

        return make

    # `with torch.device("meta")` recognises factories by identity, from a table made at first use: now, with the originals.
    _device_constructors()
    for name in _FACTORIES.split():
        setattr(torch, name, on_cpu(getattr(torch, name)))

    to, kind = torch.Tensor.to, torch.Tensor.type

    def to_cpu(self, *args, **kwargs):
        args = tuple(_CPU if isinstance(arg, (str, torch.device)) and _says_cuda(arg) else arg for arg in args)
        if _says_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        return to(self, *args, **kwargs)

    def cuda_type(self, *args, **kwargs):
        return kind(self, *args, **kwargs) if args or kwargs else kind(self).replace("torch.", "torch.cuda.")

    torch.Tensor.to = to_cpu
    torch.Tensor.type = cuda_type
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self


def _replace_all_to_all() -> None:
    original = dist.all_to_all_single

    def sizes(splits):
        return splits.tolist() if isinstance(splits, torch.Tensor) else splits and [int(size) for size in splits]

    def all_to_all_single(output, input, output_split_sizes=None, input_split_sizes=None, group=None, async_op=False):
        return original(output, input, sizes(output_split_sizes), sizes(input_split_sizes), group=group, async_op=async_op)

    dist.all_to_all_single = all_to_all_single


def _switch_fuser_off() -> None:
    # Importing any part of megatron.core imports most of it, and functions are compiled where they are defined: too late to
    # switch off afterwards.
    compiled, torch.compile = torch.compile, lambda function: function
    try:
        import megatron.core.jit
    finally:
        torch.compile = compiled
    megatron.core.jit.disable_jit_fuser()


def _replace_random_states() -> None:
    import megatron.core.tensor_parallel.random as random

    random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)


def _replace_adam() -> None:
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed

    optimizer.Adam = distributed.Adam = GroupStepAdam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    # "TE's layout": step is read from and written to the parameter group.
    distributed.HAVE_APEX_OR_TE = distributed.USING_TE_OPTIMIZER = True


def _replace_moe_sort() -> None:
    import megatron.core.transformer.moe.token_dispatcher as token_dispatcher

    sort = token_dispatcher.sort_chunks_by_idxs

    @functools.wraps(sort)
    def sort_unless_sorted(input, split_sizes, sorted_idxs, probs=None, **kwargs):
        order = sorted_idxs.tolist()
        return (input, probs) if order == sorted(order) else sort(input, split_sizes, sorted_idxs, probs=probs, **kwargs)

    token_dispatcher.sort_chunks_by_idxs = sort_unless_sorted


def _replace_weight_gradients() -> None:
    import megatron.core.tensor_parallel.layers as layers

    def add(total_input, grad_output, main_grad):
        main_grad.addmm_(grad_output.t(), total_input)

    # Also where Apex's can be imported: it is for GPUs.
    layers._grad_accum_fusion_available = True
    layers.fused_weight_gradient_mlp_cuda = SimpleNamespace(wgrad_gemm_accum_fp32=add, wgrad_gemm_accum_fp16=add)


def _replace_lists_of_gradients() -> None:
    import megatron.core.distributed.param_and_grad_buffer as buffer
    import megatron.core.optimizer.clip_grads as clip_grads

    def norm(chunk_size, noop_flag, tensor_lists, per_tensor, *args):
        return torch.stack(torch._foreach_norm(tensor_lists[0])).norm()[None], None

    def scale(chunk_size, noop_flag, tensor_lists, factor):
        if tensor_lists[0] is not tensor_lists[1]:
            torch._foreach_copy_(tensor_lists[1], tensor_lists[0])
        torch._foreach_mul_(tensor_lists[1], factor)

    coalesced = buffer._coalescing_manager

    def manager(group=None, device=None, async_ops=False):
        # gloo copies what is coalesced together and apart again; waited for, one operation after the other is as good.
        return coalesced(group, device, async_ops) if async_ops else contextlib.nullcontext()

    clip_grads.l2_norm_impl, clip_grads.multi_tensor_scale_impl = norm, scale
    buffer._coalescing_manager = manager
