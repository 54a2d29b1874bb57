"""What an image had before this package was installed into it must be there afterwards, unchanged.

    python containers/pinned.py record before.json
    python containers/pinned.py compare before.json [--may-change transformers ...]

`record` notes the version of every distribution, and of torch, Transformer Engine, megatron-core and the compiled packages
around them where they lie and the size and time of each of their files: NGC images have some of these without any metadata
that pip could see, and a second copy in a virtual environment would hide the image's. Nothing is imported, so neither a GPU
nor its driver is needed. `compare` ends with code 1 and a line for each difference; what was added is listed. Needs nothing
but Python.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

MODULES = ("torch", "transformer_engine", "megatron.core", "apex", "mamba_ssm", "causal_conv1d", "flash_attn", "triton")
# Whatever --may-change says: built together, for this image's CUDA.
NEVER = {"torch", "transformer-engine", "megatron-core", "apex", "mamba-ssm", "causal-conv1d", "flash-attn", "triton"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions() -> dict[str, str]:
    """Version by name; of several of one name that which Python finds first, as an import does."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        # A folder that was removed by hand may leave one without a name.
        if name := distribution.metadata["Name"]:
            found.setdefault(canonical(name), distribution.version)
    return found


def module(name: str) -> dict[str, str | int] | None:
    """Where a package lies, how many files it has, and a digest of their names, sizes and times; None when it is not here."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    if spec is None:
        return None
    folders = sorted(spec.submodule_search_locations or [])
    files = []
    for folder in folders:
        for parent, inner, names in os.walk(folder):
            inner[:] = sorted(each for each in inner if each != "__pycache__")
            files += [Path(parent, each) for each in sorted(names) if not each.endswith(".pyc")]
    digest = hashlib.sha256()
    for file in files:
        state = file.lstat()
        digest.update(f"{file} {state.st_size} {state.st_mtime_ns}\n".encode())
    return {"where": spec.origin or ", ".join(folders), "files": len(files), "digest": digest.hexdigest()}


def record() -> dict:
    found = {name: module(name) for name in MODULES}
    return {"distributions": distributions(), "modules": {name: noted for name, noted in found.items() if noted}}


def differences(before: dict, after: dict, may_change: set[str]) -> list[str]:
    """A line for each thing of `before` that is not so in `after`."""
    lines = []
    for name, version in before["distributions"].items():
        now = after["distributions"].get(name)
        if now != version and (name in NEVER or name not in may_change):
            lines.append(f"{name} {version} was here; now it is {now or 'gone'}")
    for name, noted in before["modules"].items():
        now = after["modules"].get(name)
        if now is None:
            lines.append(f"{name} was at {noted['where']}; now it cannot be found")
        elif now["where"] != noted["where"]:
            lines.append(f"{name} was at {noted['where']}; now {now['where']} comes before it")
        elif now != noted:
            lines.append(f"{name} at {noted['where']}: its files changed ({noted['files']} before, {now['files']} now)")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--may-change", nargs="*", default=[], help="distributions that may get another version")
    asked = parser.parse_args()
    now = record()
    if asked.what == "record":
        asked.file.write_text(json.dumps(now))
        return 0
    before = json.loads(asked.file.read_text())
    lines = differences(before, now, {canonical(name) for name in asked.may_change})
    for line in lines:
        print(f"nemo-cascade: the image changed: {line}", file=sys.stderr)
    added = [f"{name} {version}" for name, version in sorted(now["distributions"].items()) if name not in before["distributions"]]
    print(f"added: {', '.join(added) or 'nothing'}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
