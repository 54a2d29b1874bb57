"""What vLLM lacks on a CPU for this family, as a plugin of vLLM's (entry point `vllm.general_plugins`, so that every vLLM of the
environment has it), and what our engine asks of it there so that weights can be read back.

vLLM's experts for CPUs know gated activations only; the Nemotron hybrid's are relu(x W1)^2 W2. Where there is a GPU nothing is
touched.
"""

import functools

import torch


def register() -> None:
    """Adds experts without a gate to those among which vLLM chooses on a CPU."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
    from vllm.model_executor.layers.fused_moe.oracle import unquantized

    class UngatedExperts(CPUUnquantizedExperts):
        """Squared ReLU without a gate, by torch's matrix products on weights that stay as they were loaded."""

        @staticmethod
        def _supports_no_act_and_mul() -> bool:
            return True

        @staticmethod
        def _supports_activation(activation) -> bool:
            return activation == MoEActivation.RELU2_NO_MUL

        @classmethod
        def _supports_grouped_gemm(cls, moe_config) -> tuple[bool, None]:
            return True, None

        def process_weights_after_loading(self, layer) -> None:
            self._use_zentorch = False

        def apply(
            self, output, hidden_states, w1, w2, topk_weights, topk_ids, *args, expert_map=None, apply_router_weight_on_input=False, **kwargs
        ):
            held = topk_ids if expert_map is None else expert_map[topk_ids]
            squared_relu_experts(output, hidden_states, w1, w2, None if apply_router_weight_on_input else topk_weights, held)

    classes_of = unquantized.backend_to_kernel_cls
    if getattr(classes_of, "with_ungated", False):
        return  # vLLM may load its plugins more than once

    @functools.wraps(classes_of)
    def with_ungated(backend):
        more = [UngatedExperts] if backend == unquantized.UnquantizedMoeBackend.CPU else []
        return [*more, *classes_of(backend)]

    with_ungated.with_ungated = True
    unquantized.backend_to_kernel_cls = with_ungated

    check = FusedMoEConfig.__post_init__

    @functools.wraps(check)
    def let_ungated_pass(self):
        try:
            check(self)
        except NotImplementedError:
            # Its last statement, when all else is set: that CPUs have no experts without a gate.
            if self.activation != MoEActivation.RELU2_NO_MUL:
                raise

    FusedMoEConfig.__post_init__ = let_ungated_pass


def squared_relu_experts(
    output: torch.Tensor,
    hidden: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    weights: torch.Tensor | None,
    experts: torch.Tensor,
) -> None:
    """output [tokens, hidden] = sum over a token's experts [tokens, k] of weights [tokens, k] * relu(hidden w1^T)^2 w2^T.

    w1 [experts, ffn, hidden], w2 [experts, hidden, ffn]; an expert of -1 lies on another rank. Tokens are sorted by expert, so that each
    expert is two products.
    """
    counts = (experts.flatten() + 1).bincount(minlength=len(w1) + 1).tolist()
    order = experts.flatten().argsort(stable=True)[counts[0] :]
    token = order // experts.shape[1]
    parts = []
    for expert, rows in enumerate(hidden[token].split(counts[1:])):
        if len(rows):
            parts.append((rows @ w1[expert].T).relu_().square_() @ w2[expert].T)
    made = torch.cat(parts) if parts else hidden[:0]
    if weights is not None:
        made = made * weights.flatten()[order, None].to(made.dtype)
    output.zero_().index_add_(0, token, made.to(output.dtype))


def keep_weights_readable() -> None:
    """Lets vLLM's linear layers on a CPU keep their weights; packed for oneDNN, as is its way, they could not be read back."""
    from vllm.model_executor.layers import utils

    pack = utils.dispatch_cpu_unquantized_gemm
    if getattr(pack, "readable", False):
        return

    @functools.wraps(pack)
    def readable(layer, remove_weight: bool) -> None:
        if layer.weight.dim() == 2:
            layer.cpu_linear = torch.nn.functional.linear
        else:
            pack(layer, remove_weight)

    readable.readable = True
    utils.dispatch_cpu_unquantized_gemm = readable


def name_shared_memory(name: str) -> None:
    """Makes `name`, the same on all ranks, part of what the memory is called through which a CPU's ranks add up.

    Under torchrun vLLM calls it the same in every run: one that was killed leaves it behind, and the next one could not be made.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    named = getattr(_CPUSHMDistributed.make_group_name, "of_vllm", _CPUSHMDistributed.make_group_name)

    def with_name(communicator) -> str:
        return f"{name}{named(communicator).replace('/', '')}"

    with_name.of_vllm = named
    _CPUSHMDistributed.make_group_name = staticmethod(with_name)


def leave_memory_unbound() -> None:
    """Keeps vLLM from binding all memory of the process, the trainer's too, to one NUMA node."""
    # Its operators for CPUs are in the namespace once its worker is imported.
    from vllm.v1.worker import cpu_worker  # noqa: F401

    torch.ops._C.init_cpu_memory_env = lambda nodes: None
