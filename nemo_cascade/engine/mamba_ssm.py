"""mamba-ssm's kernels where the rest of mamba-ssm cannot be imported.

Its package imports all it has when it is imported: a language model that wants classes of older transformers, Mamba-1's CUDA
extension. megatron-core uses its Triton kernels alone, and goes on without them, silently, where that import fails.
"""

import importlib.util
import logging
import sys
import types


def make_importable(name: str = "mamba_ssm") -> None:
    """Lets the modules of an installed package be imported without the package's own __init__, where that fails."""
    if name in sys.modules or importlib.util.find_spec(name) is None:
        return
    try:
        importlib.import_module(name)
    except ImportError as error:
        said = "%s as a whole cannot be imported (%s); its modules are used without"
        logging.getLogger(__name__).info(said, name, error)
        spec = importlib.util.find_spec(name)
        package = types.ModuleType(name)
        package.__path__, package.__spec__ = spec.submodule_search_locations, spec
        sys.modules[name] = package
