"""`conf/mopd.yaml`: a student and two teachers that are Hugging Face folders, in twenty lines, by the command its users type."""

import json
import os
import subprocess
import sys
from pathlib import Path

from nemo_cascade.data.demo import DOMAINS
from tests.helpers import run_distributed

ROOT = Path(__file__).parents[2]
DOMAINS_TAUGHT = ("math", "mcqa")
FEW = [
    *("policy.precision=float32", "policy.megatron_cfg.expert_model_parallel_size=1", "policy.max_total_sequence_length=512"),
    *("policy.sequence_packing.train_mb_tokens=512", "policy.generation.max_new_tokens=16", "cascade.validation.num_prompts=2"),
    *("grpo.max_num_steps=2", "grpo.num_prompts_per_step=4", "logger.rollouts_per_step=4"),
    *("policy.megatron_cfg.optimizer.lr=1e-3", "policy.megatron_cfg.scheduler.lr_warmup_iters=0"),
    *("cascade.handover.max_logprob_error=0", "env.num_workers=1"),
]


def test_the_file_has_twenty_lines():
    lines = (ROOT / "conf" / "mopd.yaml").read_text().splitlines()
    assert sum(not line.strip().startswith("#") and bool(line.strip()) for line in lines) <= 20


def write_folders(folder) -> dict[str, str]:
    """A student and a teacher of each domain as Hugging Face folders, with weights of their own; name -> their hash."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig, PolicyConfig
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.models.hf_folder import write_hf

    parallel.init(MegatronConfig())
    hashes = {}
    for seed, name in enumerate(("student", *DOMAINS_TAUGHT)):
        policy = Policy(PolicyConfig(model_name="micro"), seed=seed)
        write_hf(policy.hf_weights(), policy.preset, folder / name)
        policy.tokenizer.save_pretrained(folder / name)
        hashes[name] = policy.weights_hash()
    return hashes


def write_rows(folder) -> None:
    """data/, where the file looks for it from the directory of the command."""
    for domain in DOMAINS_TAUGHT:
        for split, count in (("train", 8), ("validation", 2)):
            path = folder / "data" / domain / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in DOMAINS[domain].rows(count, split)))


def test_two_folders_teach_a_third_each_its_domain(tmp_path):
    (hashes,) = run_distributed(write_folders, 1, tmp_path)
    write_rows(tmp_path)
    command = [sys.executable, str(ROOT / "examples" / "cascade.py"), "--config-name=mopd", "--only", "mopd", *FEW]
    command += [f"policy.model_name={tmp_path / 'student'}"]
    command += [f"cascade.stages.mopd.teachers.{domain}.path={tmp_path / domain}" for domain in DOMAINS_TAUGHT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "mopd"
    stage = json.loads((run / "cascade_manifest.json").read_text())["stages"]["mopd"]
    assert stage["status"] == "done" and set(stage["scores"]) == set(DOMAINS_TAUGHT)
    assert stage["checkpoint_hash"] not in hashes.values()
    for domain in DOMAINS_TAUGHT:
        facts = stage["teacher_facts"][domain]
        assert (facts["teacher"], facts["weights_hash"], facts["anchor"]) == (str(tmp_path / domain), hashes[domain], False)
        assert facts["chain"] == [[str(tmp_path / domain), None]] and facts["start"] == f"the weights of {tmp_path / 'student'}"
        assert (facts["tokenizer"], facts["template"]) == tuple(stage["fingerprint"][key] for key in ("tokenizer", "template"))
    metrics = [json.loads(line) for line in (run / "01-mopd" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 2 and all(step["train/grad_norm"] > 0 for step in metrics)
    assert all(step["train/teacher_student_logprob_gap_mean"] < 0 for step in metrics), "another's samples are less likely to a teacher"
    first = [json.loads(line) for line in (run / "01-mopd" / "traces" / "step_1.jsonl").read_text().splitlines()]
    assert {trace["domain"] for trace in first if any(trace["gaps"])} == set(DOMAINS_TAUGHT)
