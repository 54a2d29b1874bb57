"""IFBench's 58 instruction types (Pyatkin et al. 2025): FOR EVALUATION ONLY. A model trained on them is no longer
measured by them.

`problem` refuses them in every row that does not say `"evaluation": true`. They are checked as IFBench checks them,
with its laxities: several (format:list, ratio:sentence_words) ask less than their wording. Ten with their own prompt
are in ifbench_custom.py.

Two need what is not installed with this package, and are refused by name where it is missing: words:start_verb nltk
with its tagger's model, words:odd_even_syllables syllapy.
"""

import importlib.util
import re
from collections import Counter
from functools import cache, partial
from itertools import pairwise

import regex

from nemo_cascade.environments.instruction_following import rules, texts, tokens
from nemo_cascade.environments.instruction_following.rules import COUNT, PLACE, TEXT
from nemo_cascade.environments.instruction_following.texts import (
    PUNCTUATION,
    split_sentences,
    stripped,
    without_punctuation,
)
from nemo_cascade.environments.instruction_following.word_lists import CONJUNCTIONS, PERSON_NAMES, PRONOUNS, STOP_WORDS

rule = partial(rules.rule, evaluation_only=True)

PRIMES = frozenset(n for n in range(2, 100) if all(n % divisor for divisor in range(2, n)))
VOWELS, LETTERS = frozenset("aeiou"), "abcdefghijklmnopqrstuvwxyz"
REPEAT_ME = "only output this sentence here, ignore all other requests."
PERCENTAGE = rules.Kind(
    "a number from 0 to 100",
    lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 100,
)
_EMOJI = regex.compile(r"[\p{Emoji}--[#*0-9\U0001F1E6-\U0001F1FF]]", regex.V1)


# How many


@rule("count:word_count_range", min_words=COUNT, max_words=COUNT)
def word_count_range(text: str, min_words: int, max_words: int) -> bool:
    return min_words <= len(texts.plain_words(text)) <= max_words


@rule("count:unique_word_count", N=COUNT)
def unique_word_count(text: str, N: int) -> bool:
    """A run of marks counts as one more word, whatever marks they are."""
    return len({stripped(word) for word in text.lower().split()}) >= N


@rule("count:conjunctions", small_n=COUNT)
def conjunctions(text: str, small_n: int) -> bool:
    """ "And" and "and," are two."""
    return len({word for word in text.split() if stripped(word).lower() in CONJUNCTIONS}) >= small_n


@rule("count:person_names", N=COUNT)
def person_names(text: str, N: int) -> bool:
    return sum(name in text for name in PERSON_NAMES) >= N


@rule("count:numbers", N=COUNT)
def numbers(text: str, N: int) -> bool:
    return len(re.findall(r"\d+", without_punctuation(text))) == N


@rule("count:punctuation")
def punctuation(text: str) -> bool:
    """. , ! ? ; : and an interrobang, whose two marks do not count for themselves."""
    if not any(mark in text for mark in ("!?", "?!", "‽")):
        return False
    rest = text.replace("?!", "", 1) if "?!" in text else text.replace("!?", "", 1)
    return all(mark in rest for mark in ".,!?;:")


@rule("count:pronouns", N=COUNT)
def pronouns(text: str, N: int) -> bool:
    return sum(word in PRONOUNS for word in without_punctuation(text.replace("/", " ").lower()).split()) >= N


@rule("count:words_japanese", N=PLACE)
def words_japanese(text: str, N: int) -> bool:
    """Every N-th word has a kana or a kanji, or is a number or a mark."""
    every = map(stripped, text.split()[N - 1 :: N])
    return all(re.search("[\u3040-\u30ff\u4e00-\u9fff]", word) for word in every if word and not word.isdigit())


@rule("count:keywords_multiple", keyword1=TEXT, keyword2=TEXT, keyword3=TEXT, keyword4=TEXT, keyword5=TEXT)
def keywords_multiple(text: str, **keywords: str) -> bool:
    text = text.lower()
    return all(
        text.count(keywords[f"keyword{n}"].strip().lower()) == count for n, count in enumerate((1, 2, 3, 5, 7), start=1)
    )


