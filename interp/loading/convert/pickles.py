"""Opening what `torch.save` wrote, as data: the one place of the project that opens a pickle.

Only torch's unpickler of weights reads it, which builds tensors, numbers, text, lists and dicts and
refuses everything else. That unpickler was broken twice (CVE-2025-32434, CVE-2026-24747), hence
torch ≥ 2.10. Archives are not unpacked: an entry that is compressed is refused.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..tensors import CorruptFile

SAFE_TORCH = (2, 10)
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
MAX_GROWTH = 4
"""Tensors may share memory in the file (tied embeddings); past this factor it is a bomb."""
BROKEN = (
    *(RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(OverflowError, MemoryError, struct.error, zipfile.BadZipFile),
)
"""What torch raises on a file that is not whole."""
ASKS_FOR_CODE = re.compile(r"GLOBAL ([\w.]+)|Can only (?:create|build)|unrecognized function")
"""In torch's words about a pickle that it does not read."""
ADVICE = "WeightsUnpickler error:"
"""How torch introduces what went wrong, after advice to read the file unsafely."""


def read_pickle(file: Path) -> Any:
    """The content of a `.pt`, on the CPU. No code in it is run.

    Raises ValueError, naming the file: it asks for code, is not what torch.save wrote, is
    truncated, or would unpack to more than it is.
    """
    if torch.__version__ < SAFE_TORCH:  # type: ignore[operator]  # TorchVersion compares so
        raise ValueError(
            f"{file}: torch {torch.__version__} cannot open a pickle safely (CVE-2026-24747); "
            "install torch 2.10 or newer"
        )
    with file.open("rb") as stream:
        start = stream.read(4)
    if start == ZIP:
        _check_archive(file)
    elif not start.startswith(PICKLE):
        raise CorruptFile(f"{file}: not a file that torch.save wrote (it begins with {start!r})")
    try:
        with warnings.catch_warnings(action="ignore"):  # about what is then refused anyway
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CorruptFile(f"{file}: {_refusal(str(error))}") from None
    except BROKEN as error:
        raise CorruptFile(f"{file}: {_not_whole(error)}") from None


def _check_archive(file: Path) -> None:
    """torch.save stores its entries one after the other, uncompressed."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except BROKEN as error:
        raise CorruptFile(f"{file}: {_not_whole(error)}") from None
    packed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED]
    unpacked, size = sum(entry.file_size for entry in entries), file.stat().st_size
    if packed or unpacked > size:
        raise CorruptFile(
            f"{file}: not a file that torch.save wrote: its {size:,} bytes would unpack to "
            f"{unpacked:,}"
        )


def _refusal(message: str) -> str:
    found = ASKS_FOR_CODE.search(message)
    if found is None:
        return _not_whole(message.rpartition(ADVICE)[2].strip())
    asked = f" ({found[1][:100]})" if found[1] else ""
    return (
        f"refused: opening it would run code{asked}; only tensors, numbers, text, lists and dicts "
        "are read. Where you trust it, save model.state_dict() instead of the model, and its "
        "config as JSON"
    )


def _not_whole(error: object) -> str:
    reason = " ".join(str(error).split("\n\n")[0].split())[:160]
    return f"not a complete file of torch.save ({reason or type(error).__name__})"


def state_dict(values: Any, file: Path) -> dict[str, Tensor]:
    """`values` as a state dict of plain tensors; what torch.compile puts before keys is left out.

    Raises ValueError on anything else, and on tensors that are far larger than the file.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in values.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and value.is_cpu
        if not (isinstance(key, str) and plain) or value.is_quantized:
            shown = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{file}: {key!r:.100} is not a plain tensor ({shown})")
        short = key.removeprefix("_orig_mod.")
        if short in tensors:
            raise ValueError(f"{file}: both {short!r:.100} and {key!r:.100} are in it")
        tensors[short] = value.detach()
    n_bytes = sum(value.numel() * value.element_size() for value in tensors.values())
    size = file.stat().st_size
    if n_bytes > MAX_GROWTH * size:
        raise CorruptFile(f"{file}: its tensors claim {n_bytes:,} bytes, but it has {size:,}")
    return tensors
