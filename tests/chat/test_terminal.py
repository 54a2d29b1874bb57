"""examples/chat.py as a user has it: in a terminal, where Ctrl-C is a key, and at the end of a pipe."""

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

from nemo_cascade.chat.server import application
from tests.chat.scripted import ANSWER, FOREVER, Scripted, calling, serving

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / "examples" / "chat.py")]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
PATIENCE = 200


class Keyboard:
    """A terminal of 100 columns with the program in it."""

    def __init__(self, *arguments: str):
        self.master, slave = pty.openpty()

        def own_terminal() -> None:
            # A shell's background job ignores it, and so would all that it starts.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        streams = dict(stdin=slave, stdout=slave, stderr=slave)
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], **streams, env=ENVIRONMENT, start_new_session=True, preexec_fn=own_terminal
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, text: str) -> str:
        """What came up to that text, which is then behind."""
        end = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert time.monotonic() < end and self.read(), f"{text!r} never came, only {self.seen!r}"
        before, _, self.seen = self.seen.partition(text)
        return before

    def read(self) -> bool:
        """Whether there may be more."""
        ready, _, _ = select.select([self.master], [], [], 1.0)
        if not ready:
            return True
        try:
            self.seen += os.read(self.master, 4096).decode(errors="replace")
        except OSError:  # the program has closed its side
            return False
        return True

    def rest(self) -> str:
        while self.read():
            pass
        return self.seen

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self.master)


def test_in_a_terminal_ctrl_c_ends_an_answer_and_then_the_program(tmp_path):
    model, saved = Scripted(ANSWER, [FOREVER], ANSWER), tmp_path / "talk.json"
    with serving(application(model)) as url, contextlib.closing(Keyboard("--endpoint", f"{url}/v1")) as terminal:
        terminal.until("scripted. /help lists commands.")
        terminal.until("> ")
        terminal.type("2 + 2?\n")
        assert "\x1b[2mLet me" in terminal.until(" 4."), "a thought is dim"
        terminal.until("> ")
        terminal.type("count\n")
        terminal.until("7 ")
        terminal.type("\x03")
        terminal.until("(broken off)")
        terminal.until("> ")
        for line in ("/think off", "/budget 7", "/system Be short.", "/nothing", f"/save {saved}"):
            terminal.type(f"{line}\n")
            terminal.until("> ")
        terminal.type("go on\n")
        terminal.until(" 4.")
        terminal.until("> ")
        terminal.type("\x03")
        assert terminal.rest().endswith("\r\n") and terminal.process.wait(PATIENCE) == 0
    messages, _, settings = model.asked[2]
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert messages[4]["content"].startswith("0 1 2 3 4 5 6 7") and not settings.thinking
    row = json.loads(saved.read_text())
    assert row["messages"][0] == {"role": "system", "content": "Be short."} and row["messages"][2]["content"] == "It is 4."


def test_in_a_terminal_a_tool_is_used_and_ctrl_d_ends_the_program():
    model = Scripted(calling("print(6 * 7)"), ANSWER)
    with serving(application(model)) as url, contextlib.closing(Keyboard("--endpoint", f"{url}/v1", "--tools", "python")) as terminal:
        terminal.until("> ")
        terminal.type("compute\n")
        terminal.until("stateful_python_code_exec(")
        terminal.until("print(6 * 7)")
        terminal.until("42")
        terminal.until(" 4.")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.rest().endswith("\r\n") and terminal.process.wait(PATIENCE) == 0
    assert model.asked[1][0][-1] == {"role": "tool", "tool_call_id": "call_1", "content": "42"}


def test_a_pipe_has_a_line_for_each_turn():
    model = Scripted(ANSWER)
    lines = "/budget 5\n2 + 2?\n\n/budget x\n/reset\nagain\n"
    with serving(application(model)) as url:
        command = [*COMMAND, "--endpoint", f"{url}/v1", "--temperature", "0"]
        done = subprocess.run(command, input=lines, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("It is 4.") == 2 and "> " not in done.stdout and "/budget: a number of tokens" in done.stdout
    assert [len(messages) for messages, *_ in model.asked] == [1, 1] and model.asked[0][2].budget == 5


def test_a_checkpoint_talks_within_its_budget_and_keeps_what_it_said(weights, tmp_path):
    lines = f"hello\nand now?\n/save {tmp_path / 'talk.json'}\n"
    options = ["--budget", "3", "--max-tokens", "12", "--seed", "4", "--system", "Be short."]
    command = [*COMMAND, str(weights / "sft" / "step_1"), "policy.precision=float32", *options]
    done = subprocess.run(command, input=lines, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and done.stdout.startswith("sft-step_1. "), done.stdout + done.stderr
    assert done.stdout.count("(cut off at its longest)") == 2
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2]
    assert messages[2]["reasoning_content"] and messages[2]["content"] and "tokens" not in messages[2]


def test_what_cannot_be_opened_is_refused_in_a_line(tmp_path):
    done = subprocess.run([*COMMAND, str(tmp_path)], env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and done.stderr.startswith(f"nemo-cascade: {tmp_path}: no policy/ there and no config.json")
