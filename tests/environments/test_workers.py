"""What a reply does to its verifier is that reply's loss alone: others get their verdicts, and the run goes on."""

import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import psutil
import pytest

from nemo_cascade import environments
from nemo_cascade.environments.workers import BATCH, Verifiers
from tests.environments.plugin import plugin  # noqa: F401 - a fixture


def asked(name, *texts):
    row = {"agent_ref": {"name": name}}
    return [(row, environments.response_of(text, thinking=False)) for text in texts]


@pytest.fixture
def verifiers():
    with Verifiers(2) as some:
        yield some


def test_a_batch_gets_the_verdicts_of_its_environments_in_order(verifiers):
    pairs, expected = [], []
    for name in environments.verifying():
        for row, reply, reward in environments.get(name).EXAMPLES:
            pairs.append(({**row, "agent_ref": {"name": f"{name}_simple_agent"}}, environments.response_of(reply, False)))
            expected.append((name, reply, reward))
    told = verifiers.verify(pairs)
    assert [(name, reply, verdict["reward"]) for (name, reply, _), verdict in zip(expected, told, strict=True)] == expected
    for (row, response), verdict in zip(pairs, told):
        assert environments.get(environments.environment_of(row)).verify(row, response) == verdict


def test_replies_are_verified_in_other_processes(verifiers, plugin):
    pids = {verdict["pid"] for verdict in verifiers.verify(asked(plugin, *[f"fine {n}" for n in range(8 * BATCH)]))}
    assert os.getpid() not in pids and 1 <= len(pids) <= 2


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("hang", "verifier_timeout", "took longer than 3 s"),
        ("raise", "verifier_raised", "raised ValueError: what is this?"),
        ("exit", "verifier_died", "exit status 7"),
        ("memory", "verifier_raised", "MemoryError"),
    ],
)
def test_a_reply_that_its_verifier_cannot_take_has_no_verdict_and_harms_no_other(text, kind, reason, verifiers, plugin):
    told = verifiers.verify(asked(plugin, "fine", text, "bad", "fine again"))
    assert [verdict["reward"] for verdict in told] == [1.0, -1.0, -1.0, 1.0]
    assert reason in told[1]["verifier_error"] and [verdict.get("fault") for verdict in told] == [None, kind, None, None]
    assert verifiers.verify(asked(plugin, "fine"))[0]["reward"] == 1.0


@pytest.mark.slow
def test_workers_that_the_host_ends_cost_no_verdict(verifiers, plugin, monkeypatch):
    assert [verdict["reward"] for verdict in verifiers.verify(asked(plugin, "fine", "bad"))] == [1.0, -1.0]
    broken = []

    def unheard(what):
        broken.append(what)
        raise BrokenProcessPool("All workers expired")

    # While they have nothing to do.
    for pid in list(verifiers._pool._pool_manager.worker_manager.workers):
        os.kill(pid, signal.SIGKILL)
    assert [verdict["reward"] for verdict in verifiers.verify(asked(plugin, "fine", "bad"))] == [1.0, -1.0]
    # Before anything was handed to one.
    monkeypatch.setattr(verifiers._pool._pool_manager, "schedule", unheard)
    assert [verdict["reward"] for verdict in verifiers.verify(asked(plugin, "fine", "bad"))] == [1.0, -1.0]
    # As when one is seen to be dead before it was heard to have begun.
    monkeypatch.setattr(verifiers._pool._pool_manager, "find_expired_task", unheard)
    told = verifiers.verify(asked(plugin, "fine", "exit", "bad"))
    assert [verdict["reward"] for verdict in told] == [1.0, -1.0, -1.0] and len(broken) >= 2
    assert [verdict.get("fault") for verdict in told] == [None, "verifier_died", None]


def test_one_reply_at_a_time_can_be_asked_for_as_a_future(verifiers, plugin):
    futures = [verifiers.submit(*pair) for pair in asked(plugin, "fine", "raise", "exit")]
    assert [future.result(60)["reward"] for future in futures] == [1.0, -1.0, -1.0]


def test_nothing_is_left_of_workers_that_were_closed_while_they_work(plugin):
    others = set(psutil.Process().children(recursive=True))
    verifiers = Verifiers(2)
    futures = [verifiers.submit(*pair) for pair in asked(plugin, "fine", "hang", "hang")]
    futures[0].result(60)
    workers = [process for process in psutil.Process().children(recursive=True) if process not in others]
    assert len(workers) >= 2
    verifiers.close()
    _, alive = psutil.wait_procs(workers, timeout=20)
    # What tells Python's resources from other processes' stays as long as this process does.
    assert not [process for process in alive if "resource_tracker" not in " ".join(process.cmdline())]


def test_a_name_nobody_registered_is_an_error_and_no_reward(verifiers):
    with pytest.raises(KeyError, match="no environment 'nobody' is registered"):
        verifiers.verify(asked("nobody", "fine"))


@pytest.mark.parametrize("name", environments.verifying())
def test_good_examples_earn_what_they_should_and_bad_ones_less(name):
    assert environments.self_test(name) == []
    least, most = environments.reward_range(name)
    earned = {reward for _, _, reward in environments.get(name).EXAMPLES}
    assert most in earned and min(earned) < most and least <= min(earned)


def test_a_self_test_tells_of_a_verifier_that_is_not_what_it_says(plugin, monkeypatch):
    module = environments.get(plugin)
    assert environments.self_test(plugin) == []
    monkeypatch.setattr(module, "EXAMPLES", [({}, "fine", 0.0), ({}, "raise", 1.0)])
    monkeypatch.setattr(module, "REWARD_RANGE", (-1.0, 0.5))
    assert environments.self_test(plugin) == [
        "obedient, example 0 ('fine' to {}): earns 1 instead of 0",
        "obedient, example 0 ('fine' to {}): 1 is outside of its range, -1 to 0.5",
        "obedient, example 1 ('raise' to {}): ValueError: what is this?",
    ]


def test_a_request_to_stop_that_reaches_the_whole_group_costs_no_verdict(tmp_path):
    """torchrun signals the group of a rank's processes; the rank ends its step, for which it needs its workers."""
    program = (
        "import os, signal\n"
        "from nemo_cascade.environments import response_of\n"
        "from nemo_cascade.environments.workers import Verifiers\n"
        "if __name__ == '__main__':\n"
        "    heard = []\n"
        "    for number in (signal.SIGTERM, signal.SIGUSR1):\n"
        "        signal.signal(number, lambda number, frame: heard.append(number))\n"
        "    row = {'responses_create_params': {'input': '2+2'}, 'expected_answer': '4', 'agent_ref': {'name': 'math'}}\n"
        "    verifiers, asked = Verifiers(2), [(row, response_of('\\\\boxed{4}', thinking=False))] * 3\n"
        "    rewards = []\n"
        "    for number in (signal.SIGTERM, signal.SIGUSR1, None):\n"
        "        rewards += [verdict['reward'] for verdict in verifiers.verify(asked)]\n"
        "        os.killpg(0, number) if number else None\n"
        "    verifiers.close()\n"
        "    print(rewards, len(heard))\n"
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, start_new_session=True
    )
    assert done.stdout == f"{[1.0] * 9} 2\n", done.stdout + done.stderr
