"""How fast is it? Training, decoding and a GRPO step, beside transformers' NemotronHForCausalLM and TRL's GRPOTrainer.

    pip install -e '.[bench]'
    python benchmarks/speed.py --repeats 5 --out speed.json
    python benchmarks/speed.py --only decode grpo

Both sides get the same weights, of the `tiny` preset or of a network of 20 million parameters, the same texts and all
cores, as one process of many threads and as two processes that share the cores (data parallel); the better of the two
counts. All wait in memory and take steps in turn, so that noise hits them alike. A ratio compares the fastest steps;
where other programs take part of the machine, that of CPU seconds (all threads of all processes) says more.

`decode_tail` decodes replies of very different lengths, which are drawn and which neither side knows beforehand: `generate`
goes on until the longest has ended. Only tokens of replies count. With `--vllm PYTHON`, the interpreter of an environment that has vLLM (`make
test-vllm` makes one), it decodes beside them, an engine a process.

The first step is that of a policy that is built, in a process that has imported everything and has its documents in
memory: packing, forward and backward pass, the optimizer with the making of its state, and all caches' filling. The
start of the process and the building of model and optimizer are not in it. Later steps do not count it.

A training step's share of the machine is the operations that it needs (`speed_flops`), padding and recomputation not
counted, a second, over the cores times what one thread reaches in a square float32 matrix product, measured in turn
with the steps. No test looks at what this prints.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path

from rich.console import Console
from rich.table import Table

LAYOUTS = (1, 2)  # processes
# Name: the function of either side, whose weights, and how many times as fast ours is to be.
ROWS = {
    "training": ("training", "tiny", 2.5),
    "training_20m": ("training", "20m", 2.0),
    "decode": ("decode", "tiny", 1.5),
    "decode_tail": ("decode_tail", "tiny", 2.0),
    "grpo": ("grpo", "tiny", 2.5),
}
SIDES = ("ours", "theirs")
VLLM = "vllm"  # a third side, of what it can be asked for
BY_VLLM = ("decode", "decode_tail")
FIRST_STEP_BAR = 5.0  # seconds
MATRIX = 1024  # the square product's size: 12 MB, most of which stay in a CPU's caches
# The demo's sizes: documents and prompts of these lengths, two packs a step of SFT, replies of so many tokens.
DOMAINS = ("instruction_following", "math", "mcqa", "structured_outputs", "preference", "code_gen", "swe_repair")
DOCUMENT, PROMPT = range(30, 121), range(20, 61)
PACKS, PACK_TOKENS = 2, 1280
DECODE_BATCH, NEW_TOKENS = 256, 48
TAIL = range(16, 513)  # replies of decode_tail, drawn
GRPO_PROMPTS, GROUP = 8, 8
LEARNING_RATE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=[*ROWS])
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--vllm", help="the python of an environment that has vLLM, to have it decode, too")
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as root:
        for row in args.only:
            function, preset, _ = ROWS[row]
            folder = Path(root) / preset
            if not folder.exists():
                folder.mkdir()
                workers = Workers("ours", "prepare", 1, folder)
                work = workers.step()[1]
                (folder / "work.json").write_text(json.dumps(work))
                workers.stop()
            work = json.loads((folder / "work.json").read_text())[function]
            found[row] = figures(row, measure(function, args.repeats, folder, args.vllm), work)
            show(row, found[row])
            if args.out:
                args.out.write_text(json.dumps(found, indent=1))


def measure(function: str, repeats: int, folder: Path, vllm: str | None = None) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """(side, processes) -> (seconds, CPU seconds) of the first step and then of every repeat; ("rate", 1) is one
    thread's matrix product. AssertionError when the sides' losses differ."""
    workers = {}
    sides = {side: sys.executable for side in SIDES} | ({VLLM: vllm} if vllm and function in BY_VLLM else {})
    try:
        for processes in LAYOUTS:
            for side, python in sides.items():
                workers[side, processes] = Workers(side, function, processes, folder, python)
        workers["rate", 1] = Workers("ours", "rate", 1, folder)
        # Or one's first step would be measured while others are being built.
        for worker in workers.values():
            worker.wait()
        firsts = {key: worker.step() for key, worker in workers.items()}
        if function == "training":
            losses = {key: loss for key, (_, loss) in firsts.items() if key[0] in SIDES}
            assert max(losses.values()) - min(losses.values()) < 1e-3, f"not the same is measured: losses {losses}"
        times = {key: [spent] for key, (spent, _) in firsts.items()}
        for _ in range(repeats):
            for key, worker in workers.items():
                times[key].append(worker.step()[0])
        return times
    finally:
        for worker in workers.values():
            worker.stop()


class Workers:
    """The processes of one side of one row. They wait until told to take a step."""

    def __init__(self, side: str, row: str, processes: int, folder: Path, python: str = sys.executable):
        spawn = multiprocessing.get_context("spawn")
        spawn.set_executable(python)
        port = free_port()
        self.name, self.pipes, self.processes, self.built = f"{side}, {row}, {processes} processes", [], [], False
        for rank in range(processes):
            mine, other = spawn.Pipe()
            process = spawn.Process(target=serve, args=(other, side, row, rank, processes, port, folder), daemon=True)
            process.start()
            self.pipes.append(mine)
            self.processes.append(process)

    def wait(self) -> list:
        """What every rank sends next, at first that it is built; RuntimeError if one failed."""
        answers = [pipe.recv() for pipe in self.pipes]
        for answer in answers:
            if isinstance(answer, str):
                raise RuntimeError(f"{self.name}: {answer}")
        self.built = True
        return answers

    def step(self):
        """((seconds of the slowest rank, CPU seconds of all), rank 0's answer); RuntimeError if a rank failed."""
        if not self.built:
            self.wait()
        for pipe in self.pipes:
            pipe.send("step")
        answers = self.wait()
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
        pipe.send(None)
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
    """The workload: documents, prompts, how long decode_tail's replies to these become, texts of GRPO's prompts."""
    return json.loads((folder / "workload.json").read_text())


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def figures(row: str, times: dict, work: dict) -> dict:
    """Everything about a row as JSON has it; `work` is a step's tokens and, of training, floating-point operations."""
    first, later = ({key: spent[part] for key, spent in times.items()} for part in (0, slice(1, None)))

    def ratio(kind: int, repeats: slice = slice(None)) -> float:
        best = {side: min(m[kind] for n in LAYOUTS for m in later[side, n][repeats]) for side in SIDES}
        return best["theirs"] / best["ours"]

    rate = 2 * MATRIX**3 / min(seconds for seconds, _ in times["rate", 1])
    cores = len(os.sched_getaffinity(0))
    sides = []
    for side, processes in ((side, n) for n in LAYOUTS for side in (*SIDES, VLLM) if (side, n) in later):
        seconds = [wall for wall, _ in later[side, processes]]
        about = {
            "side": side,
            "processes": processes,
            "first_step_seconds": first[side, processes][0],
            "seconds": seconds,
            "cpu_seconds": [cpu for _, cpu in later[side, processes]],
            "tokens_per_second": work["tokens"] / min(seconds),
        }
        if "flops" in work:
            about["share_of_matrix_product_rate"] = work["flops"] / min(seconds) / (rate * cores)
        sides.append(about)
    found = {
        **work,
        "cores": cores,
        "matrix_product_flops_per_second_of_a_thread": rate,
        "sides": sides,
        "ratio": ratio(0),
        "ratio_of_each_repeat": [ratio(0, slice(i, i + 1)) for i in range(len(later["ours", 1]))],
        "ratio_by_cpu_seconds": ratio(1),
        "bar": ROWS[row][2],
    }
    if "flops" in work:
        found["first_step_bar_seconds"] = FIRST_STEP_BAR
    return found


def show(row: str, found: dict) -> None:
    """One row: every side and layout, then the ratio of the best, and each bar beside its figure."""
    columns = ("side", "processes", "first s", "fastest s", "median s", "slowest s", "CPU s", "tokens/s", "of matmuls")
    table = Table(*columns, title=row)
    for about in found["sides"]:
        seconds = about["seconds"]
        shown = (about["first_step_seconds"], min(seconds), statistics.median(seconds), max(seconds))
        share = about.get("share_of_matrix_product_rate")
        table.add_row(
            about["side"],
            str(about["processes"]),
            *(f"{value:.2f}" for value in (*shown, min(about["cpu_seconds"]))),
            f"{about['tokens_per_second']:,.0f}",
            "" if share is None else f"{share:.1%}",
        )
    each, bar = found["ratio_of_each_repeat"], found["bar"]
    console = Console(width=120)
    console.print(table)
    console.print(
        f"{row}: ours is {found['ratio']:.2f} times as fast (repeats {min(each):.2f} to {max(each):.2f}; by CPU "
        f"seconds {found['ratio_by_cpu_seconds']:.2f}); bar {bar}: {'holds' if found['ratio'] >= bar else 'missed'}"
    )
    if "flops" in found:
        first = max(about["first_step_seconds"] for about in found["sides"] if about["side"] == "ours")
        verdict = "holds" if first <= FIRST_STEP_BAR else "missed"
        console.print(
            f"our first step takes {first:.2f} s; bar {FIRST_STEP_BAR}: {verdict}\n"
            f"a step needs {found['flops'] / 1e9:.1f} GFLOP; one thread reaches "
            f"{found['matrix_product_flops_per_second_of_a_thread'] / 1e9:.1f} GFLOP/s in matrix products of {MATRIX}, "
            f"times {found['cores']} cores"
        )
    console.print()


if __name__ == "__main__":
    main()
