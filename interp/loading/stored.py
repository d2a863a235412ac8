"""safetensors files that show damage: a checksum of the header and one of every tensor.

The checksums stand in the file's own metadata, first of all, so that they are there exactly when
the file is. The format's own writer names neither the file nor the reason when a disk is full, and
puts metadata in any order; this one gives the same bytes for the same content. Any reader of the
format reads these files.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from interp.core.files.untrusted import parse_json
from interp.core.files.writing import whole_file

from .tensors import FLOATS, CorruptFile, read_entries

NAMES = {dtype: name for name, dtype in FLOATS.items()} | {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The dtypes that are written, as the format calls them."""
BEGINNING = b'{"__metadata__":{"sha256":"'
"""How a header with checksums begins: that of the header follows, then those of the tensors."""
DIGITS = 64
BLANK = b"0" * DIGITS
"""What stands in the place of the header's checksum while it is computed."""
ALIGNMENT = 8
BLOCK = 16 << 20
"""Bytes that are hashed or written at a time."""


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all, with checksums.

    Tensors may lie on any device and in any memory order, and may share memory; large dtypes come
    first in the file, as the format wants it. Raises WriteError where the disk does not take it,
    ValueError on a dtype that the format does not have.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise ValueError(f"{name!r} is {tensor.dtype}: expected {', '.join(map(str, NAMES))}")
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header = _header(
        {name: tensors[name] for name in order}, [BLANK.decode()] * len(order), metadata
    )
    with whole_file(path) as stream:
        stream.write(header)
        sums = [_write(stream, tensors[name]) for name in order]
        stream.seek(0)
        stream.write(_signed(_header({name: tensors[name] for name in order}, sums, metadata)))


def check_header(path: Path, *, required: bool = True) -> dict[str, str]:
    """The metadata of a file, whose header is as it was written.

    Raises CorruptFile, naming the file, on any other, and where there are no checksums. Files of
    others, and of earlier versions, have none: where they are not `required`, nothing is returned.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = stream.read(8)
        header = length + stream.read(min(int.from_bytes(length, "little"), size))
    if header[8 : 8 + len(BEGINNING)] != BEGINNING:
        if required:
            raise CorruptFile(f"{path} is damaged: its header does not begin with its checksum")
        return {}
    if _signed(header) != header:
        raise CorruptFile(f"{path} is damaged: its header does not fit its checksum")
    metadata = parse_json(header[8:], str(path))["__metadata__"]
    return {name: value for name, value in metadata.items() if isinstance(value, str)}


def check_tensors(
    path: Path, names: Sequence[str] | None = None, *, required: bool = True
) -> dict[str, str]:
    """The metadata of a file, whose header and named tensors (default: all) are as written; of a
    file without checksums, where they are not `required`, none.

    Reads the file once. Raises CorruptFile as `check_header` does, and naming the tensor.
    """
    metadata = check_header(path, required=required)
    if not metadata:
        return {}
    entries, sums = list(read_entries(path).values()), metadata["sha256"].split()[1:]
    if len(sums) != len(entries):
        raise CorruptFile(f"{path}: {len(sums)} checksums for {len(entries)} tensors")
    with path.open("rb") as stream:
        for entry, expected in zip(entries, sums, strict=True):
            if names is None or entry.key in names:
                stream.seek(entry.start)
                if _sum(stream, entry.n_bytes) != expected:
                    raise CorruptFile(
                        f"{path} is damaged: tensor {entry.key!r} does not fit its checksum"
                    )
    return metadata


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file that `write_tensors` wrote, and its metadata. Raises CorruptFile on a
    file that is damaged or another's."""
    metadata = check_tensors(path)
    return safetensors.torch.load_file(path), metadata


def _header(
    tensors: Mapping[str, Tensor], sums: Sequence[str], metadata: Mapping[str, str] | None
) -> bytes:
    """Length and header, as long as they will be with all checksums in them."""
    described = {"sha256": " ".join([BLANK.decode(), *sums]), **(metadata or {})}
    content: dict[str, object] = {"__metadata__": described}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.nbytes
        content[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _signed(header: bytes) -> bytes:
    """A header with its own checksum in its place."""
    first = 8 + len(BEGINNING)
    before, after = header[:first], header[first + DIGITS :]
    own = hashlib.sha256(before + BLANK + after).hexdigest().encode()
    return before + own + after


def _write(stream: BinaryIO, tensor: Tensor) -> str:
    digest = hashlib.sha256()
    for block in _blocks(tensor):
        digest.update(block)
        stream.write(block)
    return digest.hexdigest()


def _blocks(tensor: Tensor) -> Iterator[memoryview]:
    assert sys.byteorder == "little", "the format is little-endian"
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        data = memoryview(flat.view(torch.uint8).numpy())
        for start in range(0, len(data), BLOCK):
            yield data[start : start + BLOCK]


def _sum(stream: BinaryIO, n_bytes: int) -> str:
    digest, left = hashlib.sha256(), n_bytes
    while left and (block := stream.read(min(BLOCK, left))):
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()
