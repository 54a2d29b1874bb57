"""`metrics.jsonl`: one JSON object a line, {"step", "time", metrics...}; appended to, and cut back when a stage
resumes.

A line is one `write`, so a kill leaves at most one broken line at the end, which readers drop. Nothing is aggregated
here.
"""

import json
import math
import time
from pathlib import Path

from nemo_cascade.data.files import write_atomically


class MetricsLog:
    """The metrics file of one stage; it need not exist yet."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def append(self, metrics: dict[str, float], step: int) -> None:
        """Adds a line; `time` is Unix time in seconds, a value that is not finite becomes null."""
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = json.dumps({"step": step, "time": round(time.time(), 3), **values})
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read(self) -> list[dict]:
        """All complete lines, in order; empty when there is no file."""
        if not self.path.exists():
            return []
        *lines, _broken_or_empty = self.path.read_text(encoding="utf-8").split("\n")
        entries = []
        for number, line in enumerate(lines, start=1):
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{self.path}, line {number}: not JSON ({error}); remove this line") from error
        return entries

    def rewind(self, step: int) -> None:
        """Drops every line after `step` and a broken last one, atomically."""
        if not self.path.exists():
            return
        kept = [entry for entry in self.read() if entry["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))


def train_metrics(metrics: dict[str, float], seconds: dict[str, float]) -> dict[str, float]:
    """One step's metrics under NeMo RL's names: `train/...` and, from a stopwatch, `timing/train/...`."""
    named = {f"train/{name}": value for name, value in metrics.items()}
    return named | {f"timing/train/{part}": round(value, 4) for part, value in seconds.items()}
