"""How often a judge behind an endpoint prefers what is known to be better: measured before anything is trained with it."""

import json
from pathlib import Path

from nemo_cascade.cascade.config import JudgeConfig
from nemo_cascade.data.files import write_atomically
from nemo_cascade.data.rows import load_rows, messages_of
from nemo_cascade.environments import genrm, response_of
from nemo_cascade.environments.endpoint import Endpoint, Said
from nemo_cascade.environments.genrm_compare import readable

FILE = "judge.json"


def measure(judge: JudgeConfig, run_dir: Path) -> dict[str, float]:
    """{"agreement", "pairs", "unreadable"} over the rows of `agreement`; `judge.json` in the run's folder keeps it.

    Raises DataError for a file that cannot be used, EndpointError for an endpoint that refuses.
    """
    rows, _ = load_rows(
        judge.agreement, "rl", environments=["genrm"], unverifiable=lambda rows: [genrm.problem(row) for row in rows]
    )
    endpoint = Endpoint(judge.endpoint, run_dir / "judge_answers.sqlite")
    said = endpoint.ask([messages_of(row) for row in rows], usable=readable)
    verdicts = [genrm.verify(row, response_of(one.text if isinstance(one, Said) else "", thinking=False)) for row, one in zip(rows, said)]
    found = {
        "agreement": sum(verdict["agrees"] for verdict in verdicts) / len(verdicts),
        "pairs": len(verdicts),
        "unreadable": sum(not verdict["readable"] for verdict in verdicts),
    }
    write_atomically(run_dir / FILE, json.dumps({"model": judge.endpoint.model, **found}) + "\n")
    return found
