"""Ways to part a text that several families of instructions share. Each is one linear walk over the text."""

import re
import string

import regex

PUNCTUATION = string.punctuation
_WORDS = regex.compile(r"\w+")
_NO_PUNCTUATION = str.maketrans("", "", PUNCTUATION)

# Stand for a full stop that ends nothing and for a sentence's end; Unicode has set them aside, no text has them.
_DOT, _END = "\ufdd0", "\ufdd1"
# Full stops within names, numbers and initials, in this order: each sees what the ones before it have left.
_DOTS = [
    (re.compile(r"(Mr|St|Mrs|Ms|Dr)\."), rf"\1{_DOT}"),
    (re.compile(r"\.(?=(?:com|net|org|io|gov|edu|me))"), _DOT),
    (re.compile(r"([0-9])\.([0-9])"), rf"\1{_DOT}\2"),
    (re.compile(r"\.{2,}"), lambda dots: _DOT * len(dots.group()) + _END),
    (re.compile(r"Ph\.D\."), f"Ph{_DOT}D{_DOT}"),
    (re.compile(r"\s([A-Za-z])\. "), rf" \1{_DOT} "),
    (
        re.compile(
            r"([A-Z]\.[A-Z]\.(?:[A-Z]\.)?) "
            r"(?=Mr|Mrs|Ms|Dr|Prof|Capt|Cpt|Lt|(?:He|She|It|They|Their|Our|We|But|However|That|This)\s|Wherever)"
        ),
        rf"\1{_END} ",
    ),
    (re.compile(r"([A-Za-z])\.([A-Za-z])\.([A-Za-z])\."), rf"\1{_DOT}\2{_DOT}\3{_DOT}"),
    (re.compile(r"([A-Za-z])\.([A-Za-z])\."), rf"\1{_DOT}\2{_DOT}"),
    (
        re.compile(
            r" (Inc|Ltd|Jr|Sr|Co)\. "
            r"(?=Mr|Mrs|Ms|Dr|Prof|Capt|Cpt|Lt|(?:He|She|It|They|Their|Our|We|But|However|That|This)\s|Wherever)"
        ),
        rf" \1{_END} ",
    ),
    (re.compile(r" (Inc|Ltd|Jr|Sr|Co|[A-Za-z])\."), rf" \1{_DOT}"),
]


def plain_words(text: str) -> list[str]:
    """Runs of letters, digits and underscores. By `regex`: `re` parts the words of Hindi at their vowel signs."""
    return _WORDS.findall(text)


def without_punctuation(text: str) -> str:
    return text.translate(_NO_PUNCTUATION)


def stripped(text: str) -> str:
    """Without punctuation and spaces at both ends."""
    return text.strip(PUNCTUATION + " ")


def split_sentences(text: str) -> list[str]:
    """Sentences by the rule that IF-RLVR and IFBench use: at every . ? ! but those of names, numbers and initials.

    A quotation mark after the mark goes before it, so that it stays with its sentence, and a line end is a space. Of
    "What?!" the "!" is a sentence, and one with nothing in it is kept everywhere but at the end.
    """
    text = text.translate({ord(_DOT): " ", ord(_END): " ", ord("\n"): " "})
    text = f" {text}  "
    for pattern, replacement in _DOTS:
        text = pattern.sub(replacement, text)
    for mark, quotes in ((".", '”"'), ("!", '"'), ("?", '"')):
        for quote in quotes:
            text = text.replace(mark + quote, quote + mark)
    found = [sentence.strip() for sentence in re.sub(r"[.?!]", rf"\g<0>{_END}", text).replace(_DOT, ".").split(_END)]
    return found if found[-1] else found[:-1]


def parts(text: str, divider: re.Pattern | str) -> list[str] | None:
    """What stands between dividers; None when nothing stands between two of them. At both ends there may be nothing."""
    pieces = divider.split(text) if isinstance(divider, re.Pattern) else text.split(divider)
    if any(not piece.strip() for piece in pieces[1:-1]):
        return None
    return [piece for piece in pieces if piece.strip()]


STARS = re.compile(r"\s?\*\*\*\s?")
