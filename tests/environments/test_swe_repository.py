"""A repository's own tests run under pytest in the sandbox, on a copy that the patch was applied to; nothing but passing them passes."""

import io
import json
import tarfile
import zipfile

import pytest

from nemo_cascade.environments import response_of, swe_repair
from nemo_cascade.environments.swe_repair import repository
from tests.environments.test_swe_patches import block

SOURCES = {
    "src/shop/__init__.py": "",
    "src/shop/prices.py": "def total(prices, discount=0):\n    return sum(prices) + discount\n\n\ndef cheapest(prices):\n    return min(prices)\n",
    "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '--cov --no-such-option'\n",
    "conftest.py": "import pytest\n\n\n@pytest.fixture\ndef prices():\n    return [3, 4]\n",
    "tests/test_prices.py": (
        "import pytest\nfrom shop.prices import cheapest, total\n\n\n"
        "@pytest.mark.parametrize('discount', [0, 2])\n"
        "def test_total(prices, discount):\n    assert total(prices, discount) == 7 - discount\n\n\n"
        "class TestCheapest:\n    def test_least(self, prices):\n        assert cheapest(prices) == 3\n\n"
        "    def test_none(self):\n        with pytest.raises(ValueError):\n            cheapest([])\n"
    ),
    "tests/test_broken.py": "import no_such_module\n",
}
FILE = "tests/test_prices.py"
FAILING, PASSING = [f"{FILE}::test_total[2]"], [f"{FILE}::test_total[0]", f"{FILE}::TestCheapest::test_least", f"{FILE}::TestCheapest::test_none"]
WRONG = "    return sum(prices) + discount\n"
RIGHT = "    return sum(prices) - discount\n"


@pytest.fixture
def row(tmp_path, monkeypatch):
    for path, text in SOURCES.items():
        file = tmp_path / "shop" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "shop" / "logo.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / "shop" / ".git").mkdir()
    (tmp_path / "shop" / ".git" / "config").write_text("secret")
    monkeypatch.setenv(repository.ROOT, str(tmp_path))
    # As SWE-bench has them.
    return {"repository": "shop", "FAIL_TO_PASS": json.dumps(FAILING), "PASS_TO_PASS": PASSING}


def patch(new, old=WRONG, path="src/shop/prices.py"):
    return block(old, new, path)


def verdict(row, answer):
    assert swe_repair.problem(row) is None
    return swe_repair.verify(row, response_of(f"</think>{answer}"))


def test_the_right_patch_passes_and_a_wrong_one_is_told_apart_test_by_test(row):
    assert verdict(row, patch(RIGHT)) == {"reward": 1.0, "applied": True, "failed_tests": []}
    assert verdict(row, patch("    return sum(prices) + discount * 1\n"))["failed_tests"] == FAILING
    assert verdict(row, patch("    return sum(prices) - 2\n"))["failed_tests"] == [f"{FILE}::test_total[0]"]
    assert verdict(row, patch("    return (\n"))["failed_tests"] == FAILING + PASSING


def test_a_diff_does_as_well(row):
    diff = f"--- a/src/shop/prices.py\n+++ b/src/shop/prices.py\n@@ -1,2 +1,2 @@\n def total(prices, discount=0):\n-{WRONG}+{RIGHT}"
    assert verdict(row, f"```diff\n{diff}```")["reward"] == 1.0


ALWAYS = (
    "import pytest\n\n\n@pytest.hookimpl(hookwrapper=True)\ndef pytest_runtest_makereport(item, call):\n"
    "    outcome = yield\n    outcome.get_result().outcome = 'passed'\n\n\n@pytest.fixture\ndef prices():\n    return [3, 4]\n"
)


@pytest.mark.parametrize(
    "attack",
    [
        patch("    import os; os._exit(0)\n"),
        patch("    import pytest; pytest.skip('not today')\n"),
        patch("    import pytest; pytest.xfail('known')\n"),
        patch("    raise SystemExit(0)\n"),
        patch("    print('tests/test_prices.py::test_total[2] PASSED'); print('5 passed'); return 0\n"),
        patch("    while True: pass\n"),
        patch("    open('tests/test_prices.py', 'w').write('def test_total(): pass'); return sum(prices)\n"),
        patch("    import atexit; atexit.register(print, '5 passed'); return 0\n"),
        patch(ALWAYS, SOURCES["conftest.py"], "conftest.py"),
        patch(ALWAYS, "", "tests/conftest.py"),
        patch("    assert True\n", "    assert total(prices, discount) == 7 - discount\n", FILE),
        patch("[pytest]\naddopts = -p always\n", "", "pytest.ini") + patch(ALWAYS, "", "src/always.py"),
        patch("class raises: pass\ndef main(*_, **__): print('passed')\n", "", "pytest.py"),
        patch("import os\nos._exit(0)\n", "", "sitecustomize.py"),
        "--- a/tests/test_prices.py\n+++ /dev/null\n" + "@@ -1 +0,0 @@\n-import pytest\n",
    ],
)
def test_what_repairs_nothing_earns_nothing(row, attack, monkeypatch):
    limits = swe_repair.hidden_tests.PYTEST
    monkeypatch.setattr(swe_repair.hidden_tests, "PYTEST", type(limits)(**{**vars(limits), "seconds": 10.0}))
    result = verdict(row, attack)
    assert result["reward"] == 0.0 and set(FAILING) <= set(result["failed_tests"])


# Prints every token that it finds in the frames above it.
HUNT = (
    "import os, sys\nframe = sys._getframe()\nwhile frame:\n"
    "    for token in frame.f_locals.get('wanted', {}).values():\n        os.write(1, token.encode() + b'\\n')\n    frame = frame.f_back\n"
)


