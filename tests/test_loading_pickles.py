"""A `.pt` is opened as data: code in it is not run, and what is damaged is one clear error."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.torch_version import TorchVersion

import interp
from interp.cli import main as cli
from interp.loading import CorruptFile
from interp.loading.convert.lens_config import FIELDS
from interp.loading.convert.pickles import read_pickle

from .old_checkpoints import lens_config, lens_state
from .published import tiny, write_config

FLAGS = {"act_fn": "gelu_new"}


class Evil:
    """Creates a file when it is unpickled by a reader that runs code."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (os.mkdir, (str(self.file),))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    torch.save(lens_state(lens_config("gpt2")), tmp_path / "good.pt")
    return tmp_path / "good.pt"


def refused(file: Path, message: str) -> None:
    target = file.parent / "new"
    with pytest.raises(ValueError, match=message) as error:
        interp.convert(file, target, **FLAGS)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)
    assert not target.exists()


@pytest.mark.parametrize("name", ["old.pt", "old.pth", "pytorch_model.bin"])
@pytest.mark.parametrize("layout", ["archive", "legacy", "inside", "pickle", "old pickle"])
def test_code_is_refused_and_not_run(tmp_path, name, layout):
    file, trap = tmp_path / name, tmp_path / "trap"
    state = lens_state(lens_config("gpt2"))
    if layout == "archive":
        torch.save(Evil(trap), file)
    elif layout == "legacy":
        torch.save(Evil(trap), file, _use_new_zipfile_serialization=False)
    elif layout == "inside":
        torch.save({"model": state, "model_args": {"n_layer": Evil(trap)}}, file)
    else:
        file.write_bytes(pickle.dumps(Evil(trap), protocol=2 if layout == "pickle" else 0))
    refused(file, "not a file that torch" if layout == "old pickle" else r"run code \(\w+\.mkdir\)")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Evil(trap)))  # the trap does work
    assert trap.exists()


@pytest.mark.parametrize("content", [torch.nn.Linear(2, 2), {"cfg": argparse.Namespace()}])
def test_whole_models_name_the_way_out(tmp_path, content):
    torch.save(content, tmp_path / "old.pt")
    refused(tmp_path / "old.pt", r"run code \(.*save model\.state_dict\(\) instead of the model")


@pytest.mark.parametrize("keep", [0, 1, 4, 100, 0.5, -100, -1])
def test_truncated(good, keep):
    data = good.read_bytes()
    good.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refused(good, "not a (complete )?file (that|of) torch.save")


@pytest.mark.parametrize("data", [b"garbage!" * 99, b"\x80\x02garbage", b"PK\x03\x04garbage", b""])
def test_garbage(tmp_path, data):
    (tmp_path / "old.pt").write_bytes(data)
    refused(tmp_path / "old.pt", "not a (complete )?file (that|of) torch.save")


def test_gzip_is_not_unpacked(good):
    good.write_bytes(gzip.compress(bytes(50_000_000)))
    refused(good, r"not a file that torch\.save wrote \(it begins with b'\\x1f\\x8b")


def rezipped(file: Path, change: dict[str, bytes], method: int) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = {e.filename: archive.read(e) for e in archive.infolist()}
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in (entries | change).items():
            archive.writestr(name, data)


