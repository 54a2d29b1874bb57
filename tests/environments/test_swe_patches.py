"""Patches in replies apply where their lines stand, or not at all."""

import difflib
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_cascade.environments.swe_repair.patches import LONGEST, Change, apply, read


def block(search, replace, path="a.py"):
    return f"{path}\n<<<<<<< SEARCH\n{search}=======\n{replace}>>>>>>> REPLACE\n"


def in_blocks(answer):
    return [(change.path, *("".join(f"{line}\n" for line in lines) for lines in (change.old, change.new))) for change in read(answer)]


def after(files, blocks):
    return apply(files, [Change(path, path, *(tuple(text.split("\n")[:-1]) for text in texts)) for path, *texts in blocks])


def test_blocks_are_read_with_and_without_fences_and_tags():
    wanted = [("a.py", "x\n", "y\n"), ("sub/b.py", "\n", "")]
    both = block("x\n", "y\n") + block("\n", "", "sub/b.py")
    assert in_blocks(both) == wanted
    assert in_blocks(f"So:\n```diff\n### {both}```") == wanted
    assert in_blocks(block("draft\n", "draft\n") + f"<solution>\n```\n{both}```\n</solution> done") == wanted


@pytest.mark.parametrize("cut", ["=======\n", ">>>>>>> REPLACE\n", "a.py\n"])
def test_a_block_that_cannot_be_read_spoils_the_patch(cut):
    good, bad = block("x\n", "y\n", "b.py"), block("x\n", "y\n").replace(cut, "")
    assert in_blocks(good + "\n" + bad) == [] and in_blocks(bad + good) == []


def test_a_patch_applies_where_its_lines_occur_exactly_once():
    files = {"a.py": "x = 1\ny = 2\nx = 1\nz = 3"}
    assert after(files, [("a.py", "y = 2\nx = 1\n", "y = 4\n")]) == {"a.py": "x = 1\ny = 4\nz = 3"}
    assert after(files, [("a.py", "y = 2\n", "")]) == {"a.py": "x = 1\nx = 1\nz = 3"}
    assert after(files, [("a.py", "y = 2\n", "w\n"), ("a.py", "x = 1\nw\n", "v\n")]) == {"a.py": "v\nx = 1\nz = 3"}
    assert files == {"a.py": "x = 1\ny = 2\nx = 1\nz = 3"}


@pytest.mark.parametrize(
    "path, search",
    [("a.py", "x = 1\n"), ("a.py", "= 2\n"), ("a.py", ""), ("b.py", "y = 2\n"), ("../b.py", "\n"), ("a.py", "q\n")],
    ids="twice part-of-a-line nothing other-file outside nowhere".split(),
)
def test_a_patch_that_does_not_apply_is_none(path, search):
    assert after({"a.py": "x = 1\ny = 2\nx = 1\n"}, [("a.py", "y = 2\n", "y = 3\n"), (path, search, "z\n")]) is None


def test_overlapping_places_are_two_places():
    assert after({"a.py": "a\na\na\n"}, [("a.py", "a\na\n", "b\n")]) is None


def test_a_block_that_searches_for_nothing_makes_a_new_file():
    assert after({"a.py": "x\n"}, [("sub/b.py", "", "y\n")]) == {"a.py": "x\n", "sub/b.py": "y\n"}


LINES = st.lists(st.sampled_from(["a", "b", "", "    c", "+d", "-e", " f", "@@ g", "\\\\ h", "diff --git i"]), max_size=12)


def text_of(lines, ends):
    return "\n".join(lines) + ("\n" if ends and lines else "")


def gits(before, after):
    """A diff of one file as git writes it."""
    lines = []
    for line in difflib.unified_diff(before.splitlines(True), after.splitlines(True), "a/x.py", "b/x.py", n=1):
        lines.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return "".join(lines)


@given(LINES, LINES, st.booleans(), st.booleans())
def test_the_diff_of_two_texts_makes_one_of_the_other(one, other, ends, others_end):
    before, after = text_of(one, ends), text_of(other, others_end)
    if before != after and before:
        assert apply({"x.py": before}, read(f"```diff\n{gits(before, after)}```")) == {"x.py": after}


DIFF = "--- a/x.py\n+++ b/x.py\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n"
FILES = {"x.py": "a\nb\nc\nd\n"}
PATCHED = {"x.py": "a\nB\nc\nd\n"}


@pytest.mark.parametrize(
    "answer",
    [
        DIFF,
        f"Here:\n{DIFF}",
        f"Here:\n```diff\n{DIFF}```\nThat is all.",
        f"<solution>\n```patch\n{DIFF}```\n</solution>",
        f"diff --git a/x.py b/x.py\nindex 12..34 100644\n{DIFF}",
        DIFF.replace("a/", "").replace("b/", ""),
    ],
    ids="bare words fenced tagged git without-prefixes".split(),
)
def test_a_diff_is_read_however_it_is_wrapped(answer):
    assert apply(FILES, read(answer)) == PATCHED


