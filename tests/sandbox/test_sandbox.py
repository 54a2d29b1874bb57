"""Programs run, end at their limits, share nothing, and the sandbox outlives what happens to its processes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from nemo_cascade import environments
from nemo_cascade.environments import workers
from nemo_cascade.sandbox import Call, HostFailed, Limits, Program, Sandbox, SandboxError, local
from nemo_cascade.sandbox.inside import server

MIB = 2**20
PATIENT = Limits(seconds=60.0)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2) as made:
        yield made


def python(source, **more):
    return Program("python", source, **more)


# ------------------------------------------------------------------------------------------------- languages


def test_a_python_program_reads_prints_and_ends(sandbox):
    program = python("import sys\nprint(input() + 'é', sys.argv[1:])\nprint('e', file=sys.stderr)\nsys.exit(3)", stdin="a\n", args=("x",))
    result = sandbox.run(program, PATIENT)
    assert (result.returncode, result.stdout, result.stderr, result.limit) == (3, "aé ['x']\n", "e\n", None)
    assert not result.ok and 0 < result.seconds < 60


@pytest.mark.parametrize(
    "source",
    [
        "import sys; sys.stdout.write('all')",
        "import io, sys; sys.stdout = io.TextIOWrapper(sys.stdout.buffer); print('all', end='')",
        "import io, sys; sys.stdout = io.StringIO(); sys.__stdout__.write('all')",
        "out = open(1, 'w'); out.write('all')",
        "out = open('/dev/stdout', 'w'); out.write('all')",
        "import atexit; atexit.register(print, 'all', end='')",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('all', end=''))).start()",
        "import sys; sys.stdout.write('all'); sys.exit()",
        "print('all', end=''); exit()",
        "print('all', end=''); quit(0)",
        "import subprocess; subprocess.run(['echo', '-n', 'all'], check=True)",
        "import multiprocessing as m\ndef f(x): return x + x\nprint('al' + m.Pool(2).map(f, ['l'])[0][1:], end='')",
        "import asyncio\nasync def f(): print('all', end='')\nasyncio.run(f())",
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: 'str'\nprint(A('all').x, end='')",
    ],
)
def test_what_was_written_arrives_however_the_program_ends(sandbox, source):
    result = sandbox.run(python(source), PATIENT)
    assert (result.returncode, result.stdout, result.stderr) == (0, "all", "")


def test_an_exit_status_is_the_interpreters(sandbox):
    codes = ("None", "0", "7", "256 + 3", "'text'")
    assert [sandbox.run(python(f"raise SystemExit({code})")).returncode for code in codes] == [0, 0, 7, 3, 1]
    assert sandbox.run(python("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")).returncode == -signal.SIGTERM
    assert sandbox.run(python("import os; os.abort()")).returncode == -signal.SIGABRT


def test_an_exception_is_told_on_stderr(sandbox):
    result = sandbox.run(python("x = 1\n1 / 0"), PATIENT)
    assert result.returncode == 1
    assert result.stderr == 'Traceback (most recent call last):\n  File "program.py", line 2, in <module>\nZeroDivisionError: division by zero\n'


def test_only_the_standard_library_is_there(sandbox):
    assert "ModuleNotFoundError" in sandbox.run(python("import numpy"), PATIENT).stderr


def test_two_runs_of_a_program_are_the_same_but_for_chance(sandbox):
    order = python("print({'a', 'b', 'c', 'd', 'e', 'f'})")
    assert len({sandbox.run(order, PATIENT).stdout for _ in range(4)}) == 1
    chance = python("import random; print(random.random())")
    assert len({sandbox.run(chance, PATIENT).stdout for _ in range(4)}) == 4


CPP = """
#include <iostream>
#include <cstdlib>
int main(int n, char** args) { int a, b; std::cin >> a >> b; std::cout << a + b << args[1]; std::cerr << "e"; return n; }
"""


def test_a_cpp_program_reads_prints_and_ends(sandbox):
    result = sandbox.run(Program("cpp", CPP, stdin="20 22", args=("!",)), PATIENT)
    assert (result.returncode, result.stdout, result.stderr, result.compiled) == (2, "42!", "e", True)


def test_a_cpp_program_that_does_not_compile_is_told(sandbox):
    result = sandbox.run(Program("cpp", "int main() { return x; }"), PATIENT)
    assert not result.compiled and not result.ok and "'x' was not declared" in result.stderr.replace("‘", "'").replace("’", "'")


def test_only_what_the_compiler_says_of_a_source_is_kept(monkeypatch):
    busy = [Limits(seconds=0.01), Limits(seconds=60.0, memory=2**30, output=2**26, disk=2**26)]
    with Sandbox(workers=1) as own:
        own.probe()
        monkeypatch.setattr(local, "COMPILING", busy[0])
        assert own.run(Program("cpp", CPP, stdin="1 2"), PATIENT).timed_out
        monkeypatch.setattr(local, "COMPILING", busy[1])
        assert own.run(Program("cpp", CPP, stdin="1 2", args=(".",)), PATIENT).stdout == "3."
        # As the host's kernel does when its memory is used up.
        monkeypatch.setattr(local, "COMPILE", "kill -9 $$")
        own.run(Program("cpp", "int main() { return x; }"), PATIENT)
        monkeypatch.setattr(local, "COMPILE", f"echo '{local.KILLED} terminated program cc1plus' >&2; exit 1")
        with pytest.raises(HostFailed, match="the host killed the compiler"):
            own.run(Program("cpp", "int main() { return x; }"), PATIENT)
        monkeypatch.undo()
        for _ in range(2):
            told = own.run(Program("cpp", "int main() { return x; }"), PATIENT)
            assert told.returncode == 1 and "was not declared" in told.stderr


def test_a_cpp_program_is_compiled_once_for_many_inputs_at_a_time(monkeypatch):
    compiled = []
    compile_ = Sandbox._compile
    monkeypatch.setattr(Sandbox, "_compile", lambda self, source: compiled.append(1) or compile_(self, source))
    with Sandbox(workers=2) as own:
        results = own.run_many([Program("cpp", CPP, stdin=f"{n} 1", args=(".",)) for n in range(20)], PATIENT)
        assert [result.stdout for result in results] == [f"{n + 1}." for n in range(20)] and len(compiled) == 1


def test_a_deep_recursion_has_stack_enough(sandbox):
    deep = "#include <cstdio>\nint f(int n) { volatile char x[64]; x[0] = n; return n ? f(n - 1) + x[0] % 1 + 1 : 0; }\nint main() { printf(\"%d\", f(400000)); }"
    assert sandbox.run(Program("cpp", deep), PATIENT).stdout == "400000"
    deep = "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and f(n - 1) + 1\nprint(f(50_000))"
    assert sandbox.run(python(deep), PATIENT).stdout == "50000\n"


def test_a_shell_script_has_the_usual_tools(sandbox):
    script = "read a; printf '%s\\n' c b \"$a\" $1 | sort | awk '{print NR, $0}' | sed 's/ /-/' > f; cat f; exit 4"
    result = sandbox.run(Program("shell", script, stdin="a\n", args=("d",)), PATIENT)
    assert (result.returncode, result.stdout, result.stderr) == (4, "1-a\n2-b\n3-c\n4-d\n", "")


# ------------------------------------------------------------------------------------------------- calls


@pytest.mark.parametrize(
    "value", [None, True, 7, -1.5, "é\n", [1, [2]], (1, (2,)), {"a": 1}, {1: (2, {3})}, {1, 2}, b"\0\xff", 1j, 10**400, float("inf")]
)  # fmt: skip
def test_plain_values_go_in_and_come_out_as_they_are(sandbox, value):
    result = sandbox.run(python("def f(x, *, y): return (x, y)", call=Call("f", (value,), {"y": value})), PATIENT)
    assert result.ok and result.value() == (value, value) and type(result.value()[0]) is type(value)


def test_what_a_called_program_prints_is_not_its_value(sandbox):
    result = sandbox.run(python("def f(): print('{}'); return 1", call=Call("f")), PATIENT)
    assert (result.stdout, result.value()) == ("{}\n", 1)


@pytest.mark.parametrize("source", ["def f(): return f", "def f(): return object()", "def f(): x = []; x.append(x); return x", "def g(): pass", ""])
def test_what_is_no_plain_value_is_none(sandbox, source):
    result = sandbox.run(python(source, call=Call("f")), PATIENT)
    assert result.returncode == 1
    with pytest.raises(ValueError, match="no value was returned"):
        result.value()


@pytest.mark.parametrize("forged", ["{", "[" * 100_000, '{"set": [[]]}', '{"dict": [[[], 1]]}', '{"dict": 3}', '{"x": []}', '{"complex": ["a"]}', '{"bytes": "zz"}', "{}", "9" * 5000])
def test_a_forged_value_is_a_value_error(sandbox, forged):
    source = f"def f():\n    import os\n    os.write(3, {forged.encode()!r})\n    os._exit(0)"
    result = sandbox.run(python(source, call=Call("f")), PATIENT)
    assert result.ok
    with pytest.raises(ValueError):
        result.value()


# ------------------------------------------------------------------------------------------------- files


def test_files_are_there_and_nothing_else(sandbox):
    source = "import os\nprint(sorted(os.listdir()), open('sub/b.txt').read(), __import__('a').x)"
    result = sandbox.run(python(source, files={"a.py": "x = 1", "sub/b.txt": "é"}), PATIENT)
    assert result.stdout == "['a.py', 'sub'] é 1\n"


@pytest.mark.parametrize("path", ["../a", "/tmp/a", "b/../../a", ".", "", "a\0b"])
def test_a_file_outside_the_folder_is_refused(path):
    with pytest.raises(ValueError, match="leads out of"):
        python("", files={path: "x"})


def test_files_do_not_take_the_programs_disk(sandbox):
    files = {f"folder{n}/file": "x" * MIB for n in range(8)}
    source = "open('own', 'w').write('x' * (900 * 1024)); print(len(open('folder7/file').read()))"
    assert sandbox.run(python(source, files=files), Limits(seconds=60.0, disk=MIB, inodes=4)).stdout == f"{MIB}\n"


def test_lone_surrogates_are_no_text_and_no_error(sandbox):
    result = sandbox.run(python("print(ascii(input()), ascii(open('f').read()), '\udc80')", stdin="\ud800", files={"f": "\udfff"}), PATIENT)
    assert result.ok and result.stdout == "'?' '?' ?\n"


# ------------------------------------------------------------------------------------------------- limits


def test_memory_of_one_process_is_an_error_inside(sandbox):
    assert "MemoryError" in sandbox.run(python("x = bytes(300 * 2**20)"), Limits(seconds=60.0, memory=200 * MIB)).stderr
    assert sandbox.run(python("x = bytes(100 * 2**20)"), Limits(seconds=60.0, memory=200 * MIB)).ok


FORKS = "import os, time\nshared = bytearray(b'x') * (60 * 2**20)\nfor _ in range(4):\n    if os.fork() == 0:\n        {work}\n        time.sleep(0.5); os._exit(0)\nfor _ in range(4): os.wait()"


def test_memory_that_forks_share_counts_once_and_what_they_write_for_each(sandbox):
    limits = Limits(seconds=60.0, memory=200 * MIB)
    assert sandbox.run(python(FORKS.format(work="shared[0]")), limits).ok
    assert sandbox.run(python(FORKS.format(work="own = bytearray(b'y') * (60 * 2**20)")), limits).limit == "memory"


def test_output_is_cut_and_told(sandbox):
    result = sandbox.run(python("print('é' * 40)"), Limits(seconds=60.0, output=21))
    # It ends by itself, or is ended where a look at its output comes first.
    assert (result.limit, result.stdout) == ("output", "é" * 10 + "�") and result.returncode in (0, -9) and not result.ok


@pytest.mark.parametrize("limit", [{"seconds": 0}, {"memory": -1}, {"output": True}, {"disk": "1"}, {"processes": float("nan")}])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ValueError, match=f"limit {next(iter(limit))} is"):
        Limits(**limit)


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match="language 'perl': not one of python, cpp, shell"):
        Program("perl", "")
    with pytest.raises(ValueError, match="Python only"):
        Program("cpp", "", call=Call("f"))


# ------------------------------------------------------------------------------------------------- processes of the host


def alive(number):
    """Whether a process still runs, after a moment in which a killed one may vanish."""
    for _ in range(250):
        if not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE:
            return False
        time.sleep(0.02)
    return True


def test_programs_run_side_by_side_and_no_more_than_workers(sandbox):
    with ThreadPoolExecutor(6) as pool:
        begun = time.monotonic()
        results = list(pool.map(lambda _: sandbox.run(python("import time; time.sleep(1)"), PATIENT), range(4)))
        assert all(result.ok for result in results) and time.monotonic() - begun >= 2.0
    assert len(sandbox._workers) <= 2


def test_a_server_outlives_the_thread_that_started_it():
    with Sandbox(workers=1) as own:
        first = threading.Thread(target=own.run, args=(python(""),))
        first.start()
        first.join()
        (worker,) = own._workers
        time.sleep(0.3)
        assert worker.process.poll() is None and own.run(python("print(1)"), PATIENT).stdout == "1\n"
        assert own._workers == {worker}


def test_a_server_that_is_killed_is_replaced(caplog):
    with Sandbox(workers=1) as own:
        own.run(python(""))
        (worker,) = own._workers
        # bubblewrap's own process takes the server with it, but only in the end.
        for process in (*psutil.Process(worker.process.pid).children(recursive=True), worker.process):
            process.kill()
            process.wait()
        assert own.run(python("print(1)"), PATIENT).stdout == "1\n" and "tried once more" in caplog.text


@contextmanager
def killing(sandbox, which):
    """Kills again and again what `which` finds among the processes of a worker."""
    done = threading.Event()

    def kill():
        while not done.wait(0.2):
            for worker in list(sandbox._workers):
                try:
                    which(psutil.Process(worker.process.pid)).kill()
                except (psutil.Error, LookupError):
                    continue

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        done.set()
        killer.join()


# The server itself, and the first process of the program's namespaces, bubblewrap's own process being the outermost.
KILLED = {"server": lambda worker: worker, "first process": lambda worker: worker.children()[0].children()[0]}


@pytest.mark.parametrize("who", KILLED)
def test_a_program_that_the_host_kills_each_time_is_lost_and_counted_not_failed(who, monkeypatch):
    row = {"verifier_metadata": {"unit_tests": {"inputs": [""], "outputs": ["1"]}}, "agent_ref": {"name": "code_gen"}}
    reply = environments.response_of("```python\nimport time; time.sleep(3); print(1)\n```", thinking=False)
    with Sandbox(workers=1) as own:
        monkeypatch.setattr("nemo_cascade.sandbox._current", own)
        own.probe()
        with killing(own, KILLED[who]):
            with pytest.raises(HostFailed, match="the host failed twice.*" + who):
                own.run(python("import time; print(1, flush=True); time.sleep(3)"), PATIENT)
            ((verdict,), _seconds) = workers._verify([("code_gen", row, reply)])
        assert verdict["reward"] == 0.0 and "the host failed twice" in verdict["verifier_error"]
        assert own.run(python("print(2)"), PATIENT).stdout == "2\n"
        # Who ends itself so, or takes too much, is not lost.
        assert own.run(python("import os; os.kill(os.getpid(), 9)")).returncode == -9
        grown = own.run(python("import os\nfor _ in range(4): os.fork()\nx = b'1' * 2**26\nwhile True: pass"), PATIENT)
        assert grown.limit == "memory"
        assert "MemoryError" in own.run(python("x = b'1' * 2**30"), PATIENT).stderr


def test_processes_that_the_kernel_killed_for_memory_are_counted():
    assert server.oom_kills() >= 0 and isinstance(server.oom_kills(), int)


def test_closing_ends_every_process_and_a_later_run_starts_anew():
    own = Sandbox(workers=2)
    own.run_many([python("import time; time.sleep(0.2)")] * 4, PATIENT)
    numbers = [worker.process.pid for worker in own._workers]
    inner = [child.pid for number in numbers for child in psutil.Process(number).children(recursive=True)]
    own.close()
    assert len(numbers) == 2 and len(inner) == 2 and not any(alive(number) for number in numbers + inner)
    assert own.run(python("print(1)"), PATIENT).stdout == "1\n"
    own.close()


def workers_of(own):
    return sorted(worker.process.pid for worker in own._workers)


_shared = None


def in_a_fork(source):
    return _shared.run(python(source), PATIENT).stdout, workers_of(_shared)


def test_a_fork_has_workers_of_its_own_and_leaves_its_parents_alone():
    global _shared
    with Sandbox(workers=1) as _shared:
        _shared.run(python(""))
        before = workers_of(_shared)
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
            futures = [pool.submit(in_a_fork, f"print({n})") for n in range(6)]
            for number, future in enumerate(futures):
                printed, theirs = future.result()
                assert printed == f"{number}\n" and not set(theirs) & set(before)
        assert _shared.run(python("print(1)"), PATIENT).stdout == "1\n" and workers_of(_shared) == before


def test_a_fork_while_another_thread_runs_a_program_is_not_stuck():
    global _shared
    with Sandbox(workers=1) as _shared:
        running = threading.Thread(target=_shared.run, args=(python("import time; time.sleep(2)"), PATIENT))
        _shared.probe()
        running.start()
        time.sleep(0.5)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            assert pool.submit(in_a_fork, "print(1)").result()[0] == "1\n"
        running.join()


HOST = """
import sys, threading, time
from nemo_cascade.sandbox import Sandbox, Program, Limits
own = Sandbox(workers=2)
own.run(Program("python", ""))
for _ in range(2):
    threading.Thread(target=own.run, args=(Program("python", "import os, time; os.fork(); time.sleep(600)"), Limits(seconds=600.0)), daemon=True).start()
