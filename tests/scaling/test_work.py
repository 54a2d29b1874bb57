"""A budget is never exceeded, and a run that ends anywhere goes on without doing anything twice, to the same end."""

import copy
import json

import pytest

from nemo_cascade.scaling.config import load_scale_config
from nemo_cascade.scaling.journal import Journal, Memory
from nemo_cascade.scaling.refine import RefineConfig, refine
from nemo_cascade.scaling.run import JOURNAL, RESULTS, run
from nemo_cascade.scaling.types import Ask, Reply, ScalingRefused
from nemo_cascade.scaling.work import Budget, Work
from tests.scaling.simulated import Rates, Simulated, uniform
from tests.scaling.test_closed_forms import IOI_PROBLEM, on_subtasks, proofs_and_ratings
from tests.scaling.test_commands import ENDPOINT

REFINE = ["refine.candidates=3", "refine.verifications=2", "refine.keep=2", "refine.refinements=2", "refine.rounds=2"]
IOI = ["ioi.rounds=2", "ioi.candidates=2"]
LENGTHS = 60


def length(ask) -> int:
    return int(LENGTHS * uniform("length", ask.key))


def started(method, out, *more, budget=()):
    """(what results.json has, without seconds; the keys that were asked; the caps they had; the grader)."""
    own = {"refine": (REFINE, {"statement": "x"}, proofs_and_ratings), "ioi": (IOI, IOI_PROBLEM, lambda ask: f"print({ask.key!r})")}
    settings, problem, say = own[method]
    config = load_scale_config(method, None, [*ENDPOINT, *settings, *budget, *more])
    proposer, grader = Simulated(say, max_tokens=50, length=length), Rates(on_subtasks)
    results = run(method, {"one": problem, "two": problem}, config, proposer, grader, out)
    assert json.loads((out / RESULTS).read_text()) == results
    results = copy.deepcopy(results)
    for spent in [results["total"], *(one["spent"] for one in results["problems"].values())]:
        del spent["seconds"]
    return results, proposer, grader


