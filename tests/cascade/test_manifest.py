"""The manifest is either the old one or the new one, whatever happens while it is written."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from nemo_cascade.cascade.manifest import DONE, FILE, RUNNING, Manifest, ManifestError


def filled(run_dir) -> Manifest:
    manifest = Manifest(run_dir)
    first, second = manifest.add("sft"), manifest.add("if_rl")
    first.status, first.checkpoint, first.checkpoint_hash = DONE, "01-sft/step_2", "ab"
    first.scores = {"math": {"mean": 0.25, "n": 300}}
    first.seconds = 12.5
    second.status, second.parent, second.teachers = RUNNING, "sft", {"math": "sft"}
    return manifest


def test_what_is_saved_is_loaded(tmp_path):
    manifest = filled(tmp_path)
    manifest.redo = "if_rl"
    manifest.save()
    assert Manifest.load(tmp_path) == manifest


def test_no_manifest_is_an_empty_one(tmp_path):
    assert Manifest.load(tmp_path / "new") == Manifest(tmp_path / "new")


def test_stage_folders_are_numbered_and_keep_their_number(tmp_path):
    manifest = filled(tmp_path)
    manifest.add("later")
    manifest.reset("sft")
    manifest.add("sft")
    assert [record.directory for record in manifest.stages.values()] == ["01-sft", "02-if_rl", "03-later"]
    assert manifest.stages["sft"].status == "pending" and manifest.checkpoint("sft") is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": 2}', '{"format": 2, "redo": null, "stages": {"a": {"x": 1}}}', '{"format": 1}'],
)
def test_a_broken_manifest_is_named(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ManifestError, match=FILE):
        Manifest.load(tmp_path)


WRITER = """
import sys
from pathlib import Path
from nemo_cascade.cascade.manifest import Manifest
manifest = Manifest(Path(sys.argv[1]))
for number in range(1_000_000):
    manifest.stages.clear()
    for stage in range(number % 50 + 1):
        manifest.add(f"stage_{stage}").checkpoint_hash = "x" * 1000
    manifest.save()
    if number == 0:
        print("written", flush=True)
"""


def test_a_kill_while_writing_leaves_a_whole_manifest(tmp_path):
    for moment in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "written\n"
        time.sleep(0.003 * moment)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        document = json.loads((tmp_path / FILE).read_text())
        assert len(Manifest.load(tmp_path).stages) == len(document["stages"]) > 0


def test_a_failing_write_leaves_the_old_manifest(tmp_path):
    manifest = filled(tmp_path)
    manifest.save()
    before = (tmp_path / FILE).read_bytes()
    manifest.stages["sft"].scores = {"math": {"mean": object()}}
    with pytest.raises(TypeError):
        manifest.save()
    assert (tmp_path / FILE).read_bytes() == before
