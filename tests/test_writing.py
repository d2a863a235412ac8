"""One writer of files: whole or absent, plain about a disk that is full, tidy about the dead."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.core.files import writing
from interp.core.files.writing import WriteError, exchange, locked, sweep, unfinished_folder
from interp.loading import CorruptFile
from interp.loading.stored import check_header, check_tensors, read_tensors, write_tensors
from interp.methods.directions import Direction
from interp.methods.lens.tuned import random_lens
from interp.model import HookedTransformer
from interp.report import Report
from interp.training import SampledData, TrainConfig, train

from .kills import dying
from .old_checkpoints import lens_config, lens_state
from .strategies import small_config

ROOT = Path(interp.__file__).parents[1]


@pytest.fixture(scope="module")
def model():
    return HookedTransformer(small_config(), seed=0)


@contextlib.contextmanager
def no_room(limit: int) -> Iterator[None]:
    """No file may grow past so many bytes: the system's own refusal, met in the writer's code."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


def saved(model, folder: Path) -> None:
    interp.save(model, folder / "saved")


def converted(model, folder: Path) -> None:
    interp.convert(folder / "old.pt", folder / "converted", act_fn="relu", force=True)


def directed(model, folder: Path) -> None:
    Direction(model.W_E[0], site="blocks.0.hook_resid_post", origin="o").save(folder / "d.st")


def lensed(model, folder: Path) -> None:
    random_lens(model).save(folder / "lens.safetensors")


def harvested(model, folder: Path) -> None:
    texts = [[1, 2, 3], [2, 3, 4]] * 40
    interp.harvest(model, texts, "resid_post", folder / "harvest", progress=False)


def trained(model, folder: Path) -> None:
    data = SampledData(lambda rng, split, size: rng.integers(5, size=(size, 4)), None, "drawn")
    config = TrainConfig(steps=1, batch_size=2, warmup=0, eval_batches=1)
    train(HookedTransformer(model.cfg), data, folder / "run", config, progress=False)


def reported(model, folder: Path) -> None:
    report = Report("Title", "Question?")
    report.section("Numbers").table(pd.DataFrame({"n": range(500)}), "Numbers")
    report.write(folder / "report")


WRITERS = [saved, converted, directed, lensed, harvested, trained, reported]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("limit", [0, 300])
def test_a_full_disk_is_the_same_plain_error_everywhere(model, tmp_path, write, limit):
    torch.save(lens_state(lens_config("gpt2")), tmp_path / "old.pt")
    with no_room(limit), pytest.raises((OSError, ValueError)) as error:
        write(model, tmp_path)
    assert "File too large" in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "safetensor" not in type(error.value).__module__
    assert not list(tmp_path.rglob(".interp-*")), "what was begun is removed"
    write(model, tmp_path)