@pytest.mark.parametrize(
    "method, budget", [("refine", ()), ("refine", ("budget.max_tokens=400",)), ("ioi", ("budget.max_generations=7",))]
)
def test_a_run_that_ends_at_any_byte_goes_on_to_the_same_end_and_asks_nothing_twice(method, budget, tmp_path):
    expected, proposer, grader = started(method, tmp_path / "whole", budget=budget)
    lines = (tmp_path / "whole" / JOURNAL).read_bytes().splitlines(keepends=True)
    all_asked, all_graded = proposer.asked, grader.graded
    assert len(lines) == 1 + len(all_asked) + len(all_graded)
    # After some of the lines, and in the middle of the next.
    for cut in range(0, len(lines), 7):
        out = tmp_path / f"cut-{cut}"
        out.mkdir()
        (out / JOURNAL).write_bytes(b"".join(lines[:cut]) + (lines[cut][: len(lines[cut]) // 2]))
        known = [json.loads(line).get("key") for line in lines[:cut]]
        results, proposer, grader = started(method, out, budget=budget)
        assert results == expected
        assert sorted(proposer.asked) == sorted(set(all_asked).difference(known))
        assert sorted(grader.graded) == sorted(set(all_graded).difference(known))
    assert started(method, tmp_path / "whole", budget=budget)[1].asked == []


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    """What each method makes of the problems without a budget."""
    return {method: started(method, tmp_path_factory.mktemp(method))[0] for method in ("refine", "ioi")}


@pytest.mark.parametrize(
    "method, key, limit",
    [("refine", "max_generations", 1), ("refine", "max_tokens", 33), ("refine", "max_tokens", 260)]
    + [("ioi", "max_generations", 9), ("ioi", "max_tokens", 180)],
)
def test_a_budget_is_spent_to_the_last_and_no_further(method, key, limit, free, tmp_path):
    results, proposer, _ = started(method, tmp_path, budget=(f"budget.{key}={limit}",))
    spent = {"max_generations": "generations", "max_tokens": "tokens"}[key]
    for name, one in results["problems"].items():
        wanted = free[method]["problems"][name]["spent"][spent]
        assert one["spent"][spent] == min(limit, wanted)
        assert one["stopped"] == (key if wanted > limit else None)
        assert one["budget"][key] == limit
        assert sum(asked.startswith(name) for asked in proposer.asked) == one["spent"]["generations"]
    if key == "max_tokens":
        # What is under way at once could not have exceeded it either.
        assert all(sum(caps) <= limit for caps in proposer.batches)


def test_a_raised_budget_goes_on_where_the_lower_one_ended(free, tmp_path):
    _, first, _ = started("ioi", tmp_path / "raised", budget=("budget.max_generations=5",))
    results, second, _ = started("ioi", tmp_path / "raised")
    assert results == free["ioi"] and set(first.asked).isdisjoint(second.asked) and first.asked


def test_when_the_time_is_up_nothing_is_begun_and_the_next_start_has_none_either(tmp_path):
    class Clocked(Simulated):
        def propose(self, asks, told, seconds):
            # A reply takes four seconds; what has not come in time is given up.
            self.seconds = seconds
            for ask in asks:
                if clock[0] + 4 > 10:
                    clock[0] = 10.0
                    return
                clock[0] += 4
                super().propose([ask], told, seconds)

    for number in range(2):
        clock = [0.0]
        journal = Journal(tmp_path / JOURNAL, {})
        proposer = Clocked(lambda ask: "text")
        work = Work("p", proposer, Rates(lambda case: 1.0), Budget(seconds=10), journal, clock=lambda: clock[0])
        replies = [work.generate([Ask("a", []), Ask("b", []), Ask("c", [])]), work.generate([Ask("d", [])])]
        assert [[reply is not None for reply in some] for some in replies] == [[True, True, False], [False]]
        assert work.stopped == "seconds" and work.summary()["spent"]["seconds"] == 10
        assert len(proposer.asked) == (0 if number else 2)
        journal.close()
    # Also where nothing at all came, and nothing is asked after it.
    clock = [7.0]
    work = Work("q", Clocked(lambda ask: "text"), Rates(None), Budget(seconds=4), Memory(), clock=lambda: clock[0])
    assert work.generate([Ask("a", [])]) == [None] and work.stopped == "seconds"


class Faulty(Simulated):
    """Gives no answer to some."""

    def __init__(self, faults):
        super().__init__(lambda ask: "text")
        self.faults = faults

    def propose(self, asks, told, seconds):
        for ask in asks:
            told(ask, Reply("", 0, fault="nobody there")) if ask.key[-1] in self.faults else super().propose([ask], told, seconds)


def test_replies_that_do_not_come_are_done_without_unless_they_are_most(tmp_path):
    asks = [Ask(name, []) for name in "abcd"]
    journal = Journal(tmp_path / JOURNAL, {})
    work = Work("p", Faulty("abc"), Rates(None), Budget(), journal)
    with pytest.raises(ScalingRefused, match=r"p: 3 of 4 replies .* \(nobody there\); see to the model's server"):
        work.generate(asks)
    # What came is kept, and what did not is asked for again.
    again = Faulty("c")
    work = Work("p", again, Rates(None), Budget(), journal)
    work.generate([*asks, Ask("e", []), Ask("f", [])])
    assert again.asked == ["p/a", "p/b", "p/e", "p/f"]
    last = Work("p", Faulty(""), Rates(None), Budget(), journal)
    replies = last.generate(asks)
    assert [reply is None for reply in replies] == [False, False, True, False]
    assert last.spent.generations == 4 and last.spent.faults == 1 and last.proposer.asked == []
    journal.close()


def test_a_journal_of_something_else_is_refused(tmp_path):
    path = tmp_path / JOURNAL
    journal = Journal(path, {"seed": 0, "n": 3})
    with pytest.raises(ScalingRefused, match="something else; the problem or the code has changed"):
        Work("p", Simulated(str), Rates(None), Budget(), journal).generate([Ask("a", ["x"])])
        Work("p", Simulated(str), Rates(None), Budget(), journal).generate([Ask("a", ["y"])])
    journal.close()
    with pytest.raises(ScalingRefused, match=r"other settings \(seed was 0 and is 1\); put them back, or name a new --out"):
        Journal(path, {"seed": 1, "n": 3})
    text = path.read_bytes()
    path.write_bytes(text[:-20] + b"\n" + text)
    with pytest.raises(ScalingRefused, match="journal.jsonl, line 2: damaged; delete that line"):
        Journal(path, {"seed": 0, "n": 3})


def test_replies_with_what_utf8_cannot_say_are_kept(tmp_path):
    said = "\ud800 \u2028 \x00 ü"
    for number in range(2):
        journal = Journal(tmp_path / JOURNAL, {})
        proposer = Simulated(lambda ask: said)
        (reply,) = Work("p", proposer, Rates(None), Budget(), journal).generate([Ask("a", [])])
        assert reply.text == said and len(proposer.asked) == 1 - number
        journal.close()


def test_thoughts_are_kept_on_disk_and_not_in_memory(tmp_path):
    journal = Journal(tmp_path / JOURNAL, {})
    journal.put("generation", "p/a", "d", "p", 1.0, text="t", thought="long")
    assert "thought" not in journal.get("generation", "p/a", "d") and b"long" in (tmp_path / JOURNAL).read_bytes()
    journal.close()
    assert Memory().get("generation", "p/a", "d") is None


def test_rounds_without_a_proof_are_rounds():
    def say(ask):
        return "proof" if "/r1/" in ask.key and "/v" not in ask.key else "\\boxed{0.5}" if "/v" in ask.key else ""

    work = Work("p", Simulated(say), Rates(None), Budget(), Memory())
    found = refine({"statement": "x"}, work, RefineConfig(candidates=1, verifications=2, keep=1, refinements=2, rounds=3))
    assert [one["proofs"] for one in found["rounds"]] == [1, 0, 0] and found["score"] == 0.5
    assert work.spent.generations == 3 + 2 + 2
