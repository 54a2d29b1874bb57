"""The 29 training types of IF-RLVR (Pyatkin et al. 2025), which with IFEval's are those of the released IF-RL data.

Two have the same rule as one of IFEval's and stand there: keywords:word_count_different_numbers and
letters:letter_counting2. They are checked as open-instruct's IFEvalG, which NeMo Gym runs, checks them. Where we
differ: keywords and phrases are texts, not patterns; every repetition of a phrase must differ from it by one word, not
the last alone.
"""

import re

from nemo_cascade.environments.instruction_following import texts, tokens
from nemo_cascade.environments.instruction_following.ifeval import occurrences
from nemo_cascade.environments.instruction_following.rules import COUNT, PLACE, RELATION, RELATIONS, TEXT, rule


@rule("keywords:word_once", keyword=TEXT)
def word_once(text: str, keyword: str) -> bool:
    return occurrences(keyword, text) == 1


@rule("keywords:exclude_word_harder", keyword=TEXT)
def exclude_word_harder(text: str, keyword: str) -> bool:
    """The word, as it is written, between two spaces."""
    return f" {keyword.strip()} " not in text


@rule("keywords:no_adjacent_consecutive")
def no_adjacent_consecutive(text: str) -> bool:
    """No word begins with the letter after that which the word before it begins with, in the order of Unicode."""
    first = [word[0].lower() for word in text.split()]
    return all(len(one) == len(two) == 1 and ord(two) - ord(one) != 1 for one, two in zip(first, first[1:]))


@rule("keywords:palindrome")
def palindrome(text: str) -> bool:
    """Any word that is the same backwards, one letter too."""
    return any(word == word[::-1] for word in text.split())


@rule("keywords:keyword_specific_position", keyword=TEXT, n=PLACE, m=PLACE)
@rule("words:keywords_specific_position", evaluation_only=True, keyword=TEXT, n=PLACE, m=PLACE)  # IFBench's
def keyword_specific_position(text: str, keyword: str, n: int, m: int) -> bool:
    """The m-th word of the n-th sentence, as it is written; marks are words too."""
    sentences = texts.split_sentences(text)
    return n <= len(sentences) and tokens.words(sentences[n - 1])[m - 1 : m] == [keyword.strip()]


@rule("keywords:start_end")
def start_end(text: str) -> bool:
    words = tokens.words(text)
    return len(words) > 1 and words[0].lower() == words[-1].lower()


@rule("paragraphs:paragraphs")
def paragraphs(text: str) -> bool:
    return len(texts.parts(text, texts.STARS) or ()) == 2


@rule("paragraphs:paragraphs2")
def paragraphs2(text: str) -> bool:
    return len(texts.parts(text, "\n\n") or ()) == 2


@rule("first_word:first_word_sent", first_word=TEXT)
def first_word_sent(text: str, first_word: str) -> bool:
    sentences = [sentence.split() for sentence in texts.split_sentences(text)]
    return all(words and words[0].lower() == first_word.strip().lower() for words in sentences)


@rule("first_word:first_word_answer", first_word=TEXT)
def first_word_answer(text: str, first_word: str) -> bool:
    return text.split(maxsplit=1)[0].lower() == first_word.strip().lower()


@rule("last_word:last_word_sent", last_word=TEXT)
def last_word_sent(text: str, last_word: str) -> bool:
    sentences = [sentence.split() for sentence in texts.split_sentences(text)]
    return all(words and _bare(words[-1]) == last_word.strip().lower() for words in sentences)


@rule("last_word:last_word_answer", last_word=TEXT)
def last_word_answer(text: str, last_word: str) -> bool:
    return _bare(text.rsplit(maxsplit=1)[-1]) == last_word.strip().lower()


def _bare(word: str) -> str:
    """In small letters and without marks, inside it neither."""
    return re.sub(r"[^\w\s]", "", word).lower()


@rule("punctuation:punctuation_dot")
def punctuation_dot(text: str) -> bool:
    return "." not in text


@rule("punctuation:punctuation_exclamation")
def punctuation_exclamation(text: str) -> bool:
    return "!" not in text


@rule("letters:letter_counting", N=COUNT, relation=RELATION)
def letter_counting(text: str, N: int, relation: str) -> bool:
    return RELATIONS[relation](len(re.findall(r"[a-zA-Z]", text)), N)


