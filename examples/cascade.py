"""Run a whole cascade from one config; the same command again goes on where it stopped.

torchrun --nproc-per-node=2 examples/cascade.py --config-name=tiny
torchrun --nproc-per-node=2 examples/cascade.py --config-name=tiny --only mopd cascade.stages.mopd.grpo.max_num_steps=30
python examples/cascade.py --config-name=smoke --from-stage if_rl

Where nemo-toolkit is installed, NeMo's hydra_runner composes the config (docs/nemo.md).
"""

import typer

from nemo_cascade.interop.hydra_runner import run

# Saving a distributed checkpoint spawns processes, which import this file again.
if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)
    app.command()(run)
    app()
