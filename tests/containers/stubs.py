"""An image in small: a virtual environment with distributions that are only names and versions, and an index of such wheels."""

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
# The scripts there import each other as they do when they are started.
sys.path.insert(0, str(ROOT / "containers"))
# As NVIDIA's own build calls itself; no wheel of an index can be for it.
TORCH = "2.11.0a0+eb65b36.nv26.04"


def install(site: Path, name: str, version: str, *requires: str, module: str | None = None, metadata: bool = True) -> None:
    """A distribution as pip would leave it, with one module."""
    folder = site / (module or name.replace("-", "_")).replace(".", "/")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text(f"__version__ = {version!r}\n")
    if metadata:
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(_metadata(name, version, requires))
        (info / "RECORD").write_text(f"{folder.relative_to(site)}/__init__.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n{info.name}/INSTALLER,,\n")
        (info / "INSTALLER").write_text("pip\n")


def wheel(index: Path, name: str, version: str, *requires: str) -> Path:
    index.mkdir(exist_ok=True)
    file = name.replace("-", "_")
    path = index / f"{file}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{file}/__init__.py", f"__version__ = {version!r}\n")
        archive.writestr(f"{file}-{version}.dist-info/METADATA", _metadata(name, version, requires))
        archive.writestr(f"{file}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{file}-{version}.dist-info/RECORD", "")
    return path


def _metadata(name: str, version: str, requires: tuple[str, ...]) -> str:
    extras = "".join("Provides-Extra: antlr4_9_3\n" if "antlr4_9_3" in line else "" for line in requires)
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{extras}" + "".join(f"Requires-Dist: {line}\n" for line in requires)


class Image:
    """A Python without anything but pip, beside an index; `add` puts a distribution in."""

    def __init__(self, folder: Path):
        self.folder, self.index = folder, folder / "index"
        self.index.mkdir(parents=True)
        # No ensurepip: it takes seconds. A link to this environment's pip does the same.
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
        self.python = folder / "venv" / "bin" / "python"
        (self.site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        pip = distribution("pip")
        for entry in {Path(file).parts[0] for file in pip.files if ".." not in file.parts}:
            (self.site / entry).symlink_to(pip.locate_file(entry))

    def add(self, name: str, version: str, *requires: str, **how) -> None:
        install(self.site, name, version, *requires, **how)

    def like_nemo(self, *absent: str, **versions: str) -> None:
        """torch, Transformer Engine, a megatron-core without metadata (as in nemo:26.02), and what this package requires but what is absent."""
        self.add("torch", TORCH)
        self.add("transformer-engine", "2.14.1")
        self.add("megatron-core", "0.17.0", module="megatron.core", metadata=False)
        self.add("pytorch-triton", "3.6.0", module="triton")
        lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        for requirement in map(Requirement, lines):
            name = requirement.name
            if name in ("torch", "megatron-core", "triton", *absent):
                continue
            self.add(name, versions.get(name, _some_version(requirement)))

    def install(self, package: Path | None = None, **settings: str) -> subprocess.CompletedProcess:
        """containers/install.sh, with this index and no other."""
        own = {"PYTHON": str(self.python), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index), "PIP_CONFIG_FILE": os.devnull}
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        command = [str(ROOT / "containers" / "install.sh"), *([str(package)] if package else [])]
        return subprocess.run(command, env={**outside, **own, **settings}, capture_output=True, text=True, timeout=240)

    def version(self, name: str) -> str | None:
        """That of the metadata, of which there must be one."""
        found = list(self.site.glob(f"{name.replace('-', '_')}-[0-9]*.dist-info"))
        assert len(found) <= 1, found
        return found[0].name.removesuffix(".dist-info").split("-", 1)[1] if found else None


def _some_version(requirement: Requirement) -> str:
    """The lowest that it allows."""
    (lowest,) = [each.version for each in requirement.specifier if each.operator in (">=", "==")]
    return lowest.replace(".*", ".0")
