"""safetensors files: the header checked against the file, then one tensor at a time.

Numbers go from the file straight into the memory where they stay, so that loading takes no more
memory than the weights and no longer than reading them (a memory-mapped file would count twice).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interp.core.files.untrusted import parse_json

MAX_HEADER_BYTES = 100_000_000
"""The limit of the format's own library."""
WINDOW_BYTES = 64 << 20
"""What is converted at a time, where the file's dtype or device is not the one wanted."""

FLOATS = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
BYTES = {"U8": torch.uint8}
"""Read where packed numbers are expected."""
BITS = {name: 8 * dtype.itemsize for name, dtype in FLOATS.items()} | {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16"), 16),
    **dict.fromkeys(("I32", "U32"), 32),
    **dict.fromkeys(("I64", "U64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


class CorruptFile(ValueError):
    """A weights file whose header contradicts itself or the file."""


class Entry(NamedTuple):
    """Where one tensor lies."""

    key: str
    file: Path
    dtype: str
    """As the file writes it: "F32"."""
    shape: tuple[int, ...]
    start: int
    """Byte in the file."""
    n_bytes: int


def read_entries(file: Path) -> dict[str, Entry]:
    """Every tensor of a safetensors file. Raises CorruptFile, naming the file.

    The declared tensors must fill the data of the file exactly, without gap or overlap, and each
    must have as many bytes as its shape and dtype say.
    """
    size = file.stat().st_size
    with _naming(file), file.open("rb") as stream:
        _check(size >= 8, f"{size} bytes, but a safetensors file begins with 8 bytes of length")
        length = int.from_bytes(stream.read(8), "little")
        _check(length <= MAX_HEADER_BYTES, f"its header claims {length:,} bytes")
        _check(8 + length <= size, f"truncated: header of {length:,} bytes in {size:,}")
        header = parse_json(stream.read(length), "header")
        header.pop("__metadata__", None)
        entries = [_entry(file, key, value, 8 + length) for key, value in header.items()]
        end = 8 + length
        for entry in sorted(entries, key=lambda entry: (entry.start, entry.n_bytes)):
            _check(entry.start == end, f"tensor {entry.key!r} overlaps another or leaves a gap")
            end = entry.start + entry.n_bytes
        _check(end <= size, f"truncated: its tensors need {end:,} bytes, and it has {size:,}")
        _check(end == size, f"{size - end:,} bytes follow the last tensor")
    return {entry.key: entry for entry in entries}


def _entry(file: Path, key: str, value: Any, base: int) -> Entry:
    _check(isinstance(value, dict), f"tensor {key!r} is not described by an object")
    dtype, shape, offsets = (value.get(name) for name in ("dtype", "shape", "data_offsets"))
    _check(isinstance(dtype, str) and dtype in BITS, f"tensor {key!r} has unknown dtype {dtype!r}")
    _check(_are_sizes(shape), f"tensor {key!r} has shape {shape!r}")
    _check(_are_sizes(offsets) and len(offsets) == 2, f"tensor {key!r} has offsets {offsets!r}")
    start, end = offsets
    bits = math.prod(shape) * BITS[dtype]
    _check(
        start <= end and bits == 8 * (end - start),
        f"tensor {key!r} of shape {shape} and dtype {dtype} takes {bits // 8:,} bytes, "
        f"but the header gives it {end - start:,}",
    )
    return Entry(key, file, dtype, tuple(shape), base + start, end - start)


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**62 for v in values)


def _check(condition: bool, fault: str) -> None:
    if not condition:
        raise CorruptFile(fault)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise CorruptFile(f"{file}: not a complete safetensors file: {error}") from None


class Reader:
    """Copies tensors out of files, keeping the last file open. Use it in a `with`."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._stream: FileIO | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def copy(self, entry: Entry, target: Tensor) -> None:
        """Fill `target`, contiguous and of the entry's shape, converting dtype and device."""
        assert target.is_contiguous()
        assert tuple(target.shape) == entry.shape
        flat = target.reshape(-1)
        if flat.dtype == FLOATS[entry.dtype] and flat.device.type == "cpu":
            _read_into(self._open(entry), flat, entry)
            return
        for start, window in self._windows(entry):
            flat[start : start + len(window)].copy_(window)

    def read(self, entry: Entry) -> Tensor:
        """All of a tensor, in the dtype of the file."""
        tensor = torch.empty(entry.shape, dtype=(FLOATS | BYTES)[entry.dtype])
        _read_into(self._open(entry), tensor.view(-1), entry)
        return tensor

    def equals(self, entry: Entry, tensor: Tensor) -> bool:
        """Whether the file holds these numbers, once converted to the tensor's dtype."""
        if entry.dtype not in FLOATS or tuple(tensor.shape) != entry.shape:
            return False
        flat = tensor.reshape(-1)
        return all(
            torch.equal(window.to(flat), flat[start : start + len(window)])
            for start, window in self._windows(entry)
        )

    def _windows(self, entry: Entry) -> Iterator[tuple[int, Tensor]]:
        """Consecutive parts of a tensor, flat, in one buffer that is used again."""
        stream, size = self._open(entry), math.prod(entry.shape)
        step = WINDOW_BYTES // FLOATS[entry.dtype].itemsize
        buffer = torch.empty(min(step, size), dtype=FLOATS[entry.dtype])
        for start in range(0, size, step):
            window = buffer[: min(step, size - start)]
            _read_into(stream, window, entry)
            yield start, window

    def _open(self, entry: Entry) -> FileIO:
        if self._stream is None or entry.file != self._file:
            self.__exit__()
            self._file, self._stream = entry.file, entry.file.open("rb", buffering=0)
        self._stream.seek(entry.start)
        return self._stream


def _read_into(stream: FileIO, flat: Tensor, entry: Entry) -> None:
    memory = memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")
    while memory:  # one call reads at most 2 GiB
        count = stream.readinto(memory)
        if not count:
            raise CorruptFile(f"{entry.file}: ends inside tensor {entry.key!r}")
        memory = memory[count:]
