"""Journals: nothing acknowledged is lost or done twice, and no run is taken for another."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from interp import edits, metrics
from interp.core.tokens import Tokens
from interp.loading import fingerprint
from interp.loading.fingerprint import digest
from interp.sweeps import journal, rerun
from interp.sweeps.journal import Journal, JournalError, Measured, unbroken

from . import journal_victim
from .strategies import random_model, small_config

ROOT = Path(interp.__file__).parents[1]
IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [3, 3, 1, 4, 2]])
DIFF = metrics.logit_diff(torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]))
SMALL = {"n_layers": 2, "d_model": 16}
ENGINES = ("rerun", "naive")
PLAN = [[(0, 0, 0), (0, 1, 0)], [(1, 0, 2)], [(1, 1, 3), (2, 0, 3), (2, 1, 3)]]


interruptible = pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
    reason="Ctrl-C is ignored here, as in a shell's background job",
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return random_model(small_config(**SMALL))


@pytest.fixture(autouse=True)
def _small_passes(monkeypatch):
    packed = rerun.passes
    monkeypatch.setattr(rerun, "passes", lambda *given: [
        some[i : i + 4] for some in packed(*given) for i in range(0, len(some), 4)
    ])  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sweep.jsonl"


def sweep(model, path, tokens=IDS, **options):
    given = {"edit": edits.zero(), "metric": DIFF, "reduce": "none", "progress": False}
    nodes = options.pop("nodes", interp.nodes(model, "z", ("layer", "head")))
    return interp.sweep(model, tokens, nodes, journal=path, **given | options)


def passes_in(path) -> int:
    content = path.read_bytes()
    assert content.endswith(b"\n")
    lines = [json.loads(line) for line in content.splitlines()]
    assert [line["pass"] for line in lines[1:]] == list(range(len(lines) - 1))
    return len(lines) - 1


def same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """The same to the byte, and at the same price."""
    return (
        one.equals(other)
        and journal_victim.in_bytes(one) == journal_victim.in_bytes(other)
        and one.attrs == other.attrs
    )


class Stopped(Exception):
    """Instead of a kill."""


def stop_after(monkeypatch, passes: int) -> None:
    """Let the next sweep measure some passes and no more."""
    append, left = Journal._append, iter(range(passes))

    def counted(self, record):
        if "pass" in record and next(left, None) is None:
            raise Stopped
        append(self, record)

    monkeypatch.setattr(Journal, "_append", counted)


@pytest.mark.parametrize("which", ENGINES)
def test_a_sweep_resumes_from_every_pass_to_the_same_bytes(
    unchecked, model, tmp_path, monkeypatch, which
):
    expected = sweep(model, None, engine=which)
    whole = tmp_path / "whole"
    assert same(sweep(model, whole, engine=which), expected)
    count = passes_in(whole)
    assert count >= 6
    for stop in range(count):
        path = tmp_path / f"{stop}"
        with monkeypatch.context() as patched:
            stop_after(patched, stop)
            with pytest.raises(Stopped):
                sweep(model, path, engine=which)
        assert passes_in(path) == stop
        assert same(sweep(model, path, engine=which), expected)
        assert path.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == sorted(["whole", *map(str, range(count))])


def test_a_whole_journal_measures_nothing(model, path, monkeypatch):
    expected = sweep(model, path, reduce="mean")
    monkeypatch.setattr(rerun.Rerun, "measure", lambda self, rows: pytest.fail("measured again"))
    assert sweep(model, path, reduce="mean").equals(expected)
    assert len(sweep(model, path)) == 24  # what is shown of the numbers is no other run


def test_ablate_and_patch_take_a_journal(model, tmp_path):
    for name in ("first", "first", "second"):
        interp.ablate(model, IDS, "z", metric=DIFF, journal=tmp_path / name, progress=False)
    with pytest.raises(JournalError, match="edit: journal mean"):
        interp.ablate(model, IDS, "z", metric=DIFF, kind="zero", journal=f"{tmp_path / 'first'}")


def opened(path, manifest=None, plan=PLAN) -> Journal:
    return Journal(path, manifest or {"edit": "zero"}, plan)


def written(path) -> list[bytes]:
    """A whole journal of PLAN, by line."""
    with opened(path) as log:
        for i, rows in enumerate(PLAN):
            values = torch.arange(len(rows)).double() / 3 + i
            log.once(i, lambda values=values: Measured(values, True))
    return path.read_bytes().splitlines(keepends=True)


def test_a_torn_last_line_is_dropped_wherever_it_tore(path):
    lines = written(path)
    for kept in range(len(lines)):
        start = b"".join(lines[:kept])
        for cut in range(len(lines[kept])):
            path.write_bytes(start + lines[kept][:cut])
            with opened(path) as log:
                assert len(log.done) == max(kept - 1, 0)
            assert path.read_bytes() == (start if kept else lines[0])


def test_a_last_line_with_any_wrong_byte_is_dropped(path):
    lines = written(path)
    start, last = b"".join(lines[:-1]), lines[-1]
    for at in range(len(last)):
        for wrong in (last[at] ^ 1, 0, ord("\r")):
            path.write_bytes(start + last[:at] + bytes([wrong]) + last[at + 1 :])
            with opened(path) as log:
                assert len(log.done) == 2
            assert path.read_bytes() == start


@pytest.mark.parametrize("line", [1, 2, 3])
def test_damage_before_the_last_line_is_named(path, line):
    lines = written(path)
    lines[line - 1] = lines[line - 1].replace(b'"check":"', b'"check":"0')
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match=f"line {line} is damaged"):
        opened(path)
    assert path.read_bytes() == b"".join(lines)


def test_lines_of_another_journal_are_damage(path):
    lines = written(path)
    for wrong, where in (([0, 2, 1, 3], 2), ([0, 1, 1, 2], 3), ([0, 1, 2, 3, 3], 5), ([0, 0], 2)):
        path.write_bytes(b"".join(lines[i] for i in wrong))
        with pytest.raises(JournalError, match=f"line {where} is damaged"):
            opened(path)


CHANGES = {
    "edit": {"edit": edits.scale(0.0)},
    "metric": {"metric": metrics.logit_diff(torch.tensor([1, 2, 3]), torch.tensor([4, 5, 7]))},
    "tokens": {"tokens": IDS + 1},
    "nodes": {"nodes": pd.DataFrame({"site": "z", "layer": [0, 0], "head": [0, 1]})},
    "engine": {"engine": "naive"},
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_journal_of_another_run_is_refused_with_the_difference(model, path, what):
    sweep(model, path)
    before = path.read_bytes()
    with pytest.raises(JournalError, match=rf"{what}: journal .+, this run .+ delete the file"):
        sweep(model, path, **CHANGES[what])
    assert path.read_bytes() == before


def test_another_model_is_refused(path):
    changed = random_model(small_config(**SMALL))
    sweep(changed, path)
    changed.blocks[1].mlp.in_weight[0, 0] += 1e-9
    with pytest.raises(JournalError, match=r"weights: journal \w{16}, this run \w{16}"):
        sweep(changed, path)
    with pytest.raises(JournalError, match="config: journal"):
        sweep(random_model(small_config(**SMALL, activation="relu")), path)
    with pytest.raises(JournalError, match="model: journal custom, this run other"):
        sweep(random_model(small_config(**SMALL), name="other"), path)
    with pytest.raises(JournalError, match="dtype: journal float64, this run float32"):
        sweep(changed.float(), path)


def test_another_machine_code_or_packing_is_refused(model, path, monkeypatch):
    sweep(model, path)
    expected = {
        "threads": (torch, "get_num_threads", lambda: 64),
        "precision": (torch, "get_float32_matmul_precision", lambda: "medium"),
        "device": (fingerprint, "device_kind", lambda device: "cuda"),
        "code": (fingerprint, "code_hash", lambda: "0"),
        "format": (journal, "FORMAT", 0),
        "torch": (torch, "__version__", "2.0"),
        "packing": (rerun, "passes", lambda rows, *given: [[row] for row in rows]),
    }
    for name, change in expected.items():
        with monkeypatch.context() as patched:
            patched.setattr(*change)
            with pytest.raises(JournalError, match=rf"[(; ]{name}: journal [^;]+, this run "):
                sweep(model, path)
    assert passes_in(path) >= 6


def test_all_that_differs_is_named_at_once(path):
    opened(path, {"edit": "zero", "threads": 1, "old": 1}).__exit__()
    with pytest.raises(JournalError) as caught:
        opened(path, {"edit": "mean", "threads": 1, "new": 2}, PLAN[:2])
    message = str(caught.value)
    for said in ("edit: journal zero, this run mean", "old: journal 1, this run None",
                 "new: journal None, this run 2", "passes: journal 3, this run 2"):  # fmt: skip
        assert said in message
    assert "threads" not in message and "\n" not in message


def test_edits_and_metrics_of_one_name_are_told_apart(model, path):
    direction = torch.ones(4).double()
    sweep(model, path, edit=edits.add(direction))
    with pytest.raises(JournalError, match="edit: journal add"):
        sweep(model, path, edit=edits.add(direction * 2))
    path.unlink()
    sweep(model, path, metric=metrics.function(lambda out: out[:, -1, 3], "mine"))
    with pytest.raises(JournalError, match="metric: journal mine"):
        sweep(model, path, metric=metrics.function(lambda out: out[:, -1, 4], "mine"))


def test_a_cache_is_told_apart_by_its_numbers(model, path):
    """Also where tokens and weights are the same: it may come from a run with hooks."""
    other = model.accept(IDS + 1)
    _, plain = model.run_with_cache(other, "z")
    _, edited = model.with_hooks([(("z", 0), lambda z, hook: z * 2)]).run_with_cache(other, "z")
    expected = sweep(model, path, edit=edits.patch(plain))
    _, again = model.run_with_cache(other, "z")
    assert same(sweep(model, path, edit=edits.patch(again)), expected)
    with pytest.raises(JournalError, match="edit: journal patch"):
        sweep(model, path, edit=edits.patch(edited))


def test_an_edit_of_ones_own_is_told_apart_by_its_code(model, path):
    def own(factor):
        replace = lambda x, rows: x * factor  # noqa: E731
        return edits.Edit("own", "steer", lambda model, tokens, sites: replace)

    expected = sweep(model, path, edit=own(0.5))
    assert same(sweep(model, path, edit=own(0.5)), expected)
    with pytest.raises(JournalError, match="edit: journal own"):
        sweep(model, path, edit=own(0.6))


def test_what_cannot_be_compared_is_refused(model, path):
    with pytest.raises(JournalError, match="without hooks"):
        sweep(model.with_hooks([("z", lambda z, hook: z)]), path)
    lock = threading.Lock()
    metric = metrics.function(lambda out: out[:, 0, int(lock.locked())], "locked")
    with pytest.raises(JournalError, match=r"'locked' cannot be journalled: a _thread.lock"):
        sweep(model, path, metric=metric)
    assert not path.exists()


def test_a_file_that_is_no_journal_is_not_touched(unchecked, model, tmp_path, path):
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("pipe", "ordinary file"), ("", "Is a directory"), ("no/where", "No such")):
        with pytest.raises(JournalError, match=said):
            sweep(model, tmp_path / name)
    for content in (b"a,b\n1,2\n", b'{"journal":"interp"}\n', b"{}", b"\0" * 40, b"\n"):
        path.write_bytes(content)
        with pytest.raises(JournalError, match="not overwritten"):
            sweep(model, path)
        assert path.read_bytes() == content
    path.write_bytes(b"")  # as mktemp leaves it
    assert len(sweep(model, path)) == 24


def test_a_platform_without_locks_is_told(path, monkeypatch):
    monkeypatch.setattr(journal, "fcntl", None)
    with pytest.raises(JournalError, match="no file locks"):
        opened(path)


def test_one_journal_has_one_writer(path):
    with opened(path), pytest.raises(JournalError, match="another sweep is writing it"):
        opened(path)
    opened(path).__exit__()  # the lock went with the first


def fail_after(monkeypatch, passes: int, name: str, fail) -> None:
    """From some pass on, a function of os fails."""
    own, append = getattr(os, name), Journal._append

    def failing(self, record):
        if record.get("pass") == passes:
            monkeypatch.setattr(os, name, lambda *given: fail(own, *given))
        append(self, record)

    monkeypatch.setattr(Journal, "_append", failing)


def full(own, *given):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_full(own, file, data):
    if len(data) < 100:
        full(own)
    return own(file, data[:50])


@pytest.mark.parametrize(("name", "fail"), [("fsync", full), ("write", full), ("write", half_full)])
def test_a_full_disk_loses_nothing(model, path, monkeypatch, name, fail):
    expected = sweep(model, None)
    with monkeypatch.context() as patched:
        fail_after(patched, 4, name, fail)
        with pytest.raises(JournalError, match=r"disk is full.*; 4 of \d+ passes are safe"):
            sweep(model, path)
    assert passes_in(path) == 4  # what was torn is gone
    assert same(sweep(model, path), expected)


def test_a_limit_of_the_system_is_met_like_a_full_disk(model, path):
    """A write that the kernel itself cuts short."""
    expected = sweep(model, path)
    size = len(path.read_bytes())
    path.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (10, size - 150, size - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(JournalError, match=r"File too large; \d+ of \d+ passes are safe"):
                sweep(model, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.stat().st_size <= limit
        assert limit == 10 or passes_in(path) > 0
    assert same(sweep(model, path), expected)


def test_a_pass_is_on_the_disk_before_the_next_begins(model, path, monkeypatch):
    events = []
    fsync, measure = os.fsync, rerun.Rerun.measure
    monkeypatch.setattr(os, "fsync", lambda file: events.append("fsync") or fsync(file))

    def measured(self, rows):
        events.append("pass")
        return measure(self, rows)

    monkeypatch.setattr(rerun.Rerun, "measure", measured)
    sweep(model, path)
    count = passes_in(path)
    assert events == ["fsync", "fsync"] + ["pass", "fsync"] * count  # header, folder, passes


@pytest.mark.parametrize(
    ("which", "wrong"),
    [
        ("rerun", lambda out: out * float("nan")),
        ("naive", lambda out: out * float("nan")),
        ("naive", lambda out: out[1:]),
    ],
)
def test_a_metric_that_fails_writes_nothing(unchecked, model, path, which, wrong):
    calls = iter(range(1000))

    class Fourth(torch.nn.Module):
        def forward(self, out, examples):
            return wrong(out[:, -1, 0]) if next(calls) == 3 else out[:, -1, 0]

    given = {"engine": which, "metric": metrics.function(Fourth(), "fourth")}
    with pytest.raises(ValueError, match=r"at node blocks\.\d"):
        sweep(model, path, **given)
    assert passes_in(path) == 2  # behind the baseline
    assert same(sweep(model, path, **given), sweep(model, None, **given))


def test_no_ops_are_remembered(model, path):
    nodes = [{"site": "resid_pre", "layer": 0, "pos": 0}, {"site": "z", "layer": 1, "pos": None}]
    source = model.accept(torch.where(torch.arange(5) > 0, IDS + 1, IDS))
    for which in ENGINES:
        for _ in range(2):
            frame = sweep(model, path, nodes=nodes, edit=edits.patch(source), engine=which)
            assert frame.attrs["noop_nodes"] == 1
        path.unlink()
        frame = sweep(model, path, nodes=nodes[:1], edit=edits.patch(source), engine=which,
                      allow_noop=True)  # fmt: skip
        assert (frame["effect"] == 0).all()
        path.unlink()


def test_vectors_roles_and_padding_are_part_of_the_tokens():
    rows = [[1, 2, 3], [4, 5]]
    given = [
        Tokens.of(IDS),
        Tokens(IDS, roles={"end": torch.tensor([4, 4, 4])}),
        Tokens(IDS, positions=IDS),
        Tokens(IDS, token_types=IDS),
        Tokens.from_rows(rows),
        Tokens.from_rows(rows, side="left"),
        Tokens(None, vectors=torch.ones(2, 3, 4)),
    ]
    assert len({digest(tokens) for tokens in given}) == len(given)
    assert digest(Tokens(IDS, strings=[["a"] * 5] * 3)) == digest(Tokens.of(IDS))


# Ctrl-C


def interrupted(times: int, done: list) -> None:
    with unbroken():
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        done.append("pass")


@interruptible
def test_ctrl_c_waits_for_the_end_of_a_pass_but_the_second_does_not():
    old = signal.getsignal(signal.SIGINT)
    for times, expected in ((1, ["pass"]), (2, [])):
        done: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            interrupted(times, done)
        assert done == expected and signal.getsignal(signal.SIGINT) is old
    with pytest.raises(Stopped), unbroken():
        raise Stopped
    assert signal.getsignal(signal.SIGINT) is old


def test_ctrl_c_of_others_is_left_to_them():
    heard = []
    mine = lambda number, frame: heard.append(number)  # noqa: E731
    old = signal.signal(signal.SIGINT, mine)
    try:
        with unbroken():
            signal.raise_signal(signal.SIGINT)
            assert not heard
        assert heard == [signal.SIGINT] and signal.getsignal(signal.SIGINT) is mine
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # under nohup
        with unbroken():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, old)


def test_a_sweep_runs_outside_of_the_main_thread(model, path):
    found = []
    thread = threading.Thread(target=lambda: found.append(sweep(model, path)))
    thread.start()
    thread.join()
    assert same(found[0], sweep(model, path))


def victim(*arguments, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "tests.journal_victim", *map(str, arguments)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                            **options)  # fmt: skip


@interruptible
def test_ctrl_c_commits_the_pass_in_flight_and_exits_130(path):
    process = victim("wait", path.parent, env={**os.environ, "PYTHONHASHSEED": "7"})
    try:
        lines = iter(process.stdout.readline, "")
        # The same in every process, also where sets of strings are read in another order.
        assert next(lines).split() == ["digest", digest(journal_victim.margin)]
        for line in lines:
            if line == "measured 2\n":
                break
        with pytest.raises(JournalError, match="another sweep is writing it"):
            opened(path)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and errors == "interrupted\n"
    assert "acknowledged 2\n" not in rest  # it is interrupted as soon as its line is written
    assert passes_in(path) == 3


# Kills


def kill_often(which: str, kills: int, folder: Path) -> None:
    begun = time.monotonic()
    process = victim("kill", which, kills, 5, folder)
    said, errors = process.communicate(timeout=60 + 3 * kills)
    assert process.returncode == 0, errors
    killed, torn, finished = map(int, said.split())
    assert killed == kills and torn > 0 and finished > 0
    print(f"{which}: {killed} kills, {torn} torn lines, {finished} whole sweeps, "
          f"{time.monotonic() - begun:.1f} s")  # fmt: skip


@pytest.mark.parametrize("which", ENGINES)
def test_kills_lose_nothing_and_repeat_nothing(tmp_path, which):
    kill_often(which, 20, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("which", ENGINES)
def test_many_kills_lose_nothing_and_repeat_nothing(tmp_path, which):
    kill_often(which, 200, tmp_path)
