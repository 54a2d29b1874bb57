"""Near-duplicates of evaluation prompts: a row that contains half of the 8-grams of words of one.

Exact, without a library: evaluation sets are thousands of prompts, whose 8-grams fit in a dict, and rows stream past it.
MinHash (datasketch, rensa) estimates the similarity of two whole texts, which is low for an evaluation question inside a
longer prompt, and that is how questions come back. 8 words and not the usual 13: where one number of a question of 25 words
was changed, 10 of its 18 8-grams are left at worst, and of 13-grams none. Translations and rewordings are not found.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from nemo_cascade.data.rows import DataError, messages_of

WORDS, SHARE = 8, 0.5
# What so many prompts have in common is what is said to the model round the questions, and tells nothing.
COMMON = 10
# Scripts without spaces go character by character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
QUESTIONS = ("question", "problem", "prompt", "instruction", "input")


class Evaluations:
    """An index of prompts. Without any, nothing is near one."""

    def __init__(self, prompts: dict[str, str]):
        """prompts: place (file:row) -> text."""
        firsts: dict[tuple[str, ...], str] = {}
        for place, text in prompts.items():
            firsts.setdefault(tuple(words_of(text)), place)
        self._whole = {words: place for words, place in firsts.items() if 0 < len(words) < WORDS}
        grams = {place: set(grams_of(list(words))) for words, place in firsts.items()}
        uses = Counter(gram for own in grams.values() for gram in own)
        self._places: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        for place, own in grams.items():
            telling = [gram for gram in own if uses[gram] <= COMMON]
            self._counts[place] = len(telling)
            for gram in telling:
                self._places.setdefault(gram, []).append(place)

    def __len__(self) -> int:
        return len(self._counts)

    def nearest(self, texts: list[str]) -> str | None:
        """What the texts of a row's user repeat, as "file:row, share of it"; None where it is less than SHARE.

        A prompt of fewer than WORDS words is repeated by a text that is equal to it.
        """
        if not self._counts:
            return None
        found: Counter = Counter()
        for text in texts:
            words = words_of(text)
            if tuple(words) in self._whole:
                return f"{self._whole[tuple(words)]}, all of it"
            for gram in set(grams_of(words)) & self._places.keys():
                found.update(self._places[gram])
        shares = [(count / self._counts[place], place) for place, count in found.items()]
        share, place = max(shares, default=(0.0, ""))
        return f"{place}, {share:.0%} of it" if share >= SHARE else None


def words_of(text: str) -> list[str]:
    """Words and numbers in lower case; punctuation and markup are none."""
    return _WORD.findall(text.lower())


def grams_of(words: list[str]) -> Iterator[str]:
    return (" ".join(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1))


def asked(messages: list[dict]) -> list[str]:
    """What the user says in messages."""
    return [message.get("content") or "" for message in messages if message["role"] == "user"]


def read_evaluations(folder: Path | None) -> Evaluations:
    """The prompts of all JSONL and Parquet files below a folder: Gym rows, chats, or a text under one of QUESTIONS.

    Raises DataError for a folder without any, and naming file and row for a row without a prompt.
    """
    if folder is None:
        return Evaluations({})
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in (".jsonl", ".parquet")]
    if not paths:
        raise DataError(f"{folder}: no .jsonl or .parquet file with evaluation prompts in this folder")
    return Evaluations({place: text for path in paths for place, text in _prompts(path)})


def _prompts(path: Path) -> Iterator[tuple[str, str]]:
    if path.suffix == ".parquet":
        rows: list = pq.read_table(path).to_pylist()
    else:
        rows = [line for line in path.read_bytes().split(b"\n")]
    for number, row in enumerate(rows, start=1):
        if isinstance(row, bytes) and not row.strip():
            continue
        try:
            yield f"{path}:{number}", _prompt(json.loads(row) if isinstance(row, bytes) else row)
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            keys = ", ".join(QUESTIONS)
            remedy = f"a row has responses_create_params, messages or a text under {keys}"
            raise DataError(f"{path}, row {number}: no evaluation prompt ({error}); {remedy}") from error


def _prompt(row: dict) -> str:
    if isinstance(row.get("messages"), list):
        return "\n".join(asked(row["messages"]))
    if row.get("responses_create_params") is not None:
        return "\n".join(asked(messages_of(row)))
    text = next((row[key] for key in QUESTIONS if isinstance(row.get(key), str) and row[key].strip()), None)
    if text is None:
        raise KeyError("none of its keys")
    return text
