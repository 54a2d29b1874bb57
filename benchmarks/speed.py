"""How fast is it? Training, decoding and a GRPO step, beside transformers' NemotronHForCausalLM and TRL's GRPOTrainer.

    pip install -e '.[bench]'
    python benchmarks/speed.py --repeats 5
    python benchmarks/speed.py --only decode grpo

Both sides get the same weights of the `tiny` preset, the same texts and all cores, as one process of many threads and
as two processes that share the cores (data parallel); the better of the two counts. All wait in memory and take steps
in turn, so that noise hits them alike. A ratio compares the fastest steps; where other programs take part of the
machine, that of CPU seconds (all threads of all processes) says more. No test looks at what this prints.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
import traceback
from pathlib import Path

from rich.console import Console
from rich.table import Table

BAR = 1.5
LAYOUTS = (1, 2)  # processes
ROWS = ("training", "decode", "grpo")
SIDES = ("ours", "theirs")
# The demo's sizes: documents and prompts of these lengths, two packs a step of SFT, replies of so many tokens.
DOMAINS = ("instruction_following", "math", "mcqa", "structured_outputs", "preference", "code_gen", "swe_repair")
DOCUMENT, PROMPT = range(30, 121), range(20, 61)
PACKS, PACK_TOKENS = 2, 1280
DECODE_BATCH, NEW_TOKENS = 256, 48
GRPO_PROMPTS, GROUP = 8, 8
LEARNING_RATE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workers = Workers("ours", "prepare", 1, Path(folder))
        _, work = workers.step()
        workers.stop()
        for row in args.only:
            show(row, measure(row, args.repeats, Path(folder)), work[row])


def measure(row: str, repeats: int, folder: Path) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """(side, processes) -> (seconds, CPU seconds) of every repeat; AssertionError when the sides' losses differ."""
    workers = {}
    try:
        for processes in LAYOUTS:
            for side in SIDES:
                workers[side, processes] = Workers(side, row, processes, folder)
        # The first step is not counted: it fills caches and allocates the optimizer's state.
        losses = {key: worker.step()[1] for key, worker in workers.items()}
        if row == "training":
            assert max(losses.values()) - min(losses.values()) < 1e-3, f"not the same is measured: losses {losses}"
        times: dict = {key: [] for key in workers}
        for _ in range(repeats):
            for key, worker in workers.items():
                times[key].append(worker.step()[0])
        return times
    finally:
        for worker in workers.values():
            worker.stop()


class Workers:
    """The processes of one side of one row. They wait until told to take a step."""

    def __init__(self, side: str, row: str, processes: int, folder: Path):
        spawn = multiprocessing.get_context("spawn")
        port = free_port()
        self.name, self.pipes, self.processes = f"{side}, {row}, {processes} processes", [], []
        for rank in range(processes):
            mine, other = spawn.Pipe()
            process = spawn.Process(target=serve, args=(other, side, row, rank, processes, port, folder), daemon=True)
            process.start()
            self.pipes.append(mine)
            self.processes.append(process)

    def step(self):
        """((seconds of the slowest rank, CPU seconds of all), rank 0's answer); RuntimeError if a rank failed."""
        for pipe in self.pipes:
            pipe.send("step")
        answers = [pipe.recv() for pipe in self.pipes]
        for answer in answers:
            if isinstance(answer, str):
                raise RuntimeError(f"{self.name}: {answer}")
        (seconds, cpu), answer = zip(*(spent for spent, _ in answers)), answers[0][1]
        return (max(seconds), sum(cpu)), answer

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def serve(pipe, side: str, row: str, rank: int, processes: int, port: int, folder: Path) -> None:
    """A worker: builds the row's step and takes it whenever the pipe says so."""
    # Threads that spin while they wait would count as CPU time, and take it from what runs beside.
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    os.environ.update(OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY="PASSIVE")
    os.environ.update(TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1")
    if processes > 1:
        world = dict(WORLD_SIZE=processes, LOCAL_WORLD_SIZE=processes, RANK=rank, LOCAL_RANK=rank)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), **{key: str(n) for key, n in world.items()})
    try:
        step = getattr(importlib.import_module(f"speed_{side}"), row)(folder)
        while True:
            pipe.recv()
            pipe.send(step())
    except EOFError:
        pass
    except BaseException:
        pipe.send(traceback.format_exc())


def clock() -> tuple[float, float]:
    """(seconds, CPU seconds of all threads of this process)."""
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float]) -> tuple[float, float]:
    return tuple(now - then for now, then in zip(clock(), started))


def reward(text: str) -> float:
    """The share of letters in a reply, which untrained weights earn differently."""
    return sum(character.isalpha() for character in text) / max(len(text), 1)


def read(folder: Path) -> dict:
    """The workload: documents, prompts, texts of GRPO's prompts."""
    return json.loads((folder / "workload.json").read_text())


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def show(row: str, times: dict, tokens: int) -> None:
    """One row: every side and layout, then the ratio of the best."""
    table = Table("side", "processes", "fastest s", "median s", "slowest s", "CPU s", "tokens/s", title=row)
    for (side, processes), measured in times.items():
        seconds = [wall for wall, _ in measured]
        shown = (min(seconds), statistics.median(seconds), max(seconds), min(cpu for _, cpu in measured))
        table.add_row(side, str(processes), *(f"{value:.2f}" for value in shown), f"{tokens / min(seconds):,.0f}")

    def ratio(kind: int, repeats: slice = slice(None)) -> float:
        best = {side: min(m[kind] for n in LAYOUTS for m in times[side, n][repeats]) for side in SIDES}
        return best["theirs"] / best["ours"]

    each = [ratio(0, slice(i, i + 1)) for i in range(len(times["ours", 1]))]
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{row}: ours is {ratio(0):.2f} times as fast (repeats {min(each):.2f} to {max(each):.2f}; by CPU seconds "
        f"{ratio(1):.2f}); bar {BAR}: {'holds' if ratio(0) >= BAR else 'missed'}\n"
    )


if __name__ == "__main__":
    main()
