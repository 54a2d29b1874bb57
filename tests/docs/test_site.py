"""The site builds without a warning, which is every link and anchor that holds, and has every public name and every key."""

import html
import importlib
import inspect
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs" / "hooks"))

import config_keys  # noqa: E402
import public_api  # noqa: E402
import stage_tables  # noqa: E402

from nemo_cascade.cascade.compose import compose_config  # noqa: E402
from nemo_cascade.cascade.config import _File  # noqa: E402
from nemo_cascade.cascade.strict import flatten, to_plain  # noqa: E402
from nemo_cascade.scaling.config import ScaleConfig  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built; skipped where mkdocs is not (make test-site)."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def documented(site) -> set[str]:
    """The names that the site's inventory has."""
    data = (site / "objects.inv").read_bytes().split(b"\n", 4)[-1]
    return {line.split(" ", 1)[0] for line in zlib.decompress(data).decode().splitlines()}


def public(module) -> set[str]:
    """A module's public names, as the interpreter sees them."""
    own = {name for name, value in vars(module).items() if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__}
    return set(getattr(module, "__all__", own))


def test_every_page_of_docs_is_in_the_navigation_and_built(site):
    for page in (ROOT / "docs").rglob("*.md"):
        built = page.relative_to(ROOT / "docs").with_suffix("")
        assert (site / (built.parent if built.name == "index" else built) / "index.html").is_file(), page


@pytest.mark.parametrize("name", public_api.MODULES)
def test_the_api_has_every_public_name_of_a_module(documented, name):
    assert public(importlib.import_module(name)) <= {entry.removeprefix(f"{name}.") for entry in documented}


def test_the_api_has_what_documents_import(documented):
    imported = set()
    for page in PAGES:
        for module, names in re.findall(r"^\s*from (nemo_cascade[\w.]*) import ([\w, ]+)", page.read_text(), re.MULTILINE):
            imported |= {f"{module}.{name.split(' as ')[0].strip()}" for name in names.split(",")}
    assert imported and {name for name in imported if name not in documented} == set()


@pytest.mark.parametrize("name", public_api.MODULES)
def test_what_is_public_has_a_docstring(name):
    module, missing = importlib.import_module(name), []
    for public_name in public_api.public_names(name):
        value = getattr(module, public_name)
        if not inspect.isclass(value) and not inspect.isfunction(value):
            continue
        members = vars(value).items() if inspect.isclass(value) and value.__module__ == name else ()
        shown = [(f"{public_name}.{member}", entry) for member, entry in members if not member.startswith("_")]
        for path, entry in [(public_name, value), *shown]:
            if (inspect.isclass(entry) or inspect.isfunction(entry) or isinstance(entry, property)) and not entry.__doc__:
                missing.append(path)
    assert missing == []


def test_the_configuration_has_every_key_with_its_default(site):
    text = (site / "configuration" / "index.html").read_text()
    rows = dict(re.findall(r'<tr>\s*<td><code id="([^"]+)">(.*?)</tr>', text, re.DOTALL))
    of_scale = {key for key in all_keys(ScaleConfig) if key.path.split(".")[0] != "policy"}  # those are a stage's
    shown = of_scale | {key for key in all_keys(_File) if not of_resolved_stage(key)}
    missing = {key.path for key in shown if html.escape(key.default, quote=False) not in rows.get(key.path.replace("<name>", "NAME"), "")}
    assert missing == set()


def of_resolved_stage(key: config_keys.Key) -> bool:
    """Whether it is a stage's copy of a block of the top level, or nothing that a file says."""
    block = key.path.removeprefix("cascade.stages.<name>.").split(".")[0]
    return key.path.startswith("cascade.stages.<name>.") and (hasattr(_File(), block) or block in ("name", "judge", "judge_endpoint"))


def all_keys(kind: type) -> list[config_keys.Key]:
    """Those of a dataclass and of all inside it."""
    return [key for block in config_keys.blocks(kind) for key in block.keys]


@pytest.mark.parametrize("kind", [_File, ScaleConfig])
def test_every_key_has_a_meaning(kind):
    assert [key.path for key in all_keys(kind) if not key.meaning] == []


@pytest.mark.parametrize("config", sorted(path.stem for path in (ROOT / "conf").glob("*.yaml")))
def test_every_key_that_a_shipped_config_sets_is_one_of_them(config):
    patterns = [re.escape(key.path).replace("<name>", "[^.]+") + r"(\.|$)" for key in all_keys(_File)]
    paths = flatten(to_plain(compose_config(config), "", []))
    assert [path for path in paths if not any(re.match(pattern, path) for pattern in patterns)] == []


def test_links_to_elsewhere_are_whole_addresses():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if ":" in target:
                assert re.fullmatch(r"https://[\w.-]+\.\w+(/[^\s]*)?", target), f"{page}: {target}"


def test_links_in_pages_lead_to_files_on_github_too():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if ":" not in target and not target.startswith("#"):
                assert (page.parent / target.split("#")[0]).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", sorted(stage_tables.FOLDER.glob("*.md")), ids=lambda page: page.stem)
def test_a_stages_settings_are_those_of_the_configs(page):
    text = page.read_text()
    assert stage_tables.renewed(text) == text, "python docs/hooks/stage_tables.py writes it anew"
    assert page.stem == "index" or f"<!-- settings: {page.stem} -->\n\n| key |" in text


def test_every_stage_of_full_has_a_page():
    pages = {page.stem for page in stage_tables.FOLDER.glob("*.md")}
    assert set(compose_config("full").cascade.order) - {"preference_rl"} == pages - {"index"}
