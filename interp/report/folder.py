"""A report's directory: written beside its place and moved there when whole.

Whatever goes wrong on the way (an exception, a kill, a full disk), an older report stays as it was.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "manifest.json"
KIND = "interp report"
STALE_SECONDS = 3600
"""Older leftovers of a killed writer are swept; younger ones may belong to one at work."""


def check_destination(directory: str | Path) -> Path:
    """The absolute path, if a report may be written there; raises FileExistsError otherwise, and
    PermissionError where nothing may be written.

    Free are: nothing, an empty directory, and a report to which nobody has added a file.
    """
    target = Path(directory).resolve()
    check_writable(target)
    if not target.exists():
        return target
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file; name a directory for the report")
    present = {p.relative_to(target).as_posix() for p in target.rglob("*") if not p.is_dir()}
    if not present:
        return target
    listed = _listed(target / MANIFEST)
    if listed is None:
        raise FileExistsError(
            f"{target} exists and is not a report; name another directory or remove it"
        )
    strangers = sorted(present - listed)
    if strangers:
        raise FileExistsError(
            f"{target} holds files that no report wrote ({', '.join(strangers[:5])}); "
            "move them or name another directory"
        )
    return target


def check_writable(target: Path) -> None:
    """Raises PermissionError unless the folder that will hold an absolute path, or the nearest one
    that there is, may be written to."""
    home = next((p for p in target.parents if os.path.lexists(p)), target)
    if not home.is_dir():
        raise FileExistsError(f"{home} is a file; name another directory for the report")
    own = os.access in os.supports_effective_ids
    if not os.access(home, os.W_OK | os.X_OK, effective_ids=own):
        raise PermissionError(
            f"nothing may be written into {home}; change its permissions, or name another "
            "directory for the report"
        )


@contextmanager
def replacing(directory: str | Path) -> Iterator[Path]:
    """A new directory to fill; on leaving it takes the place of `directory` in one rename."""
    target = check_destination(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{target.name[:60]}."
    new, old = (target.parent / f"{mark}{secrets.token_hex(4)}.{end}" for end in ("new", "old"))
    new.mkdir()
    try:
        yield new
        _sync_directories(new)
        check_destination(target)
        _swap(new, target, old)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    _sync(target.parent)
    _sweep(target.parent, mark)


def write_file(path: Path, data: bytes) -> None:
    """Write and flush to the disk; makes the directory if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _listed(manifest: Path) -> set[str] | None:
    """The files that a report's manifest names; None if it is no report."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content["kind"] != KIND:
            return None
        return {MANIFEST, *content["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _swap(new: Path, target: Path, old: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync_directories(top: Path) -> None:
    for folder, _, _ in os.walk(top, topdown=False):
        _sync(Path(folder))


def _sync(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows cannot open a directory to flush it
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(parent: Path, mark: str) -> None:
    before = time.time() - STALE_SECONDS
    for path in parent.iterdir():
        leftover = path.name.startswith(mark) and path.suffix in (".new", ".old")
        if leftover and path.stat().st_mtime < before:
            shutil.rmtree(path, ignore_errors=True)
