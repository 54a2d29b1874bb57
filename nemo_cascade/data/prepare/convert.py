"""One row of a set into what is kept of it, the same in this process and in others beside it."""

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import TemplateError

from nemo_cascade.data.chat import conversation_to_samples
from nemo_cascade.data.prepare.conversations import to_conversation
from nemo_cascade.data.prepare.outcome import Dropped, Unusable
from nemo_cascade.data.prepare.overlap import asked, read_evaluations
from nemo_cascade.data.prepare.source import Raw
from nemo_cascade.data.prepare.tasks import Task, to_task
from nemo_cascade.data.rows import messages_of
from nemo_cascade.data.sample import Sample
from nemo_cascade.data.tokenizer import load_tokenizer

# A row is long, and a message to another process costs little beside it.
ROWS_A_MESSAGE = 8
# The last takes seconds, and is what `load_tokenizer` needs.
PRELOADED = ("nemo_cascade.data.prepare.convert", "transformers.models.auto.tokenization_auto")
# What a template may make of values that nobody thought of.
TEMPLATE_ERRORS = (AttributeError, LookupError, TemplateError, TypeError, ValueError)


@dataclass(frozen=True)
class Rules:
    """What decides over a row. tokenizer: None for RL rows, which stay text. evaluation: a folder of prompts, or None."""

    tokenizer: str | None = None
    capacity: int = 262_144
    evaluation: Path | None = None
    validation_share: float = 0.02
    without: tuple[str, ...] = ()
    gym_servers: tuple[str, ...] = ()


@dataclass
class Outcome:
    """Samples of an SFT row, the task of an RL row, or why there is neither; a line for each sample longer than a pack."""

    samples: list[Sample] = field(default_factory=list)
    task: Task | None = None
    dropped: Dropped | None = None
    mended: Counter = field(default_factory=Counter)
    too_long: list[str] = field(default_factory=list)


class Converter:
    """Rules with the tokenizer and the index that they name, loaded once. Raises ValueError for those that cannot be."""

    def __init__(self, rules: Rules):
        self.rules = rules
        self.tokenizer = load_tokenizer(rules.tokenizer) if rules.tokenizer is not None else None
        self.evaluations = read_evaluations(rules.evaluation)

    def __call__(self, raw: Raw) -> Outcome:
        outcome = Outcome()
        try:
            row, problem = raw.parsed()
            if problem:
                raise Unusable("unreadable", problem)
            if self.tokenizer is None:
                self._task(row, outcome)
            else:
                self._samples(row, outcome, f"{raw.file}:{raw.number}")
        except Unusable as error:
            outcome.dropped = Dropped(raw.subset, raw.file, raw.number, error.reason, str(error))
        return outcome

    def _task(self, row: dict, outcome: Outcome) -> None:
        rules = self.rules
        task, outcome.mended = to_task(row, rules.validation_share, rules.without, rules.gym_servers)
        self._refuse_near_duplicate(messages_of(row))
        outcome.task = task

    def _samples(self, row: dict, outcome: Outcome, place: str) -> None:
        conversation, mended = to_conversation(row)
        self._refuse_near_duplicate(conversation["messages"])
        try:
            samples = conversation_to_samples(self.tokenizer, conversation)
        except TEMPLATE_ERRORS as error:
            raise Unusable("template", f"the chat template cannot render it: {type(error).__name__}: {error}") from error
        for sample in samples:
            length = len(sample.tokens) - 1
            if length > self.rules.capacity:
                outcome.too_long.append(f"{place} {length} tokens, more than the {self.rules.capacity} of a pack")
            else:
                outcome.samples.append(sample)
        if not outcome.samples:
            raise Unusable("too_long", outcome.too_long[0] if outcome.too_long else "nothing in it is trained on")
        outcome.mended = mended

    def _refuse_near_duplicate(self, messages: list[dict]) -> None:
        near = self.evaluations.nearest(asked(messages))
        if near:
            raise Unusable("evaluation", f"its prompt repeats {near}")


@contextmanager
def converting(rules: Rules, workers: int):
    """A function from rows to their outcomes, in the rows' order, by one process or by `workers` beside it."""
    converter = Converter(rules)
    if workers <= 1:
        yield lambda raws: map(converter, raws)
        return
    # Forks of a process that has imported what they need, and has no threads, as this one may have.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with context.Pool(workers, _begin, (rules,)) as pool:
        yield lambda raws: _in_order(pool, raws)


def _in_order(pool, raws: list[Raw]) -> Iterator[Outcome]:
    return pool.imap(_convert, raws, ROWS_A_MESSAGE)


_converter: Converter | None = None


def _begin(rules: Rules) -> None:
    global _converter
    _converter = Converter(rules)


def _convert(raw: Raw) -> Outcome:
    return _converter(raw)
