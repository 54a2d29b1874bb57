"""The language of a text is langdetect's word, to the last bit of its probabilities, though told by loops of our own."""

import json
import random
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
from langdetect.lang_detect_exception import LangDetectException

from nemo_cascade.environments.instruction_following import language
from nemo_cascade.environments.instruction_following.examples import ENGLISH, FRENCH

RECORDED = Path(__file__).parent / "data" / "instruction_verdicts.jsonl"
PIECES = ["http://a.b/c?d=1 ", "x.y@z.org ", "  ", "\n", "NASA ", "e\u0301", "A\u0300a\u0303", "ŞS", "\u0219", "The ", "und ", "a"]
PIECES += ["的", "中文", "é", "слово ", "هذا ", "ひら", "カタ", "한글", "ㄅ", "ệ", "’", "…", "\x85", "\ud800", "🏃", "1"]
LONG = ["wörter und " * 1500, "ABC " * 3000, "a" * 15_000, "中文字" * 4000, "x@y.org " * 3000]


def texts():
    """Recorded replies, whole and in capitals, and what nobody writes."""
    replies = [json.loads(line)[0] for line in islice(RECORDED.open(encoding="utf-8"), 0, None, 24)]
    rng = random.Random(0)
    made = ["".join(rng.choices(rng.sample(PIECES, 9), k=rng.choice([1, 2, 3, 9, 60]))) for _ in range(80)]
    return [ENGLISH, FRENCH, ENGLISH.upper(), "", " ", "123 456", *replies, *map(str.upper, replies[:9]), *made, *LONG]


@cache
def langdetects():
    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(0)
    return factory


def by_langdetect(text):
    """(language, probabilities), None both where nothing tells."""
    detector = langdetects().create()
    detector.append(text[: language.READ])
    try:
        return detector.detect(), detector.langprob
    except LangDetectException:
        return None, None


def test_language_and_probabilities_are_langdetects():
    seen = set()
    for text in texts():
        expected, probabilities = by_langdetect(text)
        assert language.language_of(text) == expected, text[:80]
        seen.add(expected)
        if probabilities:
            rows = language._rows(language._read(text))
            assert sum(share / 7 for share in language._trials(rows)).tolist() == probabilities, text[:80]
    assert len(seen) > 10 and None in seen


@pytest.mark.parametrize("text", ["wort " * 3, "中" * 100])
def test_what_is_kept_is_bounded_and_changes_nothing(text, monkeypatch):
    language._kept_rows.cache_clear()
    first = language._rows(text)
    monkeypatch.setattr(language, "KEPT_CHARACTERS", 2)
    language._FOLDED.clear()
    assert language._rows(text) == language._rows(text) == first
    assert len(language._FOLDED) <= 2
    assert language._kept_rows.cache_info().currsize <= 1 and language._kept_rows.cache_info().maxsize


def test_trials_end_where_no_other_language_can_come_first(monkeypatch):
    made = []
    trials = language._trials
    monkeypatch.setattr(language, "_trials", lambda rows: (made.append(share) or share for share in trials(rows)))
    assert language.language_of(ENGLISH) == "en" and len(made) == 4
    made.clear()
    torn = np.eye(3)[[0, 1, 0, 1, 2, 1, 0]]
    monkeypatch.setattr(language, "_trials", lambda rows: (made.append(share) or share for share in torn))
    language.language_of(ENGLISH)
    assert len(made) == 7
