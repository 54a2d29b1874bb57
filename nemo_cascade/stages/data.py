"""The files of a stage's `data` block, read and checked: one `Domain` a name. All ranks read them together."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from nemo_cascade import environments, heartbeat
from nemo_cascade.data.rows import environment_of, load_rows
from nemo_cascade.engine import parallel
from nemo_cascade.stages.config import DataConfig, EnvConfig


@dataclass
class Domain:
    """Rows of one domain with their line numbers in its file, and its weight in the mixture."""

    name: str
    path: Path
    rows: list[dict]
    numbers: list[int]
    share: float

    def first(self, count: int) -> "Domain":
        """The same with its first `count` rows."""
        return dataclasses.replace(self, rows=self.rows[:count], numbers=self.numbers[:count])


def load_domains(config: DataConfig, split: str, kind: str, env: EnvConfig = EnvConfig()) -> dict[str, Domain]:
    """Domains of `data.train` or `data.validation`; raises DataError naming file and row for what cannot be used, and
    SandboxUnavailable for rows whose replies are programs where no program can be run.

    Whether rows can be verified takes longest (schemas are checked), so the ranks, which all call this, share it. What
    a server of NeMo Gym verifies is left to it.
    """
    served = env.nemo_gym.servers

    def problem(row: dict) -> str | None:
        heartbeat.beat()
        name = environment_of(row)
        if name in served:
            return None
        if environments.needs_judge(row) and name not in env.judges:
            return f"a judge has to be asked about replies to it; name one under env.judges.{name} (base_url, model)"
        return environments.row_problem(row)

    domains = {}
    for name, dataset in getattr(config, split).items():
        rows, reading = load_rows(
            dataset.data_path,
            kind=kind,
            on_bad_row=config.on_bad_row,
            environments={*environments.names(), *served},
            unverifiable=lambda rows: parallel.share_out(lambda mine: [problem(row) for row in mine], rows),
        )
        if kind == "rl":
            rows = [row if environment_of(row) in served else environments.repaired(row) for row in rows]
        domains[name] = Domain(name, Path(dataset.data_path), rows, reading.numbers, dataset.share)
    return domains

