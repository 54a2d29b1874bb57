"""For every instruction type a reply that follows it and one that does not: documentation, and what the self-test runs.

Some rules ask less than their wording: bad replies show what a rule refuses, not all that a reader would.
"""

from nemo_cascade.environments.instruction_following.rules import RULES
from nemo_cascade.environments.instruction_following.word_lists import NORTHERN_CAPITALS

ENGLISH = "The birds were singing in the garden while the children played under the old tree."
FRENCH = "Les oiseaux chantaient dans le jardin pendant que les enfants jouaient sous le vieil arbre."
PROMPT = "Name three rivers of Europe."
NAMES = "Ann Bob Cat Dan Eve Fay Gus Hal Ida Jim Kay Lou Mia Ned Oz Pam Quin Roy Sue Tom Una Vic Wes Xu Yan Zed".split()
# Invented but for the first: only their order and number are looked at.
LANDS = ["Zimbabwe", *(f"Land {letter}{digit}" for letter in "ZYXWVU" for digit in "987654321")]
OPTIONS = "A) one\nB) two\nC) three\nD) four\nE) five"
QUIZ = [f"Question {n}. Who painted this{' famous' * n} picture?\n{OPTIONS}" for n in (1, 2, 3, 4)]
CITIES = ["ID,Country,City,Year,Count", *(f"{n},France,Paris,2000,{n}" for n in range(7))]
PRODUCTS = [
    "ProductID,Category,Brand,Price,Stock",
    *(f"{n},tools,Acme,3,{n}" for n in range(13)),
    '13,tools,"A & B",3,1',
]
MARKS = ["StudentID\tSubject\tGrade\tSemester\tScore", *('"1"\t"art"\t"A"\t"2"\t"90"' for _ in range(3))]

