"""launch/node.sh: how docker is called, and what runs in the container."""

import signal
import subprocess

import pytest

from tests.launch.stubs import WAITING_TORCHRUN, Cluster, end, until

ARGUMENTS = ["--config-name=node", "cascade.stages.sft.data.train={mine: {data_path: my rows.jsonl}}"]


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def flags(cluster) -> list[str]:
    (call,) = cluster.called("docker")
    return call["arguments"]


def pairs(words: list[str], flag: str) -> list[str]:
    return [words[n + 1] for n, word in enumerate(words) if word == flag]


def test_the_container_gets_the_gpus_shared_memory_and_folders_and_nccl_s_settings(cluster):
    secret = dict(NEMO_CASCADE_SANDBOX_TOKEN="s3cret", NCCL_DEBUG="WARN")
    done = cluster.run("node.sh", *ARGUMENTS, IMAGE="nemo-cascade", MOUNTS="/models /data", **secret)
    assert (done.returncode, done.stderr) == (0, "")
    words, here = flags(cluster), cluster.folder
    assert words[:2] == ["run", "--rm"] and {"--ipc=host", "--network=host"} <= set(words)
    assert pairs(words, "--gpus") == ["all"] and pairs(words, "--ulimit") == ["memlock=-1", "stack=67108864"]
    assert pairs(words, "--volume") == [f"{here}:{here}", "/models:/models", "/data:/data"] and pairs(words, "--workdir") == [str(here)]
    assert pairs(words, "--security-opt") == ["seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined"]
    environment = pairs(words, "--env")
    assert {"NEMO_CASCADE_SANDBOX_TOKEN", "NCCL_DEBUG", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=900"} <= set(environment)
    assert not any("s3cret" in word for word in words)
    assert pairs(words, "--stop-timeout") == ["960"] and "--tty" not in words
    image = words.index("nemo-cascade")
    assert words[image + 1 : image + 3] == ["bash", "-c"] and words[image + 4 :] == ["on_node", *ARGUMENTS]


def test_with_a_sandbox_elsewhere_docker_s_own_restrictions_stay(cluster):
    done = cluster.run("node.sh", *ARGUMENTS, IMAGE="i", GPUS="4", NEMO_CASCADE_SANDBOX_URL="http://one:8700")
    assert done.returncode == 0
    assert "--security-opt" not in flags(cluster) and pairs(flags(cluster), "--gpus") == ["4"]
    assert "NEMO_CASCADE_SANDBOX_URL" in pairs(flags(cluster), "--env")


def test_without_an_image_it_is_said_what_to_name(cluster):
    done = cluster.run("node.sh", *ARGUMENTS)
    assert done.returncode != 0 and "name the image, as in IMAGE=nemo-cascade" in done.stderr and not cluster.calls.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_in_the_container_one_torchrun_a_node_hears_of_a_signal_as_sigterm(tmp_path, number):
    cluster = Cluster(tmp_path, torchrun=WAITING_TORCHRUN)
    assert cluster.run("node.sh", *ARGUMENTS, IMAGE="i").returncode == 0
    words = flags(cluster)
    inside = words[words.index("i") + 1 :]
    own = {**cluster.environment, "LEAVES_NOTE": str(tmp_path / "note")}
    process = subprocess.Popen(inside, env=own, start_new_session=True)
    try:
        until(lambda: len(cluster.called("torchrun")) == 1)
        process.send_signal(number)
        assert process.wait(60) == 1
    finally:
        end(process)
    first, second = cluster.called("torchrun")
    assert first["arguments"] == ["--standalone", "--nproc-per-node=gpu", "-m", "nemo_cascade", "run", *ARGUMENTS]
    assert second["heard"] == "SIGTERM"
