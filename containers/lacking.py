"""Which requirements of this package an image lacks, and what of the image must stay as it is while they are installed.

    python containers/lacking.py constraints.txt [--upgrade transformers ...] > lacking.txt

Prints what pip has to install, a requirement a line, and writes what is here already as constraints, `name==version` a line,
for it. What the image must bring (torch, megatron-core, triton) is never asked of pip: absent, or of a version that this
package does not work with, it ends this with code 2, as do other distributions that are too old, unless they are to be
upgraded. Needs `packaging`, of the image's or of pip's.
"""

import argparse
import importlib.metadata
import importlib.util
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

try:
    from packaging.requirements import Requirement
    from packaging.version import InvalidVersion, Version
except ModuleNotFoundError:
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.version import InvalidVersion, Version

from pinned import NEVER, canonical, distributions

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
# By the modules: NGC images have some of them without metadata, or under another name (pytorch-triton).
IMAGES_OWN = {"torch": "torch", "megatron-core": "megatron.core", "triton": "triton"}


def requirements(pyproject: Path = PYPROJECT) -> list[Requirement]:
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    return [Requirement(line) for line in project["dependencies"]]


def with_extras(requirement: Requirement, installed: dict[str, str]) -> Iterator[Requirement]:
    """A requirement that holds for this system, and what its extras ask for where the distribution itself is here already."""
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        yield requirement
    if requirement.extras and canonical(requirement.name) in installed:
        for asked in map(Requirement, importlib.metadata.requires(requirement.name) or []):
            if "extra ==" in str(asked.marker) and any(asked.marker.evaluate({"extra": extra}) for extra in requirement.extras):
                yield asked


def look(wanted: list[Requirement], installed: dict[str, str], upgrade: set[str]) -> tuple[list[str], list[str]]:
    """(requirements for pip, problems), a line each."""
    lacking, problems = [], []
    for requirement in (each for line in wanted for each in with_extras(line, installed)):
        name = canonical(requirement.name)
        here = installed.get(name)
        fits = here is not None and requirement.specifier.contains(here, prereleases=True)
        if name in IMAGES_OWN:
            if here is None and not found(IMAGES_OWN[name]):
                problems.append(f"{name}: not in this Python ({sys.executable}); name the one that has it, PYTHON=/path/to/python")
            elif here is not None and not fits:
                problems.append(f"{name} {here} is here, and {requirement.specifier} is needed: take an image that has it")
        elif here is None or (not fits and name in upgrade):
            lacking.append(_without_marker(requirement))
        elif not fits:
            remedy = f"UPGRADE={name} lets it be replaced, or take an image that has it"
            problems.append(f"{name} {here} is here, and {requirement.specifier} is needed: {remedy}")
    return lacking, problems


def found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _without_marker(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def constraints(installed: dict[str, str], upgrade: set[str]) -> list[str]:
    return [f"{name}=={version}" for name, version in sorted(installed.items()) if name not in upgrade and _valid(version)]


def _valid(version: str) -> bool:
    """Whether pip can read it; `pinned.py` watches over the others too."""
    try:
        Version(version)
    except InvalidVersion:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("constraints", type=Path)
    parser.add_argument("--upgrade", nargs="*", default=[], help="distributions that may be replaced where they are too old")
    asked = parser.parse_args()
    installed = distributions()
    # What this package's own earlier installation brought is the image's now, and so stays.
    installed.pop("nemo-cascade", None)
    upgrade = {canonical(name) for name in asked.upgrade}
    problems = [f"UPGRADE={name}: never replaced, it was built with the rest of the image" for name in sorted(upgrade & NEVER)]
    lacking, others = look(requirements(), installed, upgrade)
    for line in (problems := problems + others):
        print(f"nemo-cascade: {line}", file=sys.stderr)
    if problems:
        return 2
    asked.constraints.write_text("".join(f"{line}\n" for line in constraints(installed, upgrade)))
    print("".join(f"{line}\n" for line in lacking), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
