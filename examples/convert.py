"""Weights from Hugging Face's form to megatron-core's and back, a tensor at a time.

python examples/convert.py --from hf --to megatron HF_FOLDER CHECKPOINT
python examples/convert.py --from megatron --to hf --model HF_FOLDER_OR_PRESET CHECKPOINT HF_FOLDER

CHECKPOINT is a folder of a distributed checkpoint: a stage's step_N/policy/weights, or Megatron-LM's iter_NNNNNNN.
"""

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer


class Form(str, Enum):
    """How weights lie on disk."""

    hf = "hf"
    megatron = "megatron"


def main(
    source: Annotated[Path, typer.Argument(help="Folder to read", exists=True, file_okay=False)],
    target: Annotated[Path, typer.Argument(help="Folder to write; must not be there yet")],
    source_form: Annotated[Form, typer.Option("--from", help="Form of what is read")],
    target_form: Annotated[Form, typer.Option("--to", help="Form of what is written")],
    model: Annotated[Optional[str], typer.Option(help="Preset or Hugging Face folder that says what the network is")] = None,
    shard_gb: Annotated[float, typer.Option(help="Largest file of a Hugging Face folder, in 10^9 bytes")] = 5.0,
) -> None:
    """Convert weights; every tensor is accounted for, every bit stays."""
    from nemo_cascade.engine import convert, parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.models.presets import get_preset

    if source_form == target_form:
        raise typer.BadParameter(f"--from and --to are both {source_form.value}; copy the folder instead")
    if target.exists():
        raise typer.BadParameter(f"{target} is there already; name a new folder")
    if source_form is Form.megatron and model is None:
        raise typer.BadParameter("a checkpoint does not say what its network is; name it: --model PRESET or a folder with config.json")
    parallel.init(MegatronConfig())
    try:
        if source_form is Form.hf:
            convert.hf_to_megatron(source, target, show=True)
        else:
            convert.megatron_to_hf(source, target, get_preset(model), shard_bytes=int(shard_gb * 1e9), show=True)
    except (ValueError, FileNotFoundError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    finally:
        parallel.shutdown()


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)
    app.command()(main)
    app()
