"""One repair of megatron-core's distributed optimizer, for models that mix types: bfloat16 with Mamba's fp32 decay rates."""

from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


def restore_state_order(optimizer) -> None:
    """Lets saving and loading find each parameter's state, in a (chained) optimizer of megatron-core.

    The distributed optimizer puts a group's fp32 parameters before those with an fp32 copy, but remembers the places that
    they had before: where a group has both, one parameter's state would be saved as another's.
    """
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not isinstance(part, DistributedOptimizer):
            continue
        groups = zip(part.model_fp32_groups, part.model_float16_groups, strict=True)
        for number, (single, half) in enumerate(groups):
            for place, parameter in enumerate([*single, *half]):
                part.model_param_group_index_map[parameter] = (number, place)
