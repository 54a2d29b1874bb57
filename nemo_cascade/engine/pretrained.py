"""Where the weights lie that a cascade begins with: a Hugging Face folder, or a megatron-core distributed checkpoint that somebody
else's run left (NeMo RL, Megatron Bridge, Megatron-LM, or another run of ours).

Looks at files' names only, so that a config is checked without torch.
"""

from pathlib import Path

HF, MEGATRON = "hf", "megatron"
FORMATS = (HF, MEGATRON)
TRACKER = "latest_checkpointed_iteration.txt"


def find(path: Path, format: str | None = None) -> tuple[str, Path]:
    """(format, folder of the weights) for what a user names: that folder, or one that leads to it.

    To a distributed checkpoint leads a step_N of ours or of NeMo RL, and a folder whose `latest_checkpointed_iteration.txt` says
    which iter_NNNNNNN is the newest, as Megatron-LM and Bridge write it.
    Raises ValueError saying what was looked for where it is neither, or not of the format that was asked for.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"no folder {path}; name the one that holds the weights")
    megatron = distributed_checkpoint(path)
    found = MEGATRON if megatron is not None else HF if is_hf(path) else None
    if found is None:
        raise ValueError(
            f"{path} holds no weights that are known: neither a config.json beside *.safetensors (Hugging Face) nor a .metadata "
            f"(megatron-core's distributed checkpoint), here, below policy/weights or in the iter_NNNNNNN that {TRACKER} names"
        )
    if format not in (None, found):
        raise ValueError(f"{path} is of format {found}, not {format}; name that, or leave the format out")
    return found, megatron or path


def is_hf(folder: Path) -> bool:
    """Whether a Hugging Face folder has weights, too."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def distributed_checkpoint(path: Path) -> Path | None:
    """The folder with a `.metadata`, from the step, the run or the checkpoint that is named; None where there is none."""
    for folder in (path, path / "weights", path / "policy" / "weights"):
        if (folder / ".metadata").is_file():
            return folder
        tracker = folder / TRACKER
        if tracker.is_file():
            newest = tracker.read_text(encoding="utf-8").strip()
            folder = folder / (newest if newest == "release" else f"iter_{int(newest):07d}" if newest.isdigit() else newest)
        else:
            # NeMo RL saves one iteration a step.
            folder = next(iter(sorted(folder.glob("iter_*"))[-1:]), folder)
        if (folder / ".metadata").is_file():
            return folder
    return None
