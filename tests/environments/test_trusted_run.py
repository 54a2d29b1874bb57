"""Programs run in a process of their own, end at their limits, and leave nothing behind."""

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from nemo_cascade.environments.trusted_run import MAX_OUTPUT, run_program


def run(source, **options):
    return run_program(source, trusted_demo=True, **options)


def alive(number):
    """Whether a process still runs, after a moment in which a killed one may vanish."""
    for _ in range(50):
        if not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE:
            return False
        time.sleep(0.02)
    return True


def test_without_the_callers_word_nothing_is_run():
    with pytest.raises(PermissionError, match="trusted_demo=True"):
        run_program("print(1)")


def test_a_program_reads_prints_and_ends():
    result = run("import sys\nprint(input() + 'é')\nprint('e', file=sys.stderr)\nsys.exit(3)", stdin="a\n")
    assert (result.returncode, result.stdout, result.stderr, result.timed_out) == (3, "aé\n", "e\n", False)


@pytest.mark.parametrize(
    "source",
    [
        "import sys; sys.stdout.write('all')",
        "import io, sys; sys.stdout = io.TextIOWrapper(sys.stdout.buffer); print('all', end='')",
        "import io, sys; sys.stdout = io.StringIO(); sys.__stdout__.write('all')",
        "out = open(1, 'w'); out.write('all')",
        "import atexit; atexit.register(print, 'all', end='')",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('all', end=''))).start()",
        "import sys; sys.stdout.write('all'); sys.exit()",
    ],
    ids=["unflushed", "wrapped", "replaced", "opened again", "exit handler", "thread", "exit"],
)
def test_what_was_written_arrives_however_the_program_ends(source):
    result = run(source)
    assert (result.returncode, result.stdout, result.stderr) == (0, "all", "")


def test_an_exit_status_is_the_interpreters():
    assert [run(f"raise SystemExit({code})").returncode for code in ("None", "0", "7", "256 + 3", "'text'")] == [
        0, 0, 7, 3, 1
    ]
    assert run("raise SystemExit('text')").stderr == "text\n"


def test_an_exception_is_told_on_stderr():
    result = run("x = 1\n1 / 0")
    assert result.returncode == 1 and 'File "program.py", line 2' in result.stderr


def test_the_folder_is_its_own_and_holds_the_given_files_only():
    listing = "import os\nprint(os.getcwd(), sorted(os.listdir()), dict(os.environ), os.path.exists('../program.py'))"
    result = run(listing, files={"a.py": "", "sub/b.txt": "é"})
    folder, rest = result.stdout.strip().split(" ", 1)
    assert Path(folder).parent.parent == Path(tempfile.gettempdir()) and not Path(folder).parent.exists()
    assert rest.startswith("['a.py', 'sub'] ") and rest.endswith(" False") and "PATH" not in rest
    assert run("from a import x; print(x)", files={"a.py": "x = 'found'"}).stdout == "found\n"


def test_only_the_standard_library_is_there():
    assert "ModuleNotFoundError" in run("import numpy").stderr


@pytest.mark.parametrize("path", ["../a", "/tmp/a", "b/../../a", "."])
def test_a_file_outside_the_folder_is_refused(path):
    with pytest.raises(ValueError, match="leads out of"):
        run("", files={path: "x"})


ENDLESS = {
    "loop": "while True: pass",
    "sleep": "import time; time.sleep(60)",
    "deaf": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=list(ENDLESS))
def test_a_program_without_end_is_ended(source):
    start = time.monotonic()
    result = run(f"import os; print(os.getpid(), flush=True)\n{source}", timeout=1.0)
    assert result.timed_out and result.returncode == -9 and time.monotonic() - start < 10
    assert not alive(int(result.stdout))


def test_memory_has_an_end():
    result = run("x = bytes(2**20)\nwhile True: x += x", timeout=20)
    assert not result.timed_out and result.returncode == 1 and "MemoryError" in result.stderr
    assert run("x = bytes(100 * 2**20)", memory=200 * 2**20).returncode == 0
    assert run("x = bytes(100 * 2**20)", memory=100 * 2**20).returncode == 1


@pytest.mark.parametrize("file", ["stdout", "stderr"])
def test_endless_output_is_cut(file):
    result = run(f"import sys\nwhile True: sys.{file}.write('x' * 1000)", timeout=20)
    assert not result.timed_out and result.returncode != 0
    assert len(getattr(result, file).encode()) <= MAX_OUTPUT


def test_a_file_does_not_grow_without_end():
    result = run("with open('a', 'wb') as file:\n    while True: file.write(bytes(1000))", timeout=20)
    assert "OSError" in result.stderr


FORK = """
import os, time
try:
    child = os.fork()
except BlockingIOError:
    raise SystemExit("no fork")
if child == 0:
    if os.fork() == 0:
        with open(1, "w") as out:
            out.write(str(os.getpid()))
    time.sleep(600)
while not os.fstat(1).st_size:
    time.sleep(0.01)
"""


@pytest.mark.parametrize("end", ["", "time.sleep(600)"], ids=["after it ended", "at the time limit"])
def test_children_and_grandchildren_end_with_the_program(end):
    """Root may fork and the group is killed; others may not fork at all."""
    result = run(FORK + end, timeout=3.0)
    if "no fork" not in result.stderr:
        assert result.timed_out == bool(end) and not alive(int(result.stdout))


def test_a_grandchild_that_holds_the_output_open_does_not_hold_up_the_host():
    start = time.monotonic()
    run("import os, time\nif os.fork() == 0: time.sleep(30)", timeout=20)
    assert time.monotonic() - start < 15


def test_nothing_is_left_running_or_lying_about(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run("")  # starts what programs are forked from
    before = psutil.Process().children(recursive=True)
    for source in ("while 1: pass", "1 / 0", ""):
        run(source, timeout=0.5)
    assert psutil.Process().children(recursive=True) == before
    assert list(tmp_path.iterdir()) == []


def test_programs_share_nothing_but_the_standard_library():
    assert run("import builtins, json, sys\nbuiltins.left = json.left = sys.left = 1").returncode == 0
    assert run("import builtins, json, sys\nprint(*(hasattr(m, 'left') for m in (builtins, json, sys)))").stdout == (
        "False False False\n"
    )


def test_programs_run_side_by_side():
    """Each waits for a file of the other's making, so in turn they would wait in vain."""
    meet = "import time, pathlib\npathlib.Path(%r).touch()\nwhile not pathlib.Path(%r).exists(): time.sleep(0.01)"
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        one, two = f"{folder}/one", f"{folder}/two"
        results = list(pool.map(lambda paths: run(meet % paths, timeout=10.0), [(one, two), (two, one)]))
    assert [result.returncode for result in results] == [0, 0]


def test_a_server_that_ended_is_told_and_replaced():
    with pytest.raises(RuntimeError, match="forked from has ended"):
        run("import os; os.kill(os.getppid(), 9)")
    assert run("print(1)").stdout == "1\n"


def test_a_fork_of_the_host_has_servers_of_its_own():
    run("")
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        theirs = pool.submit(run, "import os; print(os.getppid())").result().stdout
    assert theirs != run("import os; print(os.getppid())").stdout
