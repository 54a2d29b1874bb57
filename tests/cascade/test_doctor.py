"""`nemo-cascade doctor`: what is here, what of it is used, and what a config needs that is not."""

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from nemo_cascade import sandbox
from nemo_cascade.cascade import doctor
from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import load_config

ROOT = Path(__file__).parents[2]


@cache
def stages(*overrides: str, name: str = "smoke"):
    return list(load_config(compose_config(name, list(overrides)), planning=True).stages.values())


def test_the_command_shows_what_is_here_and_is_content_with_the_demo(tmp_path):
    command = [sys.executable, "-m", "nemo_cascade", "doctor", "--config-name=tiny", f"cascade.run_dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr
    lacks_isolation = shutil.which("bwrap") is None
    assert done.returncode == int(lacks_isolation), done.stdout
    for name in ("torch", "megatron-core", "transformer-engine", "apex", "sandbox", "shared memory", "network"):
        assert name in done.stdout
    assert torch.__version__ in done.stdout
    assert lacks_isolation or "a program ran with Python" in done.stdout
    assert lacks_isolation or done.stdout.endswith("ok: nothing is missing that this config needs\n")


def test_a_wrong_config_is_refused_and_so_are_overrides_of_none(tmp_path):
    command = [sys.executable, "-m", "nemo_cascade", "doctor"]
    for arguments, told in ((["--config-name=tinyy"], "tinyy"), (["cascade.seed=2"], "name one with --config-name")):
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and told in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs")
def test_a_config_for_gpus_misses_them_on_a_machine_without():
    assert doctor.gpus(stages()).missing is None
    found = doctor.gpus(stages(name="node"))
    assert found.missing.startswith("cluster.gpus_per_node=8, 0 can be seen") and found.found == "none"


@pytest.mark.skipif(doctor.import_trouble("transformer_engine.pytorch") is None, reason="Transformer Engine is here")
def test_transformer_engine_is_missing_only_where_a_key_needs_it():
    assert doctor.transformer_engine(stages()).missing is None
    key = "+cascade.stages.sft.policy.megatron_cfg.optimizer"
    offload = [f"{key}.{name}=true" for name in ("optimizer_cpu_offload", "use_distributed_optimizer")]
    found = doctor.transformer_engine(stages(*offload))
    assert found.found == "not installed" and found.missing.startswith("needed by sft (optimizer_cpu_offload); pip install")


def test_a_module_that_does_not_load_is_told_from_one_that_is_absent(tmp_path, monkeypatch):
    (tmp_path / "amp_C.py").write_text("raise ImportError('undefined symbol: _ZN3c105ErrorC2')")
    (tmp_path / "fused_weight_gradient_mlp_cuda.py").write_text("")
    (tmp_path / "halved.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.import_trouble("amp_C") == "does not load: ImportError: undefined symbol: _ZN3c105ErrorC2"
    assert doctor.import_trouble("not_there_at_all") == "not installed"
    assert doctor.import_trouble("halved") == "does not load: No module named 'not_there_at_all'"
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: True)
    found = doctor.apex([])
    assert found.found.startswith("amp_C: does not load: ImportError: undefined symbol") and found.found.endswith("cuda: loads")
    assert found.used.startswith("gradients are added to their sums inside its products") and found.missing is None


def test_apex_is_missing_only_where_a_config_insists_on_it(monkeypatch):
    insisting = stages("cascade.stages.sft.policy.megatron_cfg.gradient_accumulation_fusion=true")
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    assert doctor.apex(insisting).missing is None and doctor.apex(insisting).used == "nothing: there is no GPU"
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor, "import_trouble", lambda module: "not installed")
    assert doctor.apex(stages()).missing is None
    assert doctor.apex(insisting).missing.startswith("gradient_accumulation_fusion=true of sft; build Apex")


def test_the_sandbox_runs_a_program_and_is_missing_where_it_cannot():
    needing = stages("cascade.order=[sft,code_rl]")
    if shutil.which("bwrap"):
        found = doctor.programs(needing)
        assert found.missing is None and "a program ran with Python" in found.found and "code_gen" in found.used
    broken = {"side_effect": sandbox.SandboxUnavailable("model-written code cannot be isolated: bubblewrap is not installed")}
    with patch.object(sandbox.Sandbox, "run", **broken):
        assert doctor.programs(needing).missing.startswith("code_gen, swe_repair: here: model-written code cannot be isolated")
        plain = stages("cascade.order=[sft]", "~data.validation.code_gen", "~data.validation.swe_repair")
        assert doctor.programs(plain).missing is None


def test_what_verifies_a_domain_is_told_by_its_file_before_its_name(tmp_path):
    row = {"agent_ref": {"name": "code_gen_simple_agent"}}
    (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n")
    own = f"cascade.stages.math_rl.data.train.math.data_path={tmp_path / 'own.jsonl'}"
    (stage,) = [stage for stage in stages(own) if stage.name == "math_rl"]
    assert "code_gen" in set(doctor.environments_of(stage))


def test_an_enabled_tracker_that_is_not_installed_is_missing():
    with patch.object(doctor, "import_trouble", lambda module: "not installed"):
        asked = doctor.tracker("wandb", stages("+logger.wandb_enabled=true"))
        assert asked.missing == "logger.wandb_enabled=true; pip install wandb"
        assert doctor.tracker("wandb", stages()).missing is None


def test_nodes_that_cannot_be_reached_are_told(monkeypatch):
    several = stages("++cluster.num_nodes=2")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with patch("socket.gethostbyname", lambda host: "127.0.0.1"):
        assert "other nodes cannot reach" in doctor.network(several).missing
        assert doctor.network(stages()).missing is None
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no_such0")
    assert "GLOO_SOCKET_IFNAME=no_such0: no such interface" in doctor.network([]).missing


def test_small_shared_memory_is_missing_only_between_gpus(tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(total=64 * 2**20)
    with patch("shutil.disk_usage", lambda path: usage):
        assert doctor.shared_memory(stages()).missing is None
        several = stages(name="node")
        assert "too few for NCCL; docker run --shm-size" in doctor.shared_memory(several).missing


def test_a_run_directory_that_cannot_be_made_is_missing(tmp_path):
    assert doctor.run_directory(tmp_path / "not" / "yet").missing is None
    assert list(tmp_path.iterdir()) == []
    with patch("tempfile.NamedTemporaryFile", side_effect=PermissionError(13, "Permission denied")):
        assert "name a folder that can be written" in doctor.run_directory(tmp_path / "run").missing


def test_a_look_that_fails_is_a_finding():
    def broken():
        raise OSError("libcudart.so.12: cannot open shared object file")

    found = doctor._look("torch", broken)
    assert found.found == "cannot be used: OSError: libcudart.so.12: cannot open shared object file" and found.missing is None