@rule("count:lowercase_counting", N=COUNT)
def lowercase_counting(text: str, N: int) -> bool:
    """At most N words of small letters alone."""
    return len(re.findall(r"\b[a-z]+\b", text)) <= N


@rule("count:count_unique")
def count_unique(text: str) -> bool:
    """No word twice, marks among them; "The" and "the" are two."""
    words = tokens.words(text)
    return len(set(words)) == len(words)


@rule("count:count_increment_word", keyword1=TEXT, keyword2=TEXT)
def count_increment_word(text: str, keyword1: str, keyword2: str) -> bool:
    return occurrences(keyword1, text) == 1 and occurrences(keyword2, text) == 2


@rule("count:counting_composition", n_sent=PLACE, n_words=PLACE)
def counting_composition(text: str, n_sent: int, n_words: int) -> bool:
    """Three paragraphs of n_sent sentences of n_words words each; a sentence's full stop is one of its words."""
    paragraphs = [texts.split_sentences(paragraph) for paragraph in texts.STARS.split(text)]
    return len(paragraphs) == 3 and all(
        len(sentences) == n_sent and all(len(tokens.words(sentence)) == n_words for sentence in sentences)
        for sentences in paragraphs
    )


@rule("detectable_format:sentence_hyphens")
def sentence_hyphens(text: str) -> bool:
    """Parted at hyphens, the text gives its sentences, one by one and without spaces around them."""
    sentences = texts.split_sentences(text.replace("-", " "))
    return all(piece == sentence for piece, sentence in zip(text.split("-"), sentences))


@rule("detectable_format:square_brackets")
def square_brackets(text: str) -> bool:
    return all(word.startswith("[") and word.endswith("]") for word in text.split())


@rule("detectable_format:bigram_wrapping")
def bigram_wrapping(text: str) -> bool:
    """Words two by two in << >>; a last word without a partner may stand alone."""
    words = text.split()
    return all(one.startswith("<<") and two.endswith(">>") for one, two in zip(words[::2], words[1::2]))


@rule("copy:copy", prompt_to_repeat=TEXT)
@rule("copy:copying_simple", prompt_to_repeat=TEXT)
def copy(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower() == prompt_to_repeat.strip().lower()


@rule("copy:copying_multiple", prompt_to_repeat=TEXT, N=PLACE)
def copying_multiple(text: str, prompt_to_repeat: str, N: int) -> bool:
    copies = text.split("******")
    return len(copies) == N and all(copy(each, prompt_to_repeat) for each in copies)


def _span(prompt_to_repeat: str, n_start: int, n_end: int) -> str | None:
    if prompt_to_repeat[n_start:n_end].strip():
        return None
    has = len(prompt_to_repeat)
    return f"kwargs ask for characters {n_start} to {n_end} of a prompt that has {has}: nothing is there to copy"


@rule("new:copy_span_idx", consistent=_span, prompt_to_repeat=TEXT, n_start=COUNT, n_end=PLACE)
def copy_span_idx(text: str, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    """Characters n_start up to and without n_end, whatever the instruction's wording says about the last."""
    return copy(text, prompt_to_repeat[n_start:n_end])


@rule("copy:repeat_phrase", phrase=TEXT, small_n=PLACE)
def repeat_phrase(text: str, phrase: str, small_n: int) -> bool:
    """The phrase so many times, each time with one of its words replaced; found by its first and its last word."""
    wanted = phrase.split()
    found = _phrases(text, wanted[0], wanted[-1])
    return len(found) == small_n and all(
        len(words) == len(wanted) and sum(1 for one, two in zip(words, wanted) if one != two) == 1 for words in found
    )


def _phrases(text: str, first: str, last: str) -> list[list[str]]:
    """The words of each stretch of a line from `first` to the next `last`.

    No pattern: one would look for the end from every `first` of a reply of nothing else.
    """
    found = []
    for line in text.split("\n"):
        place = line.find(f"{first} ")
        while place >= 0 and (end := line.find(f" {last}", place + len(first) + 1)) >= 0:
            found.append(line[place : end + 1 + len(last)].split())
            place = line.find(f"{first} ", end + 1 + len(last))
    return found
