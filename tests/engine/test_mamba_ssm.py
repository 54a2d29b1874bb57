"""The modules of a package whose own __init__ cannot be imported."""

import importlib
import sys

import pytest

from nemo_cascade.engine.mamba_ssm import make_importable


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package like mamba-ssm, by its name."""
    folder = tmp_path / "like_mamba_ssm" / "ops"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("from json import a_class_that_is_gone\n")
    (folder / "__init__.py").touch()
    (folder / "scan.py").write_text("CHUNK = 128\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "like_mamba_ssm"
    for name in [name for name in sys.modules if name.startswith("like_mamba_ssm")]:
        del sys.modules[name]


def test_modules_of_a_package_that_cannot_be_imported_can(package):
    with pytest.raises(ImportError):
        importlib.import_module(f"{package}.ops.scan")
    make_importable(package)
    assert importlib.import_module(f"{package}.ops.scan").CHUNK == 128


def test_a_package_that_can_be_imported_is_as_it_was(package, tmp_path):
    (tmp_path / package / "__init__.py").write_text("VERSION = 2\n")
    importlib.invalidate_caches()
    make_importable(package)
    assert importlib.import_module(package).VERSION == 2


def test_one_that_is_not_installed_is_not_made_up():
    make_importable("like_mamba_ssm_not_installed")
    assert "like_mamba_ssm_not_installed" not in sys.modules
