"""examples/ started by NeMo's own `hydra_runner`, where nemo-toolkit can be imported; elsewhere as ever.

The command line, what is run and the exit codes are the same. NeMo's runner brings its resolvers (`${multiply:..}`, `${sum:..}`,
`${gpu_name:}`) and tells NeMo's telemetry when the program ends. Hydra would turn an exception into a few lines and exit code 1;
it is asked not to. `nemo-cascade run` never asks NeMo, whose import takes each process some seconds.
"""

import functools
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from nemo_cascade.cascade import cli
from nemo_cascade.cascade.compose import compose_config, words_for_hydra
from nemo_cascade.cascade.config import ConfigErrors


@functools.wraps(cli.run)
def run(
    overrides: list[str] | None = None,
    config_name: str = "tiny",
    config_dir: Path | None = None,
    config: Path | None = None,
    **what,
) -> None:
    if find_spec("nemo") is None:
        return cli.run(overrides, config_name, config_dir, config, **what)
    try:
        name, directory = cli.place(config_name, config_dir, config)
        # Hydra would tell what is wrong with it in many lines, and NeMo takes seconds to import.
        compose_config(name, overrides or (), directory)
        words = words_for_hydra(name, overrides or (), directory)
    except ConfigErrors as errors:
        cli.refuse(errors.problems)
    runner = nemos()
    if runner is None:
        return cli.run(overrides, config_name, config_dir, config, **what)
    through(runner, words, lambda composed: cli.begin(cli.checked(composed, cli.processes()), **what))


def nemos() -> Callable | None:
    """NeMo's decorator; None, which rank 0 tells, where nemo-toolkit is there and cannot be imported."""
    from nemo_cascade.engine import cpu

    # NeMo imports megatron-core.
    cpu.install()
    try:
        from nemo.core.config import hydra_runner
    except Exception as error:  # noqa: BLE001 - its many packages fail in their own ways
        if os.environ.get("RANK", "0") == "0":
            told = f"nemo-cascade: nemo-toolkit cannot be imported ({type(error).__name__}: {error}); started without its hydra_runner"
            print(told, file=sys.stderr)
        return None
    return hydra_runner


def through(runner: Callable, words: list[str], task: Callable[[DictConfig], None]) -> None:
    """`task`, given the config that NeMo's runner composes of these words of a command line."""
    own = sys.argv

    def composed(config: DictConfig) -> None:
        # Stages may start this program again, and compose configs of their own.
        sys.argv = own
        GlobalHydra.instance().clear()
        task(config)

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # Other libraries' remarks stay as quiet as they are without Hydra.
    sys.argv = [own[0], *words, "hydra.job_logging.root.level=WARNING"]
    try:
        runner()(composed)()
    finally:
        sys.argv = own
