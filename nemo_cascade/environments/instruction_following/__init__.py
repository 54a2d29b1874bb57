"""Instruction following: every instruction of the row is checked by a rule; names and arguments are IFEval's, IF-RLVR's, IFBench's.

Row: `instruction_id_list`, `kwargs` (aligned, one object each), optional `grading_mode`: "binary" (all must hold, Gym's default) or
"fraction". IFBench's types are refused unless the row says `"evaluation": true`: they measure what training on the others has taught.

The rules are in `ifeval`, `if_rlvr`, `ifbench` and `ifbench_custom`, a good and a bad reply for each in `examples`. Not here: the
loose accuracy of IFEval, which tries a reply without its first and last line.
"""

from nemo_cascade.environments.instruction_following import if_rlvr, ifbench, ifbench_custom, ifeval  # noqa: F401  (enter their rules)
from nemo_cascade.environments.instruction_following.examples import all_examples
from nemo_cascade.environments.instruction_following.repairs import arguments_of, repair
from nemo_cascade.environments.instruction_following.rules import RULES, Rule
from nemo_cascade.environments.response import answer_of

__all__ = ["EXAMPLES", "REWARD_RANGE", "RULES", "problem", "repair", "verify"]

REWARD_RANGE = (0.0, 1.0)
EXAMPLES = all_examples()
GRADING_MODES = ("binary", "fraction")
# Characters; 49 thousand tokens, the most that IF-RL allows, are fewer in any prose. The slowest rule reads so many in seconds.
LONGEST = 250_000
# Of so few words langdetect cannot tell the language: "river stone lamp" is Italian to it.
FEW_WORDS = 8
IN_ENGLISH = {"change_case:english_capital": str.isupper, "change_case:english_lowercase": str.islower}


def problem(row: dict) -> str | None:
    """What keeps the row from being verified, once it is mended."""
    row = repair(row)
    names, kwargs = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(names, list) or not names:
        return "no instruction_id_list (a list of instruction types)"
    if not isinstance(kwargs, list) or len(kwargs) != len(names):
        return f"kwargs must be a list of {len(names)} objects, one for each of instruction_id_list"
    if row.get("grading_mode") not in (None, *GRADING_MODES):
        return f"grading_mode {row['grading_mode']!r} is neither 'binary' nor 'fraction'"
    problems = (_problem(name, arguments, row.get("evaluation") is True) for name, arguments in zip(names, kwargs))
    return next(filter(None, problems), None)


def verify(row: dict, response: dict) -> dict:
    """{"reward": in [0, 1], "follow_instruction_list": [bool, ...], "follow_all_instructions": bool}.

    An empty answer follows nothing, nor does one longer than `LONGEST`. Raises KeyError naming an instruction type that has no
    rule, ValueError saying what is wrong with the arguments of one that has.
    """
    text = answer_of(response)
    readable = 0 < len(text) <= LONGEST
    any_language = _asks_for_few_words(row)
    followed = []
    for name, given in zip(row["instruction_id_list"], row["kwargs"]):
        arguments = arguments_of(name, given)
        wrong = _rule(name).problem(arguments)
        if wrong:
            raise ValueError(f"{wrong}; mend the row or leave it out")
        if any_language and name in IN_ENGLISH:
            followed.append(readable and IN_ENGLISH[name](text))
        else:
            followed.append(readable and bool(RULES[name].check(text, **arguments)))
    fraction = sum(followed) / len(followed)
    reward = fraction if row.get("grading_mode") == "fraction" else float(all(followed))
    return {"reward": reward, "follow_instruction_list": followed, "follow_all_instructions": all(followed)}


def _problem(name: object, arguments: object, evaluation: bool) -> str | None:
    rule = RULES.get(name) if isinstance(name, str) else None
    if rule is None:
        return _unknown(name)
    if rule.evaluation_only and not evaluation:
        return (
            f"instruction type {name!r} is IFBench's and for evaluation only: leave it out of training data, or say "
            '"evaluation": true in the row of a validation file'
        )
    if not isinstance(arguments, dict):
        return f"kwargs of instruction type {name!r} must be an object, not {arguments!r:.60}"
    return rule.problem(arguments)


def _rule(name: str) -> Rule:
    if name not in RULES:
        raise KeyError(_unknown(name))
    return RULES[name]


def _unknown(name: object) -> str:
    return f"instruction type {name!r} has no rule; known are {', '.join(sorted(RULES))}"


def _asks_for_few_words(row: dict) -> bool:
    """Whether the row wants exactly so few words, a relation that only rows of our own have, that no detector can tell their language."""
    return any(
        name == "length_constraints:number_words"
        and isinstance(given, dict)
        and given.get("relation") == "exactly"
        and given.get("num_words", FEW_WORDS) < FEW_WORDS
        for name, given in zip(row["instruction_id_list"], row["kwargs"])
    )
