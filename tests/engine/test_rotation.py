"""Teachers in the student's place: as they were saved, whatever the layout and whatever is pending; the student comes back bit-equal."""

from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch

from nemo_cascade.engine import rotation
from nemo_cascade.engine.rotation import Rotation, room_for, word_sum
from tests.engine.cases import layout, random_samples
from tests.engine.test_policy import build, train
from tests.helpers import run_distributed


def with_random_biases(policy, seed):
    """The policy with expert biases that no router begins with, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(policy._tensors().items()):
        if name.endswith("expert_bias"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return policy


def write_teachers(folder, settings):
    for seed in (1, 2):
        with_random_biases(build(max_num_steps=0, seed=seed, **settings), seed).save(folder / str(seed), optimizer=False)


def rotated(folder, settings):
    """A student whose parameters are still to be gathered, between teachers, beside a twin that is spared all of it."""
    from nemo_cascade.engine import policy as engine

    late = partial(engine.DistributedDataParallelConfig, overlap_param_gather=True)
    with mock.patch.object(engine, "DistributedDataParallelConfig", late):
        student = build(**settings)
    twin, samples, told = build(**settings), random_samples(student.preset.vocab_size), []
    for policy in (student, twin):
        with_random_biases(policy, seed=3)
        train(policy, 2)
    assert not any(group.param_gather_dispatched for group in student.wrapped.bucket_groups), "nothing is pending"
    with student.rotation() as turn_to:
        for seed in (1, 2, 1):
            turn_to(folder / str(seed))
            told.append((student.logprobs(samples), student.weights_hash()))
    back = student.weights_hash()
    with pytest.raises(KeyboardInterrupt):
        with student.rotation() as turn_to:
            turn_to(folder / "2")
            raise KeyboardInterrupt
    assert student.weights_hash() == back == twin.weights_hash()
    assert train(student, 1) == train(twin, 1)
    student.wrapped.start_param_sync(force_sync=True)
    assert student.weights_hash() == twin.weights_hash() != back
    for seed, said in zip((1, 2, 1), told):
        twin.load(folder / str(seed), optimizer=False)
        assert said == (twin.logprobs(samples), twin.weights_hash())
    assert told[0] == told[2] != told[1]
    return True


@pytest.mark.parametrize(("saved", "read"), [("TP2", "EP2"), ("EP2", "DP2")])
def test_teachers_of_another_layout_answer_as_if_loaded_alone_and_training_goes_on_as_without_them(saved, read, tmp_path):
    world, settings = layout(saved)
    run_distributed(write_teachers, world, tmp_path, settings)
    world, settings = layout(read)
    assert all(run_distributed(rotated, world, tmp_path, settings))


# -------------------------------------------------------------------------------- the rotation alone


def weights(*values) -> dict[str, torch.Tensor]:
    return {name: torch.full((3, 5), value, dtype=dtype) for name, value, dtype in zip("abc", values, DTYPES)}


DTYPES = (torch.float32, torch.bfloat16, torch.float32)


def small():
    """(the student, its rotation, what was read)"""
    student, read = weights(1.0, 2.0, 3.0), []

    def become(checkpoint):
        read.append(checkpoint)
        for tensor in student.values():
            tensor.fill_(float(checkpoint.name))

    return student, Rotation(lambda: student, become), read


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other)


def test_a_checkpoint_is_read_once_and_again_when_it_was_forgotten():
    student, rotation, read = small()
    for _ in range(2):
        with rotation.student_aside() as turn_to:
            for number in (7, 8, 8, 7):
                turn_to(Path(str(number)))
                assert same(student, weights(*[float(number)] * 3))
        assert same(student, weights(1.0, 2.0, 3.0))
    assert read == [Path("7"), Path("8")]
    rotation.forget(Path("7"))
    with rotation.student_aside() as turn_to:
        turn_to(Path("7"))
    assert read == [Path("7"), Path("8"), Path("7")] and len(rotation.waiting) == 2


def test_a_checkpoint_that_cannot_be_read_leaves_the_student_and_is_tried_again():
    student, rotation, read = small()
    for _ in range(2):
        with pytest.raises(ValueError, match="torn"):
            with rotation.student_aside() as turn_to:
                turn_to(Path("torn"))
        assert same(student, weights(1.0, 2.0, 3.0)) and not rotation.waiting
    assert read == [Path("torn")] * 2


def test_a_student_that_was_written_to_meanwhile_is_told():
    student, rotation, _ = small()
    with pytest.raises(RuntimeError, match="came back changed after 7"):
        with rotation.student_aside() as turn_to:
            turn_to(Path("7"))
            rotation._place["b"][2, 4] += 0.5


def test_a_rotation_inside_another_is_refused_and_the_student_is_the_first():
    student, rotation, _ = small()
    with rotation.student_aside() as turn_to:
        turn_to(Path("7"))
        with pytest.raises(RuntimeError, match="inside another"):
            with rotation.student_aside():
                pass
    assert same(student, weights(1.0, 2.0, 3.0))


@pytest.mark.parametrize("shape", [(8,), (3, 5), (1,), ()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_bit_changes_the_checksum(shape, dtype):
    tensor = torch.randn(shape).to(dtype)
    before = int(word_sum(tensor))
    tensor.view(torch.int32 if dtype == torch.float32 else torch.int16).flatten()[-1:].bitwise_xor_(1 << 9)
    assert int(word_sum(tensor)) != before


def test_what_waits_lies_apart_in_few_pieces(monkeypatch):
    monkeypatch.setattr(rotation, "SLAB", 256)
    tensors = {"a": torch.randn(3), "b": torch.randn(5, 7).bfloat16(), "c": torch.randn(100), "d": torch.randn(2, 0), "e": torch.tensor(1.0)}
    room = room_for(tensors)
    rotation.copy(tensors, room)
    assert same(room, tensors) and all(room[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert len({tensor.untyped_storage().data_ptr() for tensor in room.values()}) == 3
