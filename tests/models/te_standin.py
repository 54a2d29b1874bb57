"""A stand-in for Transformer Engine, which cannot be installed without CUDA: the classes that megatron-core builds on,
in torch.

SIGNATURES is what Transformer Engine 2.8.0 takes, read from its sources; a call with anything else raises TypeError
here as there. Products are done in the precision of their operands, and RAN notes whether an FP8 region was open around
each. NAMES is what else megatron-core imports of it, there only to be imported; what is in neither is an ImportError,
as it is where another version of Transformer Engine has moved it.
"""

import contextlib
import importlib.abc
import importlib.machinery
import inspect
import sys
import types

import torch

VERSION = "2.8.0"
LINEAR = """in_features out_features sequence_parallel= fuse_wgrad_accumulation= tp_group= tp_size=
    get_rng_state_tracker= rng_tracker_name= init_method= bias= return_bias= params_dtype= parallel_mode=
    parameters_split= device= ub_overlap_ag= ub_overlap_rs= ub_overlap_rs_dgrad= ub_bulk_dgrad= ub_bulk_wgrad= ub_name=
    delay_wgrad_compute= symmetric_ar_type= save_original_input= name="""
SIGNATURES = {
    "Linear": (LINEAR, "inp is_first_microbatch= fp8_output= fp8_grad="),
    "LayerNormLinear": (
        LINEAR.replace("rng_tracker_name=", "").replace("save_original_input=", "")
        + " eps= normalization= return_layernorm_output= return_layernorm_output_gathered= zero_centered_gamma=",
        "inp is_first_microbatch= fp8_output= fp8_grad=",
    ),
    "GroupedLinear": (
        """num_gemms in_features out_features sequence_parallel= fuse_wgrad_accumulation= tp_group= tp_size=
        get_rng_state_tracker= rng_tracker_name= init_method= bias= return_bias= params_dtype= parallel_mode= device=
        ub_overlap_rs= ub_overlap_ag= ub_name= delay_wgrad_compute= save_original_input=""",
        "inp m_splits is_first_microbatch=",
    ),
    "DotProductAttention": (
        """num_attention_heads kv_channels num_gqa_groups= attention_dropout= qkv_format= attn_mask_type= window_size=
        sequence_parallel= tp_size= get_rng_state_tracker= tp_group= layer_number= attention_type= cp_group=
        cp_global_ranks= cp_stream= cp_comm_type= softmax_scale= softmax_type=""",
        """query_layer key_layer value_layer attention_mask= qkv_format= cu_seqlens_q= cu_seqlens_kv=
        cu_seqlens_q_padded= cu_seqlens_kv_padded= max_seqlen_q= max_seqlen_kv= attn_mask_type= window_size=
        checkpoint_core_attention= core_attention_bias_type= core_attention_bias= alibi_slopes= fast_zero_fill=
        inference_params= pad_between_seqs= fp8_output=""",
    ),
    "RMSNorm": ("hidden_size eps= sequence_parallel= params_dtype= zero_centered_gamma= device=", "input"),
    "Fp8Padding": ("num_gemms align_size=", "inp m_splits"),
    "Fp8Unpadding": ("num_gemms align_size=", "inp m_splits"),
}
# Pydantic dataclasses, which leave out what they do not know.
RECIPES = {
    "DelayedScaling": set(
        "margin fp8_format amax_history_len amax_compute_algo reduce_amax fp8_dpa fp8_mha".split(),
    ),
    "Float8CurrentScaling": {"use_power_2_scales", "fp8_format", "fp8_dpa", "fp8_mha"},
    "MXFP8BlockScaling": {"margin", "fp8_format", "fp8_dpa", "fp8_mha"},
    "Float8BlockScaling": {"use_f32_scales", "fp8_format", "fp8_dpa", "fp8_mha"},
}
# Not transformer_engine.pytorch.optimizers: without it megatron-core takes torch's own.
PYTORCH = "transformer_engine.pytorch"
NAMES = {
    "transformer_engine.common": "",
    "transformer_engine_torch": "",
    PYTORCH: "fp8_model_init TransformerEngineBaseModule",
    f"{PYTORCH}.attention": "",
    f"{PYTORCH}.attention.rope": "apply_rotary_pos_emb",
    f"{PYTORCH}.constants": "TE_DType",
    f"{PYTORCH}.cpu_offload": "get_cpu_offload_context",
    f"{PYTORCH}.cross_entropy": "parallel_cross_entropy",
    f"{PYTORCH}.distributed": """CudaRNGStatesTracker activation_recompute_forward gather_along_first_dim
        is_fp8_activation_recompute_enabled reduce_scatter_along_first_dim""",
    f"{PYTORCH}.float8_tensor": "Float8Tensor",
    f"{PYTORCH}.graph": """make_graphed_callables restore_fp8_tensors save_fp8_tensors set_capture_end
        set_capture_start""",
    f"{PYTORCH}.module": "",
    f"{PYTORCH}.module.base": "TransformerEngineBaseModule get_dummy_wgrad",
    f"{PYTORCH}.ops": "FusibleOperation Sequential",
    # Left out: kernels to permute tokens in, which have no stand-in. Without them megatron-core permutes in torch.
    f"{PYTORCH}.permutation": "",
    f"{PYTORCH}.router": "fused_compute_score_for_moe_aux_loss fused_moe_aux_loss fused_topk_with_score_function",
    f"{PYTORCH}.tensor": "QuantizedTensor",
    f"{PYTORCH}.tensor.float8_blockwise_tensor": "Float8BlockwiseQTensor",
    f"{PYTORCH}.tensor.float8_tensor": "Float8Tensor",
    f"{PYTORCH}.tensor.mxfp8_tensor": "MXFP8Tensor",
    f"{PYTORCH}.tensor.nvfp4_tensor": "NVFP4Tensor",
    f"{PYTORCH}.tensor.utils": "cast_master_weights_to_fp8 post_all_gather_processing replace_raw_data",
    f"{PYTORCH}.utils": "make_weak_ref",
}
# The recipes of the FP8 regions that are open, innermost last; None where one switches FP8 off.
REGIONS: list = [None]
# (module, recipe of the region around it or None, rows of its input or of each of its inputs) of every call, in order.
RAN: list[tuple[torch.nn.Module, object, list[int]]] = []


