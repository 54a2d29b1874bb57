"""Before a distillation's first step: taught by its own start, through the teachers' own code, the student has nothing to learn."""

import re

from nemo_cascade.data.rows import DataError
from nemo_cascade.stages.context import LoopConfig, StageRun
from tests.helpers import run_distributed
from tests.models.test_hf import build, stirred


def told(folder, layout) -> list:
    """What the self-test says: of the start itself as a side teacher and as an anchor, of fresh weights, of another checkpoint."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.models.hf_folder import write_hf
    from nemo_cascade.stages.rl import add_teacher_logprobs
    from nemo_cascade.stages.self_test import refuse_unless_own_teacher

    policy, said = stirred(build("micro", **layout)), []
    policy.save(folder / "start" / "policy", optimizer=False)
    write_hf(policy.hf_weights(), policy.preset, folder / "hf", write=parallel.rank() == 0)
    parallel.barrier()
    before = policy.weights_hash()

    def tried(**settings):
        stage = StageRun("mopd", LoopConfig(), folder, seed=0, **settings)
        try:
            return refuse_unless_own_teacher(policy, stage, add_teacher_logprobs), len(policy._rotation.waiting)
        except DataError as error:
            return str(error), len(policy._rotation.waiting)

    said.append(tried(parent=folder / "start", teachers={"math": folder / "hf"}))
    said.append(tried(parent=folder / "start", teachers={"math": folder / "hf", "mcqa": folder / "start"}))
    said.append(tried(teachers={"math": folder / "hf"}))
    assert policy.weights_hash() == before
    # The weights move, the checkpoint does not.
    next(policy.model.parameters()).data.mul_(1.5)
    said.append(tried(parent=folder / "start", teachers={"math": folder / "start"}))
    said.append(tried(parent=folder / "start", teachers={"math": folder / "start"}, max_logprob_error=1e9))
    return said


def test_the_student_is_its_own_teacher_exactly_or_stage_and_difference_are_named(tmp_path):
    for said in run_distributed(told, 2, tmp_path, {"tensor_model_parallel_size": 2, "sequence_parallel": True}):
        aside, anchor, fresh, changed, tolerated = said
        assert aside == (0.0, 0), "nobody else asks for it, so it does not stay in host memory"
        assert anchor == (0.0, 1) and fresh == (None, 1)
        found = re.match(r"stage mopd: the student as its own teacher \(.*/start\) has an advantage of ([0-9.e+-]+), not 0", changed[0])
        assert found and tolerated[0] > 0 and abs(float(found[1]) - tolerated[0]) < 1e-4 * tolerated[0]
