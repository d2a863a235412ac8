"""Hostile and broken folders: a clear error before anything is run, allocated or believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import interp
from interp import loading
from interp.core.files.untrusted import check_distinct, safe_join, safe_path
from interp.loading import CorruptFile
from interp.loading.tensors import read_entries

from .published import SHAPES, tiny, weights, write_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model that loads."""
    return tiny(tmp_path)


def test_the_folder_itself_loads(folder: Path):
    assert interp.load(folder)(torch.tensor([[0, 1]])).shape == (1, 2, 5)
    assert interp.load(str(folder)).tokenizer is None


# --- names and paths -------------------------------------------------------------------------

BAD_NAMES = [
    *("", ".", "..", "../x", "..\\x", "a/b", "a\\b", "/etc/passwd", "C:x", "C:\\x", "\\\\host\\x"),
    *("a\0b", "a\nb", "con", "NUL.txt", "com1", "lpt9.safetensors", "x" * 201, " a", "a ", "a."),
    *('a"b', "a|b", "a?b", "a*b", "<a>", "~/../x", "\x7f"),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_safe_join_refuses(name: str, tmp_path: Path):
    with pytest.raises(ValueError, match="expected a plain base name"):
        safe_join(tmp_path, name)


@given(st.text(max_size=30))
def test_safe_join_stays_inside(name: str):
    folder = Path("/base/folder")
    try:
        joined = safe_join(folder, name)
    except ValueError:
        return
    assert joined.parent == folder
    assert joined.name == name
    assert len(joined.parts) == 4


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", ".hidden", "a b", "Ünïcode"])
def test_safe_join_accepts(name: str, tmp_path: Path):
    assert safe_join(tmp_path, name) == tmp_path / name


def test_safe_path_is_safe_join_of_every_name(tmp_path: Path):
    assert safe_path(tmp_path, "heads/L0H3.html") == tmp_path / "heads" / "L0H3.html"
    for name in (*BAD_NAMES, "a//b", "/a", "a/", "a/../b", "a/."):
        for path in ({name} - {"a/b"}) | {f"heads/{name}/x"} - {"heads/a/b/x"}:
            with pytest.raises(ValueError, match="expected a plain base name"):
                safe_path(tmp_path, path)


@pytest.mark.parametrize(
    "names",
    [
        ("a.html", "A.html"),
        ("é.html", "e\u0301.html"),
        ("ﬁ", "fi"),
        ("straße", "STRASSE"),
        ("Å", "\u212b"),
        ("a/b", "a"),
        ("A/b/c", "a/B"),
        ("same", "same"),
    ],
)
def test_names_of_one_file_are_refused(names: tuple[str, str]):
    for pair in (names, names[::-1]):
        with pytest.raises(ValueError, match=r"cannot be (two files|a file and)"):
            check_distinct(["other", *pair, "heads/x"])
    check_distinct([names[0], "other"])


def test_names_of_several_files_are_not():
    check_distinct(["a", "b", "a.csv", "heads/a", "heads/b", "head", "heads-2"])


@pytest.mark.parametrize("shard", ["../evil.safetensors", "/tmp/evil.safetensors", "a\\..\\b", ""])
def test_shard_names_are_plain(folder: Path, shard: str):
    (folder / "model.safetensors").rename(folder.parent / "evil.safetensors")
    write_index(folder, dict.fromkeys(SHAPES, shard))
    with pytest.raises(CorruptFile, match=r"model\.safetensors\.index\.json: file name .* refused"):
        interp.load(folder)


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_index_that_does_not_fit_its_shards(folder: Path):
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    good = dict.fromkeys(SHAPES, "one.safetensors")
    write_index(folder, good)
    assert interp.load(folder).cfg.n_layers == 1
    write_index(folder, good | {"more.weight": "one.safetensors"})
    with pytest.raises(CorruptFile, match=r"1 tensors are in no shard: \['more\.weight'\]"):
        interp.load(folder)
    write_index(folder, {key: good[key] for key in list(good)[1:]})
    with pytest.raises(CorruptFile, match=r"holds 'wte\.weight', which .* does not place there"):
        interp.load(folder)
    write_index(folder, good | {"wte.weight": "two.safetensors"})
    with pytest.raises(CorruptFile, match=r"shard 'two\.safetensors' is not in the folder|place"):
        interp.load(folder)
    write_index(folder, dict.fromkeys(SHAPES, "pytorch_model.bin"))
    with pytest.raises(CorruptFile, match=r"is not a \.safetensors file"):
        interp.load(folder)
    for broken in (None, [], {}, {"wte.weight": 3}):
        write_index(folder, broken)
        with pytest.raises(CorruptFile, match="expected a 'weight_map' object"):
            interp.load(folder)


# --- safetensors -----------------------------------------------------------------------------


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(file: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1])
def test_truncated_file(folder: Path, keep: int):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptFile, match=r"model\.safetensors: not a complete safetensors file"):
        interp.load(folder)