@pytest.mark.parametrize("write", [saved, directed, lensed])
def test_what_cannot_be_replaced_stays(model, tmp_path, write):
    write(model, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with no_room(100), pytest.raises(WriteError, match="what lay there before is unchanged"):
        write(HookedTransformer(model.cfg, seed=1), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_disk_that_is_full_is_called_so(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"a\.txt cannot be written: No space .*disk is full") as e:
        writing.write_file(tmp_path / "a.txt", b"x")
    assert e.value.errno == errno.ENOSPC
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["/dev/full", "/dev/null", "folder", "fifo", "none/file", "a/b"])
def test_what_is_no_ordinary_file_is_left_alone(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").write_text("a file")
    os.mkfifo(tmp_path / "fifo")
    before = os.lstat(tmp_path / place) if (tmp_path / place).exists() else None
    with pytest.raises(WriteError, match=place):
        writing.write_file(tmp_path / place, b"x")
    if before is not None:
        assert os.lstat(tmp_path / place)[:3] == before[:3]


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    with dying() as counted:
        writing.write_file(file, b"new")
    for at in range(counted.count):
        file.write_bytes(b"old")
        with dying(at):
            writing.write_file(file, b"new")
        assert file.read_bytes() in (b"old", b"new")
        writing.write_file(file, b"next")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


SLOW = """
import sys
from interp.core.files.writing import whole_file
with whole_file(sys.argv[1]) as file:
    file.write(b"mine")
    print("begun", flush=True)
    sys.stdin.readline()
"""


def test_the_work_of_a_live_writer_is_never_swept_and_that_of_a_dead_one_is(tmp_path):
    command = [sys.executable, "-c", SLOW, str(tmp_path / "slow")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, **pipes) as live, subprocess.Popen(command, **pipes) as dead:
        for process in (live, dead):
            assert process.stdout.readline() == "begun\n"
        assert len(list(tmp_path.glob(".interp-*"))) == 2
        dead.kill()
        dead.wait()
        writing.write_file(tmp_path / "other", b"x")
        assert len(list(tmp_path.glob(".interp-*"))) == 1
        live.stdin.write("go on\n")
        live.stdin.close()
        assert live.wait() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "slow"]
    assert (tmp_path / "slow").read_bytes() == b"mine"


def test_only_our_own_leftovers_are_swept(tmp_path):
    names = [".interp-0badcafe.tmp", ".other.tmp", "interp-0123456789abcdef.tmp", ".x"]
    for name in (*names, ".interp-0123456789abcdef.tmp"):
        (tmp_path / name).touch()
    sweep(tmp_path, writing.UNFINISHED)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_folder_is_held_by_one_and_freed_afterwards(tmp_path):
    with locked(tmp_path), pytest.raises(BlockingIOError), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
    with unfinished_folder(tmp_path, ".r.") as one, unfinished_folder(tmp_path, ".r.") as other:
        assert one != other
        sweep(tmp_path, writing.re.compile(r"\.r\..*\.new"))
        assert one.is_dir()
    assert not any(tmp_path.iterdir())


def test_names_change_places(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    (one / "inside").touch()
    other.write_text("a file")
    if not exchange(one, other):
        pytest.skip("this system cannot exchange names")
    assert one.read_text() == "a file"
    assert (other / "inside").exists()
    with pytest.raises(FileNotFoundError):
        exchange(one, tmp_path / "none")


# --- tensors --------------------------------------------------------------------------------------


TENSORS = {
    "long": torch.arange(5),
    "a": torch.randn(3, 4).T,
    "half": torch.randn(7).bfloat16(),
    "none": torch.zeros(0, 3),
    "scalar": torch.tensor(2.0, dtype=torch.float64),
    "yes": torch.tensor([True, False]),
    "b": torch.randn(2, 2),
}


def test_any_reader_of_the_format_reads_them(tmp_path):
    write_tensors(tmp_path / "x", TENSORS, {"kind": "ü"})
    again = safetensors.torch.load_file(tmp_path / "x")
    assert again.keys() == TENSORS.keys()
    assert all(torch.equal(again[name], value) for name, value in TENSORS.items())
    with safetensors.safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata()["kind"] == "ü"
    read, metadata = read_tensors(tmp_path / "x")
    assert metadata["kind"] == "ü"
    assert all(torch.equal(read[name], value) for name, value in TENSORS.items())
    write_tensors(tmp_path / "y", dict(reversed(TENSORS.items())), {"kind": "ü"})
    assert (tmp_path / "y").read_bytes() == (tmp_path / "x").read_bytes()


def test_tensors_that_share_memory_and_odd_dtypes(tmp_path):
    tied = torch.randn(3)
    write_tensors(tmp_path / "x", {"one": tied, "other": tied})
    assert torch.equal(read_tensors(tmp_path / "x")[0]["other"], tied)
    with pytest.raises(ValueError, match=r"'c' is torch\.complex64: expected torch\.float16"):
        write_tensors(tmp_path / "x", {"c": torch.zeros(1, dtype=torch.complex64)})


def test_any_flipped_bit_is_found(tmp_path):
    file = tmp_path / "x.safetensors"
    write_tensors(file, {"a": torch.arange(3), "b": torch.randn(2)}, {"kind": "k"})
    content = file.read_bytes()
    for bit in range(0, 8 * len(content), 3):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(CorruptFile, match=r"x\.safetensors"):
            check_tensors(file)


@given(st.data())
def test_cut_lengthened_and_rewritten_files_are_found(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "cut.safetensors"
    write_tensors(file, {"a": torch.arange(3), "b": torch.randn(2)}, {"kind": "k"})
    content = file.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    with_more = data.draw(st.binary(max_size=20))
    changed = content[:at] + with_more + data.draw(st.sampled_from([b"", content[at + 1 :]]))
    file.write_bytes(changed)
    if changed == content:
        check_tensors(file)
        return
    with pytest.raises(CorruptFile, match=r"cut\.safetensors"):
        check_tensors(file)


def test_files_of_others_have_no_checksums(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "theirs")
    assert check_tensors(tmp_path / "theirs", required=False) == {}
    for check in (check_header, check_tensors):
        with pytest.raises(CorruptFile, match="theirs is damaged: its header does not begin"):
            check(tmp_path / "theirs")


@pytest.mark.parametrize("write", [directed, lensed])
def test_a_damaged_direction_or_lens_is_refused(model, tmp_path, write):
    loaders: dict[Callable, Callable] = {
        directed: Direction.load,
        lensed: lambda path: interp.lens.TunedLens.load(path, model),
    }
    write(model, tmp_path)
    file = next(tmp_path.iterdir())
    loaders[write](file)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file.name}.*does not fit its checksum"):
        loaders[write](file)
