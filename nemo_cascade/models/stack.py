"""What our hybrid stack adds to megatron-core's: layers recomputed in the backward pass, and Mamba states in fp32.

megatron-core 0.16 takes recompute_granularity full for hybrid models and then keeps every activation all the same.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from megatron.core import tensor_parallel
from megatron.core.enums import Fp8Recipe
from megatron.core.fp8_utils import get_fp8_context
from megatron.core.ssm.mamba_mixer import MambaMixer
from megatron.core.transformer.transformer_layer import TransformerLayer

from nemo_cascade.models.megatron import HybridStack, hybrid_block

# Newer ones do it themselves.
STACK_RECOMPUTES = hasattr(hybrid_block, "checkpointed_forward")


class Stack(HybridStack):
    """megatron-core's stack, which recomputes its layers as recompute_method and recompute_num_layers say."""

    def forward(self, hidden_states, attention_mask, *args, packed_seq_params=None, padding_mask=None, **kwargs):
        """[tokens, batch, hidden] -> the same."""
        if STACK_RECOMPUTES or self.config.recompute_granularity != "full" or not self.training:
            kwargs |= dict(packed_seq_params=packed_seq_params, padding_mask=padding_mask)
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        hidden_states = hidden_states if self.pre_process else self.input_tensor
        delayed = self.config.fp8 and self.config.fp8_recipe == Fp8Recipe.delayed
        # Delayed scaling has one FP8 region over all layers, the other recipes one for each.
        with get_fp8_context(self.config) if delayed else nullcontext():
            for first, last, recomputed in self._chunks():

                def run(hidden_states, attention_mask, layers=self.layers[first:last]):
                    for layer in layers:
                        routed = dict(padding_mask=padding_mask) if isinstance(layer, TransformerLayer) else {}
                        with nullcontext() if delayed else get_fp8_context(self.config, layer.layer_number - 1):
                            output = layer(
                                hidden_states=hidden_states,
                                attention_mask=attention_mask,
                                packed_seq_params=packed_seq_params,
                                **routed,
                            )
                        hidden_states = output[0] if isinstance(output, tuple) else output
                    return hidden_states

                inputs = hidden_states, attention_mask
                hidden_states = self._recomputed(run, *inputs) if recomputed else run(*inputs)
        return self.final_norm(hidden_states) if self.post_process and self.post_layer_norm else hidden_states

    def _chunks(self) -> Iterator[tuple[int, int, bool]]:
        """(first, last, whether they are recomputed) of the layers that run together: uniform makes chunks of
        recompute_num_layers, block recomputes the first recompute_num_layers of the pipeline stage one by one."""
        size = self.config.recompute_num_layers
        if self.config.recompute_method == "uniform":
            for first in range(0, len(self.layers), size):
                yield first, min(first + size, len(self.layers)), True
        else:
            for layer in range(len(self.layers)):
                yield layer, layer + 1, layer < size

    def _recomputed(self, run, hidden_states, attention_mask):
        shared_out = self.config.distribute_saved_activations
        if not self.config.fp8:
            return tensor_parallel.checkpoint(run, shared_out, hidden_states, attention_mask)
        from megatron.core.extensions.transformer_engine import te_checkpoint

        tracker = tensor_parallel.random.get_cuda_rng_tracker
        return te_checkpoint(run, shared_out, tracker, self.tp_group, hidden_states, attention_mask)


class Mixer(MambaMixer):
    """megatron-core's Mamba-2 mixer, whose decoding state is fp32 at every precision: rounded after every token, it
    would drift from the state of training, which is one sum. (The convolution's last inputs stay as they are.)"""

    def _get_states_from_cache(self, inference_context, batch_size, **kwargs):
        conv_state, ssm_state = super()._get_states_from_cache(inference_context, batch_size, **kwargs)
        if ssm_state.dtype != torch.float32:
            ssm_state = ssm_state.float()
            inference_context.key_value_memory_dict[self.layer_number] = conv_state, ssm_state
        return conv_state, ssm_state
