"""Reading what strangers wrote: names that become paths, and JSON of bounded size.

A model's folder comes from the internet. Nothing in it is executed, and none of its strings reaches
the file system without `safe_join`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import decode, parse_json_text, read_bytes

MAX_JSON_BYTES = 8 << 20
"""A config with 20,000 class labels has about 1 MB."""
MAX_DEPTH = 64
"""Of JSON: objects and lists inside one another; the deepest published file has about 10."""
MAX_NAME = 200
"""Bytes of a name in UTF-8; file systems take 255, and names of their own are made of it."""
RESERVED = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d¹²³]) *([.:].*)?", re.IGNORECASE
)
"""File names that Windows takes for devices."""
FORBIDDEN = re.compile(r'[/\\:<>|"?*\x00-\x1f\x7f]')
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Kinds of characters that cannot be seen, or turn the direction of writing."""
RUNS_CODE = (
    *("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate", "use_kernels"),
    *("kernel_config", "allow_all_kernels", "transformers_weights", "fusion_config"),
    *("distributed_config", "tp_plan", "device_map"),
)
"""Fields that ask transformers for modules or kernels of some repository, or for other files."""
CHOOSES_CODE = re.compile(r"_?(\w+_)?implementation(_internal)?")
"""Fields of how attention and experts are computed: a word, or, as "owner/name", a repository."""


def safe_join(folder: Path, name: str) -> Path:
    """The path of the file `name` directly inside `folder`.

    Raises ValueError unless `name` is a plain base name: no separator of either kind, drive, "..",
    control or invisible character, lone surrogate, device name, space or dot at its end, and at
    most 200 bytes.
    """
    if not isinstance(name, str) or not _is_plain(name):
        shown = repr(name[:60] if isinstance(name, str) else name)
        raise ValueError(f"file name {shown} is refused: expected a plain base name in {folder}")
    return folder / name


def safe_path(folder: Path, path: str) -> Path:
    """The path of a file below `folder`: plain base names (see `safe_join`) with "/" between."""
    for name in path.split("/") if isinstance(path, str) else [path]:
        folder = safe_join(folder, name)
    return folder


def check_distinct(paths: Iterable[str]) -> None:
    """Raise ValueError, naming both, where two paths below one folder are the same file on some
    file system (case, Unicode normalisation), or one is a folder of the other."""
    taken: dict[str, str] = {}
    for path in paths:
        key = _as_one(path)
        if key in taken:
            raise ValueError(f"{path!r} and {taken[key]!r} cannot be two files: rename one")
        taken[key] = path
    for key, path in taken.items():
        names = key.split("/")
        for n in range(1, len(names)):
            if (above := taken.get("/".join(names[:n]))) is not None:
                raise ValueError(
                    f"{above!r} cannot be a file and the folder of {path!r}: rename one"
                )


def _as_one(path: str) -> str:
    """What names have in common that some file system does not tell apart."""
    folded = unicodedata.normalize("NFKC", path).casefold()
    return unicodedata.normalize("NFKC", folded)


def _is_plain(name: str) -> bool:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return (
        0 < size <= MAX_NAME
        and name == name.strip().rstrip(".")
        and not FORBIDDEN.search(name)
        and not RESERVED.fullmatch(name)
        and not any(unicodedata.category(c) in INVISIBLE for c in name)
    )


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError, naming the file, on anything else."""
    return parse_json(read_bytes(path, max_bytes), str(path))


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in these bytes; `where` names them in errors.

    Raises ValueError on NaN and infinity, on an object that has a key twice, of which readers take
    the one or the other, and on what lies deeper than any published file.
    """
    values = parse_json_text(decode(data, where), where)
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a JSON object, not a {type(values).__name__}")
    if _is_deeper(values, MAX_DEPTH):
        raise ValueError(
            f"{where}: objects and lists lie more than {MAX_DEPTH} deep inside one another"
        )
    return values


def _is_deeper(value: Any, depth: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(one, depth - 1) for one in inner)


def refuse_code(values: dict[str, Any], where: str) -> None:
    """Raise ValueError when a config, or a config inside it, asks for code or kernels to be run."""
    for field, value in values.items():
        if (field in RUNS_CODE and value) or (CHOOSES_CODE.fullmatch(field) and _is_place(value)):
            raise ValueError(
                f"{where}: {field!r} asks for code, and code in a model's folder is never run; "
                f"if the architecture is a supported one, remove the field"
            )
        for inner in value if isinstance(value, list) else (value,):
            if isinstance(inner, dict):
                refuse_code(inner, where)


def _is_place(value: Any) -> bool:
    """Whether it is no plain word, nor an object of such words."""
    if isinstance(value, dict):
        return any(map(_is_place, value.values()))
    return value is not None and not (isinstance(value, str) and re.fullmatch(r"\w{0,60}", value))
