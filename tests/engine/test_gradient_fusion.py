"""Gradients are added inside products where that can be done: with Apex's extension, on a CPU without, and not where it is forbidden.

Apex needs CUDA; a module of its name that adds in torch and counts stands for it, in a process of its own.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import ConfigErrors, load_config
from nemo_cascade.engine import gradient_fusion
from nemo_cascade.engine.policy import model_override_names

ROOT = Path(__file__).parents[2]
# The two functions that megatron-core calls, as Apex declares them: `main_grad += grad_output^T input`.
EXTENSION = """
import torch
CALLS = []

def wgrad_gemm_accum_fp32(input, grad_output, main_grad):
    assert main_grad.dtype == torch.float32 and input.dim() == grad_output.dim() == 2
    CALLS.append(str(input.dtype))
    main_grad += grad_output.float().t() @ input.float()
"""
FUSED_ADAM = "import torch\n\nclass FusedAdam(torch.optim.AdamW): pass\n\nclass FusedSGD(torch.optim.SGD): pass\n"
AMP_C = "def multi_tensor_l2norm(*a): ...\ndef multi_tensor_scale(*a): ...\n"


@pytest.fixture
def apex(tmp_path):
    """A folder in which everything of Apex can be found that megatron-core looks for."""
    (tmp_path / "fused_weight_gradient_mlp_cuda.py").write_text(EXTENSION)
    (tmp_path / "amp_C.py").write_text(AMP_C)
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    (tmp_path / "apex" / "optimizers.py").write_text(FUSED_ADAM)
    (tmp_path / "apex" / "multi_tensor_apply.py").write_text("multi_tensor_applier = None\n")
    return tmp_path


def in_process(code: str, *path: Path) -> dict:
    """What `code`, a function body, returns in a process that also looks for modules in `path`."""
    body = "\n".join(f"    {line}" for line in code.strip().splitlines())
    program = f"import json, sys\nsys.path[:0] = {[str(p) for p in path]}\ndef answer():\n{body}\nprint('answer', json.dumps(answer()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.split("answer ", 1)[1])


def gradients_as(apex: Path, on_a_gpu: bool) -> dict:
    """Of a policy trained beside Apex: which layers were told to add, Apex's calls, and the largest error beside autograd's gradients.

    on_a_gpu: what can be imported of Apex stays where megatron-core put it.
    """
    code = f"""
import fused_weight_gradient_mlp_cuda as kernel
from nemo_cascade.engine import cpu
if {on_a_gpu}: cpu._replace_weight_gradients = lambda: None
cpu.install()
from nemo_cascade.engine import gradient_fusion, parallel
from nemo_cascade.engine.config import MegatronConfig, OptimizerConfig, PolicyConfig
from nemo_cascade.engine.policy import Policy
from nemo_cascade.stages.sft import sft_loss
from tests.engine.cases import full_gradients, largest_error, random_samples
cfg = MegatronConfig(optimizer=OptimizerConfig(use_distributed_optimizer=False))
parallel.init(cfg)
policy = Policy(PolicyConfig(model_name="micro", megatron_cfg=cfg), seed=0, max_num_steps=2)
told = [bool(m.gradient_accumulation_fusion) for m in policy.model.modules() if hasattr(m, "gradient_accumulation_fusion")]
samples = random_samples(policy.preset.vocab_size)
_, fused = full_gradients(policy, samples, sft_loss)
calls = len(kernel.CALLS)
assert gradient_fusion.fuse(policy.model, False) == 0
_, plain = full_gradients(policy, samples, sft_loss)
return {{"told": told, "calls": calls, "later": len(kernel.CALLS) - calls, "error": largest_error(fused, plain)[0]}}
"""
    return in_process(code, apex)


def test_apex_adds_the_gradients_of_linear_layers_and_they_are_those_of_autograd(apex):
    found = gradients_as(apex, on_a_gpu=True)
    assert all(found["told"]) and found["calls"] > 5 and found["later"] == 0 and found["error"] < 1e-5


def test_a_cpu_adds_them_itself_though_apex_can_be_imported(apex):
    found = gradients_as(apex, on_a_gpu=False)
    assert all(found["told"]) and found["calls"] == found["later"] == 0 and found["error"] < 1e-5


def layers(dtype: torch.dtype) -> torch.nn.Module:
    """Two layers that take the setting, and one that does not."""
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4, dtype=dtype) for _ in range(3)))
    model[0].gradient_accumulation_fusion = model[1].gradient_accumulation_fusion = False
    return model


def test_without_apex_auto_is_what_a_layer_can_and_true_is_refused_where_none_can(monkeypatch):
    single, half = layers(torch.float32), layers(torch.bfloat16)
    assert gradient_fusion.fuse(single, "auto") == gradient_fusion.fuse(single, True) == 2 and single[0].gradient_accumulation_fusion
    assert gradient_fusion.fuse(single, False) == 0 and not single[0].gradient_accumulation_fusion
    assert gradient_fusion.fuse(half, "auto") == 0 and not hasattr(half[2], "gradient_accumulation_fusion")
    with pytest.raises(RuntimeError, match="gradient_accumulation_fusion=true: no layer can here; .* Set it to auto or false"):
        gradient_fusion.fuse(half, True)
    # As on a GPU without Apex.
    monkeypatch.setattr(gradient_fusion.layers, "_grad_accum_fusion_available", False)
    assert gradient_fusion.fuse(single, "auto") == 0


def test_the_key_is_checked_when_the_config_loads_and_no_override_of_the_model():
    for value in ("auto", "true", "false"):
        load_config(compose_config("smoke", [f"{gradient_fusion.KEY}={value}"]), planning=True)
    for value in ("apex", "3", "null"):
        with pytest.raises(ConfigErrors, match=gradient_fusion.KEY):
            load_config(compose_config("smoke", [f"{gradient_fusion.KEY}={value}"]), planning=True)
    assert "gradient_accumulation_fusion" not in model_override_names()


@pytest.mark.parametrize("there", [True, False])
def test_megatron_takes_apexs_adam_and_norms_where_they_are_and_doctor_says_so(apex, there):
    # Not made to run on a CPU, where ours stand in their places.
    code = """
import warnings
warnings.simplefilter("ignore")
from nemo_cascade.engine import cpu
cpu._installed = True
import megatron.core.optimizer
import nemo_cascade.cascade.doctor as doctor
found = doctor.optimizer()
return [found.found, doctor.apex([]).found]
"""
    optimizer, found = in_process(code, *([apex] if there else []))
    whose, loads = ("Apex's", "loads") if there else ("torch's", "not installed")
    assert optimizer == f"Adam: {whose}, norms: {whose}"
    assert found == f"amp_C: {loads}, fused_weight_gradient_mlp_cuda: {loads}"
