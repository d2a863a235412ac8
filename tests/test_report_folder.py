"""At no moment is there no report at its place, and no name leads out of it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest

import interp
from interp.data.shards import Harvest
from interp.report import Report, check_destination, write_index
from interp.report import folder as folder_module
from interp.report.folder import KIND, replacing, write_below

from .kills import dying
from .test_report import HOSTILE

ROOT = Path(interp.__file__).parents[1]
PAGES = ("index.html", "numbers.csv", "more.csv")


def write(target: Path, word: str) -> None:
    """A report of few files, quickly; all of them hold one word."""
    with replacing(target) as new:
        for name in PAGES:
            write_below(new, name, word.encode())
        manifest = {"kind": KIND, "files": list(PAGES)}
        write_below(new, "manifest.json", json.dumps(manifest).encode())


def read(target: Path) -> str:
    """The word of a whole report; fails on any other."""
    words = {(target / name).read_text() for name in PAGES}
    assert len(words) == 1
    assert json.loads((target / "manifest.json").read_text())["kind"] == KIND
    return words.pop()


@pytest.fixture(params=["in one step", "in two steps"])
def system(request, monkeypatch):
    """With and without a system that lets two directories change places."""
    if request.param == "in two steps":
        monkeypatch.setattr(folder_module, "exchange", lambda one, other: False)
    return request.param


READER = """
import sys
from pathlib import Path
index, reads = Path(sys.argv[1]) / "index.html", 0
print("reading", flush=True)
while not Path(sys.argv[2]).exists():
    assert index.read_bytes() in (b"old", b"new")
    reads += 1
print(reads)
"""


def test_a_reader_never_finds_nothing(tmp_path):
    """While the report is written anew 200 times."""
    write(tmp_path / "r", "old")
    command = [sys.executable, "-c", READER, str(tmp_path / "r"), str(tmp_path / "stop")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as reader:
        assert reader.stdout.readline() == "reading\n"
        for i in range(200):
            write(tmp_path / "r", ("old", "new")[i % 2])
        (tmp_path / "stop").touch()
        reads, stderr = reader.communicate(timeout=60)
    assert reader.returncode == 0, stderr
    assert int(reads) > 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r", "stop"]


def test_a_kill_at_each_step_leaves_the_old_report_or_the_new(tmp_path, system):
    target = tmp_path / "r"
    write(target, "old")
    with dying() as counted:
        write(target, "new")
    assert counted.count > 20
    states = set()
    for at in range(counted.count):
        write(target, "old")
        with dying(at):
            write(target, "new")
        states.add(read(target) if target.exists() else "aside")
        if system == "in one step":
            assert target.exists()
        # What comes next may fail: there is a report all the same, and nothing else.
        with contextlib.suppress(ZeroDivisionError), replacing(target):
            1 / 0  # noqa: B018
        assert read(target) in ("old", "new")
        assert [path.name for path in tmp_path.iterdir()] == ["r"]
    assert states == ({"old", "new"} if system == "in one step" else {"old", "new", "aside"})


def test_a_first_report_is_there_whole_or_not_at_all(tmp_path):
    with dying() as counted:
        write(tmp_path / "r", "new")
    for at in range(counted.count):
        target = tmp_path / str(at) / "r"
        with dying(at):
            write(target, "new")
        assert not target.exists() or read(target) == "new"
        write(target, "next")
        assert read(target) == "next"
        assert [path.name for path in target.parent.iterdir()] == ["r"]


@pytest.mark.parametrize("before", [True, False])
def test_writers_at_once_leave_one_whole_report(tmp_path, system, before):
    target = tmp_path / "r"
    if before:
        write(target, "old")
    errors = []

    def often(word: str) -> None:
        try:
            for _ in range(10):
                write(target, word)
        except Exception as error:  # noqa: BLE001  # a thread has no other way to tell
            errors.append(error)

    threads = [threading.Thread(target=often, args=(word,)) for word in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert read(target) in "abc"
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_the_work_of_another_writer_is_not_swept(tmp_path):
    with replacing(tmp_path / "r") as new:
        for name in (*PAGES, "manifest.json"):
            write_below(new, name, b"slow" if name in PAGES else json.dumps(
                {"kind": KIND, "files": list(PAGES)}).encode())  # fmt: skip
        write(tmp_path / "r", "quick")
        assert read(tmp_path / "r") == "quick"
        assert new.is_dir()
    assert read(tmp_path / "r") == "slow"
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_what_dead_writers_of_other_reports_left_is_theirs(tmp_path):
    for name in (".r.0badcafe.new", ".r.0badcafe.old", ".other.0badcafe.new", ".r.notes"):
        (tmp_path / name).mkdir()
    write(tmp_path / "r", "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.0badcafe.new", ".r.notes", "r"]


def test_a_failure_in_the_second_step_brings_the_old_report_back(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "exchange", lambda one, other: False)
    write(tmp_path / "r", "old")
    rename = os.rename

    def failing(one, other):
        if str(one).endswith(".new"):
            raise OSError(errno.EIO, "the disk is gone")
        rename(one, other)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match=r"r cannot be written.* stays: the disk is gone"):
        write(tmp_path / "r", "new")
    assert read(tmp_path / "r") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize("length", [1, 100, 250])
def test_reports_with_names_of_any_length(tmp_path, length):
    for word in ("old", "new"):
        write(tmp_path / ("é" * (length // 2) or "r"), word)
    assert len(list(tmp_path.iterdir())) == 1


def test_ctrl_c_at_each_step_leaves_the_old_report_or_the_new(tmp_path, monkeypatch):
    write(tmp_path / "r", "old")
    fsync, calls = os.fsync, []

    def interrupted(handle):
        calls.append(handle)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", interrupted)
    for at in range(1, 7):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "r", "new")
        assert read(tmp_path / "r") == ("new" if at == 6 else "old")
        assert [path.name for path in tmp_path.iterdir()] == ["r"]
        calls.extend([0] * 10)
        write(tmp_path / "r", "old")


SCRIPT = """
import os, signal, sys
import interp
from interp.core.console import guarded
from tests.test_report_folder import write
from tests.strategies import random_model, small_config
from pathlib import Path

