"""TensorBoard's event files of a stage, for those who watch many runs at once; `metrics.jsonl` holds the same."""

from pathlib import Path


class Board:
    """Scalars of one stage below `directory`. Raises ImportError when tensorboard is not installed."""

    def __init__(self, directory: Path, first_step: int | None = None):
        """first_step: what earlier files hold from this step on is not shown any more, because it is written again."""
        # Imported only where asked for: a second, and not a package that training needs.
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(directory), purge_step=first_step)

    def add(self, metrics: dict[str, float], step: int) -> None:
        """Every metric as a scalar, on disk when this returns."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()
