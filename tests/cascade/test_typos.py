"""A slip of the finger in any key of any config that ships is refused, and the right key is suggested."""

import random
from collections.abc import Iterator

import pytest
from omegaconf import OmegaConf

from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import ConfigErrors, load_config
from nemo_cascade.cascade.strict import is_slip, nearest

Path = tuple[str, ...]
# These name data that is elsewhere.
ELSEWHERE = ("full", "node", "mopd")
# A folder that is elsewhere too says nothing of its network.
GIVEN = {"mopd": ["policy.model_name=nano_30b_a3b"]}
SUGGESTED = 0.95


def paths(values: dict, above: Path = ()) -> Iterator[Path]:
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


def free(path: Path, order: list[str]) -> bool:
    """Whether it is a name that nothing else says: of a stage that the order leaves out, or of a domain in one."""
    unused = path[:2] == ("cascade", "stages") and path[2:] and path[2] not in order
    return bool(unused) and (len(path) == 3 or path[-2] in ("train", "validation", "teachers", "max_drop", "min_gain", "floor"))


def slip(word: str, rng: random.Random) -> str:
    """The word with a letter left out, doubled, replaced or swapped with its neighbour."""
    at = rng.randrange(len(word))
    slips = [word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:], f"{word[:at]}q{word[at + 1:]}"]
    slips.append(word[:at] + word[at : at + 2][::-1] + word[at + 2 :])
    return rng.choice([other for other in slips if other not in ("", word)])


def renamed(values: dict, path: Path, name: str) -> dict:
    if len(path) == 1:
        return {name if key == path[0] else key: value for key, value in values.items()}
    return {key: renamed(value, path[1:], name) if key == path[0] else value for key, value in values.items()}


def problems(config: dict, name: str) -> list[str]:
    try:
        load_config(config, planning=name in ELSEWHERE)
    except ConfigErrors as errors:
        return errors.problems
    return []


def try_all(name: str, every_path: bool) -> None:
    """every_path: else a key that stands in many stages is tried in one of them."""
    rng = random.Random(0)
    config = OmegaConf.to_container(compose_config(name, GIVEN.get(name, [])))
    tried = list(paths(config)) if every_path else list({path[-2:]: path for path in paths(config)}.values())
    tried = [path for path in tried if not free(path, config["cascade"]["order"])]
    assert problems(config, name) == []
    slips = [(path, slip(path[-1], rng)) for path in tried]
    # Most are told among others; of the rest each is tried alone.
    alone = [one for some in apart(slips) for one in untold(config, some, name)]
    assert len(alone) < len(slips) / 2
    accepted, unhelpful = [], []
    for path, wrong in alone:
        said = problems(renamed(config, path, wrong), name)
        if not said:
            accepted.append((path, wrong))
        elif not any(f"did you mean {path[-1]}?" in line or f".{path[-1]}?" in line for line in said):
            unhelpful.append((path, wrong, said))
    assert accepted == []
    assert len(unhelpful) <= (1 - SUGGESTED) * len(tried), unhelpful


def apart(slips: list[tuple[Path, str]]) -> Iterator[list[tuple[Path, str]]]:
    """The slips in lots in which no two are in one block, nor one in a block that another renames."""
    lots: list[list[tuple[Path, str]]] = []
    for path, wrong in slips:
        blocks = {path[:n] for n in range(1, len(path) + 1)}
        for lot in lots:
            if not any(path[:-1] == other[:-1] or other in blocks or path == other[: len(path)] for other, _ in lot):
                lot.append((path, wrong))
                break
        else:
            lots.append([(path, wrong)])
    yield from lots


def untold(config: dict, slips: list[tuple[Path, str]], name: str) -> list[tuple[Path, str]]:
    """Those that are not told, by the path that is wrong and with the right key, where all are made together."""
    for path, wrong in slips:
        config = renamed(config, path, wrong)
    said = problems(config, name)

    def told(path: Path, wrong: str) -> bool:
        where = ".".join((*path[:-1], wrong))
        return any(line.startswith(f"{where}:") and f"did you mean {path[-1]}?" in line for line in said)

    return [(path, wrong) for path, wrong in slips if not told(path, wrong)]


@pytest.mark.parametrize("name", ["tiny", "full"])
def test_a_misspelled_key_is_refused_and_the_right_one_suggested(name):
    try_all(name, every_path=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "smoke", "agentic", "node", "full", "mopd"])
def test_a_misspelled_key_is_refused_and_the_right_one_suggested_wherever_it_stands(name):
    try_all(name, every_path=True)


def test_a_slip_is_one_letter_or_two_neighbours():
    assert all(is_slip("rate", other) for other in ("ate", "rrate", "rat", "rbte", "arte", "raet", "rates"))
    assert not any(is_slip("rate", other) for other in ("rate", "tare", "ra", "rated5", "etar"))
    assert nearest("lq", ["optimizer", "lr"]) == "lr" and nearest("rl", ["optimizer", "lr"]) == "lr"
    assert nearest("zebra", ["optimizer", "lr"]) is None


def test_domains_that_differ_in_a_digit_are_meant():
    config = OmegaConf.to_container(compose_config("full"))
    train = config["cascade"]["stages"]["sft"]["data"]["train"]
    train["math_2"], train["math_3"] = train["math"], train["math"]
    assert problems(config, "full") == []
    train["maths"] = {"data_path": "elsewhere.jsonl"}
    (line,) = problems(config, "full")
    assert line.startswith("cascade.stages.sft.data.train.maths: ") and "did you mean math?" in line
