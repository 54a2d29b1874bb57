"""`Policy`: the model being trained, behind every parallel layout.

The contract of the design: `logprobs`, `train_step`, `save`, `load`, `hf_weights`, `rotation` (`weights_of`). Every rank passes the same
global batch and gets the same answers; sharding, schedules, gradient reduction and the optimizer are megatron-core's own.
"""

import contextlib
import dataclasses
import math
import queue
from collections.abc import Callable, Iterator
from pathlib import Path

from nemo_cascade import heartbeat
from nemo_cascade.engine import cpu

cpu.install()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core import dist_checkpointing, parallel_state  # noqa: E402
from megatron.core.dist_checkpointing.mapping import is_main_replica  # noqa: E402
from megatron.core.dist_checkpointing.strategies import filesystem_async  # noqa: E402
from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402
from torch.distributed.checkpoint.api import CheckpointException  # noqa: E402

from nemo_cascade.data.packing import document_multiple  # noqa: E402
from nemo_cascade.data.sample import Sample  # noqa: E402
from nemo_cascade.data.tokenizer import load_tokenizer  # noqa: E402
from nemo_cascade.engine import gradient_fusion, parallel, pretrained  # noqa: E402
from nemo_cascade.engine.batch import Pack, build_pack, plan_packs, scatter_logprobs  # noqa: E402
from nemo_cascade.engine.config import PolicyConfig, pack_alignment, recompute_settings  # noqa: E402
from nemo_cascade.engine.convert import read_hf, refuse_unless_fitting  # noqa: E402
from nemo_cascade.engine.forward import ForwardStep, Loss  # noqa: E402
from nemo_cascade.engine.full_vocabulary import CollectStates  # noqa: E402
from nemo_cascade.engine.gather import (  # noqa: E402
    empty_like,
    full_tensors,
    sharded_state_dict,
    shards_of,
    stored_parts,
    weights_hash,
)
from nemo_cascade.engine.metrics import global_metrics  # noqa: E402
from nemo_cascade.engine.optimizer import build_optimizer, build_schedule, optimizer_state, restore_state  # noqa: E402
from nemo_cascade.engine.rotation import Rotation  # noqa: E402
from nemo_cascade.engine.writes import Writes, writers_end_with_this  # noqa: E402
from nemo_cascade.models import fp8  # noqa: E402
from nemo_cascade.models.hf import hf_tensors  # noqa: E402
from nemo_cascade.models.hf_folder import write_hf  # noqa: E402
from nemo_cascade.models.presets import get_preset  # noqa: E402
from nemo_cascade.models.replay import counted, forget  # noqa: E402
from nemo_cascade.models.specs import build_model, transformer_config  # noqa: E402
from nemo_cascade.rollout.config import GenerationConfig  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def model_override_names() -> list[str]:
    """What `policy.megatron_cfg.model_overrides` may name: fields of megatron-core's TransformerConfig that no other key sets."""
    own = {**model_settings(PolicyConfig()), gradient_fusion.OURS: None}
    return [field.name for field in dataclasses.fields(TransformerConfig) if field.name not in own]


def model_settings(config: PolicyConfig) -> dict:
    """What the keys of `policy` set in megatron-core's TransformerConfig."""
    cfg = config.megatron_cfg
    sequence_parallel = cfg.sequence_parallel and cfg.tensor_model_parallel_size > 1
    return dict(
        tensor_model_parallel_size=cfg.tensor_model_parallel_size,
        pipeline_model_parallel_size=cfg.pipeline_model_parallel_size,
        context_parallel_size=cfg.context_parallel_size,
        expert_model_parallel_size=cfg.expert_model_parallel_size,
        expert_tensor_parallel_size=cfg.expert_tensor_parallel,
        sequence_parallel=sequence_parallel,
        params_dtype=DTYPES[config.precision],
        bf16=config.precision == "bfloat16",
        moe_router_dtype=cfg.moe_router_dtype,
        moe_router_load_balancing_type=cfg.moe_router_load_balancing_type,
        moe_aux_loss_coeff=cfg.moe_aux_loss_coeff,
        moe_router_bias_update_rate=cfg.moe_router_bias_update_rate,
        moe_enable_routing_replay=config.router_replay.enabled,
        **recompute_settings(cfg),
        **fp8.transformer_settings(cfg.fp8_cfg),
        # Packs are of different lengths, so a pipeline stage tells the next one the shape before the values.
        variable_seq_lengths=cfg.pipeline_model_parallel_size > 1,
        # The loss returns a sum and what to divide by; mcore divides the summed gradient once, over all ranks.
        calculate_per_token_loss=True,
    )


