"""Which language a text is in, by langdetect, the same every time.

langdetect draws n-grams at random: without a seed a text on the edge of two languages is rewarded by luck. The seed is
set on a factory of our own, because langdetect's is shared by the process.
"""

from functools import cache

# langdetect itself reads no more than 10,000 characters, but looks for addresses in all of the text first.
READ = 20_000


@cache
def _factory():
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(0)
    return factory


def language_of(text: str) -> str | None:
    """Its code, such as "en" or "zh-cn"; None where nothing in the text tells, such as in digits alone."""
    from langdetect.lang_detect_exception import LangDetectException

    detector = _factory().create()
    detector.append(text[:READ])
    try:
        return detector.detect()
    except LangDetectException:
        return None


def is_in(text: str, language: str) -> bool:
    """IFEval counts a text whose language cannot be told as being in the language asked for."""
    return language_of(text) in (language, None)
