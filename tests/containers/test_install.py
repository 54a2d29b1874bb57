"""containers/install.sh: the package and what an image lacks go in, and nothing of the image changes."""

import os
import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.containers.stubs import TORCH, Image, wheel

import lacking  # isort: skip - found by what stubs.py adds to sys.path


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A wheel with the package's name: what is tried here is what is installed around it."""
    return wheel(tmp_path_factory.mktemp("package"), "nemo-cascade", "0.1.0")


def test_what_is_lacking_goes_in_and_what_is_there_stays(package, tmp_path):
    image = Image(tmp_path)
    image.like_nemo("hydra-core", "math-verify", "xmltodict")
    wheel(image.index, "hydra-core", "1.3.2", "omegaconf>=2.3", "torch")
    wheel(image.index, "hydra-core", "1.4.0")
    wheel(image.index, "math-verify", "0.9.0", "latex2sympy2-extended", "antlr4-python3-runtime==4.9.3; extra == 'antlr4_9_3'")
    wheel(image.index, "latex2sympy2-extended", "1.11.0")
    wheel(image.index, "antlr4-python3-runtime", "4.9.3")
    wheel(image.index, "xmltodict", "1.0.4")
    wheel(image.index, "vllm", "0.25.1")  # says nothing of torch, and is not even looked at
    for name, newer in (("torch", "2.13.0"), ("omegaconf", "2.3.9"), ("transformers", "5.0.0"), ("megatron-core", "0.19.2")):
        wheel(image.index, name, newer)
    done = image.install(package)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lacking: math-verify[antlr4_9_3]<0.10,>=0.9 xmltodict>=0.14 hydra-core==1.3.*\n" in done.stdout
    put_in = {"hydra-core": "1.3.2", "math-verify": "0.9.0", "latex2sympy2-extended": "1.11.0", "antlr4-python3-runtime": "4.9.3"}
    assert {name: image.version(name) for name in put_in} == put_in
    assert image.version("nemo-cascade") == "0.1.0"
    stayed = {"torch": TORCH, "transformer-engine": "2.14.1", "omegaconf": "2.3.0", "transformers": "4.57", "megatron-core": None}
    assert {name: image.version(name) for name in stayed} == stayed
    assert f"vllm: no wheel was built for torch {TORCH}" in done.stdout and image.version("vllm") is None
    assert "added: antlr4-python3-runtime 4.9.3, hydra-core 1.3.2, latex2sympy2-extended 1.11.0, math-verify" in done.stdout


def test_what_an_image_must_bring_is_named_when_it_is_not_there_and_never_asked_of_pip(monkeypatch):
    monkeypatch.setattr(lacking, "found", lambda module: module == "triton")
    wanted = [Requirement(line) for line in ("torch", "megatron-core>=0.16.1,<0.20", "triton>=3", "numpy>=1.26")]
    asked, problems = lacking.look(wanted, {"megatron-core": "0.16.0"}, set())
    assert asked == ["numpy>=1.26"]
    assert len(problems) == 2 and "torch: not in this Python" in problems[0] and "PYTHON=/path/to/python" in problems[0]
    assert problems[1] == "megatron-core 0.16.0 is here, and <0.20,>=0.16.1 is needed: take an image that has it"
    assert lacking.look(wanted[:2], {"torch": TORCH, "megatron-core": "0.19.0rc1+abc"}, set()) == ([], [])


def test_what_is_too_old_is_named_with_the_remedy_and_asked_of_pip_only_where_it_may_be_replaced():
    wanted, here = [Requirement("transformers>=4.57")], {"transformers": "4.56.0", "torch": TORCH, "odd": "dev-unknown"}
    told = "transformers 4.56.0 is here, and >=4.57 is needed: UPGRADE=transformers lets it be replaced, or take an image that has it"
    assert lacking.look(wanted, here, set()) == ([], [told])
    assert lacking.look(wanted, here, {"transformers"}) == (["transformers>=4.57"], [])
    assert lacking.constraints(here, {"transformers"}) == [f"torch=={TORCH}"]  # of `odd`, pip could read no version


