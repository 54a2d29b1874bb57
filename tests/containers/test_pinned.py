"""containers/pinned.py notes what an image has, and tells what is another afterwards."""

import json

import pytest

from tests.containers.stubs import install

import pinned  # isort: skip - found by what stubs.py adds to sys.path


@pytest.fixture
def image(tmp_path, monkeypatch):
    """A folder that is searched alone, with an image's torch, Transformer Engine, and a megatron-core that has no metadata."""
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    for module in [name for name in pinned.sys.modules if name.split(".")[0] in ("torch", "megatron", "transformer_engine", "triton")]:
        monkeypatch.delitem(pinned.sys.modules, module)
    install(tmp_path, "torch", "2.11.0")
    install(tmp_path, "transformer_engine", "2.14.1")
    install(tmp_path, "megatron-core", "0.17.0", module="megatron.core", metadata=False)
    install(tmp_path, "transformers", "4.57.0")
    yield tmp_path
    # Looking for megatron.core imports the package that it is in.
    pinned.sys.modules.pop("megatron", None)


def test_nothing_happened_and_additions_are_no_difference(image):
    before = pinned.record()
    assert before["distributions"] == {"torch": "2.11.0", "transformer-engine": "2.14.1", "transformers": "4.57.0"}
    assert set(before["modules"]) == {"torch", "transformer_engine", "megatron.core"}
    install(image, "nemo-cascade", "0.1.0")
    (image / "torch" / "__pycache__").mkdir()
    (image / "torch" / "__pycache__" / "__init__.cpython-312.pyc").write_text("")
    assert pinned.differences(before, pinned.record(), set()) == []


def test_another_version_a_lost_package_and_changed_files_are_told(image):
    before = json.loads(json.dumps(pinned.record()))
    (image / "transformers-4.57.0.dist-info").rename(image / "transformers-5.0.0.dist-info")
    (image / "transformers-5.0.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.0.0\n")
    (image / "megatron" / "core" / "__init__.py").write_text("__version__ = '0.19.0'\n")
    (image / "transformer_engine" / "__init__.py").unlink()
    (image / "transformer_engine").rmdir()
    lines = pinned.differences(before, pinned.record(), set())
    assert lines[0] == "transformers 4.57.0 was here; now it is 5.0.0"
    assert lines[1].startswith("transformer_engine was at ") and lines[1].endswith("now it cannot be found")
    assert lines[2].startswith("megatron.core at ") and lines[2].endswith("its files changed (1 before, 1 now)")
    assert len(lines) == 3
    assert len(pinned.differences(before, pinned.record(), {"transformers"})) == 2


def test_a_second_copy_that_hides_the_image_s_is_told_also_of_the_same_version(image, tmp_path, monkeypatch):
    before = pinned.record()
    other = tmp_path / "other"
    install(other, "torch", "2.11.0")
    monkeypatch.setattr("sys.path", [str(other), str(image)])
    (line,) = pinned.differences(before, pinned.record(), set())
    assert line == f"torch was at {image}/torch/__init__.py; now {other}/torch/__init__.py comes before it"


def test_torch_may_never_change(image):
    before = pinned.record()
    (image / "torch-2.11.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n")
    assert pinned.differences(before, pinned.record(), {"torch"}) == ["torch 2.11.0 was here; now it is 2.13.0"]
