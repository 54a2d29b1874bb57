"""Problems of a config as they are told: one that many stages have is one line."""

import re
from collections.abc import Collection, Iterable

# "cascade.stages.<stage>.<key>: what is wrong; what to do"
OF_A_STAGE = re.compile(r"cascade\.stages\.([^.:\s]+)\.([^:\s]+): (.*)", re.DOTALL)


def merged(problems: Iterable[str], stages: Collection[str]) -> list[str]:
    """The problems in their order, each once; those that are alike but for the stage are one line, where the first stood.

    stages: all that run. "cascade.stages.<stage>.KEY (in all 11 stages): ...", or "(in if_rl, mopd)".
    """
    places: dict[tuple[str, ...], list[str]] = {}
    for problem in dict.fromkeys(problems):
        found = OF_A_STAGE.fullmatch(problem)
        alike, stage = (found.group(2, 3), found[1]) if found else ((problem,), "")
        places.setdefault(alike, []).append(stage)
    return [_line(alike, names, stages) for alike, names in places.items()]


def _line(alike: tuple[str, ...], names: list[str], stages: Collection[str]) -> str:
    if len(alike) == 1:
        return alike[0]
    key, text = alike
    if len(names) == 1:
        return f"cascade.stages.{names[0]}.{key}: {text}"
    where = f"all {len(names)} stages" if set(names) == set(stages) else ", ".join(names)
    return f"cascade.stages.<stage>.{key} (in {where}): {text}"
