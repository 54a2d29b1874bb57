"""Many runs of every kind leave nothing behind: no process, open file, mount or memory, neither here nor in the servers."""

import gc
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from nemo_cascade.sandbox import Call, Limits, Program, Sandbox

MIXED = [
    (Program("python", "print(sum(map(int, input().split())))", stdin="1 2"), None),
    (Program("python", "1 / 0"), None),
    (Program("python", "def f(x): return [x] * 100", call=Call("f", ((1, 2),))), None),
    (Program("python", "x = [bytes(10**6) for _ in range(30)]", files={f"{n}/f": "x" * 1000 for n in range(20)}), None),
    (Program("python", "import os\nfor n in range(5):\n    if os.fork() == 0: os.setsid(); os.pause() if hasattr(os, 'pause') else __import__('signal').pause()"), None),
    (Program("python", "for n in range(200): open(f'f{n}', 'w').write('x' * 1000)"), None),
    (Program("shell", "sleep 1000 & for i in 1 2 3; do echo $i | cat; done"), None),
    (Program("cpp", "#include <cstdio>\nint main() { int a; return scanf(\"%d\", &a) + a; }", stdin="4"), None),
    (Program("cpp", "int main() { return x; }"), None),
    (Program("python", "while True: pass"), "seconds"),
    (Program("python", "while True: print('x' * 1000)"), "output"),
]  # fmt: skip


def state(sandbox) -> dict[str, int]:
    """What could grow, here and in the servers."""
    servers = [child for worker in sandbox._workers for child in psutil.Process(worker.process.pid).children(recursive=True)]
    return {
        "processes": len(servers),
        "files here": len(os.listdir("/proc/self/fd")),
        "files in servers": sum(len(os.listdir(f"/proc/{server.pid}/fd")) for server in servers),
        "mounts here": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "mounts in servers": sum(len(Path(f"/proc/{server.pid}/mountinfo").read_text().splitlines()) for server in servers),
        "memory here": psutil.Process().memory_info().rss,
        "memory in servers": sum(server.memory_info().rss for server in servers),
        "threads here": psutil.Process().num_threads(),
    }


@pytest.mark.parametrize("runs", [300, pytest.param(3_000, marks=pytest.mark.slow)])
def test_nothing_is_left(runs):
    rng = random.Random(runs)
    # Ends by time and by output are rare, because they take as long as their limit.
    weights = [0.2 if limit == "seconds" else 4 for _, limit in MIXED]
    limits = Limits(seconds=0.5)
    wrong = []

    def one(_):
        program, limit = rng.choices(MIXED, weights)[0]
        result = sandbox.run(program, Limits(seconds=60.0) if limit != "seconds" else limits)
        if result.limit != limit:
            wrong.append((program, result))

    with Sandbox(workers=2) as sandbox, ThreadPoolExecutor(3) as pool:
        # What is made once is not a leak.
        list(pool.map(one, range(60)))
        gc.collect()
        before = state(sandbox)
        list(pool.map(one, range(runs)))
        gc.collect()
        after = state(sandbox)
    assert wrong == []
    memory = {key for key in before if key.startswith("memory")}
    assert {key: after[key] for key in before if key not in memory} == {key: before[key] for key in before if key not in memory}
    for key in memory:
        # No more than an allocator's moods; a page a run would be 40 MB after 10,000.
        assert after[key] - before[key] < 16 * 2**20, (key, before, after)
