"""Reading what strangers wrote: names that become paths, and JSON of bounded size.

A model's folder comes from the internet. Nothing in it is executed, and none of its strings reaches
the file system without `safe_join`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .files import decode, parse_json_text, read_bytes

MAX_JSON_BYTES = 8 << 20
"""A config with 20,000 class labels has about 1 MB."""
MAX_DEPTH = 64
"""Of JSON: objects and lists inside one another; the deepest published file has about 10."""
MAX_NAME = 200
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""File names that Windows takes for devices."""
FORBIDDEN = re.compile(r'[/\\:<>|"?*\x00-\x1f\x7f]')
RUNS_CODE = ("auto_map", "trust_remote_code", "custom_pipelines")


def safe_join(folder: Path, name: str) -> Path:
    """The path of the file `name` directly inside `folder`.

    Raises ValueError unless `name` is a plain base name: no separator of either kind, drive, "..",
    control character, device name, and at most 200 characters.
    """
    if not isinstance(name, str) or not _is_plain(name):
        shown = repr(name[:60] if isinstance(name, str) else name)
        raise ValueError(f"file name {shown} is refused: expected a plain base name in {folder}")
    return folder / name


def _is_plain(name: str) -> bool:
    return (
        0 < len(name) <= MAX_NAME
        and name == name.strip(" ").rstrip(".")
        and not FORBIDDEN.search(name)
        and not RESERVED.fullmatch(name)
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
    """Raise ValueError when a config asks for Python code to be run."""
    for field in RUNS_CODE:
        if values.get(field):
            raise ValueError(
                f"{where}: {field!r} asks for code, and code in a model's folder is never run; "
                f"if the architecture is a supported one, remove the field"
            )
