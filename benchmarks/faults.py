"""Does a cascade survive kill -9 anywhere? `smoke`, killed again and again, beside the same run left alone.

    python benchmarks/faults.py --kills 40 --out runs/faults [--seed 0] [override ...]

A run is started, killed at a random moment and started again, several times in its life, until it ends; then the next run begins,
until so many kills were dealt. A kill takes one rank (torchrun ends the others) or every process at once. Of the moments 4 in 10 are
while a checkpoint is being written or an older one removed, 1 in 10 while the processes start, the rest anywhere in a stage. After
each kill the manifest must be readable, and every checkpoint that it names or that bears a final name must be whole; at the end no
temporary file may be left and every stage's weights must be those of the run left alone, bit for bit.

Prints a line a kill, writes faults.json; exits with 1 when something did not hold.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from nemo_cascade.cascade.manifest import DONE, Manifest
from nemo_cascade.engine import checkpoint, seal

ROOT = Path(__file__).parents[1]
PROCESSES = 2
# A checkpoint after every step, two kept: much is written and removed.
OFTEN = ("checkpointing.save_period=1", "checkpointing.keep_top_k=2")
SAVING, STARTING, TRAINING = "saving", "starting", "training"
# Only so that a run that hangs ends.
TIMEOUT = 3600


@dataclass
class Moment:
    """When to kill: so long after a start; or after the stage of that number, or a later one, was seen to begin or go on, or to save
    then; and whether every process at once."""

    number: int
    place: str
    delay: float
    everyone: bool


@dataclass
class Kill:
    """What a kill met. life: the number of the run. seconds: since its last start. statuses: of its stages. writing: whether a
    checkpoint was being written or removed. wrong: what did not hold, in words."""

    moment: Moment
    life: int
    seconds: float
    statuses: list[str]
    writing: bool
    wrong: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-life", type=int, default=10, help="kills that one run is dealt at most")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    wrong = survive(args.out, args.kills, args.seed, args.per_life, args.overrides)
    print("\n".join(wrong) if wrong else "every run went on to bit-identical weights")
    raise SystemExit(int(bool(wrong)))


def survive(out: Path, kills: int, seed: int, per_life: int, overrides: Sequence[str] = ()) -> list[str]:
    """Everything that did not hold, in words. `faults.json` in `out` has every kill."""
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    whole = out / "undisturbed"
    wrong = [] if start(whole, overrides).wait(TIMEOUT) == 0 else [f"{whole}: ended in error; see {log_of(whole)}"]
    expected = hashes(whole)
    rng, dealt, lives = random.Random(seed), [], 0
    while len(dealt) < kills and not wrong:
        run_dir = out / f"killed_{(lives := lives + 1)}"
        moments = draw(rng, len(expected), min(per_life, kills - len(dealt)))
        for kill in live(run_dir, moments, lives, rng, overrides):
            dealt.append(kill)
            wrong += kill.wrong
            print(f"{len(dealt):3d}  run {kill.life}  {told(kill)}", flush=True)
        wrong += at_the_end(run_dir, expected)
    document = {"seconds": time.monotonic() - began, "runs": lives, "wrong": wrong, "kills": [asdict(kill) for kill in dealt]}
    (out / "faults.json").write_text(json.dumps(document, indent=1) + "\n")
    return wrong


def draw(rng: random.Random, stages: int, count: int) -> list[Moment]:
    """Moments all over the life of a run of so many stages, in their order."""
    moments = []
    for number in sorted(rng.randint(1, stages) for _ in range(count)):
        place = rng.choices((SAVING, STARTING, TRAINING), weights=(4, 1, 5))[0]
        # A write takes some tenths of a second, the start and a stage some seconds.
        longest = {SAVING: 0.4, STARTING: 12.0, TRAINING: 5.0}[place]
        moments.append(Moment(number, place, rng.uniform(0, longest), rng.random() < 0.5))
    return moments


def live(run_dir: Path, moments: list[Moment], life: int, rng: random.Random, overrides: Sequence[str]) -> Iterator[Kill]:
    """One run from its beginning to its end, killed at the moments that come before it."""
    said, process, started = length_of_log(run_dir), start(run_dir, overrides), time.monotonic()
    for moment in moments:
        if not wait_for(run_dir, process, moment, said):
            break
        writing = any(run_dir.glob("*/tmp_*step_*"))
        kill(process, everyone=moment.everyone, rng=rng)
        statuses = [record.status for record in Manifest.load(run_dir).stages.values()]
        yield Kill(moment, life, time.monotonic() - started, statuses, writing, damage(run_dir))
        said, process, started = length_of_log(run_dir), start(run_dir, overrides), time.monotonic()
    if process.wait(TIMEOUT) != 0:
        raise SystemExit(f"{run_dir}: ended in error; see {log_of(run_dir)}")


def wait_for(run_dir: Path, process: subprocess.Popen, moment: Moment, said: int) -> bool:
    """Waits until the moment has come; False when the run ended before. said: bytes of the log before its last start."""
    deadline, seen = time.monotonic() + TIMEOUT, None
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        seen = time.monotonic() if seen is None and has_come(run_dir, moment, said) else seen
        if seen is not None and time.monotonic() - seen >= moment.delay:
            return True
        time.sleep(0.01)
    raise SystemExit(f"{run_dir}: nothing came to an end in {TIMEOUT} s; see {log_of(run_dir)}")


def has_come(run_dir: Path, moment: Moment, said: int) -> bool:
    """Whether what the moment's delay counts from is seen."""
    if moment.place == STARTING:
        return True
    # The manifest would name the stage that runs also while it is still starting again.
    begun = re.findall(rb"^stage (\d+)/", log_of(run_dir).read_bytes()[said:], re.MULTILINE)
    there = any(int(number) >= moment.number for number in begun)
    return there and (moment.place == TRAINING or any(run_dir.glob("*/tmp_*step_*")))


