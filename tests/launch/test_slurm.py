"""launch/slurm.sh: what is started on which node, and when the job comes back to the queue."""

import json
import os
import signal
import socket

import pytest

from tests.launch.stubs import ROOT, WAITING_TORCHRUN, Cluster, end, until

ARGUMENTS = ["--config-name=full", "cascade.stages.sft.data.train={mine: {data_path: my rows.jsonl}}"]


def asked(cluster, *more):
    return [*ARGUMENTS, f"cascade.run_dir={cluster.folder}/run", *more]


@pytest.fixture
def cluster(tmp_path):
    (tmp_path / "run").mkdir()
    return Cluster(tmp_path)


def test_each_node_gets_one_torchrun_that_meets_the_others_at_the_first(cluster):
    done = cluster.run("slurm.sh", *asked(cluster))
    assert (done.returncode, done.stderr) == (0, "")
    started = sorted(cluster.called("torchrun"), key=lambda call: call["node"])
    assert [call["node"] for call in started] == ["n1", "n2"]
    for call, host in zip(started, ("true", "false"), strict=True):
        assert call["arguments"] == [
            "--nnodes=2",
            "--nproc-per-node=8",
            f"--local-addr={call['node']}",
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=n1:24711",
            f"--rdzv-conf=is_host={host},join_timeout=1800",
            "--rdzv-id=4711-0",
            "-m",
            "nemo_cascade",
            "run",
            *asked(cluster),  # a word with spaces in it came through whole
        ]
        assert call["environment"] == {
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",
            "OMP_NUM_THREADS": "1",
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "840",
        }
    (step,) = cluster.called("srun")
    assert step["arguments"][:3] == ["--kill-on-bad-exit=0", "--cpu-bind=none", "bash"]
    assert [call["arguments"] for call in cluster.called("scontrol")] == [["show", "hostnames", "n[1-2]"]]


def test_a_container_has_the_folder_the_mounts_and_nothing_of_the_user_s_home(cluster):
    assert cluster.run("slurm.sh", *asked(cluster), IMAGE="/i/cascade.sqsh", MOUNTS="/lustre:/lustre,/data:/data:ro").returncode == 0
    (step,) = cluster.called("srun")
    here = cluster.folder
    assert step["arguments"][2:6] == [
        "--container-image=/i/cascade.sqsh",
        f"--container-mounts={here}:{here},/lustre:/lustre,/data:/data:ro",
        f"--container-workdir={here}",
        "--no-container-mount-home",
    ]