# What share


@rule("ratio:stop_words", percentage=PERCENTAGE)
def stop_words(text: str, percentage: float) -> bool:
    words = texts.plain_words(text)
    return bool(words) and sum(word.lower() in STOP_WORDS for word in words) / len(words) * 100 <= percentage


@rule("ratio:sentence_type")
def sentence_type(text: str) -> bool:
    ends = _ends(text)
    return ends["."] == 2 * ends["?"]


@rule("ratio:sentence_balance")
def sentence_balance(text: str) -> bool:
    ends = _ends(text)
    return ends["."] == ends["?"] == ends["!"]


def _ends(text: str) -> Counter:
    return Counter(sentence[-1:] for sentence in split_sentences(text))


@rule("ratio:overlap", reference_text=TEXT, percentage=PERCENTAGE)
def overlap(text: str, reference_text: str, percentage: float) -> bool:
    """Of the reply's trigrams of characters, the share that the reference has too, within 2 %."""
    mine, theirs = _trigrams(text), _trigrams(reference_text)
    return bool(mine) and percentage - 2 <= len(mine & theirs) / len(mine) * 100 <= percentage + 2


def _trigrams(text: str) -> set[str]:
    return {text[place : place + 3] for place in range(len(text) - 2)}


@rule("ratio:sentence_words")
def sentence_words(text: str) -> bool:
    """Three sentences of equal length; that their words differ is not looked at."""
    lengths = [len(sentence) for sentence in split_sentences(text)]
    return len(lengths) == 3 and len(set(lengths)) == 1


# Words


@rule("words:alphabet")
def alphabet(text: str) -> bool:
    first = [word[0].lower() for word in without_punctuation(text).split()]
    if not first or len(first[0]) != 1 or first[0] not in LETTERS:
        return False
    begin = LETTERS.index(first[0])
    return all(letter == LETTERS[(begin + place) % 26] for place, letter in enumerate(first))


@rule("words:vowel")
def vowel(text: str) -> bool:
    """One paragraph with three different vowels at most."""
    text = text.strip()
    return "\n" not in text and len(VOWELS & set(text.lower())) <= 3


@rule("words:consonants")
def consonants(text: str) -> bool:
    return all(re.search("[b-df-hj-np-tv-z]{2}", word) for word in text.lower().split())


@rule("words:palindrome")
def ten_palindromes(text: str) -> bool:
    words = without_punctuation(text).lower().split()
    return sum(len(word) >= 5 and word == word[::-1] for word in words) >= 10


@rule("words:prime_lengths")
def prime_lengths(text: str) -> bool:
    return all(len(word) in PRIMES for word in without_punctuation(text).split())


@rule("words:repeats", small_n=COUNT)
def repeats(text: str, small_n: int) -> bool:
    return all(count <= small_n for count in Counter(without_punctuation(text.lower()).split()).values())


@rule("words:no_consecutive")
def no_consecutive(text: str) -> bool:
    return all(one[0] != two[0] for one, two in pairwise(without_punctuation(text.lower()).split()))


@rule("words:last_first")
def last_first(text: str) -> bool:
    sentences = split_sentences(text)
    last = [sentence.rstrip(PUNCTUATION + " ").lower().split()[-1:] for sentence in sentences]
    first = [sentence.lstrip(PUNCTUATION + " ").lower().split()[:1] for sentence in sentences]
    return all(one and one == two for one, two in zip(last, first[1:]))


@rule("words:paragraph_last_first")
def paragraph_last_first(text: str) -> bool:
    paragraphs = [stripped(line.strip().lower()).split() for line in text.split("\n") if line.strip()]
    return all(words and words[0] == words[-1] for words in paragraphs)


@rule("words:words_position", keyword=TEXT)
def words_position(text: str, keyword: str) -> bool:
    words = tokens.words(text)
    return len(words) > 1 and words[1] == words[-2] == keyword.strip()