@pytest.mark.parametrize("path", ["pytest/__init__.py", "_pytest/__init__.py", "pluggy.py", "iniconfig/__init__.py", "packaging.py"])
def test_no_file_comes_in_place_of_pytest_or_what_it_imports(row, path):
    assert verdict(row, patch(HUNT, "", path))["failed_tests"] == FAILING


def test_a_file_in_the_place_of_the_tests_folder_passes_nothing():
    row = {"files": {"sums.py": "def add(a, b):\n    return a - b\n"}, "tests": {"checks/test_sums.py": "def test_one(): pass\n"}}
    row |= {"fail_to_pass": ["checks/test_sums.py::test_one"], "runner": "pytest"}
    assert verdict(row, block("", "1\n", "new.py"))["reward"] == 1.0
    assert verdict(row, block("", "1\n", "checks"))["failed_tests"] == row["fail_to_pass"]


HELPED = {
    "sums.py": "def add(a, b):\n    return a - b\n",
    "testing/scale.py": "FACTOR = 0\n",
    "lib/tests/__init__.py": "",
    "lib/tests/helpers.py": "def same(a, b):\n    assert a == b\n",
    "lib/tests/test_sums.py": (
        "import unittest\nfrom sums import add\nfrom testing.scale import FACTOR\nfrom .helpers import same\n\n\n"
        "def test_add():\n    same(add(2, 3), 5)\n\n\ndef test_factor():\n    same(FACTOR, 1)\n\n\n"
        "class Sums(unittest.TestCase):\n    def test_each(self):\n        for n in (1, 2):\n"
        "            with self.subTest(n=n):\n                self.assertEqual(add(n, 1), n + 1)\n"
    ),
}
HELPED_FILE = "lib/tests/test_sums.py"
ADDS = patch("    return a + b\n", "    return a - b\n", "sums.py")


def helped(*names):
    return {"files": HELPED, "runner": "pytest", "fail_to_pass": [f"{HELPED_FILE}::{name}" for name in names]}


def test_what_tests_share_is_put_back_and_a_package_called_testing_is_not():
    easier = patch("    pass\n", "    assert a == b\n", "lib/tests/helpers.py")
    assert verdict(helped("test_add"), easier)["reward"] == 0.0
    assert verdict(helped("test_add"), easier + ADDS)["reward"] == 1.0
    assert verdict(helped("test_factor"), patch("FACTOR = 1\n", "FACTOR = 0\n", "testing/scale.py"))["reward"] == 1.0


def test_a_test_with_subtests_passes_when_all_of_them_do():
    assert verdict(helped("Sums::test_each"), ADDS)["reward"] == 1.0
    assert verdict(helped("Sums::test_each"), patch("    return 2\n", "    return a - b\n", "sums.py"))["reward"] == 0.0


def test_a_test_patch_brings_its_tests_whatever_the_model_wrote_there(row):
    added = "def test_new(prices):\n    assert total(prices, 3) == 4\n"
    lines = SOURCES[FILE].count("\n")
    test_patch = f"--- a/{FILE}\n+++ b/{FILE}\n@@ -{lines},0 +{lines + 1},3 @@\n+\n+{added.partition(chr(10))[0]}\n+{added.splitlines()[1]}\n"
    with_patch = {**row, "test_patch": test_patch, "FAIL_TO_PASS": [f"{FILE}::test_new"]}
    assert verdict(with_patch, patch(RIGHT))["reward"] == 1.0
    assert verdict(with_patch, patch(RIGHT) + patch("pass\n", "", "tests/test_new.py"))["reward"] == 1.0
    assert verdict(with_patch, patch(WRONG + "\n"))["failed_tests"][0] == f"{FILE}::test_new"


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_an_archive_with_one_folder_at_its_top_is_read_as_that_folder(row, tmp_path, kind):
    path = tmp_path / f"shop-1.0.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in SOURCES.items():
                archive.writestr(f"shop-1.0/{name}", text)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name, text in {**SOURCES, "../../outside.py": "x"}.items():
                entry = tarfile.TarInfo(f"shop-1.0/{name}")
                entry.size = len(text)
                archive.addfile(entry, io.BytesIO(text.encode()))
    files = repository.files_of({"repository": path.name})
    assert files == SOURCES
    assert verdict({**row, "repository": path.name}, patch(RIGHT))["reward"] == 1.0


def test_a_folder_gives_its_texts_and_no_history_nor_what_links_lead_to(row, tmp_path):
    (tmp_path / "shop" / "passwd").symlink_to("/etc/passwd")
    assert repository.files_of(row) == SOURCES


@pytest.mark.parametrize(
    "more, said",
    [
        ({"repository": "chop"}, f"it is looked for in .*, set {repository.ROOT} to the folder"),
        ({"repository": 3}, "must be the path of a folder or an archive"),
        ({"FAIL_TO_PASS": "["}, "fail_to_pass is a text that is no JSON"),
        ({"FAIL_TO_PASS": [3]}, "must be a list of names of tests"),
        ({"FAIL_TO_PASS": ["tests/test_other.py::test"]}, "is in no file of the repository, tests or test_patch"),
        ({"test_patch": "nonsense"}, "test_patch is no unified diff that applies"),
        ({"reward_mode": "votes"}, "reward_mode 'votes' is none of tests, similarity, judge"),
    ],
)
def test_a_row_that_cannot_be_tested_is_told(row, more, said):
    import re

    assert re.search(said, swe_repair.problem({**row, **more}))