def report(arguments):
    write(Path(arguments[1]), "new")
    return 0

def harvest(arguments):
    interp.harvest(random_model(small_config()), [[1, 2, 3]] * 200, "resid_post",
                   arguments[1], shard_size=2000, progress=False)
    return 0

fsync, left = os.fsync, [4]
def slow(handle):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGINT)
    fsync(handle)
os.fsync = slow
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(guarded({"report": report, "harvest": harvest}[sys.argv[1]]))
"""


@pytest.mark.parametrize("what", ["report", "harvest"])
def test_ctrl_c_exits_130_and_leaves_what_can_be_gone_on_with(tmp_path, what):
    target = tmp_path / "it"
    if what == "report":
        write(target, "old")
    command = [sys.executable, "-c", SCRIPT, what, str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    if what == "report":
        assert read(target) == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["it"]
    else:
        kept = Harvest.load(target, partial=True)
        assert not kept.complete
        assert not list(target.glob(".*"))


# --- names ----------------------------------------------------------------------------------------


def report_of(*names: str) -> Report:
    report = Report("Title", "Question?")
    section = report.section("Numbers")
    for name in names:
        section.table(pd.DataFrame({"n": [1]}), "A table", name=name)
    return report


HOSTILE_PATHS = [
    "../x.html", "/etc/x.html", "heads/../../x.html", "C:\\x.html", "C:/x.html", "\\\\host\\x.html",
    "a\\b.html", "heads//x.html", "./x.html", "a/./b.html", "a\0b.html", "CON/x.html", "nul.html",
    "heads/aux.html", "x .html/y.html ", "x./y.html", " x.html", "é" * 130 + ".html",
    "a" * 256 + ".html", "\ud800.html", "x\u202e.html", "x\n.html", "x.csv", "manifest.json", "x",
    "", ".html/", "x.html/", "x:stream.html", "<x>.html", "heads/.../x.html",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_a_page_has_a_plain_address(tmp_path, path):
    report = report_of("numbers")
    with pytest.raises(ValueError, match=r"refused: expected a plain base name|ends in '\.html'"):
        report.page(path, "Title", "Question?")
    report.pages[path] = Report("Title", "Question?")  # and nobody gets round it
    with pytest.raises(ValueError, match=r"page|refused"):
        report.write(tmp_path / "below" / "r")
    assert not (tmp_path / "below" / "r").exists()
    assert [p.name for p in tmp_path.rglob("*")] in ([], ["below"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a.html", "a.html"),
        ("a.html", "A.html"),
        ("é.html", "e\u0301.html"),
        ("x.html", "x.html/y.html"),
        ("x.html/y.html", "X.html"),
        ("index.html", "b.html"),
        ("INDEX.html", "b.html"),
        ("index.html/x.html", "b.html"),
    ],
)
def test_pages_that_would_be_one_file_are_refused(one, other):
    report = report_of()

    def both() -> None:
        for path in (one, other):
            report.page(path, "Title", "Question?")

    with pytest.raises(ValueError, match=r"cannot be (two files|a file and the folder)"):
        both()


def test_a_page_where_a_table_lies_is_refused(tmp_path):
    for path in ("numbers.csv/x.html", "manifest.json/x.html", "NUMBERS.csv/x.html"):
        report = report_of("numbers")
        report.page(path, "Title", "Question?")
        with pytest.raises(ValueError, match="cannot be a file and the folder"):
            report.write(tmp_path / "r")
        assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["numbers", "Numbers", "numbers!", "NUMBERS "])
def test_a_name_that_is_given_twice_is_refused_and_a_caption_is_numbered(name):
    report = report_of("numbers")
    section = report.sections[0]
    with pytest.raises(ValueError, match=r"has a table of that name \(numbers\.csv\) already"):
        section.table(pd.DataFrame({"n": [1]}), "A table", name=name)
    for _ in range(2):
        section.table(pd.DataFrame({"n": [1]}), "Numbers")
    assert [item.name for item in section.items] == ["numbers", "numbers-2", "numbers-3"]


@pytest.mark.parametrize(
    "name", [*HOSTILE, *HOSTILE_PATHS, "../../x", "nul", "COM1", "com¹", "a" * 5000, "\u202e", "…"]
)
def test_tables_of_any_name_lie_in_the_report(tmp_path, name):
    report = report_of(*([name] if name else []))
    report.sections[0].table(pd.DataFrame({"n": [1]}), name or "x")
    folder = report.write(tmp_path / "r").parent
    assert [p.name for p in tmp_path.iterdir()] == ["r"]
    files = [path.name for path in folder.iterdir()]
    assert all(file.isascii() and len(file) < 80 and file == file.lower() for file in files)
    assert len(files) == len(report.sections[0].items) + 2
    check_destination(folder)


def test_a_list_of_reports_is_replaced_whole(tmp_path):
    report_of("numbers").write(tmp_path / "r")
    index = write_index(tmp_path)
    before = index.read_bytes()
    with dying() as counted:
        write_index(tmp_path)
    for at in range(counted.count):
        with dying(at):
            write_index(tmp_path)
        assert index.read_bytes() == before
    write_index(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "r"]