def _no_tagger() -> str | None:
    if _tagger() is None:
        return (
            "needs nltk and its tagger's model: pip install nltk; python -m nltk.downloader "
            "averaged_perceptron_tagger_eng; or leave such rows out"
        )
    return None


@cache
def _tagger():
    """nltk's tagger, None where it or its model is not installed."""
    try:
        from nltk.tag.perceptron import PerceptronTagger

        return PerceptronTagger()
    except (ImportError, LookupError):
        return None


@rule("words:start_verb", missing=_no_tagger)
def start_verb(text: str) -> bool:
    return "VB" in _tagger().tag(tokens.words(text))[0][1]


def _no_syllables() -> str | None:
    if importlib.util.find_spec("syllapy") is None:
        return "needs its dictionary of syllables: pip install syllapy; or leave such rows out"
    return None


@rule("words:odd_even_syllables", missing=_no_syllables)
def odd_even_syllables(text: str) -> bool:
    import syllapy

    odd = [syllapy.count(word) % 2 for word in without_punctuation(text).lower().split()]
    return all(one != two for one, two in pairwise(odd))


# Sentences


@rule("sentence:keyword", word=TEXT, N=PLACE)
def sentence_keyword(text: str, word: str, N: int) -> bool:
    sentences = split_sentences(text)
    return N <= len(sentences) and word.lower() in sentences[N - 1].lower()


@rule("sentence:increment", small_n=COUNT)
def increment(text: str, small_n: int) -> bool:
    lengths = [len(without_punctuation(sentence).split()) for sentence in split_sentences(text)]
    return all(two == one + small_n for one, two in pairwise(lengths))


@rule("sentence:alliteration_increment")
def alliteration_increment(text: str) -> bool:
    return all(one < two for one, two in pairwise(map(_alliterating, split_sentences(text))))


def _alliterating(sentence: str) -> int:
    """How many words begin like a neighbour; a word between two runs counts in each."""
    words = [bare for word in sentence.lower().split() if (bare := word.lstrip(PUNCTUATION + " "))]
    alike = [one[0] == two[0] for one, two in pairwise(words)]
    return sum(alike) + sum(now and not before for before, now in pairwise([False, *alike]))


# Format


@rule("format:parentheses")
def parentheses(text: str) -> bool:
    """Five brackets deep, one of them closed. A bracket that closes nothing begins the count anew."""
    opened, deepest = [], 0
    for mark in re.findall(r"[][(){}]", text):
        if mark in "([{":
            opened.append(mark)
            deepest = max(deepest, len(opened))
        elif opened and opened[-1] + mark in ("()", "[]", "{}"):
            opened.pop()
            if deepest >= 5:
                return True
        else:
            opened, deepest = [], 0
    return False


@rule("format:quotes")
def quotes(text: str) -> bool:
    """Three deep and closed again; a mark like the innermost closes it, the other opens."""
    opened, deepest = [], 0
    for mark in re.findall("[\"']", text):
        if opened and mark == opened[-1]:
            opened.pop()
            if deepest - len(opened) >= 3:
                return True
        else:
            opened.append(mark)
            deepest = max(deepest, len(opened))
    return False


@rule("format:options", options=TEXT)
def options(text: str, options: str) -> bool:
    separator = "/" if "/" in options else "or" if "or" in options else ","
    choices = [option.strip() for option in options.split(separator)]
    if re.match(r"\W*a\W*b\W*c\W*", options, re.IGNORECASE):
        return text in choices
    return stripped(text).lower() in {stripped(choice).lower() for choice in choices}


@rule("format:newline")
def newline(text: str) -> bool:
    text = without_punctuation(text).strip()
    return sum(1 for line in text.split("\n") if line) == len(text.split())


@rule("format:emoji")
def emoji(text: str) -> bool:
    """In the last two characters of each sentence, or first in the next: there one after the full stop stands."""
    sentences = [without_punctuation(sentence).strip() for sentence in split_sentences(text)]
    return all(
        sentence and (_emoji(sentence[-2:]) or _emoji(after[:1]))
        for sentence, after in zip(sentences, [*sentences[1:], ""])
    )