time.sleep(1)
print("ready", flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["time.sleep(600)", "sys.exit(0)", "raise KeyboardInterrupt"], ids=["killed", "exit", "error"])
def test_when_the_host_ends_so_do_its_sandboxes_and_programs(end):
    host = subprocess.Popen([sys.executable, "-c", HOST.format(end=end)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    # Before the line, because two of three end right after it.
    seen = {}
    while not seen or host.poll() is None and len(seen) < 6:
        try:
            seen |= {child.pid: child for child in psutil.Process(host.pid).children(recursive=True)}
        except psutil.NoSuchProcess:
            break
        if end == "time.sleep(600)" and len(seen) >= 6 and host.stdout.readline() == "ready\n":
            host.kill()
        time.sleep(0.02)
    host.kill() if end == "time.sleep(600)" else None
    host.wait(60)
    assert len(seen) >= 4 and not [number for number in seen if alive(number)]


def test_a_run_that_the_sandbox_cannot_begin_is_an_error_of_the_sandbox_not_of_the_program(monkeypatch):
    with Sandbox(workers=1) as own:
        own.probe()
        monkeypatch.setattr(local, "payload", lambda program, binary: b"no json")
        with pytest.raises(SandboxError, match="(?s)could not begin a run: .*JSONDecodeError"):
            own.run(python("print(1)"))
        monkeypatch.undo()
        assert own.run(python("print(1)"), PATIENT).stdout == "1\n"


def test_an_open_file_of_the_host_is_not_inherited(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    number = os.open(secret, os.O_RDONLY)
    os.set_inheritable(number, True)
    try:
        with Sandbox(workers=1) as own:
            source = "import os, json; print(json.dumps([os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)] + [n for n in range(3, 1000) if os.path.exists(f'/proc/self/fd/{n}')]))"
            seen = json.loads(own.run(python(source), PATIENT).stdout)
            assert seen == ["/memfd:sandbox (deleted)"] * 3
            (worker,) = own._workers
            for process in psutil.Process(worker.process.pid).children(recursive=True):
                assert not any(Path(f"/proc/{process.pid}/fd/{n}").exists() for n in range(4, 100))
    finally:
        os.close(number)
