"""Long contexts of any length whose answers are known: tasks in the manner of RULER and MRCR, on text of our own.

`generate` makes a row, `write` a file of rows; replies are verified by the environment `long_context`. Rows carry the keys of
NeMo Gym's servers `ruler` and `mrcr`, so that those can score them as well, and some of ours:

    subset            the task
    length            tokens of the prompt with the chat template, by the tokenizer it was made with
    depths            where what is asked for stands, 0 (the beginning) to 1
    wrong_outputs     what else could be listed; each found takes as much away as an answer gives
    answer_characters a longer answer earns nothing

The same task, tokenizer, length, seed and number give the same row, whatever else is generated.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nemo_cascade.data.files import write_atomically
from nemo_cascade.data.long_context import counting, documents, variables
from nemo_cascade.data.long_context.conversation import Conversation
from nemo_cascade.data.long_context.fit import TOLERANCE, Draft, LengthError, Measure, fit
from nemo_cascade.data.long_context.needles import Needles

__all__ = ["TASKS", "TOLERANCE", "LengthError", "Measure", "Task", "generate", "write"]

AGENT = {"type": "responses_api_agents", "name": "long_context_simple_agent"}
# Redraws where filler leaves more than one answer possible.
ATTEMPTS = 50


@dataclass(frozen=True)
class Task:
    """draw(rng, length) -> a draft that is filled up to that length."""

    description: str
    draw: Callable[[random.Random, int], Draft]


# Where RULER has a task, the name is RULER's.
TASKS = {
    "niah_single_1": Task("one word's number, in one passage repeated over and over", Needles(haystack="noise")),
    "niah_single_2": Task("one word's number, in prose", Needles()),
    "niah_single_3": Task("one word's UUID, in prose", Needles(value="identifier")),
    "niah_multikey_1": Task("one of four words' numbers, in prose", Needles(keys=4)),
    "niah_multikey_2": Task("one word's number, among nothing but words with numbers", Needles(haystack="needles")),
    "niah_multikey_3": Task(
        "one UUID's UUID, among nothing but UUIDs", Needles(key="identifier", value="identifier", haystack="needles")
    ),
    "niah_multikey_4": Task("one of four numbers' words, in prose", Needles(key="number", value="word", keys=4)),
    "niah_multivalue": Task("all four numbers of a word, in prose", Needles(values=4)),
    "niah_multiquery": Task("the numbers of four words, in prose", Needles(keys=4, asked=4)),
    "vt": Task("variables that a value was handed on to, in four hops; two other chains", variables.tracking),
    "cwe": Task("the ten words that occur most often, 30 times, the others 3 times", counting.common),
    "fwe": Task("the three words that occur most often; frequencies fall as 1/rank^2", counting.frequent),
    "qa_1": Task("a fact out of one of at least five documents", documents.one),
    "qa_2": Task("a fact that takes two of at least five documents", documents.two),
    "qa_many": Task("an answer that takes five documents together, boxed", documents.many),
    "mrcr_2": Task("repeat one of 2 replies to the same request in a conversation", Conversation(2)),
    "mrcr_4": Task("repeat one of 4", Conversation(4)),
    "mrcr_8": Task("repeat one of 8", Conversation(8)),
}


def generate(task: str, measure: Measure, length: int, seed: int = 0, number: int = 0) -> dict:
    """One row whose prompt has at most `length` tokens, and at least 98 % of it.

    Raises LengthError naming the task and the length from which on it can be had.
    """
    for attempt in range(ATTEMPTS):
        draft = TASKS[task].draw(random.Random(f"{task}/{length}/{seed}/{number}/{attempt}"), length)
        try:
            large, small, tokens = fit(draft, measure, length)
        except LengthError as error:
            raise LengthError(f"task {task} of {length} tokens: {error}, or leave the task out") from None
        answers = draft.answers(large, small)
        if answers is not None:
            prompt = {"responses_create_params": {"input": draft.messages(large, small)}}
            count = {"length": tokens} | ({"n_tokens": tokens} if "n_needles" in answers else {})
            return {**prompt, **answers, **count, "subset": task, "agent_ref": AGENT}
    raise LengthError(f"task {task} of {length} tokens: no single right answer in {ATTEMPTS} tries; ask for a longer one")


def rows(tasks: list[str], tokenizer, lengths: list[int], n: int, seed: int = 0) -> Iterator[dict]:
    """n rows of every task at every length; tasks alternate, so that a part of the file has all of them."""
    measure = Measure(tokenizer)
    return (
        generate(task, measure, length, seed, number) for number in range(n) for length in lengths for task in tasks
    )


def write(path: Path, made: Iterator[dict]) -> None:
    """Rows as a JSONL file, one at a time, because one of a million tokens takes megabytes."""
    write_atomically(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in made))
