"""Sentences and words as nltk's `sent_tokenize` and `word_tokenize` part them, without nltk and the model it downloads.

Words follow the conventions of the Penn Treebank, as nltk reads them: "don't" is two, a full stop is one of its own
only at the sentence's end. Sentences follow Punkt (Kiss & Strunk 2006, section 4), whose model learned from newspapers
which words are abbreviations and how words are written; lists of our own stand for it here. Sentences part at every
full stop, but after an abbreviation only where a word follows that likes to begin sentences, and after "..." where a
large letter does.

A text is walked through once: no pattern here can backtrack far.
"""

import re

CLOSERS = "\"')]}‘’“”«»"
# What ends a word within a run of characters without space.
NO_WORD = ")\";}*:@'({[]‘’“”«»?!"
ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st sr jr messrs rep reps sen gen col lt maj adm ga va vs inc ltd co cos corp bros cie "
    "ave jan feb aug sep sept oct nov dec tues wed fri ala ariz calif colo conn fla ill kan ky mich minn nev "
    "okla ore pa tenn vt wis wash w.va n.c n.d n.h n.j n.m n.y s.c d.c l.a u.s u.k u.n u.s.a u.s.s.r a.m p.m "
    "ph.d m.b.a a.d j.c j.p j.r w.w ct chg yr ft mg ok sw c d e f g h k l m n p r s t v w".split()
)
# Words that begin a sentence when they are written large after an abbreviation.
STARTERS = frozenset(
    "above almost along already although always among anyone anything begin behind being better between both "
    "build but came choose consider create despite does done early else enjoy ensure enough even ever exercise "
    "fact finally following furthermore he hence her here hot however i idea if important in include including "
    "indeed inside instead into it learn least many meanwhile moreover most need nevertheless nonetheless nor "
    "nothing otherwise play please put remember right same separately similarly simply since sit so some "
    "somehow someone sometimes soon step still such thank the themselves there therefore these they think this "
    "though thought through throughout thus tips together try turn under unlike using various very were when "
    "whenever whether which while whole within without yes yesterday yet your".split()
)
# Words that after an initial are no name, though after an abbreviation they may be part of one ("The" in "U.S. The").
NO_NAMES = STARTERS - {"i"} | frozenset(
    "a about across after again against all an and another any around as ask at away back be because been big "
    "bring by call can come could day did do down due during each easy eat every everyone everything far few "
    "find first food for four friends from full further get give go good great group had hand has have help "
    "high his history how human i its itself just keep key kind know large last later left less let life like "
    "little live long look made main make maybe me more much must my name near never new next no none not now "
    "of often old on once one only open or order other others our out outside over own part people perhaps "
    "person place point possible quite rather read real said say second see seem several she should show small "
    "stay stop take tell than that their them then third those three time times to today too two until up upon "
    "use used want was water way we well what where who whose why will with work world would write year years "
    "you".split()
)
# A run of characters without space that has a mark in it that may end a sentence.
_MARKED = re.compile(r"(?<!\S)[^\s.?!]*+[.?!]\S*")
_NEXT = re.compile(r"\s+(\S+)")
_LETTERS = re.compile(r"[A-Za-z]{2,}")
_MARK = re.escape(NO_WORD)
# Dashes or dots, else a word up to a mark or to a comma that ends it, else one character.
_TOKEN = re.compile(
    rf"--+|\.\.+"
    rf"|[^\s(\"`{{\[:;&#*@)}}\]\-,](?:(?!--|\.\.|,(?:$|\s|--|\.\.|[{_MARK}]))[^\s{_MARK}])*"
    rf"|\S"
)
_NUMBER = re.compile(r"-?[.,]?\d[\d,.-]*")


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order."""
    found, begin = [], 0
    for marked in _MARKED.finditer(text):
        run, after = marked.group(), _NEXT.match(text, marked.end())
        end = _possible_end(run, after is not None)
        if end < 0:
            continue
        word, rest = run[: end + 1], run[end + 1 :]
        if not (_surely_ends(word) or _ends(word, rest[0] if rest else f" {after.group(1)}")):
            continue
        # A bracket or quotation mark that closes stays with the sentence it closes.
        if not rest.strip(CLOSERS):
            end += len(rest)
        found.append(text[begin : marked.start() + end + 1])
        begin = marked.start() + end + 1
    found.append(text[begin:])
    return [sentence for sentence in map(str.strip, found) if sentence]


def _possible_end(run: str, more: bool) -> int:
    """Where in a run of characters a sentence may end: the last mark before something that is no word, -1 if none."""
    if more and run[-1] in ".?!":
        return len(run) - 1
    for place in range(len(run) - 2, -1, -1):
        if run[place] in ".?!" and run[place + 1] in NO_WORD:
            return place
    return -1


def _surely_ends(word: str) -> bool:
    """Whether a word ends a sentence whatever follows: most do, and nothing more has to be looked at."""
    return word[-1] != "." or (_LETTERS.fullmatch(word, 0, len(word) - 1) is not None and word[:-1].lower() not in ABBREVIATIONS)


def _ends(word: str, follows: str) -> bool:
    """Whether a sentence ends with any token but the last of this."""
    tokens = _TOKEN.findall(word + follows)
    return any(_ends_with(token, after) for token, after in zip(tokens, tokens[1:]))


def _ends_with(token: str, after: str) -> bool:
    if token in (".", "?", "!"):
        return True
    if not token.endswith("."):
        return False
    name, following = token[:-1].lower(), after.rstrip(".").lower()
    begins = after[0].isupper() and following in STARTERS
    if token.endswith(".."):
        return begins or (after[0].isupper() and following not in NO_NAMES)
    abbreviated = name in ABBREVIATIONS or name.rpartition("-")[2] in ABBREVIATIONS
    initial = len(name) == 1 and name.isalpha()
    if (initial or _NUMBER.fullmatch(name)) and (after[0].islower() or after in ";:,.!?"):
        return False
    if initial and after[0].isupper() and following not in NO_NAMES:
        return False
    return begins and not initial if abbreviated else True


def _in_two(found: re.Match) -> str:
    first, second = filter(None, found.groups())
    return f" {first} {second} "


# Marks that are words wherever they stand; those that open a quotation, before it is told which marks open one.
_OPENING = "«“‘„"
_APART = ";@#$%&?!*[](){}<>»”’‒–—―"
# Stands between sentences, so that all of them are parted at once. One of ASCII: other texts are searched at half the speed.
_END = "\0"
# What a text has of it is this meanwhile, which Unicode has set aside.
_NO_END = "\ufdd0"
# (what a text must have some of for the rule to be tried, pattern, replacement); the first saves most of the time. A pattern
# begins with a character to be found, and looks at what is before it afterwards: so it is tried at few places of a text.
_QUOTES = [
    ("`", re.compile(r"``|`"), r" \g<0> "),
    ('"', re.compile(rf'"(?<![^{_END}]")'), " `` "),
    (('"', "''"), re.compile(r"\"(?<=[ (\[{<]\")|''(?<=[ (\[{<]'')"), " `` "),
    ("'", re.compile(r"'(?<!\w')(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", re.I), "' "),
]
_STOPS = [
    # The full stop that ends the sentence, whatever closes after it.
    (".", re.compile(rf"\.(?<=[^.{_END}]\.)([\])}}>\"'»”’ ]*)(?![^{_END}])"), r" . \1 "),
    (":,", re.compile(rf"([:,])([^\d{_END}])"), r" \1 \2"),
    (":,", re.compile(rf"([:,])(?![^{_END}])"), r" \1 "),
    (("..",), re.compile(r"\.{2,}"), r" \g<0> "),
]
_CLOSING = [
    ("'", re.compile(rf"'(?<=[^'{_END}]') "), " ' "),
    (("--",), re.compile(r"--"), " -- "),
    (('"', "''"), re.compile(r"''|\""), " '' "),
]
_ENDINGS = [
    ("'", re.compile(r"'(?<=[^' ]')([sSmMdD]?) "), r" '\1 "),
    (("n't ", "N'T "), re.compile(r"n't(?<=[^' ]n't) |N'T(?<=[^' ]N'T) "), r" \g<0>"),
    ("'", re.compile(r"'(?<=[^' ]')(ll|LL|re|RE|ve|VE) "), r" '\1 "),
]
_TWO_IN_ONE = (
    (re.compile(r"\b(?:(can)(not)|(d)('ye)|(gim)(me)|(gon)(na)|(got)(ta)|(lem)(me)|(more)('n))\b", re.I), _in_two),
    (re.compile(r"\b(wan)(na)(?=\s)", re.I), r" \1 \2 "),
)
# Without one of these, in small letters, a text has no such word.
_JOINED = ("cannot", "d'ye", "gimme", "gonna", "gotta", "lemme", "more'n", "wanna")
_LAST = [(("'t", "'T"), re.compile(r" ('t)(is|was)\b", re.I), r" \1 \2 ")]


def words(text: str) -> list[str]:
    """The words of a text, marks among them, sentence by sentence."""
    if _END in text:
        return [word.replace(_NO_END, _END) for word in words(text.replace(_END, _NO_END))]
    text = _END.join(sentences(text))
    text = _replaced(_apart(text, _OPENING), _QUOTES)
    text = _apart(_replaced(text, _STOPS), _APART)
    text = _replaced(text, _CLOSING).replace(_END, " ")
    text = _replaced(f" {' '.join(text.split())} ", _ENDINGS)
    # Beyond ASCII others than "k" and "K" are a "k" in any case, as the Kelvin sign is.
    lowered = text.lower()
    if not text.isascii() or any([joined in lowered for joined in _JOINED]):
        for pattern, replacement in _TWO_IN_ONE:
            text = pattern.sub(replacement, text)
    return _replaced(text, _LAST).split()


def _apart(text: str, marks: str) -> str:
    for mark in marks:
        text = text.replace(mark, f" {mark} ")
    return text


def _replaced(text: str, rules: list[tuple]) -> str:
    for triggers, pattern, replacement in rules:
        for trigger in triggers:
            if trigger in text:
                text = pattern.sub(replacement, text)
                break
    return text
