"""Runs `kernels.cpp`, which the machine's own compiler builds at first use, in a second or two, into the user's cache.

The kernels take float32 on a CPU. For all else, and where there is no g++ or NEMO_CASCADE_KERNELS=0 says so, the callers' torch
forms run, which compute the same: `usable` decides.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = "-std=c++20 -O3 -march=native -fno-math-errno -fno-trapping-math -shared -fPIC -pthread".split()
# The kernels go along the last axis by whole registers.
LANES = 16


def usable(*tensors: torch.Tensor, widths: tuple[int, ...] = ()) -> bool:
    """Whether the kernels take these tensors, and rows of these widths."""
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors) or any(n % LANES for n in widths):
        return False
    return library() is not None


def call(name: str, *arguments: torch.Tensor | int | float | None) -> None:
    """A function of kernels.cpp on tensors' memory, by as many threads as torch has."""
    getattr(library(), name)(*map(_as_c, arguments), torch.get_num_threads())


def _as_c(argument):
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return argument if argument is None else ctypes.c_long(argument)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The built kernels; None where they are switched off or cannot be built, which is logged."""
    compiler = shutil.which("g++")
    if os.environ.get("NEMO_CASCADE_KERNELS") == "0" or compiler is None:
        return None
    try:
        return ctypes.CDLL(str(build(compiler, cache_folder())))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        logging.getLogger(__name__).warning("%s was not built, torch's operations are used: %s", SOURCE.name, said)
        return None


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nemo_cascade"


def build(compiler: str, folder: Path) -> Path:
    """The library in that folder, named after all that its code depends on, built if it is not there.

    Raises OSError or subprocess.CalledProcessError.
    """
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    content = b"\0".join([SOURCE.read_bytes(), " ".join(FLAGS).encode(), version, _cpu()])
    path = folder / f"kernels-{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Other processes may build it at the same time: each its own file, and the last one to finish gives it its name.
        with tempfile.TemporaryDirectory(dir=folder) as own:
            built = Path(own) / path.name
            subprocess.run([compiler, *FLAGS, "-o", built, SOURCE], capture_output=True, text=True, check=True)
            os.replace(built, path)
    return path


def _cpu() -> bytes:
    """What -march=native looks at: a home directory may be that of several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return b""
    return b"\n".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model"))}))
