"""Instruction following: a rule checks each instruction. Names and arguments are IFEval's, IF-RLVR's and IFBench's.

Row: `instruction_id_list`, `kwargs` (aligned, one object each), optional `grading_mode`: "binary" (all must hold, Gym's
default) or "fraction". IFBench's types are refused unless the row says `"evaluation": true`: they measure what training
on the others has taught.

The rules are in `ifeval`, `if_rlvr`, `ifbench` and `ifbench_custom`, a good and a bad reply for each in `examples`. Not
here: the loose accuracy of IFEval, which tries a reply without its first and last line.
"""

# Imported to enter their rules.
from nemo_cascade.environments.instruction_following import if_rlvr, ifbench, ifbench_custom, ifeval  # noqa: F401
from nemo_cascade.environments.instruction_following.examples import all_examples
from nemo_cascade.environments.instruction_following.repairs import arguments_of, repair
from nemo_cascade.environments.instruction_following.rules import RULES, Rule
from nemo_cascade.environments.response import answer_of

__all__ = ["EXAMPLES", "REWARD_RANGE", "RULES", "problem", "repair", "verify"]

REWARD_RANGE = (0.0, 1.0)
EXAMPLES = all_examples()
GRADING_MODES = ("binary", "fraction")
# Characters; 49 thousand tokens, the most that IF-RL allows, are fewer in prose. The slowest rule takes seconds.
LONGEST = 250_000
# Of fewer words langdetect cannot tell the language: "river stone lamp" is Italian to it. Then case alone is checked.
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

    An empty answer follows nothing, nor does one longer than `LONGEST`. Raises KeyError naming an instruction type that
    has no rule, ValueError saying what is wrong with the arguments of one that has.
    """
    text = answer_of(response)
    pairs = zip(row["instruction_id_list"], row["kwargs"])
    instructions = [(_rule(name), arguments_of(name, given)) for name, given in pairs]
    for rule, arguments in instructions:
        wrong = rule.problem(arguments)
        if wrong:
            raise ValueError(f"{wrong}; mend the row or leave it out")
    checks = IN_ENGLISH if any(_so_few_words(rule, arguments) for rule, arguments in instructions) else {}
    readable = 0 < len(text) <= LONGEST
    followed = [
        readable and bool(checks.get(rule.name, rule.check)(text, **arguments)) for rule, arguments in instructions
    ]
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
    return rule.problem(arguments)


def _rule(name: str) -> Rule:
    if name not in RULES:
        raise KeyError(_unknown(name))
    return RULES[name]


def _unknown(name: object) -> str:
    return f"instruction type {name!r} has no rule; known are {', '.join(sorted(RULES))}"


def _so_few_words(rule: Rule, arguments: dict) -> bool:
    """Whether a reply must have exactly so few words that no detector can tell their language.

    Only rows of our own ask for an exact number, so IFEval's are checked as others check them.
    """
    exact = rule.name == "length_constraints:number_words" and arguments["relation"] == "exactly"
    return exact and arguments["num_words"] < FEW_WORDS
