"""An interpreter keeps its names from call to call, is nobody else's, survives or tells what is done to it, and leaves nothing behind."""

import dataclasses
import os
import threading
import time

import psutil
import pytest

from nemo_cascade.sandbox import MIB, HostFailed, Sandbox, SandboxError, packages, probe
from nemo_cascade.sandbox.interpreter import LIMITS, Cell

# Long enough on a busy machine for what ends by itself.
PATIENT = dataclasses.replace(LIMITS, seconds=60.0)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2) as sandbox:
        yield sandbox


@pytest.fixture
def python(sandbox):
    python = sandbox.interpreter(PATIENT)
    yield python
    python.close()


def output(cell: Cell) -> str:
    assert cell.status is None, cell
    return cell.output


def test_names_stay_and_the_last_line_is_shown(python):
    assert output(python.run("x = 20\ndef twice(n):\n    return 2 * n")) == ""
    assert output(python.run("print('so')\ntwice(x) + 2")) == "so\n42\n"
    assert output(python.run("_ + 1")) == "43\n", "as at a prompt"
    assert output(python.run("import sys; print('err', file=sys.stderr); sys.stdout.close()")) == "err\n"
    assert output(python.run("open('kept', 'w').write('files stay too')\nopen('kept').read()")) == "'files stay too'\n"
    assert output(python.run("__name__, __import__('os').getcwd()")) == "('__main__', '/box/work')\n"
    assert output(python.run("")) == output(python.run("# nothing")) == ""


def test_sympy_is_there_and_no_other_package_of_the_hosts(python):
    assert output(python.run("import sympy\nx = sympy.Symbol('x')\nsympy.integrate(x ** 2, (x, 0, 3))")) == "9\n"
    assert output(python.run("sympy.factor(x ** 2 - 1)")) == "(x - 1)*(x + 1)\n"
    assert "No module named 'torch'" in output(python.run("import torch"))


def test_errors_are_told_with_their_lines_and_end_nothing(python):
    python.run("def f():\n    return 1 / 0")
    said = output(python.run("\nf()"))
    assert said.startswith('Traceback (most recent call last):\n  File "call 2", line 2, in <module>\n    f()\n')
    assert "    return 1 / 0\n" in said and said.endswith("ZeroDivisionError: division by zero\n")
    assert output(python.run("if")).startswith('  File "call 3", line 1\n    if\n')
    assert "EOFError" in output(python.run("input()")) and "KeyboardInterrupt" in output(python.run("raise KeyboardInterrupt"))
    assert "null bytes" in output(python.run("\0")) and "RecursionError" in output(python.run("def g(): g()\ng()"))
    assert output(python.run("f.__name__")) == "'f'\n"


def test_interpreters_know_nothing_of_one_another(sandbox, python):
    other = sandbox.interpreter(PATIENT)
    python.run("secret = 1; open('/tmp/secret', 'w').write('x')")
    look = "import os; 'secret' in globals(), os.listdir('/tmp'), [n for n in os.listdir('/proc') if n.isdigit()] == ['1', str(os.getpid())]"
    assert output(other.run(look)) == "(False, [], True)\n"
    other.close()
    assert output(python.run("secret")) == "1\n"
    with pytest.raises(SandboxError, match="closed"):
        other.run("1")


def test_a_call_that_prints_without_end_is_cut_and_costs_bounded_memory(python):
    before = psutil.Process().memory_info().rss
    cell = python.run("for _ in range(5):\n    print('x' * 20_000_000)\nkept = 1")
    assert cell.status is None and cell.output.startswith("xxx") and cell.output.endswith(" more bytes left out\n")
    assert len(cell.output) < 0.6 * LIMITS.output
    assert f"... {100_000_005 - LIMITS.output // 2} more" in cell.output
    assert output(python.run("kept")) == "1\n"
    # Past its own streams; then nothing cuts it but its end.
    cell = python.run("import os\nwhile True:\n    os.write(1, b'x' * 10_000)")
    assert cell.limit == "output" and len(cell.output) == LIMITS.output
    assert psutil.Process().memory_info().rss - before < 64 * MIB


# What a model may write, how it ends its interpreter, and what is told of it.
DEADLY = {
    "exit()": (0, None),
    "import sys; print('bye'); sys.exit('with a text')": (1, None),
    "import os; os._exit(7)": (7, None),
    "import os; os.kill(os.getpid(), 9)": (-9, None),
    "import os; os.close(3)": (1, None),
    # Each for itself is within its limit.
    "import os, time\nfor _ in range(3): os.fork()\nx = bytearray(b'x') * 100_000_000\ntime.sleep(60)": (-9, "memory"),
}


def test_one_that_ends_is_told_and_the_next_call_begins_anew(sandbox):
    python = sandbox.interpreter(dataclasses.replace(PATIENT, memory=256 * MIB))
    for code, told in DEADLY.items():
        python.run("before = 1")
        cell = python.run(code)
        assert (cell.status, cell.limit) == told, (code, cell)
        assert "NameError" in output(python.run("before")), code
    assert "bye\nwith a text\n" == python.run("import sys; print('bye'); sys.exit('with a text')").output
    python.close()


