"""Questions over many documents about towns and people that do not exist, most of which have nothing to do with the question.

`one`: a single document answers. `two`: a person's document names the town, the town's document answers [RULER's two kinds of
questions, on text of our own]. `many`: the answer takes five towns' documents together, as the long-context questions of
Nemotron 3 Nano's blend draw on at least five; it is one boxed word or number.
"""

import random
from collections.abc import Callable, Iterator

from nemo_cascade.data.long_context.fit import Draft
from nemo_cascade.data.long_context.place import depths, insert, longest, user, with_tails
from nemo_cascade.data.long_context.prose import sentence, short_sentences
from nemo_cascade.data.long_context.words import FIRST_NAMES, TRADES, Distinct

# Documents at least, however short the context.
LEAST = 5
TOGETHER = 5
# Facts of a document, and sentences of filler at most.
FACTS, FILLER = 4, 3
# Other documents' values that take away from an answer that lists them too.
WRONG = 64

TOWN = {
    "river": ("{name} lies on the river {value}.", "The river {value} runs through {name}."),
    "founded": ("{name} was founded in {value}.", "The oldest charter of {name} dates from {value}."),
    "mayor": ("The mayor of {name} is {value}.", "{value} has been mayor of {name} for some years."),
    "inhabitants": ("{name} has {value} inhabitants.", "According to the last count, {value} people live in {name}."),
    "bridges": ("There are {value} bridges in {name}.", "{name} is known for its {value} bridges."),
    "trade": ("Most people in {name} live by {value}.", "The main trade of {name} is {value}."),
}
PERSON = {
    "birthplace": ("{name} was born in {value}.", "The birthplace of {name} is {value}."),
    "born": ("{name} was born in the year {value}.", "The birth of {name} is recorded for {value}."),
    "teacher": ("{name} learned the craft from {value}.", "The teacher of {name} was {value}."),
    "craft": ("The craft of {name} is {value}.", "{name} earns a living by {value}."),
}
# Only what hardly two towns or people have in common is asked for.
ASKED = {
    "river": "On which river does {of} lie?",
    "founded": "In which year was {of} founded?",
    "mayor": "Who is the mayor of {of}?",
    "inhabitants": "How many inhabitants has {of}?",
    "birthplace": "In which town was {of} born?",
    "born": "In which year was {of} born?",
    "teacher": "From whom did {of} learn the craft?",
}


class World:
    """Towns and people with their facts; what has been drawn once is not drawn again, but for small numbers and trades."""

    def __init__(self, rng: random.Random):
        self.rng, self.words = rng, Distinct(rng)

    def town(self) -> dict:
        digits = self.rng.randrange
        return {
            "name": self.words.name(),
            "river": self.words.name(),
            "founded": str(digits(1100, 1900)),
            "mayor": self.somebody(),
            "inhabitants": self.words.digits(5),
            "bridges": str(digits(2, 90)),
            "trade": self.rng.choice(TRADES),
        }

    def person(self, birthplace: str | None = None) -> dict:
        return {
            "name": self.somebody(),
            "birthplace": birthplace or self.words.name(),
            "born": str(self.rng.randrange(1900, 2000)),
            "teacher": self.somebody(),
            "craft": self.rng.choice(TRADES),
        }

    def somebody(self) -> str:
        return f"{self.rng.choice(FIRST_NAMES)} {self.words.name()}"

    def document(self, facts: dict, needed: str | None = None, filler: int = 0) -> str:
        """Title and text: the needed fact, others, filler, in no fixed order."""
        said = PERSON if "birthplace" in facts else TOWN
        others = self.rng.sample([fact for fact in said if fact != needed], FACTS - bool(needed))
        kept = others + [needed] * bool(needed)
        texts = [self.rng.choice(said[fact]).format(name=facts["name"], value=facts[fact]) for fact in kept]
        texts += [sentence(self.rng) for _ in range(filler)]
        self.rng.shuffle(texts)
        return f"{facts['name']}\n{' '.join(texts)}"


