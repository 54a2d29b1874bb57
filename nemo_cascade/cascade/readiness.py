"""Is what earns rewards ready? Before a run its rows are tried, before each stage its environments.

Every row that will be verified gets a harmless reply first, so that one at which its verifier fails is found now and not in the
night; rows that tell a right reply must give it more than a wrong one. Before each stage its environments look whether their
known-good and known-bad examples earn what they should. Left out: rows that a judge compares, and what judges say.
"""

import math
import os
import time
from collections.abc import Iterable

from nemo_cascade import environments
from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.data.rows import DataError, environment_of
from nemo_cascade.engine import parallel
from nemo_cascade.environments.gym import GymClient, GymError
from nemo_cascade.environments.response import END_OF_THOUGHT
from nemo_cascade.stages.config import EnvConfig
from nemo_cascade.stages.data import Domain
from nemo_cascade.stages.prompts import thinking
from nemo_cascade.stages.rewards import response_pair, verifiers

# An answer that no verifier should choke on.
WRONG = "I do not know."
# So many rows of a file also get an empty reply and the right one; and of rows whose verifier runs programs or is a server, only
# so many get any.
SAMPLE = 8
# Rows of a file that are tried where that is only computing; if there are more, some that are spread over all of it.
MOST = 20_000
# Seconds after which examples that need the sandbox, whose host may change, are tried again before a stage.
FRESH = 600
# What a slow machine may do to any reply.
SLOW = "took longer"
SHOWN = 5


def dry_pass(domain: Domain, env: EnvConfig, on_bad_row: str = "stop") -> list[str]:
    """Verifies a harmless reply to every row of a domain, in worker processes; all ranks call this and share the work.

    Returns notes, a line each: what was left out, and with on_bad_row "skip" what is wrong. Raises DataError naming file and row.
    """
    served = env.nemo_gym.servers
    notes, chosen = [], []
    by_name: dict[str, list[tuple[int, dict]]] = {}
    for number, row in zip(domain.numbers, domain.rows):
        by_name.setdefault(environment_of(row), []).append((number, row))
    for name, rows in by_name.items():
        if name not in served and not hasattr(environments.get(name), "verify"):
            continue
        most = SAMPLE if name in served or environments.in_threads(name) else MOST
        tried = rows[:: math.ceil(len(rows) / most)]
        if len(tried) < len(rows):
            notes.append(f"{domain.path}: {len(tried)} of {len(rows)} rows of {name} were tried, spread over the file")
        chosen += [(number, row, place < SAMPLE) for place, (number, row) in enumerate(tried)]
    found = parallel.share_out(lambda mine: trouble_of(mine, env), chosen)
    wrong = [(f"{domain.path}, row {number}", said) for (number, _, _), said in zip(chosen, found) if said]
    fatal = [f"{place}: {said}" for place, said in wrong if SLOW not in said]
    notes += [f"{place}: {said}" for place, said in wrong if SLOW in said][:SHOWN]
    if fatal and on_bad_row == "stop":
        more = [f"... and {len(fatal) - SHOWN} more rows"] if len(fatal) > SHOWN else []
        raise DataError("\n".join([*fatal[:SHOWN], *more, "mend the rows, or set data.on_bad_row=skip to train on them as they are"]))
    return [*notes, *fatal[:SHOWN]]


def trouble_of(tried: list[tuple[int, dict, bool]], env: EnvConfig) -> list[str | None]:
    """What is wrong with each (number, row, whether it belongs to the sample), None of a good one."""
    asked: list[tuple[int, str, str, tuple[dict, dict]]] = []
    for place, (_, row, in_sample) in enumerate(tried):
        name = environment_of(row)
        # What the environment cannot decide itself, a judge may: then a right reply earns nothing yet.
        right = environments.reference(row) if in_sample and name not in {*env.nemo_gym.servers, *env.judges} else None
        thought = END_OF_THOUGHT if thinking(row) else ""
        replies = {"wrong": thought + WRONG} | ({"silent": ""} if in_sample else {}) | ({"right": thought + right} if right else {})
        asked += [(place, name, kind, response_pair(row, (text,))) for kind, text in replies.items()]
    verdicts = verdicts_of([(name, pair) for _, name, _, pair in asked], env)
    found: list[str | None] = [None] * len(tried)
    earned: dict[int, dict[str, float]] = {}
    for (place, name, kind, _), verdict in zip(asked, verdicts):
        if "verifier_error" in verdict:
            found[place] = f"at a {kind} reply to it the verifier of {name} {verdict['verifier_error']}"
        elif not math.isfinite(verdict["reward"]):
            found[place] = f"a {kind} reply to it earns {verdict['reward']} by {name}, which is no number"
        else:
            earned.setdefault(place, {})[kind] = verdict["reward"]
    for place, by_kind in earned.items():
        if found[place] is None and "right" in by_kind and not by_kind["right"] > by_kind["wrong"]:
            name, row = environment_of(tried[place][1]), tried[place][1]
            found[place] = (
                f"its own right reply, {environments.reference(row)[:60]!r}, earns {by_kind['right']:g} by {name}; expected more "
                f"than the {by_kind['wrong']:g} of a wrong one"
            )
    return found


def verdicts_of(asked: list[tuple[str, tuple[dict, dict]]], env: EnvConfig) -> list[dict]:
    """The verdict on each (environment, (row, response)), by its server of NeMo Gym or by worker processes."""
    verdicts: list[dict] = [{}] * len(asked)
    for server in {env.nemo_gym.servers.get(name) for name, _ in asked}:
        mine = [place for place, (name, _) in enumerate(asked) if env.nemo_gym.servers.get(name) == server]
        pairs = [asked[place][1] for place in mine]
        if server is None:
            told = verifiers(env.num_workers).verify(pairs)
        else:
            gym = env.nemo_gym
            try:
                told = GymClient(server, concurrency=gym.concurrency, timeout=gym.timeout).verify_all(pairs)
            except GymError as error:
                told = [{"verifier_error": f"fails: {error}"}] * len(pairs)
        for place, verdict in zip(mine, told):
            verdicts[place] = verdict
    return verdicts


# When the examples of each environment were last found good in this process.
_good: dict[str, float] = {}


def refuse_broken(stage: str, names: Iterable[str]) -> None:
    """Raises RunRefused on every rank, a line each, for examples of these environments that do not earn what they should.

    Called on all ranks; the first process of each node tries them, because a node may have another sandbox than the others.
    What was good in this process still is, but for the sandbox.
    """
    wrong = []
    if os.environ.get("LOCAL_RANK", "0") == "0":
        for name in sorted(set(names)):
            fresh = name in _good and (not environments.in_threads(name) or time.monotonic() - _good[name] < FRESH)
            told = [] if fresh else environments.self_test(name)
            wrong += told
            if not told and not fresh:
                _good[name] = time.monotonic()
    found = parallel.union(wrong)
    if found:
        lines = "\n".join(f"stage {stage}: {said}" for said in found)
        raise RunRefused(f"{lines}\nthe verifier is not what it was: nothing is trained on its rewards")