def test_loops_without_end_are_ended_at_the_limit_and_every_call_has_all_of_it(sandbox):
    python = sandbox.interpreter(dataclasses.replace(LIMITS, seconds=3.0))
    for _ in range(3):
        assert output(python.run("import time; time.sleep(1.1)")) == ""
    deaf = "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass"
    for code in ("while True: pass", deaf):
        python.close()
        python = sandbox.interpreter(dataclasses.replace(LIMITS, seconds=0.6))
        cell = python.run(code)
        assert (cell.status, cell.limit) == (-9, "seconds")
    python.limits = PATIENT
    assert "NameError" in output(python.run("signal"))
    python.close()


def test_a_fork_bomb_hits_its_limit_and_the_interpreter_goes_on(python):
    assert "BlockingIOError" in output(python.run("import os\nwhile True: os.fork()"))
    # What others of the bomb still say stands beside it.
    assert "still here 1" in output(python.run("print('still here 1')"))


def test_forks_and_threads_of_the_code_neither_answer_for_it_nor_run_between_calls(python):
    assert output(python.run("import os\nos.fork() and os.wait() and 'parent'")) == "0\n'parent'\n"
    assert output(python.run("for n in range(1000): os.write(3, bytes(16))\n'to the end'")) == "'to the end'\n"
    assert [output(python.run(f"print({number})")) for number in range(3)] == ["0\n", "1\n", "2\n"]
    count = "import threading\nn = 0\ndef run():\n    global n\n    while True: n += 1\nthreading.Thread(target=run, daemon=True).start()"
    output(python.run(f"{count}\nif os.fork() == 0:\n    while True: pass"))
    server, *inside = psutil.Process(python._worker.process.pid).children(recursive=True)
    until = time.monotonic() + 30  # the kernel stops a process when it next runs
    while not all(process.status() == "stopped" for process in inside) and time.monotonic() < until:
        time.sleep(0.01)
    busy = [sum(process.cpu_times()[:2]) for process in inside]
    assert len(inside) == 3 and all(process.status() == "stopped" for process in inside)
    time.sleep(0.2)
    assert [sum(process.cpu_times()[:2]) for process in inside] == busy
    assert output(python.run("import time\nbefore = n\nwhile n == before: time.sleep(0.01)\n'moved'")) == "'moved'\n", "but during calls"


def test_so_many_are_alive_and_the_next_waits_for_one_to_end(sandbox, monkeypatch):
    monkeypatch.setattr(sandbox._places, "free", 2)
    one, two, three, four = (sandbox.interpreter(PATIENT) for _ in range(4))
    assert one.begin() and two.begin() and two.begin() and not three.begin(wait=False)
    told = []
    threads = [threading.Thread(target=lambda: told.append(three.run("'waited'").output))]
    threads.append(threading.Thread(target=lambda: told.append(pytest.raises(SandboxError, four.begin).match("closed"))))
    for thread in threads:
        thread.start()
    # Another that waits in vain goes when it is closed.
    four.close()
    threads[1].join(60)
    assert told == [True] and output(two.run("1 + 1")) == "2\n"
    one.close()
    threads[0].join(60)
    assert told[1:] == ["'waited'\n"]
    three.close()
    two.close()
    two.close()
    assert sandbox._places.free == 2


def test_closed_in_the_middle_of_a_call_it_ends_at_once(sandbox):
    python = sandbox.interpreter(PATIENT)
    python.run("x = 1")
    ended = []
    thread = threading.Thread(target=lambda: ended.append(pytest.raises(SandboxError, python.run, "while True: pass")))
    thread.start()
    while python._using.acquire(blocking=False):
        python._using.release()
    python.close()
    thread.join(30)
    assert len(ended) == 1 and python._worker is None


def test_a_server_that_dies_is_the_hosts_failure_and_no_others(python):
    python.run("x = 1")
    psutil.Process(python._worker.process.pid).children()[0].kill()
    with pytest.raises(HostFailed, match="and with it what it knew"):
        python.run("x")
    assert "NameError" in output(python.run("x")), "a new one, whoever asks for it"


def left(processes: list) -> list:
    """Those that are still there, after some time for the kernel to end them."""
    for _ in range(500):
        alive = [p for p in processes if p.is_running() and p.status() != "zombie"]
        if not alive:
            return []
        time.sleep(0.01)
    return alive


def test_nothing_is_left_of_any():
    ours = packages.folder(probe.requirements()[1], packages.INTERPRETERS).parent
    files, temporary = len(os.listdir("/proc/self/fd")), sorted(os.listdir(ours))
    started = []
    with Sandbox(workers=2) as sandbox:
        sandbox.probe()
        sandbox.close()
        here = len(psutil.Process().children(recursive=True))
        for end in ("os._exit(1)", "while os.fork() >= 0: pass", "1", "os.fork(); os.setsid()"):
            python = sandbox.interpreter(PATIENT)
            python.run(f"import os\n{end}")
            started += psutil.Process(python._worker.process.pid).children(recursive=True)
            python.close()
        open_ended = sandbox.interpreter(PATIENT)
        open_ended.run("1")
        started += psutil.Process(open_ended._worker.process.pid).children(recursive=True)
    assert left(started) == [] and len(started) >= 8
    assert sandbox._workers == set() and len(psutil.Process().children(recursive=True)) <= here
    assert len(os.listdir("/proc/self/fd")) <= files and sorted(os.listdir(ours)) == temporary


def test_an_interpreter_that_never_ran_starts_nothing():
    with Sandbox(workers=1) as sandbox:
        sandbox.probe()
        workers = set(sandbox._workers)
        python = sandbox.interpreter()
        assert python.begin() and sandbox._workers == workers
        python.close()
