"""What `nemo-cascade status` shows beside the scores: what a run is doing, how fast, until when, and whether it lives.

Reads only files: the manifest, heartbeats, metrics and each stage's config. So it works from any machine that sees the run
directory. Imports no torch.
"""

import json
import socket
import time
from datetime import datetime
from pathlib import Path

import psutil
import yaml
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from nemo_cascade import heartbeat
from nemo_cascade.cascade import lock, report
from nemo_cascade.cascade.gate import STOP
from nemo_cascade.cascade.manifest import DONE, Manifest
from nemo_cascade.stages import interruption
from nemo_cascade.stages.metrics import MetricsLog

# A step's pace is the mean of so many.
STEPS = 10
SECONDS_BETWEEN_LOOKS = 2.0
VERDICTS = 3


def show(run_dir: Path, console: Console, watch: bool = False) -> None:
    """Prints the table and the lines; with watch again and again until the run is over. Raises ManifestError."""
    if not watch:
        manifest = Manifest.load(run_dir)
        report.print_scores(manifest, console)
        for line in lines(manifest, time.time()):
            console.print(line, markup=False, soft_wrap=True)
        return
    try:
        with Live(console=console, auto_refresh=False) as screen:
            while True:
                manifest, now = Manifest.load(run_dir), time.time()
                told = Text("\n".join(lines(manifest, now)))
                screen.update(Group(report.score_table(manifest), told), refresh=True)
                if not going_on(manifest, now):
                    return
                time.sleep(SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        pass


def lines(manifest: Manifest, now: float) -> list[str]:
    """The run in a few lines, at the time.time() `now`."""
    beats = heartbeat.read(manifest.run_dir)
    told = [state(manifest, beats, now)]
    # How long a stage trains is nothing to say of a run that was killed.
    if beats and going_on(manifest, now) and beats[0]["stage"] in manifest.stages:
        told += pace(manifest, beats[0])
    return [line for line in [*told, ranks(beats, now), *verdicts(manifest)] if line]


def going_on(manifest: Manifest, now: float) -> bool:
    """Whether there may be more to see."""
    beats = heartbeat.read(manifest.run_dir)
    if not beats:
        return _starting(manifest.run_dir, now) is not None
    return not beats[0]["over"] and any(beat is not None and heartbeat.alive(beat, now) for beat in beats)


def state(manifest: Manifest, beats: list[dict | None], now: float) -> str:
    """Where the run is, or what has become of it."""
    first = beats[0] if beats else None
    if first is not None and not first["over"] and going_on(manifest, now):
        step = f"step {first['step']}/{first['steps']}, " if first["step"] else ""
        still = f", still for {span(first['still_for'])}" if first["still_for"] > 10 * first["seconds"] else ""
        stage = f"stage {first['number']}/{first['stages']} {first['stage']}" if first["stage"] else "before the first stage"
        return f"{stage}: {step}{first['part']}{still}"
    if manifest.stages and all(record.status == DONE for record in manifest.stages.values()):
        return "all stages are done"
    note = _note(manifest.run_dir)
    if note is not None:
        return f"stopped {span(now - note['time'])} ago: {note['why']}"
    if first is None:
        return _starting(manifest.run_dir, now) or "no process has left a heartbeat here"
    record = manifest.stages.get(first["stage"])
    if first["over"] and record is not None and record.status == DONE:
        return _between_stages(manifest, first["stage"])
    what = "ended before all stages were done; what it wrote last says why" if first["over"] else "its processes are gone"
    return f"{heartbeat.words(first)}: {what}; the same command goes on"


def pace(manifest: Manifest, first: dict) -> list[str]:
    """Reward or loss, tokens a second, seconds a step and when the stage ends, from its last steps; nothing before there are two."""
    folder = manifest.directory(first["stage"])
    entries = MetricsLog(folder / "metrics.jsonl").read()[-STEPS - 1 :]
    if len(entries) < 2:
        return []
    last = entries[-1]
    told = [f"{name} {last[f'train/{name}']:.4g}" for name in ("reward", "loss") if last.get(f"train/{name}") is not None][:1]
    seconds = (last["time"] - entries[0]["time"]) / (len(entries) - 1)
    rate = tokens(entries[1:], folder / "config.yaml")
    told += [rate] if rate else []
    left = max(0, first["steps"] - last["step"])
    if seconds > 0:
        after = first["stages"] - first["number"]
        then = f", with {after} stage{'' if after == 1 else 's'} after it" if after > 0 else ""
        told += [f"{seconds:.3g} s/step", f"the stage trains for about {span(left * seconds)} more{then}"]
    return [", ".join(told)]


def tokens(entries: list[dict], config: Path) -> str:
    """ "1,234 tokens/s", trained ones for SFT and generated ones for RL, over these steps; "" where that is not logged."""
    seconds = sum(entry.get("timing/train/total_step_time") or 0.0 for entry in entries)
    if seconds <= 0:
        return ""
    if all("train/tokens" in entry for entry in entries):
        return f"{sum(entry['train/tokens'] for entry in entries) / seconds:,.0f} tokens/s"
    try:
        grpo = yaml.safe_load(config.read_text(encoding="utf-8"))["grpo"]
        replies = grpo["num_prompts_per_step"] * grpo["num_generations_per_prompt"]
        made = [
            e["train/mean_gen_tokens_per_sample"] * replies * e.get("train/dynamic_sampling_num_gen_batches", 1)
            for e in entries
        ]
    except (OSError, KeyError, TypeError):
        return ""
    return f"{sum(made) / seconds:,.0f} generated tokens/s"


def ranks(beats: list[dict | None], now: float) -> str:
    """How many processes live, and which do not; "" for a run that is over."""
    if not beats or beats[0]["over"]:
        return ""
    silent = [rank for rank, beat in enumerate(beats) if beat is None or not heartbeat.alive(beat, now)]
    newest = max(beat["time"] for beat in beats if beat is not None)
    told = f"{len(beats) - len(silent)} of {len(beats)} ranks alive, the last sign {span(now - newest)} ago"
    for rank in silent[:5]:
        beat = beats[rank]
        where = f" for {span(now - beat['time'])} (process {beat['pid']} on {beat['host']})" if beat else ""
        told += f"; rank {rank} gives no sign of life{where}"
    return told + (f"; and {len(silent) - 5} more" if len(silent) > 5 else "")


def verdicts(manifest: Manifest) -> list[str]:
    """The last gates' actions, with the rules that failed."""
    told = []
    for name, record in manifest.stages.items():
        if record.gate is not None:
            failed = ", ".join(f"{domain} ({rule})" for rule, domain in record.gate["failed"])
            told.append(f"gate of {name}: {record.gate['action']}{f', failed {failed}' if failed else ''}")
    return told[-VERDICTS:]


def span(seconds: float) -> str:
    """ "2 d 3 h", "3 h 12 min", "4 min 5 s" or "7 s"."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((place for place, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "0 s"


def _starting(run_dir: Path, now: float) -> str | None:
    """What there is to say of a run before its first stage, where nothing beats yet; None where there is no such run."""
    who = lock.holder(run_dir)
    if who is None or (who["host"] == socket.gethostname() and not psutil.pid_exists(who["pid"])):
        return None
    ago = span(now - datetime.fromisoformat(who["began"]).timestamp())
    return f"process {who['pid']} on {who['host']} began {ago} ago and is in no stage yet: rows are read and checked first"


def _between_stages(manifest: Manifest, last: str) -> str:
    """A run that ended after a stage, by its gate, or because no more was asked for, or for what it wrote last."""
    verdict = manifest.stages[last].gate
    left = ", ".join(name for name, record in manifest.stages.items() if record.status != DONE)
    why = f"stopped by the gate of {last}" if verdict is not None and verdict["action"] == STOP else f"ended after {last}"
    return f"{why}; not done: {left}"


def _note(run_dir: Path) -> dict | None:
    try:
        return json.loads((run_dir / interruption.FILE).read_text())
    except (OSError, ValueError):
        return None
