"""How far a stage is: a bar where there is a terminal, otherwise a line now and then so that log files stay short."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Context manager around a loop of `total` steps of which `done` are behind; `silent` shows nothing."""

    def __init__(
        self, total: int, description: str, done: int = 0, silent: bool = False, console: Console | None = None
    ):
        self.total, self.description, self.done, self.silent = total, description, done, silent
        self.console = console or Console()
        self.bar: Bar | None = None

    def __enter__(self) -> "Progress":
        self.started = self.last_line = time.monotonic()
        self.before = self.done
        if self.console.is_terminal and not self.silent:
            self.bar = Bar(
                TextColumn("{task.description:<16}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[shown]}"),
                console=self.console,
            )
            self.bar.start()
            self.task = self.bar.add_task(self.description, total=self.total, completed=self.done, shown="")
        return self

    def __exit__(self, *_exception) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, **shown: float) -> None:
        """Counts one step; `shown` are numbers to print beside it."""
        self.done += 1
        if self.silent:
            return
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if self.bar is not None:
            self.bar.update(self.task, advance=1, shown=text)
            return
        now = time.monotonic()
        if self.done == self.total or now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            pace = (now - self.started) / (self.done - self.before)
            self.console.print(
                f"{self.description}  {self.done}/{self.total}  {text}  {pace:.2f} s/step",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
