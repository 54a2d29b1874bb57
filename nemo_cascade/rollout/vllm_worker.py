"""What a served vLLM's workers do for a trainer: take its weights, and show that they have them.

vLLM loads this by its name (`--worker-extension-cls`) into processes that may have neither megatron-core nor a trainer's packages, and
calls `take_weights` and `weights_of` by HTTP (`/collective_rpc`, which VLLM_SERVER_DEV_MODE=1 opens).
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch

from nemo_cascade.models.hf_config import read_hf_config
from nemo_cascade.models.hf_folder import HFReader
from nemo_cascade.rollout import vllm_cpu
from nemo_cascade.rollout.engine import EngineError
from nemo_cascade.rollout.vllm_push import checksum, recorded, refuse_changed
from nemo_cascade.rollout.vllm_shard import Shard, local_part

# Imported before the model is loaded, which is when it matters.
vllm_cpu.register()
if not torch.cuda.is_available():
    vllm_cpu.keep_weights_readable()


class TakesWeights:
    """Mixed into vLLM's worker, from which model_runner and vllm_config are. Answers are JSON."""

    pushed = ""

    def take_weights(self, folder: str, push: str, sums: str) -> dict:
        """Loads a folder's weights in the place of those that are there; push: what `weights_of` is to say from then on; sums: JSON,
        the trainer's checksum of every tensor. {"error": ...} where a tensor is not what the trainer had, in the folder or then here."""
        self.pushed = ""  # what is half loaded is nobody's
        try:
            self._load(Path(folder), json.loads(sums))
        except (EngineError, OSError) as error:
            return {"error": str(error)}
        self.pushed = push
        return {}

    def weights_of(self) -> dict:
        """{"push": ...}: of which push the weights are, empty where they are of none."""
        return {"push": self.pushed}

    def _load(self, folder: Path, sums: Mapping[str, int]) -> None:
        from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

        preset = read_hf_config(folder)
        whole = self.vllm_config.parallel_config.enable_expert_parallel
        shard = Shard(get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size(), whole)
        parameters = dict(self.model_runner.get_model().named_parameters())
        device = next(iter(parameters.values())).device
        reader, sent = HFReader(folder), {}
        for _ in as_written(reader, sums, device):  # before anything is loaded: vLLM cannot take another push after half of one
            pass
        weights = recorded(as_written(reader, sums, device), parameters, sent, partial(local_part, preset=preset, shard=shard))
        self.model_runner.reload_weights(weights_iterator=weights)
        refuse_changed(parameters, sent, shard.of(preset.num_moe_experts).start if whole else 0)


def as_written(reader: HFReader, sums: Mapping[str, int], device) -> Iterator[tuple[str, torch.Tensor]]:
    """A folder's tensors, each compared with the trainer's checksum; raises EngineError naming one that is another, or that is not there."""
    absent = sorted(sums.keys() ^ reader.shapes().keys())
    if absent:
        raise EngineError(f"{reader.folder}: {', '.join(absent[:5])}: not in both the folder and what the trainer sent")
    for name in sums:
        tensor = reader[name].to(device)
        if checksum(tensor) != sums[name]:
            raise EngineError(f"{reader.folder}: {name} is not what the trainer wrote; is the folder written by another run, too?")
        yield name, tensor
