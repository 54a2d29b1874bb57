"""Which language a text is in, as langdetect tells it, the same every time and in an eighth of its time.

langdetect draws n-grams at random: without a seed a text on the edge of two languages is rewarded by luck. The seed is
set on a generator of our own, because langdetect's is shared by the process.

The profiles, the patterns, the constants and the way characters are folded are langdetect's. The two loops are ours: it
goes through a text character by character and through 55 languages number by number, we go word by word and through the
languages at once, in the same order of operations: every probability has the same bits (tests/environments/test_language.py).
"""

import random
import re
from collections.abc import Iterator
from functools import cache, lru_cache

import numpy as np

# langdetect itself reads no more than 10,000 characters, but looks for addresses in all of the text first.
READ = 20_000
# Longer words, as texts without spaces have, are not kept.
KEPT_WORD = 24
# Characters whose folding is kept, of the 1.1 million of Unicode.
KEPT_CHARACTERS = 65_536
# Far more than seven probabilities lose when they are added.
ROUNDING = 1e-9
_LATIN = re.compile("[A-z]+")
_OTHERS = re.compile("[\u0300-\U0010ffff]+")


class _Folded(dict):
    """What langdetect takes a character for, filled as characters come, for `str.translate`."""

    def __missing__(self, code: int) -> str:
        from langdetect.utils.ngram import NGram

        if len(self) >= KEPT_CHARACTERS:
            self.clear()
        self[code] = folded = NGram.normalize(chr(code))
        return folded


_FOLDED = _Folded()


@cache
def _profiles() -> tuple[list[str], dict[str, int], np.ndarray]:
    """Languages, the row of each n-gram, and how probable it is: [n-grams, languages]."""
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    grams = factory.word_lang_prob_map
    return factory.langlist, {gram: row for row, gram in enumerate(grams)}, np.array(list(grams.values()))


def language_of(text: str) -> str | None:
    """Its code, such as "en" or "zh-cn"; None where nothing in the text tells, such as in digits alone."""
    from langdetect.detector import Detector

    rows = _rows(_read(text))
    if not rows:
        return None
    mean: np.ndarray | float = 0.0
    left = trials = _detector().n_trial
    for share in _trials(rows):
        mean, left = mean + share / trials, left - 1
        second, first = sorted(mean.tolist())[-2:]
        # Each of those left adds no more than 1 to any language's sum: another cannot become the first.
        if first - second > left / trials + ROUNDING:
            break
    return _profiles()[0][int(mean.argmax())] if first > Detector.PROB_THRESHOLD else Detector.UNKNOWN_LANG


def is_in(text: str, language: str) -> bool:
    """IFEval counts a text whose language cannot be told as being in the language asked for."""
    return language_of(text) in (language, None)


def _read(text: str) -> str:
    """What of a text is looked at: no addresses, and no Latin letters where twice as many others are."""
    from langdetect.detector import Detector
    from langdetect.utils.ngram import NGram

    text = text[:READ]
    if "http" in text:
        text = Detector.URL_RE.sub(" ", text)
    if "@" in text:
        text = Detector.MAIL_RE.sub(" ", text)
    if text.isascii():
        return text[: _detector().max_text_length]
    text = NGram.normalize_vi(text)[: _detector().max_text_length]
    without = _LATIN.sub("", text)
    others = len(without) - len(_OTHERS.sub("", without))
    return without if (len(text) - len(without)) * 2 < others else text


@cache
def _detector():
    """One that holds langdetect's settings, and reads nothing."""
    from langdetect.detector_factory import DetectorFactory

    factory = DetectorFactory()
    factory.langlist = _profiles()[0]
    return factory.create()


def _rows(text: str) -> list[int]:
    """The rows of all n-grams of a text, in order and as often as they occur."""
    words = [word for word in text.translate(_FOLDED).split(" ") if word]
    found: list[int] = []
    for word in words[:-1]:
        found += _kept_rows(word) if len(word) <= KEPT_WORD else _rows_of(f" {word} ")
    return found + _rows_of(f" {words[-1]}" + " " * (_FOLDED[ord(text[-1])] == " ")) if words else found


# Words recur in all that is written in a language; a few thousand make up most of it.
@lru_cache(maxsize=32_768)
def _kept_rows(word: str) -> list[int]:
    return _rows_of(f" {word} ")


def _rows_of(word: str) -> list[int]:
    """Those of the n-grams that end at each character but the first, a space; none after two capitals end there."""
    rows = _profiles()[1]
    found = []
    for end in range(1, len(word)):
        if word[end].isupper() and word[end - 1].isupper():
            continue
        grams = [word[start : end + 1] for start in range(end, max(end - 3, -1), -1)]
        found += [rows[gram] for gram in grams if gram in rows and gram != " "]
    return found


def _trials(grams: list[int]) -> Iterator[np.ndarray]:
    """[languages], how probable each is, by as many trials as langdetect makes: n-grams are drawn until one is sure."""
    from langdetect.detector import Detector

    detector, profiles, draw = _detector(), _profiles()[2], random.Random(0)
    for _ in range(detector.n_trial):
        smoothing = (detector.alpha + draw.gauss(0.0, 1.0) * Detector.ALPHA_WIDTH) / Detector.BASE_FREQ
        share = np.full(profiles.shape[1], 1.0 / profiles.shape[1])
        drawn, sure = 0, 0.0
        # It looks after the first n-gram and after every fifth that follows.
        while sure <= Detector.CONV_THRESHOLD and drawn <= Detector.ITERATION_LIMIT:
            count = 5 if drawn else 1
            factors = profiles.take([draw.choice(grams) for _ in range(count)], axis=0)
            factors += smoothing
            factors[0] *= share
            # Row by row, and so in the order in which they were drawn.
            share = np.multiply.reduce(factors, axis=0)
            # Not numpy's sum, which adds in another order.
            listed = share.tolist()
            total = sum(listed)
            share /= total
            drawn, sure = drawn + count, max(listed) / total
        yield share