def bind(words: str, args, kwargs) -> dict:
    """Arguments by name, as a function of these parameters ("name=" has a default) would get them."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    needed = [word for word in words.split() if not word.endswith("=")]
    optional = [word[:-1] for word in words.split() if word.endswith("=")]
    parameters = [inspect.Parameter(name, kind) for name in needed]
    parameters += [inspect.Parameter(name, kind, default=None) for name in optional]
    return inspect.Signature(parameters).bind(*args, **kwargs).arguments


class Layer(torch.nn.Module):
    """A layer that takes what the recorded one takes."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.given = bind(SIGNATURES[self.kind][0], args, kwargs)
        self.build(types.SimpleNamespace(**{"parallel_mode": None, "tp_size": 1, "bias": True} | self.given))

    def forward(self, *args, **kwargs):
        given = bind(SIGNATURES[self.kind][1], args, kwargs)
        first = args[0]
        RAN.append((self, REGIONS[-1], given.get("m_splits") or [first.numel() // first.shape[-1]]))
        return self.run(**given)

    def get_extra_state(self):
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state):
        pass

    def matrix(self, given) -> torch.nn.Parameter:
        rows = given.out_features // (given.tp_size if given.parallel_mode == "column" else 1)
        columns = given.in_features // (given.tp_size if given.parallel_mode == "row" else 1)
        device = torch.get_default_device()
        weight = torch.nn.Parameter(torch.empty(rows, columns, dtype=given.params_dtype, device=device))
        if given.bias:
            raise NotImplementedError("these networks have no bias")
        given.init_method(weight)
        return weight


class Linear(Layer):
    kind = "Linear"

    def build(self, given):
        self.in_features, self.out_features, self.use_bias = given.in_features, given.out_features, given.bias
        self.tp_size, self.parallel_mode, self.save_original_input = given.tp_size, given.parallel_mode, False
        self.fuse_wgrad_accumulation = given.fuse_wgrad_accumulation
        self.weight = self.matrix(given)

    def run(self, inp, **_):
        return product(self, inp, self.weight)


class LayerNormLinear(Linear):
    kind = "LayerNormLinear"

    def build(self, given):
        super().build(given)
        assert given.normalization == "RMSNorm"
        self.eps = given.eps
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(given.in_features, dtype=given.params_dtype))

    def run(self, inp, **_):
        return product(self, rms(inp, self.layer_norm_weight, self.eps), self.weight)


class GroupedLinear(Layer):
    kind = "GroupedLinear"

    def build(self, given):
        self.num_gemms, self.use_bias, self.save_original_input = given.num_gemms, given.bias, False
        self.fuse_wgrad_accumulation = given.fuse_wgrad_accumulation
        self.fp8_meta, self.fp8, self.fp8_calibration = {"fp8_checkpoint": False}, False, False
        for number in range(given.num_gemms):
            setattr(self, f"weight{number}", self.matrix(given))

    def run(self, inp, m_splits, **_):
        parts = inp.split(m_splits)
        return torch.cat([product(self, part, getattr(self, f"weight{number}")) for number, part in enumerate(parts)])


class Fused(torch.autograd.Function):
    """x W^T, which adds W's gradient to its main_grad, as the recorded layers do with fuse_wgrad_accumulation."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        weight.main_grad.add_(grad.flatten(0, -2).t() @ x.flatten(0, -2))
        weight.grad_added_to_main_grad = True
        return grad @ weight, None


def product(layer, x, weight):
    return Fused.apply(x, weight) if layer.fuse_wgrad_accumulation else x @ weight.t()


class DotProductAttention(Layer):
    kind = "DotProductAttention"

    def build(self, given):
        pass

    def run(self, query_layer, key_layer, value_layer, qkv_format, cu_seqlens_q, attn_mask_type, **_):
        from nemo_cascade.models.attention import packed_attention

        assert (qkv_format, attn_mask_type) == ("thd", "padding_causal")
        return packed_attention(query_layer, key_layer, value_layer, cu_seqlens_q)


class RMSNorm(Layer):
    kind = "RMSNorm"

    def build(self, given):
        self.weight = torch.nn.Parameter(torch.ones(given.hidden_size, dtype=given.params_dtype))
        self.eps = given.eps

    def run(self, input):
        return rms(input, self.weight, self.eps)


class Fp8Padding(Layer):
    """align_size None is 32 under MXFP8, 16 under every other recipe, blockwise too."""

    kind = "Fp8Padding"

    def build(self, given):
        self.align_size = getattr(given, "align_size", None)

    def sizes(self, m_splits):
        block = self.align_size or (32 if type(REGIONS[-1]).__name__ == "MXFP8BlockScaling" else 16)
        return [-(-size // block) * block for size in m_splits]

    def run(self, inp, m_splits):
        sizes = self.sizes(m_splits)
        pairs = zip(inp.split(m_splits), sizes)
        return torch.cat([torch.nn.functional.pad(part, (0, 0, 0, size - len(part))) for part, size in pairs]), sizes


class Fp8Unpadding(Fp8Padding):
    kind = "Fp8Unpadding"

    def run(self, inp, m_splits):
        return torch.cat([part[:size] for part, size in zip(inp.split(self.sizes(m_splits)), m_splits)])


def rms(x, weight, eps):
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)


def recipe(name: str):
    def build(self, **kwargs):
        self.given = {key: value for key, value in kwargs.items() if key in RECIPES[name]}

    return type(name, (), {"__init__": build})


@contextlib.contextmanager
def fp8_autocast(enabled=True, calibrating=False, fp8_recipe=None, fp8_group=None, _graph=False):
    REGIONS.append(fp8_recipe if enabled else None)
    try:
        yield
    finally:
        REGIONS.pop()


def checkpoint(
    function, *args, distribute_saved_activations=False, get_rng_state_tracker=None, tp_group=None, **kwargs
):
    """Recomputes within the region that was open in the forward pass."""
    region = REGIONS[-1]

    def run(*inputs):
        with fp8_autocast(region is not None, fp8_recipe=region):
            return function(*inputs)

    return torch.utils.checkpoint.checkpoint(run, *args, use_reentrant=True, **kwargs)


def general_gemm(A, B, out_dtype=None, layout="TN", **_):
    """The three products of the router: inputs, their gradient, the weights' gradient."""
    A, B = A.to(out_dtype), B.to(out_dtype)
    return [{"TN": lambda: B @ A.t(), "NN": lambda: B @ A, "NT": lambda: B.t() @ A}[layout]()]


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name in NAMES or name in CONTENTS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def exec_module(self, module):
        vars(module).update({name: type(name, (), {"apply": None}) for name in NAMES.get(module.__name__, "").split()})
        vars(module).update(CONTENTS.get(module.__name__, {}))


STATE = type("FP8GlobalStateManager", (), {"is_fp8_enabled": staticmethod(lambda: REGIONS[-1] is not None)})
LAYERS = (Linear, LayerNormLinear, GroupedLinear, DotProductAttention, RMSNorm, Fp8Padding, Fp8Unpadding)
CONTENTS = {
    "transformer_engine": {"__version__": VERSION},
    "transformer_engine.common.recipe": {
        **{name: recipe(name) for name in RECIPES},
        "Format": types.SimpleNamespace(E4M3="E4M3", HYBRID="HYBRID"),
    },
    "transformer_engine.pytorch": {**{layer.__name__: layer for layer in LAYERS}, "fp8_autocast": fp8_autocast},
    "transformer_engine.pytorch.fp8": {
        "FP8GlobalStateManager": STATE,
        "fp8_autocast": fp8_autocast,
        "check_fp8_support": lambda: (True, ""),
        "check_mxfp8_support": lambda: (True, ""),
        "check_fp8_block_scaling_support": lambda: (True, ""),
    },
    "transformer_engine.pytorch.distributed": {"checkpoint": checkpoint},
    "transformer_engine.pytorch.cpp_extensions": {"general_gemm": general_gemm},
    "transformer_engine.pytorch.module.base": {"get_workspace": lambda: None},
}


def install() -> None:
    """From here on `import transformer_engine` finds the stand-in."""
    sys.meta_path.insert(0, Finder())
    import transformer_engine.common.recipe
    import transformer_engine.pytorch.distributed
    import transformer_engine.pytorch.ops  # noqa: F401
