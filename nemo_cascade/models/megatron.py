"""All that differs between megatron-core 0.16 and 0.19: the hybrid model moved from `mamba` to `hybrid`, and what a MoE layer
is built of is bound in functools.partial instead of a ModuleSpec."""

from functools import partial

from nemo_cascade.engine import cpu

cpu.install()

from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec  # noqa: E402

try:
    import megatron.core.models.hybrid.hybrid_block as hybrid_block
    from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules
    from megatron.core.models.hybrid.hybrid_model import HybridModel
except ImportError:
    import megatron.core.ssm.mamba_block as hybrid_block
    from megatron.core.models.mamba.mamba_model import MambaModel as HybridModel
    from megatron.core.ssm.mamba_block import MambaStack as HybridStack
    from megatron.core.ssm.mamba_block import MambaStackSubmodules as HybridStackSubmodules

__all__ = ["HybridModel", "HybridStack", "HybridStackSubmodules", "hybrid_block", "moe_spec"]


def moe_spec(use_te: bool, router: type, experts: type | None = None):
    """A TransformerLayer's MoE part with our router and, unless None, our experts in place of megatron-core's sequential ones."""
    # Any number says that there are experts; how many is the configuration's.
    spec = get_moe_module_spec(use_te=use_te, num_experts=1, moe_grouped_gemm=use_te)
    bound = isinstance(spec, partial)
    submodules = spec.keywords["submodules"] if bound else spec.submodules
    submodules.router = router
    if experts is not None and bound:
        submodules.experts = partial(experts, **submodules.experts.keywords)
    elif experts is not None:
        submodules.experts.module = experts
    return spec