def test_trailing_bytes(folder: Path):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"1234")
    with pytest.raises(CorruptFile, match="4 bytes follow the last tensor"):
        interp.load(folder)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"dtype": "F64"}, "takes 160 bytes, but the header gives it 80"),
        ({"dtype": "F31"}, "unknown dtype 'F31'"),
        ({"dtype": ["F32"]}, "unknown dtype"),
        ({"shape": [5, 40]}, "takes 800 bytes"),
        ({"shape": [-5, -4]}, "has shape"),
        ({"shape": [2**61, 8]}, "takes"),
        ({"shape": [10**30]}, "has shape"),
        ({"shape": "54"}, "has shape"),
        ({"shape": [True, 20]}, "has shape"),
        ({"data_offsets": [0, 10**12]}, "takes 80 bytes, but"),
        ({"data_offsets": [80, 0]}, "takes 80 bytes"),
        ({"data_offsets": [-80, 0]}, "has offsets"),
        ({"data_offsets": [4, 84]}, "overlaps another or leaves a gap"),
        ({"data_offsets": [0]}, "has offsets"),
        ({"data_offsets": None}, "has offsets"),
    ],
)
def test_header_that_contradicts_itself(folder: Path, change: dict[str, Any], fault: str):
    file = folder / "model.safetensors"
    header, data = header_of(file)
    first = min((k for k in header), key=lambda k: header[k]["data_offsets"])
    size = header[first]["data_offsets"][1]
    header["x"] = {"dtype": "F32", "shape": [5, 4], "data_offsets": [0, 80]} | change
    for key in SHAPES:
        header[key]["data_offsets"] = [at + 80 for at in header[key]["data_offsets"]]
    write_header(file, header, b"\0" * 80 + data)
    assert size > 0
    with pytest.raises(CorruptFile, match=fault):
        interp.load(folder)


@pytest.mark.parametrize(
    "header", [b"", b"{", b"[]", b'{"a": 3}', b"\xff", b'{"a": NaN}', b"[" * 100_000]
)
def test_header_that_is_no_header(folder: Path, header: bytes):
    write_header(folder / "model.safetensors", header, b"")
    with pytest.raises(CorruptFile, match="not a complete safetensors file"):
        interp.load(folder)


def test_header_that_claims_the_world(folder: Path):
    (folder / "model.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(CorruptFile, match="its header claims"):
        interp.load(folder)


def test_file_that_shrinks_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    file = folder / "model.safetensors"
    entries = read_entries(file)
    file.write_bytes(file.read_bytes()[:-40])
    monkeypatch.setattr(loading, "weight_entries", lambda source: entries)
    for dtype in (None, "float64"):
        with pytest.raises(CorruptFile, match="ends inside tensor"):
            interp.load(folder, dtype=dtype)


def test_headers_agree_with_the_library(folder: Path):
    from safetensors import safe_open

    entries = read_entries(folder / "model.safetensors")
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(entries)
        for key in file.keys():  # noqa: SIM118
            assert tuple(file.get_slice(key).get_shape()) == entries[key].shape


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    save_file(weights(), file)
    return file


@given(st.data())
def test_header_with_any_byte_changed(intact: Path, data: st.DataObject):
    content = bytearray(intact.read_bytes())
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header_bytes - 1))] = data.draw(st.integers(0, 255))
    changed = intact.with_name("changed.safetensors")
    changed.write_bytes(content)
    try:
        entries = read_entries(changed)
    except CorruptFile:
        return
    assert sum(entry.n_bytes for entry in entries.values()) == len(content) - header_bytes


# --- pickles and folders ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "ckpt.pt", "model.PTH", "last.ckpt"])
def test_pickles_are_never_opened(tmp_path: Path, name: str):
    file = tmp_path / name
    with pytest.raises(ValueError, match="save_pretrained"):
        interp.load(file)
    file.write_bytes(b"csys\nexit\n(S'code was run'\ntR.")
    with pytest.raises(
        ValueError,
        match=r"a pickle can run code.*safetensors \(transformers: model\.save_pretrained",
    ):
        interp.load(file)
    write_config(tmp_path)
    with pytest.raises(ValueError, match=r"no model\.safetensors\..*save_pretrained"):
        interp.load(tmp_path)


def test_folder_without_weights(tmp_path: Path):
    with pytest.raises(ValueError, match=r"there is no config\.json"):
        interp.load(tmp_path)
    write_config(tmp_path)
    with pytest.raises(ValueError, match=r"no weights; expected model\.safetensors"):
        interp.load(tmp_path)


def test_file_in_place_of_its_folder(folder: Path):
    with pytest.raises(ValueError, match="is a file; give the folder"):
        interp.load(folder / "model.safetensors")
