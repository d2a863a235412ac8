"""One line of progress: on a terminal it is there, in a file or pipe nothing of it is."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from interp.core import progress
from interp.core.progress import Steps, counted, counting, shows_progress

ROOT = Path(__file__).resolve().parents[1]
WORK = """
import sys
from interp.core.progress import Steps, counted, counting
with Steps(2) as steps:
    steps.begin("removes every head")
    with counting(None, "patch × loss") as bar:
        bar.reset(4)
        for _ in range(4):
            bar.update()
            bar.refresh()
    steps.begin("removes them together")
    for _ in counted(range(3), "inner"):
        pass
for _ in counted(range(3), "a loop by itself"):
    pass
print("done")
"""
COLUMNS = 80


def on_a_terminal(code: str) -> tuple[str, str]:
    """What Python sends to a terminal as standard error, and what it writes into a pipe."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, COLUMNS))
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, cwd=ROOT,
        env={**os.environ, "COLUMNS": str(COLUMNS)},
    )  # fmt: skip
    os.close(theirs)
    sent = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux says so at the end of a terminal
            break
        if not piece:
            break
        sent += piece
    os.close(ours)
    assert child.stdout is not None
    out = child.stdout.read().decode()
    assert child.wait() == 0, sent
    return sent.decode(), out


class Screen(io.StringIO):
    """A terminal that remembers what it was sent."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def watch(monkeypatch) -> Callable[[], Screen]:
    """Makes standard error a screen, in the test itself: pytest puts its own there before."""

    def begin() -> Screen:
        screen = Screen()
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    return begin


def test_a_terminal_shows_one_line_that_is_wiped():
    sent, out = on_a_terminal(WORK)
    lines = sent.split("\r")
    assert any("step 1 of 2: removes every head" in line for line in lines)
    assert any(re.search(r"step 1 of 2: .* 75%\|.*\| \d\d:\d\d left", line) for line in lines)
    assert any("step 2 of 2: removes them together" in line for line in lines)
    assert any("a loop by itself" in line for line in lines)
    assert not any("patch × loss" in line or "inner" in line for line in lines)
    assert "\n" not in sent, "one line, whatever happens"
    assert not lines[-1].strip() and not lines[-2].strip(), "the line is wiped"
    assert all(len(line) <= COLUMNS for line in lines)
    assert out == "done\n"


def test_a_pipe_shows_nothing():
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize(
    "code", ["sys.stderr.close()", "sys.stderr = None", "import os; os.close(2)"]
)
def test_work_goes_on_without_standard_error(code):
    command = [sys.executable, "-c", f"import sys\n{code}\n{WORK}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_who_watches(monkeypatch, watch):
    watch()
    assert shows_progress()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not shows_progress()
    cell = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    monkeypatch.setattr(sys, "stderr", cell())
    assert shows_progress()


def test_a_loop_that_is_not_to_be_shown_is_not(watch):
    watched = watch()
    for _ in counted(range(3), "secret", False):
        pass
    with Steps(1) as steps:
        steps.begin("all")
        before = watched.getvalue()
        with counting(3, "secret", False) as bar:
            bar.update(3)
        assert watched.getvalue() == before
    assert "secret" not in watched.getvalue()


def test_a_long_name_fits_the_line(monkeypatch, watch):
    watched = watch()
    monkeypatch.setenv("COLUMNS", "60")
    with Steps(1) as steps:
        steps.begin("removes " + "very " * 40 + "many heads")
        for _ in counted(range(2), "inner"):
            pass
    assert max(map(len, watched.getvalue().split("\r"))) <= 60
    assert "…" in watched.getvalue()


def test_a_wrong_count_ends_nothing(watch):
    watched = watch()
    with Steps(1) as steps:
        for what in ("a", "b"):
            steps.begin(what)
    assert "step 2 of 2: b" in watched.getvalue()


def test_steps_within_a_step_belong_to_it(watch):
    watched = watch()
    with Steps(1) as steps:
        steps.begin("outer")
        with Steps(3) as inner:
            inner.begin("hidden")
            for _ in counted(range(2), "loop"):
                pass
    assert "hidden" not in watched.getvalue() and "step 1 of 1: outer" in watched.getvalue()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_after_an_exception_nothing_is_left(error, watch):
    watched = watch()

    def fail():
        with Steps(2) as steps:
            steps.begin("fails")
            with counting(3, "loop"):
                raise error

    with pytest.raises(error):
        fail()
    assert progress._line.get() is None
    assert not watched.getvalue().split("\r")[-1].strip()
    with counting(3, "after") as bar:
        bar.update()
    assert "after" in watched.getvalue()


def test_items_are_those_that_were_given():
    assert list(counted([3, 1, 2], "items")) == [3, 1, 2]
