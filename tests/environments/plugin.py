"""An environment that another package brings, in files of its own: what its replies ask it to do, it does."""

from pathlib import Path

import pytest

from nemo_cascade import environments

MODULE = """
import os, time

EXAMPLES = [({}, "fine", 1.0), ({}, "bad", -1.0)]
REWARD_RANGE = (-1.0, 1.0)
TIME_LIMIT = 3.0

def verify(row, response):
    text = response["output"][0]["content"][0]["text"]
    if text == "hang":
        while True:
            time.sleep(1)
    if text == "raise":
        raise ValueError("what is this?")
    if text == "exit":
        os._exit(7)
    if text == "memory":
        return {"reward": float(len(bytearray(2**34)))}
    return {"reward": 1.0 if text.startswith("fine") else -1.0, "pid": os.getpid()}
"""


def write_plugin(folder: Path) -> None:
    """The package as it is installed."""
    info = folder / "obedient-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "obedient.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: obedient\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nemo_cascade.environments]\nobedient = obedient\n")


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Its name."""
    write_plugin(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    environments._third_party.cache_clear()
    yield "obedient"
    environments._third_party.cache_clear()
    environments.get.cache_clear()