def test_archive_that_would_unpack_to_more(good):
    rezipped(good, {"good/data/0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert good.stat().st_size < 200_000
    refused(good, r"its [\d,]+ bytes would unpack to 50,")


def test_storage_smaller_than_declared(good):
    rezipped(good, {"good/data/0": bytes(8)}, zipfile.ZIP_STORED)
    refused(good, "not a complete file of torch.save")


def test_tensors_larger_than_the_file(tmp_path):
    state = lens_state(lens_config("gpt2"))
    state["embed.W_E"] = torch.zeros(1).expand(10_000_000, 16)
    torch.save(state, tmp_path / "old.pt")
    refused(tmp_path / "old.pt", r"its tensors claim 640,[\d,]+ bytes, but it has")


@pytest.mark.parametrize("content", [torch.ones(3), [1, 2], {}, {"wte.weight": torch.ones(3)}])
def test_something_else(tmp_path, content):
    torch.save(content, tmp_path / "old.pt")
    refused(tmp_path / "old.pt", "expected a state dict|neither a state dict .* nor nanoGPT")


def test_old_torch_does_not_open_pickles(good, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1"))
    refused(good, "torch 2.9.1 cannot open a pickle safely .* install torch 2.10 or newer")


def small_file(legacy: bool) -> bytes:
    stream = io.BytesIO()
    content = {"a": torch.ones(3), "b": [1, "x"]}
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


@given(st.data(), st.booleans())
def test_any_byte_changed_is_an_error_or_data(tmp_path_factory, data, legacy):
    content = bytearray(small_file(legacy))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "changed.pt"
    file.write_bytes(content)
    with contextlib.suppress(CorruptFile):  # and nothing else
        read_pickle(file)


# --- where it is written, and the command ----------------------------------------------------


def test_a_target_that_is_not_empty_needs_force(good, tmp_path):
    target = tmp_path / "mine"
    target.mkdir()
    interp.convert(good, target, **FLAGS)
    before = safetensors.torch.load_file(target / "model.safetensors")
    with pytest.raises(ValueError, match="is not empty; its files are replaced only with --force"):
        interp.convert(good, target, **FLAGS)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected one of gelu"):
        interp.convert(good, target, act_fn="nope", force=True)
    interp.convert(good, target, act_fn="relu", force=True)
    assert interp.load(target).cfg.activation == "relu"
    after = safetensors.torch.load_file(target / "model.safetensors")
    assert after.keys() == before.keys()  # the header holds a checksum of config.json, that changed
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert (target / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="is a file; give a folder"):
        interp.convert(good, good, **FLAGS)
    with pytest.raises(ValueError, match="would be overwritten"):
        interp.convert(target, target, force=True)


def test_source_that_is_not_there_or_not_one(good, tmp_path):
    (tmp_path / "empty").mkdir()
    for source, message in (
        (tmp_path / "absent.pt", "absent.pt: there is no such file or folder"),
        (tmp_path / "empty", "expected one file of weights in it, found none"),
    ):
        with pytest.raises(ValueError, match=message):
            interp.convert(source, tmp_path / "new")
    (tmp_path / "other.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"one file of weights in it, found good\.pt, other\.pt"):
        interp.convert(tmp_path, tmp_path / "new")
    with pytest.raises(ValueError, match=r"absent\.json: there is no such file"):
        interp.convert(good, tmp_path / "new", config=tmp_path / "absent.json")


def test_load_names_the_command(good, tmp_path):
    with pytest.raises(ValueError, match="interp convert SOURCE FOLDER"):
        interp.load(good)
    with pytest.raises(ValueError, match=r"no config\.json.*interp convert SOURCE FOLDER"):
        interp.load(tmp_path)
    write_config(tmp_path)
    with pytest.raises(ValueError, match=r"no model\.safetensors\..*interp convert"):
        interp.load(tmp_path)


def test_what_transformers_wrote_is_not_for_convert(tmp_path):
    with pytest.raises(ValueError, match=r"neither .* it begins with .*save_pretrained"):
        interp.convert(tiny(tmp_path), tmp_path / "new")


def run(*arguments: Any) -> int:
    return cli.main(["convert", *map(str, arguments)])


def test_command(good, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("INTERP_DEBUG", raising=False)
    target = tmp_path / "new"
    assert run(good, target) == 2
    captured = capsys.readouterr()
    assert "give --act-fn" in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
    flags = ("--act-fn", "relu", "--no-use-attn-scale", "--eps", "1e-3", "--parallel-attn-mlp")
    assert run(good, target, *flags) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{target}: TransformerLens HookedTransformer, 2 layers × 4 heads, ")
    assert out[1] == "dropped: blocks.{}.attn.mask, blocks.{}.attn.IGNORE"
    assert out[-1] == f"look at it: interp info {target}"
    cfg = interp.load(target).cfg
    assert (cfg.activation, cfg.attn_scale, cfg.norm_eps, cfg.parallel) == ("relu", 1.0, 1e-3, True)
    assert run(good, target, "--act-fn", "relu") == 2
    assert run(good, target, "--act-fn", "relu", "--force") == 0
    assert interp.load(target).cfg.attn_scale is None


def test_flags_of_the_command_are_fields(capsys):
    assert set(cli.CONVERT_FLAGS) <= set(FIELDS)
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    assert "convert" in capsys.readouterr().out
