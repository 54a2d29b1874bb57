"""One new token of every row through the network by a short way: what megatron-core's modules compute, without their way there.

A small network's token is microseconds of arithmetic, and milliseconds of Python from module to module. This is for what a CPU runs: the whole
network in one process, float32, our torch layers, as `ModelConfig` describes them and nothing else. Weights are the modules' own. Left
out: recording experts, FP8, any parallelism, and prompts, which are long enough for the modules.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.inference.contexts import StaticInferenceContext

from nemo_cascade.models.attention import PackedAttention, attend_to_cache
from nemo_cascade.models.experts import Experts, products, rows_of
from nemo_cascade.models.layers import NormColumnParallelLinear, RMSNorm
from nemo_cascade.models.mamba import GatedRMSNorm, advance, conv_update
from nemo_cascade.models.megatron import conv_of
from nemo_cascade.models.norm import rms_norm
from nemo_cascade.models.stack import Mixer

# (hidden [rows, hidden], caches and the column of the new token, visible or None) -> what the layer adds to the residual.
Step = Callable[[torch.Tensor, StaticInferenceContext, torch.Tensor | None], torch.Tensor]


class ShortWay:
    """`model(tokens, ..., inference_context=context)` for one token a row. Raises ValueError where the network is none that it knows."""

    def __init__(self, model):
        layers = model.decoder.layers
        known = [_step_of(layer) for layer in layers]
        norm = getattr(model.decoder, "final_norm", None)
        whole = isinstance(norm, RMSNorm) and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
        if None in known or not whole or not _alone():
            raise ValueError("this network decodes by megatron-core's modules")
        self.steps: list[Step] = known
        self.embedding, self.norm, self.output = model.embedding.word_embeddings, norm, model.output_layer

    def __call__(self, tokens: torch.Tensor, context: StaticInferenceContext, visible: torch.Tensor | None = None) -> torch.Tensor:
        """tokens [rows], visible [rows, columns so far] -> logits [rows, vocab]; the caches in `context` get the token."""
        hidden = F.embedding(tokens, self.embedding.weight)
        for step in self.steps:
            hidden = hidden + step(hidden, context, visible)
        return F.linear(rms_norm(hidden, self.norm.weight, self.norm.eps), self.output.weight)


def short_way(model) -> ShortWay | None:
    """The short way of a model, if there is one."""
    try:
        return ShortWay(model)
    except ValueError:
        return None


def _alone() -> bool:
    """Whether this process holds all of the network."""
    groups = (
        parallel_state.get_model_parallel_group(),
        parallel_state.get_context_parallel_group(),
        parallel_state.get_expert_tensor_and_model_parallel_group(),
    )
    return all(group.size() == 1 for group in groups)


def _step_of(layer) -> Step | None:
    """None of a layer that is none of the three, or has parts beside theirs."""
    if isinstance(getattr(layer, "mixer", None), Mixer):
        return _mamba(layer.mixer)
    if isinstance(getattr(getattr(layer, "self_attention", None), "core_attention", None), PackedAttention):
        return _attention(layer.self_attention)
    if isinstance(getattr(getattr(layer, "mlp", None), "experts", None), Experts):
        return _moe(layer.pre_mlp_layernorm, layer.mlp)
    return None


def _normed_product(x: torch.Tensor, linear: NormColumnParallelLinear) -> torch.Tensor:
    return F.linear(rms_norm(x, linear.layer_norm_weight, linear.eps), linear.weight)


def _mamba(mixer: Mixer) -> Step | None:
    if not (isinstance(mixer.norm, GatedRMSNorm) and isinstance(mixer.in_proj, NormColumnParallelLinear)):
        return None
    inner, groups, heads = mixer.d_inner_local_tp, mixer.ngroups_local_tp, mixer.nheads_local_tp
    states = groups * mixer.d_state

    def step(hidden, context, visible):
        inputs, state = context.key_value_memory_dict[mixer.layer_number]
        z, xBC, dt = _normed_product(hidden, mixer.in_proj).split([inner, inner + 2 * states, heads], -1)
        xBC = conv_update(xBC, inputs, *conv_of(mixer), "silu")
        x, B, C = xBC.split([inner, states, states], -1)
        dt = F.softplus(dt + mixer.dt_bias)
        decay = (dt * -mixer.A_log.exp()).exp()
        x, (B, C) = x.unflatten(-1, (heads, -1)), (t.unflatten(-1, (groups, -1)) for t in (B, C))
        y = advance(state, x, dt, decay, B, C, mixer.D)
        return F.linear(mixer.norm(y.flatten(1), z), mixer.out_proj.weight)

    return step


def _attention(attention) -> Step | None:
    config = attention.config
    plain = attention.q_layernorm is None and attention.k_layernorm is None and attention.linear_qkv.bias is None
    if not plain or getattr(config, "attention_output_gate", False) or attention.linear_proj.bias is not None:
        return None
    groups, dim = attention.num_query_groups_per_partition, attention.hidden_size_per_attention_head

    def step(hidden, context, visible):
        keys, values = context.key_value_memory_dict[attention.layer_number]
        column = context.sequence_len_offset
        qkv = _normed_product(hidden, attention.linear_qkv).view(len(hidden), groups, -1, dim)
        keys[column], values[column] = qkv[:, :, -2], qkv[:, :, -1]
        seen = (t[: column + 1].permute(1, 2, 0, 3) for t in (keys, values))
        out = attend_to_cache(qkv[:, :, :-2].flatten(1, 2)[:, :, None], *seen, visible)
        return F.linear(out[0], attention.linear_proj.weight)

    return step


def _moe(norm, layer) -> Step | None:
    router, shared, config = layer.router, layer.shared_experts, layer.config
    sigmoid = config.moe_router_score_function == "sigmoid" and router.expert_bias is not None and router.bias is None
    limited = config.moe_router_num_groups or config.moe_router_dtype == "fp64" or getattr(config, "moe_latent_size", None)
    gated = shared is not None and shared.use_shared_expert_gate
    if not (isinstance(norm, RMSNorm) and sigmoid) or limited or gated:
        return None
    topk, scaling = config.moe_router_topk, config.moe_router_topk_scaling_factor or 1.0
    first, second = ([getattr(expert, name) for expert in layer.experts.local_experts] for name in ("linear_fc1", "linear_fc2"))

    def step(hidden, context, visible):
        x = rms_norm(hidden, norm.weight, norm.eps)
        scores = F.linear(x, router.weight).sigmoid()
        chosen = (scores + router.expert_bias).topk(topk, 1)[1]
        probs = scores.gather(1, chosen)
        probs = probs * (scaling / (probs.sum(1, keepdim=True) + 1e-20)) if topk > 1 else probs * scaling
        chosen = chosen.flatten()
        order = chosen.argsort(stable=True)
        token, rows = order // topk, rows_of(chosen.bincount(minlength=len(first)).tolist())
        out = products(x[token], probs.flatten()[order], rows, [m.weight for m in first], [m.weight for m in second])[0]
        out = torch.zeros_like(x).index_add_(0, token, out)
        return out if shared is None else out + F.linear(F.linear(x, shared.linear_fc1.weight).relu().square(), shared.linear_fc2.weight)

    return step
