"""A stage whose reward has the wrong sign is rolled back by its gate, and the cascade ends as if it had never been there."""

import json
import sys
from pathlib import Path

import pytest

from nemo_cascade.cascade.manifest import DONE, Manifest
from nemo_cascade.cascade.report import markdown
from test_resume import row

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import harmful  # noqa: E402 - a script, not a package

WORDINGS = ("Avoid the letter {} .", "No letter {} .", "Write without the letter {} .", "Do without {} .")


def rows() -> list[dict]:
    """Instructions that a babbling model follows well about half the time."""
    return [
        row(letter) | {"prompt": text, "responses_create_params": {"input": [{"role": "user", "content": text}]}}
        for letter in "aeiornstlhdu"
        for text in (wording.format(letter) for wording in WORDINGS)
    ]


@pytest.mark.slow
def test_a_cascade_with_a_harmful_stage_ends_as_without_it(tmp_path):
    harmful.write_flipped(rows(), tmp_path)
    (tmp_path / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    letters = f"instruction_following.data_path={tmp_path / 'letters.jsonl'}"
    common = [
        *("~cascade.judge", "~data.validation.preference", f"data.validation.{letters}", "cascade.validation.num_prompts=48", "cascade.validation.num_samples=4"),
        *(f"cascade.demo_data.path={tmp_path / 'data'}", "~cascade.demo_data.rows_of", "cascade.demo_data.train_rows=64"),
        *("cascade.demo_data.sft_rows=64", "cascade.demo_data.validation_rows=1", "cascade.stages.sft.sft.max_num_steps=16"),
        *("cascade.stages.sft.policy.megatron_cfg.scheduler.lr_warmup_iters=2", "cascade.stages.if_rl.grpo.max_num_steps=2"),
        f"cascade.stages.if_rl.data.train.{letters}",
    ]
    manifests = {}
    for name, order in (("with", ["sft", "harm", "if_rl"]), ("without", ["sft", "if_rl"])):
        own = [f"cascade.run_dir={tmp_path / name}", f"cascade.order=[{','.join(order)}]"]
        if "harm" in order:
            own += harmful.harmful_stage(tmp_path, steps=16, rate=2.0e-3) + harmful.gates(["harm"], ["instruction_following"])
            own += [f"+cascade.stages.harm.grpo.{key}" for key in ("num_prompts_per_step=24", "num_generations_per_prompt=8")]
        harmful.launch("smoke", tmp_path, 2, [*common, *own])
        manifests[name] = Manifest.load(tmp_path / name)
    harm, last = manifests["with"].stages["harm"], manifests["with"].stages["if_rl"]
    assert harm.gate["failed"] == [["max_drop", "instruction_following"]] and harm.rolled_back and harm.status == DONE
    assert "done, rollback" in markdown(manifests["with"])
    page = (tmp_path / "with" / "report" / "index.html").read_text(encoding="utf-8")
    assert "harm: rolled back" in page and 'class="verdict rollback"' in page
    assert last.parent == "sft" and harmful.survived(manifests["with"], manifests["without"])
    assert last.checkpoint_hash == manifests["without"].stages["if_rl"].checkpoint_hash != harm.checkpoint_hash
    assert manifests["with"].checkpoint("harm").is_dir(), "it may still teach"
