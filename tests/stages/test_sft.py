"""SFT on packs that were made beforehand: they are trained on as they are, at every layout."""

import json
from unittest.mock import patch

import pytest

from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.data.packed_dataset import PackedDataset, write_packed
from nemo_cascade.engine.config import MegatronConfig, OptimizerConfig, PolicyConfig, SequencePackingConfig
from nemo_cascade.stages.config import CheckpointingConfig, DataConfig, DatasetConfig, SFTConfig
from nemo_cascade.stages.context import LoopConfig, StageRun
from nemo_cascade.stages.metrics import MetricsLog
from tests.helpers import run_distributed

CAPACITY = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Demonstrations of arithmetic, packed for context parallel of 2."""
    directory = tmp_path_factory.mktemp("packed")
    rows = DOMAINS["math"].rows(60, "train", level="demo")
    lines = [json.dumps(DOMAINS["math"].demonstration(row, number)) for number, row in enumerate(rows)]
    (directory / "sft.jsonl").write_text("\n".join(lines))
    write_packed([directory / "sft.jsonl"], directory / "packs", "tiny", CAPACITY, context_parallel_size=2)
    return directory / "packs"


def trained(directory, folder, layout, steps):
    """The documents of every pack that went through the model, and the logged losses and tokens."""
    import torch.distributed as dist

    from nemo_cascade.engine import batch, parallel, policy
    from nemo_cascade.stages import sft

    megatron = MegatronConfig(optimizer=OptimizerConfig(lr=1e-3), **layout)
    parallel.init(megatron)
    config = LoopConfig(
        policy=PolicyConfig(
            model_name="micro",
            train_global_batch_size=2,
            sequence_packing=SequencePackingConfig(train_mb_tokens=CAPACITY),
            megatron_cfg=megatron,
        ),
        sft=SFTConfig(max_num_steps=steps),
        data=DataConfig(train={"packs": DatasetConfig(data_path=str(folder))}),
        checkpointing=CheckpointingConfig(save_period=2),
    )
    seen = []

    def build_pack(samples, indices, *args, **settings):
        # Of a checkpoint's probe every token counts, of a document only what the assistant says.
        if not all(all(sample.loss_mask) for sample in samples):
            seen.append([tuple(samples[index].tokens) for index in indices])
        return batch.build_pack(samples, indices, *args, **settings)

    directory.mkdir(exist_ok=True)
    with patch.object(policy, "build_pack", build_pack):
        sft.run(StageRun("sft", config, directory, seed=1, rank=dist.get_rank()))
    log = MetricsLog(directory / "metrics.jsonl").read()
    return seen, [(line["train/loss"], line["train/tokens"]) for line in log]


def test_packs_are_trained_on_as_they_were_made_and_a_resumed_stage_goes_on_with_the_next(folder, tmp_path):
    dataset = PackedDataset(folder)
    packs = [[tuple(sample.tokens) for sample in dataset[index]] for index in range(len(dataset))]
    steps = 2 * (len(packs) // 4)
    ((whole, losses),) = run_distributed(trained, 1, tmp_path / "whole", folder, {}, steps)
    assert all(pack in packs for pack in whole) and len(whole) == 2 * steps
    assert len({pack[0] for pack in whole}) == len(whole), "in one epoch no pack comes twice"
    assert losses[-1][0] < losses[0][0]
    ((first, _),) = run_distributed(trained, 1, tmp_path / "parts", folder, {}, 2)
    ((rest, resumed),) = run_distributed(trained, 1, tmp_path / "parts", folder, {}, steps)
    assert first + rest == whole and resumed == losses


@pytest.mark.parametrize("layout", [{}, dict(context_parallel_size=2)], ids=["DP2", "CP2"])
def test_packed_training_is_the_same_on_two_ranks(folder, tmp_path, layout):
    ((packs, alone),) = run_distributed(trained, 1, tmp_path / "alone", folder, {}, 2)
    ranks = run_distributed(trained, 2, tmp_path / "ranks", folder, layout, 2)
    shared = [pack for seen, _ in ranks for pack in seen]
    assert sorted(shared) == sorted(packs if not layout else packs * 2)
    for _, losses in ranks:
        assert [tokens for _, tokens in losses] == [tokens for _, tokens in alone]
        assert [loss for loss, _ in losses] == pytest.approx([loss for loss, _ in alone], rel=1e-4)
