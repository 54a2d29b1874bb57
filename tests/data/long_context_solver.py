"""A reader of long contexts that knows how tasks are worded, and nothing of how they are made: `solve(messages)` -> a reply.

It is strict: whatever is said twice, or of two things, fails an assertion, so that what it solves has one answer.
"""

import re
from collections import Counter, defaultdict

FACTS = {
    "river": [r"(?P<name>\w+) lies on the river (?P<value>\w+)\.", r"The river (?P<value>\w+) runs through (?P<name>\w+)\."],
    "founded": [
        r"(?P<name>\w+) was founded in (?P<value>\d+)\.",
        r"The oldest charter of (?P<name>\w+) dates from (?P<value>\d+)\.",
    ],
    "mayor": [
        r"The mayor of (?P<name>\w+) is (?P<value>\w+ \w+)\.",
        r"(?P<value>\w+ \w+) has been mayor of (?P<name>\w+) for some years\.",
    ],
    "inhabitants": [
        r"(?P<name>\w+) has (?P<value>\d+) inhabitants\.",
        r"According to the last count, (?P<value>\d+) people live in (?P<name>\w+)\.",
    ],
    "bridges": [
        r"There are (?P<value>\d+) bridges in (?P<name>\w+)\.",
        r"(?P<name>\w+) is known for its (?P<value>\d+) bridges\.",
    ],
    "trade": [
        r"Most people in (?P<name>\w+) live by (?P<value>[a-z ]+)\.",
        r"The main trade of (?P<name>\w+) is (?P<value>[a-z ]+)\.",
    ],
    "birthplace": [
        r"(?P<name>\w+ \w+) was born in (?P<value>[A-Z]\w+)\.",
        r"The birthplace of (?P<name>\w+ \w+) is (?P<value>\w+)\.",
    ],
    "born": [
        r"(?P<name>\w+ \w+) was born in the year (?P<value>\d+)\.",
        r"The birth of (?P<name>\w+ \w+) is recorded for (?P<value>\d+)\.",
    ],
    "teacher": [
        r"(?P<name>\w+ \w+) learned the craft from (?P<value>\w+ \w+)\.",
        r"The teacher of (?P<name>\w+ \w+) was (?P<value>\w+ \w+)\.",
    ],
}
QUESTIONS = {
    "river": r"On which river does (.+) lie\?",
    "founded": r"In which year was (.+) founded\?",
    "mayor": r"Who is the mayor of (.+)\?",
    "inhabitants": r"How many inhabitants has (.+)\?",
    "birthplace": r"In which town was (.+) born\?",
    "born": r"In which year was (.+) born\?",
    "teacher": r"From whom did (.+) learn the craft\?",
}
ORDINALS = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4, "sixth": 5, "seventh": 6, "eighth": 7}


def solve(messages: list[dict]) -> str:
    if len(messages) > 1:
        return repeated(messages)
    (message,) = messages
    head, _, rest = message["content"].partition("\n\n")
    context, _, question = rest.rpartition("\n\n")
    if "LET " in context:
        return tracked(context, question)
    if head.startswith("Answer the question"):
        return looked_up(context, question)
    if head.startswith("Certain"):
        return found(context, question)
    return counted(context, question)


def found(context: str, question: str) -> str:
    values = defaultdict(list)
    for kind, key, value in re.findall(r"The (number|word|identifier) of (\S+) is (\S+)\.", context):
        assert value not in values[kind, key]
        values[kind, key].append(value)
    wanted = r"what (?:is the|are the|are all \d) (number|word|identifier)s? of (.+)\? Answer"
    kind, asked = re.search(wanted, question).groups()
    keys = re.split(r", | and ", asked)
    sizes = {len(values[kind, key]) for key in keys}
    assert sizes == {int((re.search(r"all (\d)", question) or [0, 1])[1])}
    return ", ".join(value for key in keys for value in values[kind, key])


def tracked(context: str, question: str) -> str:
    held = {}
    for name, value in re.findall(r"LET (\w+) = (\w+)\.", context):
        assert name not in held
        held[name] = value if value.isdigit() else held[value]
    asked = re.search(r"Which variables hold (\d+)\?", question)[1]
    return ", ".join(name for name, value in held.items() if value == asked)


def counted(context: str, question: str) -> str:
    asked = int(re.search(r"Which (\d+) words", question)[1])
    most = Counter(context.split()).most_common(asked + 1)
    assert most[asked - 1][1] > most[asked][1]
    return ", ".join(word for word, _ in most[:asked])


def looked_up(context: str, question: str) -> str:
    titles = re.findall(r"^Document \d+: (.+)$", context, re.MULTILINE)
    assert len(titles) >= 5 and len(set(titles)) == len(titles)
    assert titles == [title for _, title in re.findall(r"^Document (\d+): (.+)$", context, re.MULTILINE)]
    facts = defaultdict(dict)
    for fact, patterns in FACTS.items():
        for pattern in patterns:
            for match in re.finditer(pattern, context):
                assert match["name"] not in facts[fact]
                facts[fact][match["name"]] = match["value"]
    if "boxed" in question:
        return f"\\boxed{{{together(facts, question)}}}"
    fact, asked = next((fact, m[1]) for fact, pattern in QUESTIONS.items() if (m := re.match(pattern, question)))
    through = re.fullmatch(r"the town where (.+) was born", asked)
    return facts[fact][facts["birthplace"][through[1]] if through else asked]


def together(facts: dict, question: str) -> str:
    if match := re.match(r"How many bridges do (.+) have together\?", question):
        return str(sum(int(facts["bridges"][name]) for name in listed(match[1])))
    if match := re.match(r"Which of (.+) has the most inhabitants\?", question):
        return max(listed(match[1]), key=lambda name: int(facts["inhabitants"][name]))
    if match := re.match(r"Which of (.+) was founded first\?", question):
        names = listed(match[1])
        assert len({facts["founded"][name] for name in names}) == len(names)
        return min(names, key=lambda name: int(facts["founded"][name]))
    match = re.match(r"In how many of (.+?) is ([a-z ]+) what most people live by", question)
    return str(sum(facts["trade"][name] == match[2] for name in listed(match[1])))


def listed(text: str) -> list[str]:
    names = re.split(r", | and ", text)
    assert len(names) == 5
    return names


def repeated(messages: list[dict]) -> str:
    *said, question = messages
    ordinal, wanted, prefix = re.match(
        r"Repeat the (\w+) (.+) that you wrote in this conversation, word for word\. Begin your answer with (\w+),",
        question["content"],
    ).groups()
    assert [message["role"] for message in messages] == ["user", "assistant"] * (len(said) // 2) + ["user"]
    replies = [
        reply["content"]
        for request, reply in zip(said[::2], said[1::2])
        if re.fullmatch(rf"Write an? {re.escape(wanted)}\.", request["content"])
    ]
    assert len(replies) in (2, 4, 8) and len(set(replies)) == len(replies)
    return prefix + replies[ORDINALS[ordinal]]