class Policy:
    """One model with its optimizer. The parallel groups must exist (`engine.parallel.init`)."""

    def __init__(self, config: PolicyConfig, *, seed: int, max_num_steps: int = 0):
        """max_num_steps 0 builds a policy that only answers (no optimizer, no gradients' memory)."""
        self.config = config
        self.seed = seed
        self.step = 0
        self.preset = get_preset(config.model_name)
        self.tokenizer = load_tokenizer(config.tokenizer.name)
        if len(self.tokenizer) > self.preset.vocab_size:
            raise ValueError(
                f"policy.tokenizer.name={config.tokenizer.name}: {len(self.tokenizer)} tokens do not fit the "
                f"{self.preset.vocab_size} of policy.model_name={config.model_name}"
            )
        overrides = config.megatron_cfg.model_overrides
        self.transformer_config = transformer_config(self.preset, **model_settings(config), **overrides)
        # Fresh weights depend on the seed alone, not on what this process drew before.
        parallel.set_seed(seed)
        in_bf16 = fp8.matrices_in_bf16(self.preset, config.megatron_cfg)
        self.model = build_model(self.preset, self.transformer_config, in_bf16).cuda()
        self.device = next(self.model.parameters()).device
        self._training = max_num_steps > 0
        self._rotation = Rotation(self._tensors, self._become)
        if config.megatron_cfg.freeze_moe_router:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(not name.endswith("router.weight"))
        if self._training:
            self._build_optimizer(max_num_steps)

    @property
    def trains(self) -> bool:
        """Whether it has an optimizer."""
        return self._training

    # ------------------------------------------------------------------ the four verbs

    @torch.no_grad()
    def logprobs(
        self, samples: list[Sample], *, trained_only: bool = False, as_sampled: bool = True
    ) -> list[list[float]]:
        """Log-probabilities of each sample's tokens, entry t that of token t (entry 0 is 0), on every rank.

        trained_only: of those that the sample's loss_mask has, which is faster; the others mean nothing then.
        They are those of the distribution `policy.generation` samples from, or, with as_sampled=False, of the plain softmax.
        A token outside the nucleus of these weights, as one that a student drew may be for its teacher or reference, has
        probability 0 there, and no loss could use -inf; it counts as the nucleus's last member instead:
        log p(y) - log(p(nucleus) + p(y)).
        """
        packs = self._packs(samples)
        self.model.eval()

        def collect(logprobs, _pack):
            return logprobs.sum(), torch.ones((), dtype=torch.int), {"logprobs": logprobs}

        results = self._run(packs, collect, forward_only=True, as_sampled=as_sampled, trained_only=trained_only)
        if parallel_state.is_pipeline_last_stage():
            flat = scatter_logprobs(packs, [result["logprobs"] for result in results], samples)
        else:
            flat = torch.zeros(sum(len(sample.tokens) for sample in samples), device=self.device)
        dist.all_reduce(flat, group=parallel_state.get_data_parallel_group())
        parallel.broadcast_from_last_stage(flat)
        return [row.tolist() for row in flat.split([len(sample.tokens) for sample in samples])]

    @torch.no_grad()
    def last_states(self, samples: list[Sample]) -> tuple[list[list[int]], list[torch.Tensor], torch.Tensor]:
        """(which samples share a pack; for each of this rank's packs the last hidden states at trained labels [n, hidden]; this
        rank's part of the output layer [vocab / tp, hidden]), tensors in host memory and none elsewhere than on the last pipeline stage.
        """
        plan = self.plan(samples)
        self.model.eval()
        results = self._run(self._packs(samples, plan), lambda *_: None, forward_only=True, step=CollectStates)
        last = parallel_state.is_pipeline_last_stage()
        layer = self.model.output_layer.weight.detach().to("cpu", copy=True) if last else torch.empty(0)
        return plan, [result["states"] for result in results] if last else [], layer

    def train_step(
        self,
        samples: list[Sample],
        loss: Loss,
        *,
        as_sampled: bool = True,
        plan: list[list[int]] | None = None,
        step: Callable = ForwardStep,
    ) -> dict[str, float]:
        """One optimizer step on the global batch. Returns the loss's metrics (global means), loss, grad_norm, lr.

        The loss sees log-probs as `logprobs` gives them; with as_sampled=False, for texts that were not sampled, those
        of the plain softmax. plan: which samples share a pack, as many packs as the data-parallel ranks can share;
        without it they are packed here. step: what takes a pack through model and loss.
        With policy.router_replay the tokens of samples that have `experts` go through these, in no other pass than this one:
        `logprobs` and `last_states`, and so teachers and a reference, have their own routing.
        Raises FloatingPointError, before the weights are touched, when the gradient is not finite.
        """
        heartbeat.at("training")
        packs = self._packs(samples, plan, replay=self.config.router_replay.enabled)
        self.model.train()
        self.wrapped.zero_grad_buffer()
        self.optimizer.zero_grad()

        def with_loss_metric(logprobs, pack):
            total, count, metrics = loss(logprobs, pack)
            pair = {"loss": (total.detach(), count), **metrics}
            return total, count.int(), {name: torch.stack([a.double(), b.double()]) for name, (a, b) in pair.items()}

        results = self._run(packs, with_loss_metric, forward_only=False, as_sampled=as_sampled, step=step)
        metrics = self._reduce(results)
        learning_rate = self.optimizer.param_groups[0]["lr"]
        # mcore's fp32 optimizer would step on a NaN, so the norm is looked at before it may.
        self.optimizer.prepare_grads()
        grad_norm = float(self.optimizer.get_grad_norm())
        if not math.isfinite(grad_norm):
            raise FloatingPointError(
                f"gradient norm is {grad_norm} at optimizer step {self.step + 1}: the loss or a log-prob overflowed; "
                "look at the last metrics, lower policy.megatron_cfg.optimizer.lr or resume from an earlier checkpoint"
            )
        # Its step would compute the norm again.
        self.optimizer.get_grad_norm = lambda: grad_norm
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.get_grad_norm
        self.scheduler.step(1)
        self.step += 1
        return metrics | {"grad_norm": grad_norm, "lr": learning_rate} | self._replay_metrics()

    def save(self, directory: Path, optimizer: bool = True, writes: Writes | None = None) -> None:
        """Writes weights/ (and optimizer/) below `directory` as megatron-core distributed checkpoints; with `writes` they are only
        begun, to be ended there."""
        self._save_part(sharded_state_dict(self.model), Path(directory) / "weights", writes)
        if optimizer:
            tensors, _ = optimizer_state(self.optimizer, sharded_state_dict(self.model), is_loading=False)
            state = {"optimizer": tensors, "scheduler": self.scheduler.state_dict(), "step": self.step}
            self._save_part(state, Path(directory) / "optimizer", writes)

    def load(self, directory: Path, optimizer: bool = True) -> None:
        """Reads what `save` wrote, at any layout. With optimizer=True the step counter and schedule come back as well."""
        if not optimizer:
            self._copy_in(self._read_weights(directory))
            if self._training:
                self.optimizer.reload_model_params()
        else:
            tensors, rest = optimizer_state(self.optimizer, sharded_state_dict(self.model), is_loading=True)
            state = dist_checkpointing.load({"optimizer": tensors}, str(Path(directory) / "optimizer"))
            restore_state(self.optimizer, state["optimizer"], rest, state["step"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.step = state["step"]
            # After the optimizer: one in host memory makes room for its state by a step on random gradients.
            self._copy_in(self._read_weights(directory))

    # ------------------------------------------------------------------ weights in and out

    def load_weights(self, folder: Path) -> None:
        """Reads the weights of a distributed checkpoint, whoever saved it and at whatever layout.

        Raises ValueError naming every tensor that is missing, extra or of another shape.
        """
        refuse_unless_fitting(folder, self.model)
        self._copy_in(self._read_shards(folder))
        if self._training:
            self.optimizer.reload_model_params()

    def load_hf(self, folder: Path) -> None:
        """Reads the weights of a Hugging Face folder, each rank its part. Raises ValueError naming every tensor that does not fit."""
        read_hf(self.model, folder, self.preset)
        if self._training:
            self.optimizer.reload_model_params()

    def hf_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(`backbone.*` name, full tensor) as transformers and vLLM know them, streamed, on every rank."""
        return hf_tensors(full_tensors(self.model), self.preset)

    def weights_hash(self) -> str:
        """sha256 of the full weights, the same at every layout."""
        return weights_hash(self.model)

    def rotation(self) -> contextlib.AbstractContextManager[Callable[[Path], None]]:
        """`with policy.rotation() as turn_to:` puts the student aside; `turn_to(checkpoint)` has the weights of a checkpoint, or of a
        Hugging Face folder, take its place, one after the other; the student comes back bit-equal at the end.

        Only the weights and persistent buffers (the router's expert bias) are swapped: the optimizer must not step inside.
        A checkpoint is read once and then waits in host memory.
        """
        if self._training and self.wrapped.use_forward_hook:
            # Gathers of parameters that overlap with the next step are still to come, and would bring the student's back.
            self.wrapped.start_param_sync(force_sync=True)
        return self._rotation.student_aside()

    @contextlib.contextmanager
    def weights_of(self, checkpoint: Path):
        """A `rotation` of one checkpoint."""
        with self.rotation() as turn_to:
            turn_to(checkpoint)
            yield self

    def forget_weights_of(self, checkpoint: Path) -> None:
        """Frees the host memory in which a checkpoint waits for the next `rotation`; read again if it is asked for again."""
        self._rotation.forget(checkpoint)

    def checkpoint_bytes(self) -> int:
        """About what `save` writes on all ranks together, told from the shapes of the weights; the same on every rank."""
        mine = [part for _, _, part in stored_parts(self.model) if is_main_replica(part.replica_id)]
        masters = self.config.megatron_cfg.optimizer.use_distributed_optimizer or self.config.precision != "float32"
        of_optimizer = (12 if masters else 8) if self._training else 0
        count = sum(part.data.numel() * (part.data.element_size() + of_optimizer) for part in mine)
        total = torch.tensor(count, dtype=torch.int64, device=self.device)
        dist.all_reduce(total)
        return int(total)

    def host_copy(self) -> dict[str, torch.Tensor]:
        """This rank's weights as they are now, in host memory."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._tensors().items()}

    def matches(self, directory: Path, expected: dict[str, torch.Tensor] | None = None) -> bool:
        """Whether the weights written below `directory` are bit-equal to those in memory, or to a `host_copy`, on every rank."""
        written, expected = self._read_weights(directory), expected or self._tensors()
        same = all(torch.equal(tensor.to(self.device), written[name]) for name, tensor in expected.items())
        answer = torch.tensor(int(same), device=self.device)
        dist.all_reduce(answer, op=dist.ReduceOp.MIN)
        return bool(answer)

    def changed_by_hf(self, folder: Path) -> list[str]:
        """Writes the weights as a Hugging Face folder and reads them from it; names of the tensors that are not bit-equal then.

        On every rank, which all call this, the names of all. What was read stays in the model. Raises ValueError naming tensors
        that the folder lacks, OSError where it cannot be written.
        """
        before = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}
        weights, error = self.hf_weights(), None
        try:
            write_hf(weights, self.preset, folder, write=dist.get_rank() == 0)
        except OSError as raised:
            error = raised
            for _ in weights:  # the other ranks still gather
                pass
        parallel.raise_anywhere(error)
        with torch.no_grad():
            for tensor in self._tensors().values():
                # What is not read must not look as if it had been.
                tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
        self.load_hf(folder)
        changed = [name for name, tensor in self._tensors().items() if not torch.equal(tensor, before[name])]
        return parallel.union(changed)

    # ------------------------------------------------------------------ how it is done

    def _build_optimizer(self, max_num_steps: int) -> None:
        self.wrapped = DistributedDataParallel(
            self.transformer_config,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=self.config.precision == "bfloat16",
                use_distributed_optimizer=self.config.megatron_cfg.optimizer.use_distributed_optimizer,
                overlap_grad_reduce=False,
            ),
            self.model,
        )
        # From now on weights have a `main_grad`.
        gradient_fusion.fuse(self.model, self.config.megatron_cfg.gradient_accumulation_fusion)
        self.transformer_config.finalize_model_grads_func = finalize_model_grads
        self.optimizer = build_optimizer(self.wrapped, self.config, DTYPES[self.config.precision])
        self.scheduler = build_schedule(self.optimizer, self.config, max_num_steps)

    def plan(self, samples: list[Sample]) -> list[list[int]]:
        """Which samples share a pack, as many packs as the data-parallel ranks can share."""
        size, slot = parallel_state.get_data_parallel_world_size(), document_multiple(self.config.megatron_cfg.context_parallel_size)
        return plan_packs(samples, self.config.sequence_packing.train_mb_tokens, size, slot)

    def _packs(self, samples: list[Sample], plan: list[list[int]] | None = None, replay: bool = False) -> list[Pack]:
        """This rank's share of the global batch; all ranks that hold a part of a pack have the whole of it. replay: with experts."""
        size, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        layout = self.config.megatron_cfg
        multiple, slot = pack_alignment(layout), document_multiple(layout.context_parallel_size)
        plan = plan or self.plan(samples)
        return [
            build_pack(samples, indices, multiple, self.device, document_multiple=slot, replay=replay)
            for indices in plan[rank::size]
        ]

    def _run(
        self,
        packs: list[Pack],
        loss: Callable,
        forward_only: bool,
        as_sampled: bool = True,
        trained_only: bool = True,
        step: Callable = ForwardStep,
    ) -> list[dict]:
        """megatron-core's schedule over the packs; returns what `loss` put last, a pack each."""
        generation = self.config.generation if as_sampled else GenerationConfig()
        model = self.model if forward_only else self.wrapped
        try:
            return get_forward_backward_func()(
                forward_step_func=step(self.model, loss, generation, trained_only),
                data_iterator=iter(packs),
                model=[model],
                num_microbatches=len(packs),
                seq_length=self.config.sequence_packing.train_mb_tokens,
                micro_batch_size=1,
                forward_only=forward_only,
            )
        finally:
            forget(self.model)

    def _reduce(self, results: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        """`global_metrics` of what the last pipeline stage has, on every rank."""
        means = {}
        if parallel_state.is_pipeline_last_stage():
            means = global_metrics(results, parallel_state.get_data_parallel_group())
        return parallel.object_from_last_stage(means)

    def _replay_metrics(self) -> dict[str, float]:
        """router_replay_changed: the share of replayed experts that their routers would not have chosen; nothing where none was replayed."""
        if not self.config.router_replay.enabled:
            return {}
        # Of each layer and token on one rank alone.
        counts = torch.tensor(counted(self.model), device=self.device)
        dist.all_reduce(counts)
        replayed, changed = counts.tolist()
        return {"router_replay_changed": changed / replayed} if replayed else {}

    def _tensors(self) -> dict[str, torch.Tensor]:
        """All parameters and persistent buffers of this rank, by local name (references, not copies)."""
        # Extra states, Transformer Engine's scales of FP8, are tensors too, but not weights.
        state = self.model.state_dict(keep_vars=True).items()
        return {name: t for name, t in state if isinstance(t, torch.Tensor) and not name.endswith("_extra_state")}

    @torch.no_grad()
    def _copy_in(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in self._tensors().items():
            tensor.copy_(tensors[name])

    def _read_weights(self, directory: Path) -> dict[str, torch.Tensor]:
        """Local shards of a checkpoint's weights in fresh tensors; the model is not touched. Raises OSError if it is damaged."""
        return self._read_shards(Path(directory) / "weights")

    def _read_shards(self, folder: Path, in_place: bool = False) -> dict[str, torch.Tensor]:
        """in_place: over the model's own memory, but for what mcore stores in pieces."""
        state = sharded_state_dict(self.model)
        target = shards_of(state) if in_place else empty_like(state)
        try:
            loaded = dist_checkpointing.load(target, str(folder))
        except CheckpointException as damaged:
            # No Exception but a BaseException, which nobody expects of a file that is cut or gone.
            rank, (error, _) = next(iter(damaged.failures.items()))
            raise OSError(f"{folder}, on rank {rank}: {type(error).__name__}: {error}") from damaged
        return {name: tensor for name, tensor in loaded.items() if isinstance(tensor, torch.Tensor)}

    def _become(self, place: Path) -> None:
        """Reads a checkpoint or a Hugging Face folder into the model, and nowhere else."""
        form, folder = pretrained.find(place)
        if form == pretrained.MEGATRON:
            self._copy_in(self._read_shards(folder, in_place=True))
        else:
            read_hf(self.model, folder, self.preset)

    def _save_part(self, state: dict, directory: Path, writes: Writes | None) -> None:
        if dist.get_rank() == 0:
            directory.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        if writes is not None:
            writes.begin(state, directory)
            return
        # mcore passes results through a manager process that takes seconds to start and imports the main script again;
        # a synchronous save ends in this process, where a plain queue does.
        filesystem_async._results_queue = queue.Queue()
        with writers_end_with_this():
            dist_checkpointing.save(state, str(directory))
