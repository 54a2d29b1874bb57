"""megatron-core's hybrid model under one set of names; they moved from `mamba` (0.16) to `hybrid` (0.19). Imports only."""

from nemo_cascade.engine import cpu

cpu.install()

try:
    import megatron.core.models.hybrid.hybrid_block as hybrid_block
    from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules
    from megatron.core.models.hybrid.hybrid_model import HybridModel
except ImportError:
    import megatron.core.ssm.mamba_block as hybrid_block
    from megatron.core.models.mamba.mamba_model import MambaModel as HybridModel
    from megatron.core.ssm.mamba_block import MambaStack as HybridStack
    from megatron.core.ssm.mamba_block import MambaStackSubmodules as HybridStackSubmodules

__all__ = ["HybridModel", "HybridStack", "HybridStackSubmodules", "hybrid_block"]
