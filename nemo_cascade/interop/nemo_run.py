"""nemo-run: the cascade, or one stage of it, as a `run.Partial` or `run.Script`, and an executor for Slurm.

    import nemo_run as run
    from nemo_cascade.interop import nemo_run as recipes

    executor = run.LocalExecutor(ntasks_per_node=2, launcher="torchrun")
    run.run(recipes.stage("sft", "smoke", ["cascade.run_dir=runs/x"]), executor=executor)

A Partial holds nothing but the words of a command line, so it can be sent to any machine that has the package. nemo-run is imported
by the factories, not with this module, which the started processes import.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import nemo_run as run

# As launch/slurm.sh sets them, with the reasons there.
ENVIRONMENT = {
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    "OMP_NUM_THREADS": "1",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "840",
    # Expanded in the job.
    "TRITON_CACHE_DIR": "/tmp/triton-$SLURM_JOB_ID",
}
# Behind nemo-run's own, of which the last word counts: it would kill nodes that still save, at once or after 60 seconds.
SRUN = ["--kill-on-bad-exit=0", "--wait=0", "--cpu-bind=none"]
# To the ranks' torchrun, 900 seconds before the limit: nemo-run's own script would die of a signal.
SIGNAL = "TERM@900"


def launch(
    config_name: str = "tiny", overrides: list[str] | None = None, only: str | None = None, from_stage: str | None = None
) -> None:
    """What a started process does: `nemo-cascade run` with these words. Ends the process as the command does."""
    from nemo_cascade.cascade import cli

    cli.run(overrides, config_name=config_name, only=only, from_stage=from_stage)


def cascade(config_name: str = "tiny", overrides: Sequence[str] = (), from_stage: str | None = None) -> "run.Partial":
    """The whole cascade; the same task again goes on where it stopped. overrides: key=value, as on the command line."""
    import nemo_run as run

    return run.Partial(launch, config_name=config_name, overrides=list(overrides), from_stage=from_stage)


def stage(name: str, config_name: str = "tiny", overrides: Sequence[str] = ()) -> "run.Partial":
    """One stage; what it starts from must be done."""
    import nemo_run as run

    return run.Partial(launch, config_name=config_name, overrides=list(overrides), only=name)


def stages(config_name: str = "tiny", overrides: Sequence[str] = ()) -> "dict[str, run.Partial]":
    """A task for each stage of a config, in its order: tasks of one experiment, one after the other. Raises ConfigErrors."""
    from nemo_cascade.cascade.compose import compose_config
    from nemo_cascade.cascade.config import load_config

    order = load_config(compose_config(config_name, list(overrides)), planning=True).order
    return {name: stage(name, config_name, overrides) for name in order}


def script(config_name: str = "tiny", overrides: Sequence[str] = (), only: str | None = None) -> "run.Script":
    """The same as a command, for those who want to see it in the job: `python -m nemo_cascade run ...`."""
    import nemo_run as run

    words = ["run", f"--config-name={config_name}", *(["--only", only] if only else []), *overrides]
    return run.Script(path="nemo_cascade", m=True, entrypoint="python", args=words)


def slurm_executor(
    account: str,
    job_dir: str,
    *,
    nodes: int = 1,
    gpus_per_node: int = 8,
    partition: str | None = None,
    time: str = "04:00:00",
    image: str | None = None,
    mounts: Sequence[str] = (),
    retries: int = 100,
) -> "run.SlurmExecutor":
    """The job that launch/slurm.sh is, as far as nemo-run can say it (docs/nemo.md has what it cannot): one torchrun a node.

    job_dir: where nemo-run puts its scripts and logs, seen by all nodes. image: enroot's or a registry's, with the package in it.
    retries: how often a job that ended, for whatever reason, goes back to the queue.
    """
    import nemo_run as run

    return run.SlurmExecutor(
        account=account,
        partition=partition,
        nodes=nodes,
        ntasks_per_node=1,
        gpus_per_node=gpus_per_node,
        torchrun_nproc_per_node=gpus_per_node,
        time=time,
        mem="0",
        exclusive=True,
        open_mode="append",
        signal=SIGNAL,
        additional_parameters={"requeue": True},
        container_image=image,
        container_mounts=list(mounts),
        srun_args=[*SRUN, *(["--no-container-mount-home"] if image else [])],
        env_vars=dict(ENVIRONMENT),
        launcher="torchrun",
        retries=retries,
        # The image has the package.
        packager=run.Packager(),
        tunnel=run.LocalTunnel(job_dir=job_dir),
    )
