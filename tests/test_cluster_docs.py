"""The commands for a NeMo container, in README.md and docs/cluster.md: at most ten, and what they say is accepted."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import load_config
from nemo_cascade.models.hf_config import hf_config
from nemo_cascade.models.presets import PRESETS
from tests.docs.blocks import blocks
from tests.launch.stubs import Cluster

ROOT = Path(__file__).parents[1]


def block(file: str, containing: str) -> str:
    (found,) = [text for text in blocks(ROOT / file, "bash") if containing in text]
    return found


@pytest.fixture(scope="module")
def called(tmp_path_factory) -> list[tuple[str, list[str]]]:
    """The README's block run by bash, with every program a stand-in: (name, arguments) in order."""
    folder = tmp_path_factory.mktemp("container")
    noted = {name: "note()\n" for name in ("nemo-cascade", "torchrun", "hf", "install.sh")}
    cluster = Cluster(folder, **noted)
    (folder / "containers").symlink_to(cluster.bin)
    script = "set -eu\n" + block("README.md", "containers/install.sh ")
    subprocess.run(["bash", "-c", script], cwd=folder, env=cluster.environment, check=True, timeout=60)
    return [(call["program"], call["arguments"]) for call in map(json.loads, cluster.calls.read_text().splitlines())]


def mine(words: list[str], folder: Path) -> tuple[str, list[str]]:
    """(config name, overrides) with the README's paths under `folder`."""
    moved = [re.sub(r"(?<==)/(?=models/|data/)", f"{folder}/", word) for word in words]
    (name,) = [word.removeprefix("--config-name=") for word in moved if word.startswith("--config-name=")]
    return name, [word for word in moved if not word.startswith("--")]


@pytest.fixture
def files(tmp_path) -> Path:
    """What the commands name: the model's folder without its weights, and rows."""
    for folder in ("models", "data/runs/mine/01-sft/step_2000/policy/weights"):
        (tmp_path / folder).mkdir(parents=True)
    model = Path(shutil.copytree(ROOT / "nemo_cascade/data/tokenizers/tiny", tmp_path / "models/nano"))
    (model / "config.json").write_text(json.dumps(hf_config(PRESETS["nano_30b_a3b"], "bfloat16")))
    (tmp_path / "data/runs/mine/01-sft/step_2000/policy/weights/.metadata").touch()
    messages = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "<think></think>2"}]
    (tmp_path / "data/mine.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    row = {"responses_create_params": {"input": messages[:1]}, "question": "1 + 1?", "expected_answer": "2"}
    row["agent_ref"] = {"type": "responses_api_agents", "name": "math_with_judge_simple_agent"}
    for split in ("train", "validation"):
        (tmp_path / f"data/{split}.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def test_it_is_at_most_ten_commands_from_the_installation_to_the_run(called):
    commands = 1 + len(called)  # and MINE=(...)
    assert commands <= 10
    programs = [" ".join([program, *(word for word in words if word in ("check", "plan", "run", "status", "doctor"))]) for program, words in called]
    assert programs[:2] == ["install.sh", "nemo-cascade doctor"]
    assert programs[-3:] == ["torchrun check", "torchrun run", "nemo-cascade status"]


def test_every_command_speaks_of_the_same_run_and_its_config_is_accepted(called, files):
    words = {tuple(word for word in arguments if word[0] in "~+'" or "=" in word) for _, arguments in called}
    configs = {tuple(word for word in each if word != "--nproc-per-node=8") for each in words if "cascade.order=[sft]" in each}
    assert len(configs) == 1, "check, plan, pre-flight and run look at one config"
    name, overrides = mine(list(configs.pop()), files)
    cascade = load_config(compose_config(name, overrides), 8)
    (stage,) = cascade.stages.values()
    assert (stage.name, stage.start) == ("sft", f"the weights of {files}/models/nano")
    assert {domain: data.data_path for domain, data in stage.data.train.items()} == {"mine": f"{files}/data/mine.jsonl"}
    (status,) = [arguments for program, arguments in called if arguments[:1] == ["status"]]
    assert f"{files}{status[1]}" == cascade.run_dir
    of_full = load_config(compose_config("full"), planning=True).stages["sft"]
    assert stage.policy.train_global_batch_size == of_full.policy.train_global_batch_size
    assert stage.policy.megatron_cfg.optimizer.lr == of_full.policy.megatron_cfg.optimizer.lr


def test_rl_on_own_rows_is_accepted_too(files):
    script = block("docs/cluster.md", "RL=(") + "printf '%s\\0' \"${RL[@]}\""
    words = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    name, overrides = mine(words, files)
    (stage,) = load_config(compose_config(name, overrides), 8).stages.values()
    assert stage.start == f"the weights of {files}/data/runs/mine/01-sft/step_2000"
    assert (stage.name, list(stage.data.train), list(stage.data.validation)) == ("if_rl", ["mine"], ["mine"])


def test_the_documents_name_files_that_are_there_and_images_as_the_dockerfiles_do():
    texts = {file: (ROOT / file).read_text() for file in ("README.md", "docs/cluster.md")}
    for file in set(re.findall(r"(?:containers|launch|examples|docs)/[\w.-]+\w", "".join(texts.values()))):
        assert (ROOT / file).exists(), file
    for dockerfile in ("Dockerfile", "Dockerfile.nemo-rl"):
        (base,) = re.findall(r"^ARG BASE=(\S+)$", (ROOT / "containers" / dockerfile).read_text(), re.MULTILINE)
        assert base in texts["docs/cluster.md"]
    assert "Not yet run" in texts["docs/cluster.md"]


@pytest.mark.slow
def test_the_plan_of_it_says_what_each_gpu_would_hold_and_that_it_fits(called, files):
    (words,) = [arguments for program, arguments in called if program == "nemo-cascade" and arguments[0] == "plan"]
    moved = [re.sub(r"(?<==)/(?=models/|data/)", f"{files}/", word) for word in words]
    done = subprocess.run([sys.executable, "-m", "nemo_cascade", *moved], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sft" in done.stdout
