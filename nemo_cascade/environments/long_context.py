"""Questions over long inputs: how much of what was to be found the answer holds, how well it repeats a text, or equality.

What a row carries says how it is scored, with the keys of NeMo Gym's servers `ruler` and `mrcr`, which score the same:

    outputs                    RULER: the share of these texts that the answer contains, in upper or lower case; where `subset`
                               is qa_1 or qa_2 any one of them is enough. Two keys that Gym does not know, without which to
                               copy the context or to list all candidates would be as good as to know: each of wrong_outputs
                               in the answer takes one away, and one of more than answer_characters earns nothing. "share" in
                               the verdict is the reward without the two
    random_string_to_prepend   MRCR: the answer must begin with it; what follows is compared with expected_answer (without it)
                               by difflib's ratio (similarity.py says how that is bounded)
    expected_answer            alone: the last \\boxed{} of the answer must be equal, but for case, runs of blanks and a full
                               stop at the end

A row with `needs_judge` has a free answer: boxed or not, it is right where it says what expected_answer says, or where the
model of env.judges.long_context finds both equal (`equivalence`). So has every row of Gym's judge servers (JUDGED), whose
expected answer may stand under `metadata`; where `template_metadata.output_regex` can be searched for safely (`pattern`), what
it captures last is the answer.
"""

from functools import lru_cache

from nemo_cascade.data.rows import server_of
from nemo_cascade.environments import equivalence, pattern
from nemo_cascade.environments.endpoint import Said
from nemo_cascade.environments.equivalence import usable
from nemo_cascade.environments.response import answer_of, last_boxed
from nemo_cascade.environments.similarity import LONGEST, ratio

REWARD_RANGE = (0.0, 1.0)
# RULER's questions over documents list spellings of one answer; its other tasks list parts of the answer.
ANY_OF = ("qa_1", "qa_2")

# Gym's servers of which every row has a free answer.
JUDGED = ("equivalence_llm_judge", "lc_judge")
# Characters at the end of an answer in which a row's own pattern looks.
SEARCHED = 10_000

_TWO = {"outputs": ["4821937", "amber-mill"], "subset": "niah_multivalue"}
_LISTED = {"outputs": ["KQZTW", "BXMAL"], "wrong_outputs": ["RVUPS"], "answer_characters": 40, "subset": "vt"}
_PREFIXED = {"expected_answer": "k8Qz2Three gulls over the pier.", "random_string_to_prepend": "k8Qz2"}
EXAMPLES = [
    ({"expected_answer": "The lamp"}, "\\boxed{the  lamp.}", 1.0),
    ({"expected_answer": "7"}, "river: 7, so \\boxed{7}", 1.0),
    ({"expected_answer": "7"}, "\\boxed{7} or \\boxed{8}", 0.0),
    ({"expected_answer": "7"}, "7", 0.0),
    (_TWO, "They are 4821937 and Amber-Mill.", 1.0),
    (_TWO, "4821937", 0.5),
    (_TWO, "482193 7", 0.0),
    ({"outputs": ["1874", "the year 1874"], "subset": "qa_1"}, "In 1874.", 1.0),
    (_LISTED, "BXMAL, KQZTW", 1.0),
    (_LISTED, "BXMAL, KQZTW, RVUPS", 0.5),
    (_LISTED, "RVUPS", 0.0),
    (_LISTED, f"{'I have looked everywhere. ' * 3}BXMAL, KQZTW", 0.0),
    (_PREFIXED, "k8Qz2Three gulls over the pier.", 1.0),
    (_PREFIXED, "k8Qz2Three", 2 * 5 / (5 + 26)),
    (_PREFIXED, "Three gulls over the pier.", 0.0),
    (_PREFIXED, "k8Qz2", 0.0),
]


def problem(row: dict) -> str | None:
    """What keeps the row from being verified."""
    if needs_judge(row) and (row.get("random_string_to_prepend"), row.get("outputs")) != (None, None):
        return "needs_judge is for a free answer, with expected_answer alone; drop it, or what stands beside it"
    if row.get("random_string_to_prepend") is not None:
        return _problem_of_repeating(row)
    if row.get("outputs") is not None:
        return _problem_of_finding(row)
    expected = _expected(row)
    return None if isinstance(expected, str) and normalised(expected) else "no expected_answer (a text)"


def reference(row: dict) -> str:
    """What was to be found or repeated."""
    if row.get("random_string_to_prepend") is not None:
        return row["random_string_to_prepend"] + row["expected_answer"].removeprefix(row["random_string_to_prepend"])
    if row.get("outputs") is not None:
        return row["outputs"][0] if row.get("subset") in ANY_OF else ", ".join(row["outputs"])
    return f"\\boxed{{{_expected(row)}}}"


