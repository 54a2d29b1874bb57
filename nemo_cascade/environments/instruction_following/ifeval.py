"""The 25 instruction types of IFEval (Zhou et al. 2023), checked as lm-evaluation-harness checks them strictly.

Where we differ: a keyword is a text, not a pattern, so that "U.S." is not "UPS" and "C++" no error; a letter may be any
character; JSON nested too deeply to be read is no JSON; sentences are parted without nltk's model (tokens.py).
"""

import json
import re

from nemo_cascade.environments.instruction_following import texts, tokens
from nemo_cascade.environments.instruction_following.language import is_in
from nemo_cascade.environments.instruction_following.rules import (
    COUNT,
    LANGUAGE,
    LETTER,
    PLACE,
    RELATION,
    RELATIONS,
    TEXT,
    TEXTS,
    rule,
)

RESPONSES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
POSTSCRIPTS = {"P.P.S": re.compile(r"p\.\s?p\.\s?s"), "P.S.": re.compile(r"p\.\s?s\.")}
FENCES = ("```json", "```Json", "```JSON", "```")


def occurrences(keyword: str, text: str) -> int:
    return len(re.findall(re.escape(keyword.strip()), text, re.IGNORECASE))


@rule("keywords:existence", keywords=TEXTS)
def existence(text: str, keywords: list[str]) -> bool:
    return all(re.search(re.escape(keyword), text, re.IGNORECASE) for keyword in keywords)


@rule("keywords:frequency", keyword=TEXT, frequency=COUNT, relation=RELATION)
@rule("keywords:word_count_different_numbers", keyword=TEXT, frequency=COUNT, relation=RELATION)  # IF-RLVR's
def frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return RELATIONS[relation](occurrences(keyword, text), frequency)


@rule("keywords:forbidden_words", forbidden_words=TEXTS)
def forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


@rule("keywords:letter_frequency", letter=LETTER, let_frequency=COUNT, let_relation=RELATION)
@rule("letters:letter_counting2", letter=LETTER, let_frequency=COUNT, let_relation=RELATION)  # IF-RLVR's
def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return RELATIONS[let_relation](text.lower().count(letter.lower()), let_frequency)


@rule("language:response_language", language=LANGUAGE)
def response_language(text: str, language: str) -> bool:
    return is_in(text, language)


@rule("length_constraints:number_sentences", num_sentences=COUNT, relation=RELATION)
def number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return RELATIONS[relation](len(tokens.sentences(text)), num_sentences)


@rule("length_constraints:number_paragraphs", num_paragraphs=COUNT)
def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    paragraphs = texts.parts(text, texts.STARS)
    return paragraphs is not None and len(paragraphs) == num_paragraphs


@rule("length_constraints:number_words", num_words=COUNT, relation=RELATION)
def number_words(text: str, num_words: int, relation: str) -> bool:
    return RELATIONS[relation](len(texts.plain_words(text)), num_words)


def _within(num_paragraphs: int, nth_paragraph: int, first_word: str) -> str | None:
    if nth_paragraph <= num_paragraphs:
        return None
    return f"kwargs ask for the first word of paragraph {nth_paragraph} of {num_paragraphs}: no reply can have it"


@rule(
    "length_constraints:nth_paragraph_first_word",
    consistent=_within,
    num_paragraphs=COUNT,
    nth_paragraph=PLACE,
    first_word=TEXT,
)
def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Empty paragraphs do not count, but the n-th is found with them."""
    paragraphs = text.split("\n\n")
    if sum(1 for paragraph in paragraphs if paragraph.strip()) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    word = paragraphs[nth_paragraph - 1].split(maxsplit=1)[:1]
    return (
        bool(word) and re.match(r"[^.,?!'\"]*", word[0].lstrip("'").lstrip('"')).group().lower() == first_word.lower()
    )


@rule("detectable_content:number_placeholders", num_placeholders=COUNT)
def number_placeholders(text: str, num_placeholders: int) -> bool:
    return sum(map(_placeholders, text.split("\n"))) >= num_placeholders


def _placeholders(line: str) -> int:
    """How many [...] a line has. No pattern: one would look for the end of every "[" of a reply of nothing else."""
    count, place = 0, line.find("[")
    while place >= 0 and (end := line.find("]", place)) >= 0:
        count, place = count + 1, line.find("[", end)
    return count


@rule("detectable_content:postscript", postscript_marker=TEXT)
def postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    if marker in POSTSCRIPTS:
        return POSTSCRIPTS[marker].search(text.lower()) is not None
    return marker.lower() in text.lower()


@rule("detectable_format:number_bullet_lists", num_bullets=COUNT)
def number_bullet_lists(text: str, num_bullets: int) -> bool:
    """Lines that begin with "-", or with one "*". A "*" that is alone on its line takes the next line for its own."""
    lines = [line.lstrip() for line in text.split("\n")]
    dashes = sum(1 for line in lines if line.startswith("-"))
    stars, place = 0, 0
    while place < len(lines):
        line = lines[place]
        alone = line == "*" and place + 1 < len(lines)
        stars += alone or (line.startswith("*") and line[1:2] not in ("*", ""))
        place += 2 if alone else 1
    return stars + dashes == num_bullets


@rule("detectable_format:constrained_response")
def constrained_response(text: str) -> bool:
    return any(response in text for response in RESPONSES)


@rule("detectable_format:number_highlighted_sections", num_highlights=COUNT)
def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    """*this* counts once, **this** once for its double stars; its single ones enclose nothing."""
    single = re.findall(r"\*[^\n*]*\*", text)
    double = re.findall(r"\*\*[^\n*]*\*\*", text)
    return sum(1 for found in (*single, *double) if found.strip("*").strip()) >= num_highlights


@rule("detectable_format:multiple_sections", section_spliter=TEXT, num_sections=COUNT)
def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


@rule("detectable_format:json_format")
def json_format(text: str) -> bool:
    text = text.strip()
    for fence in FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@rule("detectable_format:title")
def title(text: str) -> bool:
    return any(map(_has_title, text.split("\n")))


def _has_title(line: str) -> bool:
    """From the first "<<" to the last ">>". No pattern, for the same reason as above."""
    begin, end = line.find("<<"), line.rfind(">>")
    return 0 <= begin <= end - 3 and bool(line[begin : end + 2].lstrip("<").rstrip(">").strip())


@rule("combination:two_responses")
def two_responses(text: str) -> bool:
    responses = texts.parts(text, "******")
    return responses is not None and len(responses) == 2 and responses[0].strip() != responses[1].strip()


@rule("combination:repeat_prompt", prompt_to_repeat=TEXT)
def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


@rule("startend:end_checker", end_phrase=TEXT)
def end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@rule("startend:quotation")
def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


@rule("change_case:capital_word_frequency", capital_frequency=COUNT, capital_relation=RELATION)
def capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return RELATIONS[capital_relation](sum(1 for word in tokens.words(text) if word.isupper()), capital_frequency)


@rule("change_case:english_capital")
def english_capital(text: str) -> bool:
    return text.isupper() and is_in(text, "en")


@rule("change_case:english_lowercase")
def english_lowercase(text: str) -> bool:
    return text.islower() and is_in(text, "en")


@rule("punctuation:no_comma")
def no_comma(text: str) -> bool:
    return "," not in text