@pytest.mark.parametrize(
    "wrong",
    [
        DIFF.replace("-1,3", "-1,4"),
        DIFF.replace("+1,3", "+1,2"),
        DIFF.replace(" a\n", "a\n"),
        f"{DIFF}@@ here @@\n-d\n+D\n",
        DIFF.replace("@@ -1,3 +1,3 @@\n", ""),
        f"--- a/x.py\n{DIFF.partition('+++')[0]}",
        "diff --git a/x.bin b/x.bin\nBinary files a/x.bin and b/x.bin differ\n",
        "",
        "--- no diff\n",
        "x" * 300_000,
    ],
)
def test_what_is_no_diff_is_no_patch(wrong):
    assert apply(FILES, read(wrong)) is None


def test_lines_are_looked_for_where_the_numbers_say_and_else_in_one_place_alone():
    twice = {"x.py": "a\nb\nc\nq\na\nb\nc\n"}
    second = DIFF.replace("-1,3 +1,3", "-5,3 +5,3")
    assert apply(twice, read(second)) == {"x.py": "a\nb\nc\nq\na\nB\nc\n"}
    assert apply(twice, read(DIFF.replace("-1,3", "-2,3"))) is None
    assert apply({"x.py": "q\nq\na\nb\nc\n"}, read(DIFF)) == {"x.py": "q\nq\na\nB\nc\n"}
    assert apply({"x.py": "a\nb \nc\n"}, read(DIFF)) is None


def test_files_are_made_deleted_and_renamed():
    made = "diff --git a/n.py b/n.py\nnew file mode 100644\n--- /dev/null\n+++ b/n.py\n@@ -0,0 +1,2 @@\n+1\n+2\n"
    gone = "diff --git a/x.py b/x.py\ndeleted file mode 100644\n--- a/x.py\n+++ /dev/null\n@@ -1,4 +0,0 @@\n-a\n-b\n-c\n-d\n"
    moved = "diff --git a/x.py b/y.py\nsimilarity index 90%\nrename from x.py\nrename to y.py\n"
    assert apply(FILES, read(made)) == {**FILES, "n.py": "1\n2\n"}
    assert apply(FILES, read(made + gone)) == {"n.py": "1\n2\n"}
    assert apply(FILES, read(moved)) == {"y.py": FILES["x.py"]}
    assert apply(FILES, read(moved + DIFF.replace("b/x.py", "b/y.py"))) == {"y.py": PATCHED["x.py"]}
    assert apply({**FILES, "n.py": ""}, read(made)) is None, "it was there before"
    assert apply({"x.py": "a\nb\nc\nd\ne\n"}, read(gone)) is None, "there was more in it"


@pytest.mark.parametrize("path", ["../x.py", "/x.py", "sub/../../x.py", "a/../x.py", "./x.py", "sub//x.py", "x\0.py", ".."])
def test_no_path_leads_out_of_the_folder(path):
    made = f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+1\n"
    assert apply(FILES, read(made)) is None
    assert apply(FILES, read(block("", "1\n", path.replace("\0", "\1\0")))) is None


@pytest.mark.parametrize("path", ["x.py/y.py", "n" * 256, "é" * 128, "d/" * 2000 + "y.py", "\ud800.py"])
def test_no_file_is_made_that_no_disk_can_hold(path):
    assert apply(FILES, read(block("", "1\n", path))) is None
    assert apply({"a/b.py": ""}, read(block("", "1\n", "a"))) is None, "it is a folder"


def test_ten_thousand_broken_patches_break_nothing():
    rng = random.Random(0)
    whole = [DIFF, block("b\n", "B\n", "x.py"), f"```diff\n{DIFF}```", f"<solution>{DIFF}</solution>"]
    parts = ["\n", "@@ -1 +1 @@", "--- ", "+++ ", "<<<<<<< SEARCH\n", "=======\n", ">>>>>>> REPLACE", "\0", "\ud800", "-", "\u2028", "\r"]
    for _ in range(10_000):
        text = rng.choice(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice([*parts, ""]) + text[at + rng.randint(0, 3) :]
        result = apply(FILES, read(text))
        assert result is None or all(isinstance(path, str) for path in result)


def test_a_hunk_with_more_lines_than_its_header_says_spoils_the_patch():
    diff = "--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"
    assert len(read(diff)) == 1 and len(read(diff + "\nThat is all.\n")) == 1
    for more in ("+d\n", " e\n", "-e\n", "@@ -9 +9 @@\n"):
        assert read(diff + more) == read(f"```diff\n{diff}{more}```") == []


@pytest.mark.parametrize(
    "piece",
    ["a\n<<<<<<< SEARCH\n", "a\n<<<<<<< SEARCH\nb\n=======\n", "<solution>", "</solution>", "```diff\n", "--- a/x\n+++ b/x\n@@ -1 +1 @@\n"],
)
def test_a_long_reply_is_read_in_time_that_grows_with_its_length(piece):
    begun = time.process_time()
    read((piece * (LONGEST // len(piece) + 1))[:LONGEST])
    # Half a second as it is; a minute with one pattern over all of it.
    assert time.process_time() - begun < 10