def test_a_restarted_job_meets_anew_and_what_is_set_outside_wins(cluster):
    own = dict(SLURM_RESTART_COUNT="3", MASTER_PORT="1234", TORCH_ELASTIC_SHUTDOWN_TIMEOUT="60", OMP_NUM_THREADS="8")
    assert cluster.run("slurm.sh", *asked(cluster), **own).returncode == 0
    (call, _) = cluster.called("torchrun")
    assert {"--rdzv-id=4711-3", "--rdzv-endpoint=n1:1234"} <= set(call["arguments"])
    assert call["environment"]["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "60" and call["environment"]["OMP_NUM_THREADS"] == "8"


@pytest.mark.parametrize(
    ("code", "leaves", "was_there", "requeued", "ends"),
    [
        ("0", False, False, False, 0),  # done
        ("1", True, False, True, 75),  # it saved because it was asked to; torchrun says 1 whatever its processes said
        ("1", True, True, True, 75),  # the same in a job that came back
        ("1", False, True, False, 1),  # the note is of an earlier job, this one never began: no circle
        ("1", False, False, False, 1),  # an error
        ("75", False, False, True, 75),  # the processes' own code
        ("70", False, False, False, 70),  # hung
    ],
)
def test_a_job_comes_back_exactly_when_its_run_stopped_to_go_on(cluster, code, leaves, was_there, requeued, ends):
    note = cluster.folder / "run" / "interrupted.json"
    if was_there:
        note.write_text('{"why": "SIGUSR1", "by": 0}')
    own = dict(TORCHRUN_CODE=code, **({"LEAVES_NOTE": str(note)} if leaves else {}))
    done = cluster.run("slurm.sh", *asked(cluster), **own)
    again = [call["arguments"] for call in cluster.called("scontrol") if call["arguments"][0] == "requeue"]
    assert (again, done.returncode) == ([["requeue", "4711"]] if requeued else [], ends), done.stderr
    assert ("does not come back by itself" in done.stderr) == (not requeued and ends != 0)


@pytest.mark.parametrize("by_slurm", [False, True], ids=["time limit", "cancelled"])
def test_the_time_limit_s_signal_reaches_every_node_and_only_then_the_job_asks_to_come_back(tmp_path, by_slurm):
    (tmp_path / "run").mkdir()
    cluster = Cluster(tmp_path, torchrun=WAITING_TORCHRUN)
    process = cluster.start("slurm.sh", *asked(cluster), LEAVES_NOTE=str(tmp_path / "run" / "interrupted.json"))
    try:
        until(lambda: len(cluster.called("torchrun")) == 2)
        if by_slurm:  # to the script and to what it started on the nodes
            for pid in (process.pid, *(call["parent"] for call in cluster.called("torchrun"))):
                os.kill(pid, signal.SIGTERM)
        else:
            process.send_signal(signal.SIGUSR1)
        out, err = process.communicate(timeout=60)
    finally:
        end(process)
    heard = {call["node"] for call in cluster.called("torchrun") if "heard" in call}
    again = [call["arguments"] for call in cluster.called("scontrol") if call["arguments"][0] == "requeue"]
    assert (heard, process.returncode) == ({"n1", "n2"}, 75), err
    assert again == ([] if by_slurm else [["requeue", "4711"]])
    assert ("because Slurm ended the job" in out) == by_slurm


def test_a_run_without_a_folder_is_refused_before_anything_is_started(cluster):
    done = cluster.run("slurm.sh", *ARGUMENTS)
    assert done.returncode == 2 and "say cascade.run_dir=..." in done.stderr
    assert not cluster.calls.exists()
    assert "is this started by sbatch?" in cluster.run("slurm.sh", *asked(cluster), NODES="").stderr
    assert not cluster.called("srun")


def test_the_job_asks_slurm_for_what_the_script_relies_on():
    lines = {line.removeprefix("#SBATCH ") for line in (ROOT / "launch" / "slurm.sh").read_text().splitlines() if line.startswith("#SBATCH")}
    assert {"--ntasks-per-node=1", "--requeue", "--open-mode=append", "--signal=B:USR1@900"} <= lines


# A worker in the package's place: says which rank it is, and on SIGTERM does what a run does.
WORKER = """
import json, os, signal, sys
from pathlib import Path
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
run = Path(sys.argv[-1].removeprefix("cascade.run_dir="))
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "MASTER_ADDR", "SLURMD_NODENAME")
(run / f"rank_{os.environ['RANK']}.tmp").write_text(json.dumps({name: os.environ[name] for name in names}))
(run / f"rank_{os.environ['RANK']}.tmp").rename(run / f"rank_{os.environ['RANK']}.json")
signal.sigwait({signal.SIGTERM})
if os.environ["RANK"] == "0":
    (run / "interrupted.json").write_text("{}")
sys.exit(75)
"""


@pytest.mark.slow
def test_real_torchruns_meet_and_their_processes_hear_of_the_time_limit(tmp_path):
    run = tmp_path / "run"
    for folder in (run, tmp_path / "package" / "nemo_cascade"):
        folder.mkdir(parents=True)
    (tmp_path / "package" / "nemo_cascade" / "__init__.py").touch()
    (tmp_path / "package" / "nemo_cascade" / "__main__.py").write_text(WORKER)
    real = "note()\nos.execv(sys.executable, [sys.executable, '-m', 'torch.distributed.run', *sys.argv[1:]])\n"
    cluster = Cluster(tmp_path, "localhost,127.0.0.1", torchrun=real)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = dict(MASTER_PORT=str(free.getsockname()[1]), SLURM_GPUS_ON_NODE="2", PYTHONPATH=str(tmp_path / "package"))
    process = cluster.start("slurm.sh", *asked(cluster), **own)
    try:
        until(lambda: len(list(run.glob("rank_*.json"))) == 4)
        ranks = [json.loads((run / f"rank_{rank}.json").read_text()) for rank in range(4)]
        process.send_signal(signal.SIGUSR1)
        out, err = process.communicate(timeout=240)
    finally:
        end(process)
    assert {rank["WORLD_SIZE"] for rank in ranks} == {"4"}
    assert [rank["LOCAL_RANK"] for rank in ranks] == ["0", "1", "0", "1"]
    assert len({rank["SLURMD_NODENAME"] for rank in ranks}) == 2
    # The name by which Slurm knows the first node, whatever that calls itself.
    assert {rank["MASTER_ADDR"] for rank in ranks} == {ranks[0]["SLURMD_NODENAME"]}
    assert process.returncode == 75 and "back to the queue" in out, err
    assert [call["arguments"] for call in cluster.called("scontrol")][-1] == ["requeue", "4711"]