def one(rng: random.Random, length: int) -> Draft:
    world = World(rng)
    facts = world.town() if rng.random() < 0.5 else world.person()
    asked = rng.choice([fact for fact in facts if fact in ASKED])
    return _looked_up(world, [world.document(facts, asked)], ASKED[asked].format(of=facts["name"]), asked, facts[asked])


def two(rng: random.Random, length: int) -> Draft:
    world = World(rng)
    town = world.town()
    person = world.person(birthplace=town["name"])
    asked = rng.choice([fact for fact in town if fact in ASKED])
    documents = [world.document(person, "birthplace"), world.document(town, asked)]
    rng.shuffle(documents)
    question = ASKED[asked].format(of=f"the town where {person['name']} was born")
    return _looked_up(world, documents, question, asked, town[asked])


def many(rng: random.Random, length: int) -> Draft:
    world = World(rng)
    towns = [world.town() for _ in range(TOGETHER)]
    names = [town["name"] for town in towns]
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    kind = rng.choice(["sum", "most", "oldest", "count"])
    if kind == "sum":
        needed, question = "bridges", f"How many bridges do {listed} have together?"
        expected = str(sum(int(town["bridges"]) for town in towns))
    elif kind == "most":
        needed, question = "inhabitants", f"Which of {listed} has the most inhabitants?"
        expected = max(towns, key=lambda town: int(town["inhabitants"]))["name"]
    elif kind == "oldest":
        for town, year in zip(towns, rng.sample(range(1100, 1900), TOGETHER)):
            town["founded"] = str(year)
        needed, question = "founded", f"Which of {listed} was founded first?"
        expected = min(towns, key=lambda town: int(town["founded"]))["name"]
    else:
        trade = rng.choice(TRADES)
        for town in towns:
            town["trade"] = trade if rng.random() < 0.5 else rng.choice([other for other in TRADES if other != trade])
        needed, question = "trade", f"In how many of {listed} is {trade} what most people live by, the main trade?"
        expected = str(sum(town["trade"] == trade for town in towns))
    documents = [world.document(town, needed) for town in towns]

    def answers(others):
        return {"expected_answer": expected}

    return _draft(world, documents, f"{question} Write the answer alone, inside \\boxed{{}}.", answers)


def _looked_up(world: World, documents: list[str], question: str, asked: str, value: str) -> Draft:
    """A draft whose answer is one fact, which no other document has."""

    def answers(others):
        wrong = list(dict.fromkeys(facts[asked] for facts in others if asked in facts))[:WRONG]
        found = {"outputs": [value], "answer_characters": longest([value])}
        return {**found, "wrong_outputs": wrong} if wrong else found

    return _draft(world, documents, f"{question} Answer with that alone.", answers, clashes=(asked, value))


def _draft(world: World, documents: list[str], question: str, answers: Callable, clashes=("", "")) -> Draft:
    """The documents among others, never fewer than LEAST."""
    fact, value = clashes
    about: dict[str, dict] = {}

    def others(filler: Callable[[], int]) -> Iterator[str]:
        while True:
            facts = world.town() if world.rng.random() < 0.5 else world.person()
            if facts.get(fact) == value:
                continue
            document = world.document(facts, fact if fact in facts else None, filler())
            about[document] = facts
            yield document

    short = others(lambda: 0)
    fixed = [next(short) for _ in range(max(LEAST - len(documents), 3))]
    at = depths(world.rng, len(documents))

    def messages(large, small):
        # What closes the gap goes to the ends of documents that do not matter.
        whole = insert(documents, at, with_tails(fixed + large, small))
        text = "\n\n".join(f"Document {number}: {document}" for number, document in enumerate(whole, start=1))
        return user(f"Answer the question at the end from these documents.\n\n{text}\n\n{question}")

    def found(large, small):
        return {**answers([about[document] for document in fixed + large]), "depths": at}

    return Draft(others(lambda: world.rng.randrange(FILLER + 1)), short_sentences(world.rng), messages, found)