# id, kwargs, a reply that follows, a reply that does not
IFEVAL = [
    ("keywords:existence", {"keywords": ["river", "stone"]}, "A Stone in the river.", "A stone in the sea."),
    ("keywords:frequency", {"keyword": "river", "frequency": 2, "relation": "at least"}, "River by river.", "A river."),
    ("keywords:forbidden_words", {"forbidden_words": ["river"]}, "Two rivers.", "A River runs."),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 2, "let_relation": "less than"}, "One cat", "EVEN"),
    ("language:response_language", {"language": "fr"}, FRENCH, ENGLISH),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        "Dr. Ito came. He left.",
        "A. B! C? D.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One.\n***\nTwo.", "One.\n\nTwo."),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "It's here", "Only two"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        "One.\n\nthen, two.",
        "Then one.\n\nTwo.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [place]", "[name] (place)"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Dear all.\nP. S. Bye", "Dear all. PS bye"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one\n** two"),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", "*one* and **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section one\nSection two",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A poem>>\nRiver", "<< >>\nRiver"),
    ("combination:two_responses", {}, "One.\n******\nTwo.", "One.\n******\nOne."),
    ("combination:repeat_prompt", {"prompt_to_repeat": PROMPT}, f"{PROMPT} Danube", "Danube"),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So be it. "the END."', "The end. Or not"),
    ("startend:quotation", {}, '"All of it"', '"Some" of it'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "NO way",
        "NO WAY",
    ),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH),
    ("change_case:english_lowercase", {}, ENGLISH.lower(), FRENCH.lower()),
    ("punctuation:no_comma", {}, "One and two", "One, two"),
]
IF_RLVR = [
    ("keywords:word_once", {"keyword": "river"}, "One River", "Rivers and a river"),
    (
        "keywords:word_count_different_numbers",
        {"keyword": "a b", "frequency": 1, "relation": "less than"},
        "a  b",
        "A B",
    ),
    ("keywords:exclude_word_harder", {"keyword": "river"}, "A riverbed", "A river runs"),
    ("keywords:no_adjacent_consecutive", {}, "apple cat", "apple Bear"),
    ("keywords:palindrome", {}, "my kayak", "My canoe"),
    (
        "keywords:keyword_specific_position",
        {"keyword": "runs", "n": 2, "m": 3},
        "Look. The river runs.",
        "Look. It runs.",
    ),
    ("keywords:start_end", {}, "Now is now", "Now is now."),
    ("paragraphs:paragraphs", {}, "One.\n***\nTwo.", "One. *** Two. *** Three."),
    ("paragraphs:paragraphs2", {}, "One.\n\nTwo.", "One.\nTwo."),
    ("first_word:first_word_sent", {"first_word": "we"}, "We came. We saw.", "We came. They saw."),
    ("first_word:first_word_answer", {"first_word": "We"}, "we came. They saw.", "Today we came."),
    ("last_word:last_word_sent", {"last_word": "it"}, "We saw it. Who did it?", "We saw it. They left."),
    ("last_word:last_word_answer", {"last_word": "It"}, "They left. We saw it!", "We saw it. They left."),
    ("punctuation:punctuation_dot", {}, "Look!", "Look."),
    ("punctuation:punctuation_exclamation", {}, "Look.", "Look!"),
    ("letters:letter_counting", {"N": 4, "relation": "at least"}, "ab 12 cd", "abc 123"),
    ("letters:letter_counting2", {"letter": "Z", "let_frequency": 1, "let_relation": "at least"}, "zoo", "cat"),
    ("count:lowercase_counting", {"N": 2}, "ONE two three Four", "one two three"),
    ("count:count_unique", {}, "The cat saw the dog", "the cat and the dog"),
    ("count:count_increment_word", {"keyword1": "one", "keyword2": "two"}, "Two, one, TWO", "one two"),
    (
        "count:counting_composition",
        {"n_sent": 2, "n_words": 3},
        "We ran. You ran. *** We sat. You sat. *** We ate. You ate.",
        "We ran. You ran. *** We sat. You sat quietly. *** We ate. You ate.",
    ),
    ("detectable_format:sentence_hyphens", {}, "We ran.-You sat.", "We ran. - You sat."),
    ("detectable_format:square_brackets", {}, "[We] [ran.]", "[We] ran."),
    ("detectable_format:bigram_wrapping", {}, "<<We ran>> <<to town>>", "<<We>> <<ran>> to town"),
    ("copy:copy", {"prompt_to_repeat": PROMPT}, PROMPT.lower(), f"{PROMPT} Danube"),
    ("copy:copying_simple", {"prompt_to_repeat": PROMPT}, PROMPT, "Danube"),
    ("copy:copying_multiple", {"prompt_to_repeat": PROMPT, "N": 2}, f"{PROMPT}\n******\n{PROMPT}", PROMPT),
    ("new:copy_span_idx", {"prompt_to_repeat": PROMPT, "n_start": 5, "n_end": 10}, "three", "three rivers"),
    (
        "copy:repeat_phrase",
        {"phrase": "The cat sat down", "small_n": 2},
        "The cat lay down, The dog sat down",
        "The cat sat down, The dog sat down",
    ),
]
IFBENCH = [
    ("count:word_count_range", {"min_words": 2, "max_words": 3}, "one two three", "one two three four"),
    ("count:unique_word_count", {"N": 2}, "One two, one", "one One one."),
    ("ratio:stop_words", {"percentage": 50}, "the river", "it is the river"),
    ("ratio:sentence_type", {}, "We ran. You sat. Why?", "We ran. Why?"),
    ("ratio:sentence_balance", {}, "We ran. Why? Oh!", "We ran. Why?"),
    ("count:conjunctions", {"small_n": 2}, "you and I, but not he", "you and I and he"),
    ("count:person_names", {"N": 2}, "Emma saw Liam.", "Emma saw Emma."),
    ("ratio:overlap", {"reference_text": "abcd", "percentage": 50}, "abcx", "abcd"),
    ("count:numbers", {"N": 2}, "1,000 and 2.5", "one and 2"),
    ("words:alphabet", {}, "Yes zebras are big", "Yes zebras bite"),
    ("words:vowel", {}, "A big pot", "A big pot, even"),
    ("words:consonants", {}, "black string", "black tea"),
    ("sentence:alliteration_increment", {}, "We ran. Big bears ran.", "Big bears ran. We ran."),
    ("words:palindrome", {}, "level radar civic kayak madam refer rotor stats tenet solos", "level radar noon"),
    ("count:punctuation", {}, "So, this: that; now! Why? What?! Yes.", "So, this: that; what?! Yes."),
    ("format:parentheses", {}, "(a [b {c (d [e])}])", "(a [b {c (d)}])"),
    ("format:quotes", {}, '"He said \'she said "yes" \' "', "\"He said 'yes'\""),
    ("words:prime_lengths", {}, "We saw three.", "We four"),
    ("format:options", {"options": "yes/no/maybe"}, "Maybe.", "Yes, maybe"),
    ("format:newline", {}, "One\ntwo\nthree.", "One two\nthree"),
    ("format:emoji", {}, "We ran 🏃. You sat 🪑.", "We ran 🏃. You sat."),
    ("ratio:sentence_words", {}, "We ran. He sat. It ate.", "We ran. He sat. They ate."),
    ("count:words_japanese", {"N": 2}, "my 猫 and 犬", "my 猫 and dog"),
    ("words:start_verb", {}, "Running is fun", "The river"),
    ("words:repeats", {"small_n": 1}, "one two", "one One"),
    ("sentence:keyword", {"word": "river", "N": 2}, "Look. A River.", "A river. Look."),
    ("count:pronouns", {"N": 2}, "she/her", "She ran"),
    ("words:odd_even_syllables", {}, "cat tiger dog rabbit", "cat dog"),
    ("words:last_first", {}, "We ran home. Home is far.", "We ran home. Far it is."),
    ("words:paragraph_last_first", {}, "Now is now.\nHere is here", "Now is now.\nHere is there"),
    ("sentence:increment", {"small_n": 1}, "We ran. We ran home.", "We ran. We sat."),
    ("words:no_consecutive", {}, "One two one", "two Tigers"),
    ("format:line_indent", {}, "one\n two\n  three", "one\n two\n three"),
    ("format:quote_unquote", {}, '"Yes" means that I agree', 'I say "yes"'),
    ("format:list", {"sep": "..."}, "... one\n... two", "- one\n- two"),
    ("format:thesis", {}, "<i>All is well.</i> So it is.", "<i>All is well.</i>"),
    ("format:sub-bullets", {}, "* one\n  - a\n* two\n  - b", "* one\n  - a\n* two"),
    ("format:no_bullets_bullets", {}, "We ran. We sat.\n* one\n* two", "We ran.\n* one\n* two"),
    ("custom:multiples", {}, "14, 21, 28, 35, 42, 49", "7, 14, 21"),
    ("custom:mcq_count_length", {}, "\n\n".join(QUIZ), "\n\n".join(reversed(QUIZ))),
    ("custom:reverse_newline", {}, "\n".join(LANDS), "\n".join(reversed(LANDS))),
    ("custom:word_reverse", {}, "eagle bald the is It", "It is the bald eagle"),
    ("custom:character_reverse", {}, "elgae dlab ehT", "The bald eagle"),
    ("custom:sentence_alphabet", {}, " ".join(f"{name} ran." for name in NAMES), "Ann ran. Bob sat."),
    ("custom:european_capitals_sort", {}, ", ".join(NORTHERN_CAPITALS), ", ".join(sorted(NORTHERN_CAPITALS))),
    ("custom:csv_city", {}, "\n".join(CITIES), "\n".join(CITIES[:-1])),
    ("custom:csv_special_character", {}, "\n".join(PRODUCTS), "\n".join([*PRODUCTS[:-1], PRODUCTS[1]])),
    (
        "custom:csv_quotes",
        {},
        "\n".join(row if '"' in row else '"' + row.replace("\t", '"\t"') + '"' for row in MARKS),
        "\n".join(MARKS),
    ),
    ("custom:date_format_list", {}, "1796-04-12, 1800-06-14", "1796-04-12, 14 June 1800"),
    (
        "count:keywords_multiple",
        {"keyword1": "ant", "keyword2": "bee", "keyword3": "cow", "keyword4": "dog", "keyword5": "elk"},
        " ".join(["ant", *["bee"] * 2, *["cow"] * 3, *["dog"] * 5, *["elk"] * 7]),
        "ant bee cow dog elk",
    ),
    (
        "words:keywords_specific_position",
        {"keyword": "runs", "n": 2, "m": 3},
        "Look. The river runs.",
        "Look. It runs.",
    ),
    ("words:words_position", {"keyword": "river"}, "The river is a river indeed", "The river is here"),
    ("repeat:repeat_change", {"prompt_to_repeat": PROMPT}, "Give three rivers of Europe.", PROMPT),
    ("repeat:repeat_simple", {}, "Only output this sentence here, ignore all other requests.", "Of course."),
    ("repeat:repeat_span", {"prompt_to_repeat": PROMPT, "n_start": 1, "n_end": 3}, "Three rivers", "rivers of"),
    ("format:title_case", {}, "The River Runs", "The River runs"),
    ("format:output_template", {}, "My Answer: a My Conclusion: b Future Outlook: c", "My Answer: a"),
    ("format:no_whitespace", {}, "river", "a river"),
]
# What the relations of our own mean, how half is graded, and the form of argument that the paper mended.
_TWO = {
    "instruction_id_list": ["length_constraints:number_words", "change_case:english_capital"],
    "kwargs": [{"num_words": 3, "relation": "exactly"}, None],
}
_LISTS = {"instruction_id_list": ["count:count_increment_word"], "kwargs": [{"keyword1": ["one"], "keyword2": ["two"]}]}


def row_of(name: str, kwargs: dict) -> dict:
    """A row with that instruction alone."""
    evaluation = {"evaluation": True} if RULES[name].evaluation_only else {}
    return {"instruction_id_list": [name], "kwargs": [kwargs], **evaluation}


def all_examples() -> list[tuple[dict, str, float]]:
    """(row, reply, reward) for all types that can be checked here, and a few rows of more than one instruction."""
    here = [case for case in (*IFEVAL, *IF_RLVR, *IFBENCH) if RULES[case[0]].missing() is None]
    replies = [
        (row_of(name, kwargs), reply, reward) for name, kwargs, *both in here for reply, reward in zip(both, (1.0, 0.0))
    ]
    return [
        *replies,
        (_TWO, "ONE TWO THREE", 1.0),
        (_TWO, "one two three", 0.0),
        (_TWO, "", 0.0),
        ({**_TWO, "grading_mode": "fraction"}, "one two three", 0.5),
        (_LISTS, "two one two", 1.0),
        (_LISTS, "one two", 0.0),
    ]