def test_requirements_for_other_systems_and_of_extras_are_looked_at():
    assert lacking.look([Requirement("colorama>=1; platform_system == 'Windows'")], {}, set()) == ([], [])
    wanted, here = [Requirement("hypothesis[redis]>=6")], {"hypothesis": "6.170"}
    (asked,), problems = lacking.look(wanted, here, set())
    assert asked.startswith("redis") and problems == []


def test_torch_is_never_replaced_whatever_is_asked_for(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["lacking.py", str(tmp_path / "constraints.txt"), "--upgrade", "torch"])
    assert lacking.main() == 2
    assert "UPGRADE=torch: never replaced, it was built with the rest of the image" in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_again_installs_nothing_and_an_upgrade_only_what_was_named(package, tmp_path):
    image = Image(tmp_path)
    image.like_nemo(transformers="4.56.0")
    wheel(image.index, "transformers", "4.57.1")
    refused = image.install(package)
    assert refused.returncode == 2 and "UPGRADE=transformers lets it be replaced" in refused.stderr
    done = image.install(package, UPGRADE="transformers", VLLM="no")
    assert done.returncode == 0, done.stdout + done.stderr
    assert image.version("transformers") == "4.57.1"
    again = image.install(package, VLLM="no")
    assert again.returncode == 0 and "lacking:" not in again.stdout and again.stdout.endswith("added: nothing\n"), again.stdout


@pytest.mark.slow
def test_a_requirement_that_would_bring_another_torch_is_refused_and_nothing_is_installed(package, tmp_path):
    image = Image(tmp_path)
    image.like_nemo("unidiff")
    wheel(image.index, "unidiff", "1.0.1", "torch>=2.13")
    wheel(image.index, "torch", "2.13.0")
    done = image.install(package)
    assert done.returncode != 0 and "ResolutionImpossible" in done.stderr
    assert (image.version("torch"), image.version("unidiff"), image.version("nemo-cascade")) == (TORCH, None, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("here", "setting", "code", "got"),
    [
        (None, "auto", 0, "0.20.0"),  # the newest that was built for this torch, not the newest
        (None, "vllm>=0.20", 0, "0.20.0"),
        (None, "vllm==0.25.1", 1, None),
        ("0.14.2", "auto", 0, "0.14.2"),  # the image's own
    ],
)
def test_vllm_is_the_image_s_or_one_that_was_built_for_its_torch(package, tmp_path, here, setting, code, got):
    image = Image(tmp_path)
    image.like_nemo()
    shutil.rmtree(image.site / f"torch-{TORCH}.dist-info")
    image.add("torch", "2.9.0")
    if here:
        image.add("vllm", here)
    wheel(image.index, "torch", "2.11.0")
    for version, built_for in (("0.19.1", "2.8.0"), ("0.20.0", "2.9.0"), ("0.25.1", "2.11.0")):
        wheel(image.index, "vllm", version, f"torch=={built_for}")
    done = image.install(package, VLLM=setting)
    assert done.returncode == code, done.stdout + done.stderr
    assert (image.version("vllm"), image.version("torch")) == (got, "2.9.0")


@pytest.mark.slow
def test_over_the_real_packages_the_real_package_is_installed_and_looks_at_them(tmp_path):
    """A virtual environment that sees all of this one's, but not this package; what it gets is built from the source tree."""
    image = Image(tmp_path)
    for link in [entry for entry in image.site.iterdir() if entry.is_symlink()]:
        link.unlink()
    seen = tmp_path / "seen"
    seen.mkdir()
    for entry in Path(distribution("torch").locate_file("")).iterdir():
        if "nemo_cascade" not in entry.name and entry.suffix != ".pth":
            (seen / entry.name).symlink_to(entry)
    (image.site / "seen.pth").write_text(f"{seen}\n")
    # pip's spelling of "no isolation": what builds the wheel is here, and nothing is fetched.
    done = image.install(PIP_NO_BUILD_ISOLATION="0", VLLM="no")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("added: nemo-cascade 0.1.0\n")
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for command in (["nemo-cascade", "doctor"], ["nemo-cascade", "check", "--config-name=tiny"]):
        program = image.python.parent / command[0]
        told = subprocess.run([str(program), *command[1:]], cwd=tmp_path, env=outside, capture_output=True, text=True, timeout=300)
        assert told.returncode == 0, told.stdout + told.stderr
    assert "ok: 11 stages" in told.stdout