def verify(row: dict, response: dict) -> dict:
    """{"reward", ...}: "share" and "wrong" (a number), "prefix_matched" and "seq_match_ratio", or "extracted_answer"."""
    answer = answer_of(response)
    if row.get("random_string_to_prepend") is not None:
        return _repeated(row, answer)
    if row.get("outputs") is not None:
        return _found(row, answer)
    given = _captured(row, answer) or last_boxed(answer)
    if given is None and needs_judge(row):
        given = answer
    right = given is not None and normalised(given) == normalised(_expected(row))
    return {"reward": float(right), "extracted_answer": given}


def needs_judge(row: dict) -> bool:
    """Whether a judge must be there to verify replies to the row."""
    return bool(row.get("needs_judge")) or server_of(row) in JUDGED


def question(row: dict, response: dict, verdict: dict, answers: list[Said]) -> list[dict] | None:
    """What to ask the judge next about a free answer that is not the expected one to the letter."""
    if not needs_judge(row) or verdict["reward"] == 1.0:
        return None
    return equivalence.question(equivalence.asked_in(row), _expected(row), verdict["extracted_answer"] or "", answers)


def judged(row: dict, response: dict, verdict: dict, answers: list[Said | None]) -> dict:
    """The verdict, right where the judge says so, with what it said as "judge_evaluations"."""
    right = equivalence.both_equal(answers)
    return {**verdict, "reward": float(right), "judge_evaluations": equivalence.said_by(answers)}


def _expected(row: dict):
    """The expected answer, which Gym's judge servers also take from `metadata`."""
    metadata = row.get("metadata") if needs_judge(row) else None
    return row.get("expected_answer") or (metadata.get("expected_answer") if isinstance(metadata, dict) else None)


def _own_pattern(row: dict) -> pattern.Pattern | None:
    """Of a row with a free answer."""
    own = (row.get("template_metadata") or {}).get("output_regex") if needs_judge(row) else None
    return _compiled(own) if own else None


@lru_cache(maxsize=1024)
def _compiled(own: str) -> pattern.Pattern | None:
    """None for one that could search for ever, as Gym's own for boxes: the judge reads what is boxed, or all, instead."""
    try:
        # Across lines, as Gym's judge server searches.
        return pattern.compiled(f"(?sm:{own})")
    except ValueError:
        return None


def _captured(row: dict, answer: str) -> str | None:
    own = _own_pattern(row)
    found = own.findall(answer, max(0, len(answer) - SEARCHED)) if own else []
    return found[-1].strip() or None if found else None


def normalised(text: str) -> str:
    """The text in lower case, with single blanks, without a full stop at the end."""
    return " ".join(text.casefold().split()).removesuffix(".")


def _found(row: dict, answer: str) -> dict:
    lowered, outputs = answer.lower(), row["outputs"]
    found = sum(text.lower() in lowered for text in outputs)
    least = 1 if row.get("subset") in ANY_OF else len(outputs)
    share = min(found / least, 1.0)
    if len(answer) > (row.get("answer_characters") or len(answer)):
        return {"reward": 0.0, "share": share, "wrong": 0}
    wrong = sum(text.lower() in lowered for text in row.get("wrong_outputs") or [])
    return {"reward": max(0.0, share - wrong / least), "share": share, "wrong": wrong}


def _repeated(row: dict, answer: str) -> dict:
    prefix = row["random_string_to_prepend"]
    matched = answer.startswith(prefix)
    alike = ratio(answer.removeprefix(prefix), row["expected_answer"].removeprefix(prefix)) if matched else 0.0
    return {"reward": alike, "prefix_matched": matched, "seq_match_ratio": alike}


def _problem_of_repeating(row: dict) -> str | None:
    prefix, expected = row["random_string_to_prepend"], row.get("expected_answer")
    if not isinstance(prefix, str) or not prefix:
        return "random_string_to_prepend must be a text that is not empty"
    if not isinstance(expected, str) or not expected.removeprefix(prefix):
        return "expected_answer must be a text that says more than random_string_to_prepend"
    if len(expected) > LONGEST:
        return f"expected_answer has {len(expected)} characters; texts are compared up to {LONGEST}"
    return None


def _problem_of_finding(row: dict) -> str | None:
    outputs, wrong, read = row["outputs"], row.get("wrong_outputs") or [], row.get("answer_characters")
    for key, texts in (("outputs", outputs), ("wrong_outputs", wrong)):
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            return f"{key} must be a list of texts that are not empty"
    if not outputs:
        return "outputs is an empty list; name what the answer must contain"
    if read is not None and not (isinstance(read, int) and read > 0):
        return "answer_characters must be a positive number"
    for text in outputs:
        if any(other.lower() in text.lower() for other in wrong):
            return f"wrong_outputs has a text that is part of {text!r} out of outputs, so that no answer could be right"
    return None