def kill(process: subprocess.Popen, everyone: bool, rng: random.Random) -> None:
    """SIGKILL for one rank or for all processes of a run; returns when none of them is left."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    ranks = family[0].children()  # torchrun has no others
    for member in family if everyone or not ranks else [rng.choice(ranks)]:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            pass
    process.wait(TIMEOUT)
    _, alive = psutil.wait_procs(family, timeout=60)
    if alive:
        raise SystemExit(f"after the kill these went on for a minute: {alive}")


def damage(run_dir: Path) -> list[str]:
    """What is half-written under a final name, or named by the manifest and not there."""
    wrong = []
    manifest = Manifest.load(run_dir)  # raises ManifestError for half of one
    for name, record in manifest.stages.items():
        there = [f"step_{step}" for step in checkpoint.steps(manifest.directory(name))]
        named = manifest.checkpoint(name)
        if named is not None and named.name not in there:
            wrong.append(f"{named}: the manifest names it and it is not there")
        for step in there:
            try:
                seal.check(manifest.directory(name) / step)
            except seal.Damaged as error:
                wrong.append(str(error))
    return wrong


def at_the_end(run_dir: Path, expected: dict[str, str]) -> list[str]:
    """What is wrong with a run that came to its end."""
    wrong = damage(run_dir) + [f"{path}: left over" for path in run_dir.rglob("tmp_*")]
    wrong += [f"{path}: a checkpoint was found damaged" for path in run_dir.rglob("damaged_*")]
    found = hashes(run_dir)
    return wrong + [f"{run_dir}: {name} ended with other weights" for name in expected if found.get(name) != expected[name]]


def hashes(run_dir: Path) -> dict[str, str]:
    """Stage -> hash of its final weights."""
    return {name: record.checkpoint_hash for name, record in Manifest.load(run_dir).stages.items()}


def told(kill: Kill) -> str:
    """One line on a kill."""
    whom = "all processes" if kill.moment.everyone else "one rank"
    met = "while writing a checkpoint" if kill.writing else f"{kill.statuses.count(DONE)} stages done"
    return f"{whom}, {kill.moment.place} at stage {kill.moment.number}, {kill.seconds:.1f} s after the start, {met}: " + (
        "; ".join(kill.wrong) or "whole"
    )


def start(run_dir: Path, overrides: Sequence[str]) -> subprocess.Popen:
    """The run's command, the same every time."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={PROCESSES}", "--rdzv-backend=c10d"),
        *("--rdzv-endpoint=localhost:0", str(ROOT / "examples" / "cascade.py"), "--config-name=smoke"),
        *(f"cascade.run_dir={run_dir}", *OFTEN, *overrides),
    ]
    with open(log_of(run_dir), "a") as log:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


def length_of_log(run_dir: Path) -> int:
    """Bytes of what was printed so far."""
    return log_of(run_dir).stat().st_size if log_of(run_dir).exists() else 0


def log_of(run_dir: Path) -> Path:
    """What a run prints, all its lives."""
    return run_dir.with_suffix(".log")


if __name__ == "__main__":
    main()
