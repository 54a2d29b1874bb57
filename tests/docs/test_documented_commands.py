"""Every command of the documents is one that its program takes: options are known, configs are accepted, files are there."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import typer

from nemo_cascade.cascade import cli
from nemo_cascade.cascade.compose import compose_config, compose_file
from nemo_cascade.cascade.config import load_config
from nemo_cascade.models.hf_config import hf_config
from nemo_cascade.models.presets import PRESETS
from nemo_cascade.scaling.config import load_scale_config
from tests.docs.blocks import FENCE, PAGES, ROOT, blocks, commands

SCRIPTS = [(page, number) for page in PAGES for number in range(len(blocks(page, "bash")))]
# What a document may say in place of something: the rest of a command that it said before.
ELLIPSIS = ["--nproc-per-node=2", "examples/cascade.py"]
# Who answers where a file says it that is not shown.
ANSWERS = ["endpoint.base_url=http://host/v1", "endpoint.model=name"]
# Run for what they are: they take seconds, need nothing and leave nothing.
REAL = ["nemo-cascade check --config-name=tiny", "nemo-cascade data list", "nemo-cascade evaluate", "nemo-cascade doctor --config-name=tiny"]
PLACE = re.compile(r"(?<==)/(?=(?:models|data|ckpt|lustre|path)/)")


@pytest.fixture
def files(tmp_path) -> Path:
    """What the commands name: folders of models without weights, checkpoints without tensors."""
    for name in ("mine", "nano", "student", "math_expert", "quiz_expert", "math_teacher", "mcqa_teacher"):
        write_model(tmp_path / "models" / name)
    write_model(tmp_path / "path/to/hf_folder")
    write_model(tmp_path / "lustre/models/nano")
    for name in ("data/runs/mine/01-sft/step_2000/policy/weights", "ckpt/step_500"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / ".metadata").touch()
    return tmp_path


def write_model(folder: Path) -> None:
    shutil.copytree(ROOT / "nemo_cascade/data/tokenizers/tiny", folder)
    (folder / "config.json").write_text(json.dumps(hf_config(PRESETS["nano_30b_a3b"], "bfloat16")))


def test_every_block_says_what_it_is_in():
    for page in PAGES:
        assert {word for word, _ in FENCE.findall(page.read_text())} <= {"bash", "text", "python", "json", "yaml", "toml"}, page


@pytest.mark.parametrize("page, number", SCRIPTS, ids=lambda value: getattr(value, "stem", value))
def test_every_command_is_one_that_its_program_takes(page, number, tmp_path, files):
    started = commands(blocks(page, "bash")[number], tmp_path / "shell")
    assert started or "RL=(" in blocks(page, "bash")[number]
    for program, *words in started:
        CHECKS[program]([PLACE.sub(f"{files}/", word) for word in words])


@pytest.mark.parametrize("command", REAL)
def test_what_takes_seconds_runs(command, tmp_path):
    assert any(command in line for page in PAGES for text in blocks(page, "bash") for line in text.splitlines()), "no document says it"
    words = [sys.executable, "-m", "nemo_cascade", *command.split()[1:]]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_commands_in_running_text_are_known():
    known = set(typer.main.get_command(cli.app).commands)
    for page in PAGES:
        text = FENCE.sub("", page.read_text())
        for name in re.findall(r"`(?:python -m nemo_cascade|nemo-cascade) ([a-z][\w-]*)", text):
            assert name in known, f"{page}: {name}"
        for target in re.findall(r"`make ([\w-]+)`", text):
            make([target])


def ours(words: list[str]) -> None:
    """`nemo-cascade ...`: the command takes these words, and a config among them is accepted."""
    command, context = typer.main.get_command(cli.app), None
    while hasattr(command, "commands"):
        context = command.make_context("nemo-cascade", list(words), parent=context, ignore_unknown_options=True, allow_extra_args=True)
        assert words and words[0] in command.commands, f"no command {words[:1]} of {list(command.commands)}"
        command, words = command.commands[words[0]], words[1:]
    if not words:
        return
    context = command.make_context(command.name, list(words), parent=context)
    given = context.params
    overrides = list(given.get("overrides") or ())
    if context.parent is not None and context.parent.command.name == "scale":
        answers = any(override.startswith(("endpoint.", "policy.")) for override in overrides)
        load_scale_config(command.name.replace("-", "_"), None, overrides if answers else [*overrides, *ANSWERS])
    elif "config_name" in given:
        file = given.get("config")
        if file is not None and str(file) != "my_mopd.yaml":
            return  # a file that the page shows, with which tests/docs/test_extend.py trains
        own = [*overrides, "policy.model_name=nano_30b_a3b"]  # of a copy of conf/mopd.yaml
        composed = compose_file(ROOT / "conf/mopd.yaml", own) if file is not None else compose_config(given["config_name"], overrides)
        stages = load_config(composed, planning=True).stages
        assert {given[key] for key in ("only", "from_stage", "redo", "stage") if given.get(key)} <= set(stages)


def torchrun(words: list[str]) -> None:
    """Its own options, then a module or a script; "..." is what was said before, or processes."""
    if "..." in words:
        at = words.index("...")
        words = [*words[:at], *(["--nproc-per-node=2"] if "-m" in words else ELLIPSIS), *words[at + 1 :]]
    while words[0].startswith("--"):
        assert re.fullmatch(r"--nproc-per-node=\d+", words[0]), words[0]
        words = words[1:]
    if words == ["imitate.py"]:
        return  # tests/docs/test_extend.py runs it
    python(words)


def python(words: list[str]) -> None:
    """A module or a file of the repository, with options that its help has."""
    if words[:2] == ["-m", "nemo_cascade"]:
        return ours(words[2:])
    if words[0] == "examples/cascade.py":
        return ours(["run", *words[1:]])
    program, rest = (words[:2], words[2:]) if words[0] == "-m" else (words[:1], words[1:])
    if program[-1] == "nemo_cascade.rollout.vllm_serve":
        assert importlib.util.find_spec(program[-1])  # its options are those of `vllm serve`
        return None
    has_options(program, rest)
    return None


def has_options(program: list[str], words: list[str]) -> None:
    text = help_of(tuple(program))
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", text), f"{' '.join(program)} has no {option}"


@cache
def help_of(program: tuple[str, ...]) -> str:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "200", "HOME": "/tmp"}
    done = subprocess.run([sys.executable, *program, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make(words: list[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    targets = " ".join(re.findall(r"^([^\s#].*?):(?!=)", text, re.MULTILINE)).replace("$(VLLM)", ".venv-vllm").split()
    assert set(words) <= set(targets), words


def launched(words: list[str]) -> None:
    """Options of a scheduler, then what it starts: a script of launch/, or our command."""
    at = next(number for number, word in enumerate(words) if not word.startswith("--"))
    if words[at] == "nemo-cascade":
        return ours(words[at + 1 :])
    assert (ROOT / words[at]).is_file(), words[at]
    return ours(["run", *words[at + 1 :]])


def docker(words: list[str]) -> None:
    """Images are those of the Dockerfiles, whose arguments are theirs."""
    files = {path.name: path.read_text() for path in (ROOT / "containers").glob("Dockerfile*")}
    if words[0] == "build":
        text = files[Path(words[words.index("-f") + 1]).name]
        for at in (number for number, word in enumerate(words) if word == "--build-arg"):
            assert f"ARG {words[at + 1].split('=')[0]}" in text
    else:
        assert words[0] == "run" and any(f"ARG BASE={word}\n" in text for word in words for text in files.values())


def of_nemo_rl(words: list[str]) -> None:
    """A program of NeMo RL's, as `export-nemo-rl` names it."""
    assert words[0] == "run" and words[1] in (ROOT / "nemo_cascade/interop/nemo_rl.py").read_text()


def hub(words: list[str]) -> None:
    """The hub's program; its options are asked of the package."""
    has_options(["-m", "huggingface_hub.cli.hf", words[0]], words[1:])


def pip(words: list[str]) -> None:
    assert words[0] == "install"


def activated(words: list[str]) -> None:
    assert words == [".venv/bin/activate"]


def installs(words: list[str]) -> None:
    assert not words and (ROOT / "containers/install.sh").is_file()


def converted(image: list[str]) -> None:
    assert image[0] == "import" and any(word.startswith("dockerd://nemo-cascade") for word in image)


CHECKS = {
    "nemo-cascade": ours,
    "torchrun": torchrun,
    ".venv-vllm/bin/torchrun": torchrun,
    "python": python,
    "make": make,
    "sbatch": launched,
    "srun": launched,
    "launch/node.sh": lambda words: ours(["run", *words]),
    "containers/install.sh": installs,
    "docker": docker,
    "enroot": converted,
    "uv": of_nemo_rl,
    "hf": hub,
    "pip": pip,
    "source": activated,
}
