"""megatron-core's optimizer and schedule as the policy's keys say, with repairs for models that mix types: bfloat16
with Mamba's fp32 decay rates."""

import torch
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace, extract_matching_values, merge
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedBase
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from nemo_cascade.engine.config import PolicyConfig


def build_optimizer(wrapped: DistributedDataParallel, config: PolicyConfig, dtype: torch.dtype):
    """The optimizer of a model whose parameters are of `dtype`, but for those that are always fp32."""
    settings = config.megatron_cfg.optimizer
    megatron_config = OptimizerConfig(
        optimizer=settings.optimizer,
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_eps=settings.adam_eps,
        clip_grad=config.max_grad_norm,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=settings.use_distributed_optimizer,
        optimizer_cpu_offload=settings.optimizer_cpu_offload,
        optimizer_offload_fraction=1.0,
        # Else megatron-core would keep the master weights on the GPU as well.
        use_precision_aware_optimizer=settings.optimizer_cpu_offload,
    )
    # The one in host memory takes leaves only, and megatron-core cuts an fp32 parameter's shard without detaching it.
    with torch.set_grad_enabled(not settings.optimizer_cpu_offload):
        optimizer = get_megatron_optimizer(megatron_config, [wrapped])
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(part, DistributedOptimizer):
            restore_state_order(part)
            if isinstance(part.optimizer, HybridDeviceOptimizer):
                part.optimizer.__class__ = OffloadedOptimizer
    return optimizer


def build_schedule(optimizer, config: PolicyConfig, max_num_steps: int) -> OptimizerParamScheduler:
    """Learning rate (and constant weight decay) over max_num_steps, or over lr_decay_iters where that is set."""
    settings, schedule = config.megatron_cfg.optimizer, config.megatron_cfg.scheduler
    decay_steps = schedule.lr_decay_iters or max_num_steps
    return OptimizerParamScheduler(
        optimizer,
        init_lr=schedule.lr_warmup_init,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=schedule.lr_warmup_iters,
        lr_decay_steps=max(decay_steps, schedule.lr_warmup_iters + 1),
        lr_decay_style=schedule.lr_decay_style,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=decay_steps,
        wd_incr_style="constant",
    )


def optimizer_state(optimizer, model_state: dict, is_loading: bool) -> tuple[dict, dict]:
    """(what a checkpoint holds of an optimizer's state: of each parameter under the parameter's own name; the rest).

    With expert parallel megatron-core gives the experts an optimizer of their own. Its checkpoints would number the two
    and keep the settings of each one's groups, so that no layout without expert parallel could read them, nor the other
    way round. The settings are the config's and the schedule's, and the step is the policy's.
    """
    metadata = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
    state = optimizer.sharded_state_dict(model_state, is_loading=is_loading, metadata=metadata)
    return extract_matching_values(state, lambda value: isinstance(value, ShardedBase))


def restore_state(optimizer, loaded: dict, rest: dict, step: int) -> None:
    """Puts back what was read of the first of `optimizer_state`, beside the second, after so many steps."""
    rest = dict_list_map_outplace(lambda v: v.unwrap() if isinstance(v, LocalNonpersistentObject) else v, rest)
    state = merge(rest, loaded)
    for part in state.values() if 0 in state else [state]:
        # One that is not distributed has no such level.
        part = part.get("optimizer", part)
        for group in part["param_groups"]:
            group["step"] = step
        if "common_step" in part.get("state", {}):
            part["state"]["common_step"] = step
    optimizer.load_state_dict(state)


def restore_state_order(part: DistributedOptimizer) -> None:
    """Lets saving and loading find each parameter's state.

    The distributed optimizer puts a group's fp32 parameters before those with an fp32 copy, but remembers the places
    that they had before: where a group has both, one parameter's state would be saved as another's.
    """
    groups = zip(part.model_fp32_groups, part.model_float16_groups, strict=True)
    for number, (single, half) in enumerate(groups):
        for place, parameter in enumerate([*single, *half]):
            part.model_param_group_index_map[parameter] = (number, place)


class OffloadedOptimizer(HybridDeviceOptimizer):
    """megatron-core's optimizer in host memory, whose copies there of fp32 parameters follow as the others do.

    Its own would step from copies of the fresh weights after others were read, and cannot be resumed: a KeyError, and
    classes among its settings, which torch.load refuses.
    """

    def state_dict(self):
        """Without the classes of the optimizers inside; groups that were loaded have none."""
        state = super().state_dict()
        for group in state["param_groups"]:
            for key in ("cpu_optimizer_cls", "gpu_optimizer_cls"):
                group.pop(key, None)
        return state

    @torch.no_grad()
    def update_fp32_param_by_new_param(self):
        """What megatron-core calls after weights were read: all copies are made anew."""
        for parameter, copy in self.param_to_inner_param.items():
            copy.copy_(parameter)

    @torch.no_grad()
    def _update_fp32_params_by_new_state(self):
        """The same after a checkpoint's optimizer was read, from the master weights in it."""
        for parameter, state in self.state.items():
            self.param_to_inner_param[parameter].copy_(state["master_param"])