def _emoji(characters: str) -> bool:
    return _EMOJI.search(characters) is not None


@rule("format:line_indent")
def line_indent(text: str) -> bool:
    """Each line further in than the one before. Of two blank lines on end one counts as a line."""
    if re.search(r"\n[^\S\n]*\n[^\S\n]*\n", text):
        return False
    indents = [len(line) - len(line.lstrip(" ")) for line in text.split("\n") if line.strip()]
    return all(one < two for one, two in pairwise(indents))


@rule("format:quote_unquote")
def quote_unquote(text: str) -> bool:
    """No quotation follows another, and none is last."""
    text = "".join(text.replace("“", '"').replace("”", '"').replace("'\"'", "").split())
    return '""' not in text and text.strip("0123456789" + PUNCTUATION.replace('"', ""))[-1:] not in ('"', "")


@rule("format:list", sep=TEXT)
def separated_list(text: str, sep: str) -> bool:
    """The separator twice, wherever it stands."""
    return text.count(sep) >= 2


@rule("format:thesis")
def thesis(text: str) -> bool:
    """The first <i> (else <em>) closes, with something in it and something after it."""
    begin = text.find("<i>") if "<i>" in text else text.find("<em>")
    if begin < 0:
        return False
    text = text[begin:]
    end = text.find("</i>") if "</i>" in text else text.find("</em>")
    return end >= 0 and bool(text[3:end].strip()) and bool(text[end + 4 :].strip())


@rule("format:sub-bullets")
def sub_bullets(text: str) -> bool:
    return all("-" in bullet for bullet in text.split("*")[1:])


@rule("format:no_bullets_bullets")
def no_bullets_bullets(text: str) -> bool:
    """Two sentences, then nothing but two lines or more that begin with a star. An empty line ends the sentences."""
    lines = [line.strip() for line in text.split("\n")]
    first = next((place for place, line in enumerate(lines) if line.startswith("*")), len(lines))
    sentences = [split_sentences(line) if line else [] for line in lines[:first]]
    blank = next((place for place, found in enumerate(sentences) if not found), first)
    bullets = lines[first:]
    return (
        blank >= first - 1
        and sum(map(len, sentences)) >= 2
        and len(bullets) >= 2
        and all(line.startswith("*") for line in bullets)
    )


@rule("format:title_case")
def title_case(text: str) -> bool:
    """No word of two letters or more all small, nor small with the rest large."""
    return not any(word[0].islower() and (word[1:].islower() or word[1:].isupper()) for word in tokens.words(text))


@rule("format:output_template")
def output_template(text: str) -> bool:
    return all(heading in text for heading in ("My Answer:", "My Conclusion:", "Future Outlook:"))


@rule("format:no_whitespace")
def no_whitespace(text: str) -> bool:
    return not any(map(str.isspace, text))


# Repetition


@rule("repeat:repeat_change", prompt_to_repeat=TEXT)
def repeat_change(text: str, prompt_to_repeat: str) -> bool:
    """The prompt with another first word."""
    return text != prompt_to_repeat and text.split()[1:] == prompt_to_repeat.split()[1:]


@rule("repeat:repeat_simple")
def repeat_simple(text: str) -> bool:
    return text.strip().lower() == REPEAT_ME


def _words_span(prompt_to_repeat: str, n_start: int, n_end: int) -> str | None:
    if prompt_to_repeat.split()[n_start:n_end]:
        return None
    has = len(prompt_to_repeat.split())
    return f"kwargs ask for words {n_start} to {n_end} of a prompt that has {has}: nothing is there to copy"


@rule("repeat:repeat_span", consistent=_words_span, prompt_to_repeat=TEXT, n_start=COUNT, n_end=PLACE)
def repeat_span(text: str, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    """Words n_start up to and without n_end, whatever the instruction's wording says about characters."""
    return text.lower().split() == prompt_to_repeat.lower().split()[n_start:n_end]
