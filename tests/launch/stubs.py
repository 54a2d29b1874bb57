"""Commands of a cluster as scripts that write down how they were called, a JSON object a line in $CALLS."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

NOTE = f"""#!{sys.executable} -S
import json, os, sys
def note(**more):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(dict(program=os.path.basename(sys.argv[0]), arguments=sys.argv[1:], **more)) + "\\n")
"""
# What a real one does for the script: names of hosts one a line; anything else is only written down.
SCONTROL = """
note()
if sys.argv[1:3] == ["show", "hostnames"]:
    print("\\n".join(os.environ["NODES"].split(",")))
"""
# Runs the command once a node, as Slurm does with --ntasks-per-node=1; its own flags begin with dashes. USR1 goes to every node.
SRUN = """
import signal, subprocess
note()
words = sys.argv[1:]
command = words[next(n for n, word in enumerate(words) if not word.startswith("-")):]
tasks = []
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
for n, node in enumerate(os.environ["NODES"].split(",")):
    own = {"SLURM_NODEID": str(n), "SLURM_PROCID": str(n), "SLURMD_NODENAME": node}
    tasks.append(subprocess.Popen(command, env={**os.environ, **own}))
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
TORCHRUN = """
note(node=os.environ.get("SLURMD_NODENAME"), environment={k: v for k, v in os.environ.items() if k.startswith(("TORCH", "CUDA", "OMP"))})
if os.environ.get("LEAVES_NOTE"):
    open(os.environ["LEAVES_NOTE"], "w").write(json.dumps({"why": "SIGTERM", "by": os.getpid()}))
sys.exit(int(os.environ.get("TORCHRUN_CODE", "0")))
"""
DOCKER = """
note()
"""
# Waits for SIGTERM, as a torchrun with its processes, leaves the note that a run leaves and ends with 1. SIGUSR1 would kill it.
WAITING_TORCHRUN = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
note(node=os.environ.get("SLURMD_NODENAME"), parent=os.getppid())
signal.sigwait({signal.SIGTERM})
open(os.environ["LEAVES_NOTE"], "w").write(str(os.getpid()))
note(node=os.environ.get("SLURMD_NODENAME"), heard="SIGTERM")
sys.exit(1)
"""


class Cluster:
    """A folder of stubs that comes first on PATH. Its host names are `nodes`."""

    def __init__(self, folder: Path, nodes: str = "n1,n2", **scripts: str):
        self.folder, self.bin, self.calls = folder, folder / "bin", folder / "calls"
        self.bin.mkdir(parents=True)
        for name, body in {"scontrol": SCONTROL, "srun": SRUN, "torchrun": TORCHRUN, "docker": DOCKER, **scripts}.items():
            file = self.bin / name
            file.write_text(NOTE + body)
            file.chmod(file.stat().st_mode | stat.S_IXUSR)
        slurm = dict(SLURM_JOB_ID="4711", SLURM_JOB_NODELIST="n[1-2]", SLURM_NNODES=str(len(nodes.split(","))), SLURM_GPUS_ON_NODE="8")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "NEMO_CASCADE", "NCCL", "OMP", "TORCH", "CUDA"))},
            **slurm,
            "NODES": nodes,
            "CALLS": str(self.calls),
            "PATH": f"{self.bin}:{os.environ['PATH']}",
        }

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
        command = ["bash", str(ROOT / "launch" / script), *arguments]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        return subprocess.Popen(command, cwd=self.folder, env={**self.environment, **environment}, start_new_session=True, **pipes)

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(script, *arguments, **environment)
        try:
            out, err = process.communicate(timeout=120)
        finally:
            end(process)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def called(self, program: str) -> list[dict]:
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [call for call in map(json.loads, lines) if call["program"] == program]


def end(process: subprocess.Popen) -> None:
    """Whatever of its session is left; it leads one."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def until(condition) -> None:
    ends = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)
