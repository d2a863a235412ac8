"""A report's directory: written beside its place, and put there in one step when it is whole.

Whatever goes wrong on the way (an exception, a kill, a full disk), an older report stays as it was,
and whoever reads meanwhile finds the old one or the new one. Where the system cannot let two
directories change places (network file systems, not Linux), there is a moment without a report; a
writer that is killed in it leaves the old one beside, and the next one brings it back.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp.core.files.untrusted import safe_path
from interp.core.files.writing import exchange, named, sweep, sync_folder, unfinished_folder

MANIFEST = "manifest.json"
KIND = "interp report"
MAX_MARK = 200
"""Bytes of a report's name that the names of its unfinished directories can hold."""
ATTEMPTS = 100
"""How often another writer may come in between."""


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
    """A new directory to fill; on leaving it takes the place of `directory` in one step.

    Raises WriteError, which names the directory, where it cannot be written.
    """
    target = check_destination(directory)
    mark = _mark(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear(target, mark)
        with unfinished_folder(target.parent, mark) as new:
            yield new
            for folder, _, _ in os.walk(new, topdown=False):
                sync_folder(Path(folder))
            check_destination(target)
            _put_in_place(new, target, mark)
            sync_folder(target.parent)
    except OSError as error:
        if error.errno is None:  # ours, and plain already
            raise
        raise named(error, f"{target} cannot be written; a report that lay there stays") from error


def write_below(folder: Path, path: str, data: bytes) -> None:
    """Write a file of an unfinished directory and flush it to the disk."""
    file = safe_path(folder, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _listed(manifest: Path) -> set[str] | None:
    """The files that a report's manifest names; None if it is no report."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content["kind"] != KIND:
            return None
        return {MANIFEST, *content["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mark(target: Path) -> str:
    """How the names of a report's directories beside its place begin."""
    name = os.fsencode(target.name)
    short = hashlib.sha256(name).hexdigest()[:16]
    return f".{target.name if len(name) <= MAX_MARK else short}."


def _clear(target: Path, mark: str) -> None:
    """Remove what dead writers left; bring back the report that one of them had put aside."""
    sweep(target.parent, re.compile(re.escape(mark) + r"[0-9a-f]{8}\.new"))
    aside = re.compile(re.escape(mark) + r"[0-9a-f]{8}\.old")
    for old in [path for path in target.parent.iterdir() if aside.fullmatch(path.name)]:
        if not os.path.lexists(target) and _listed(old / MANIFEST) is not None:
            os.rename(old, target)
        else:
            shutil.rmtree(old, ignore_errors=True)


def _put_in_place(new: Path, target: Path, mark: str) -> None:
    """What is at `new` goes to `target`; what was there is then at `new`, or gone."""
    for attempt in range(ATTEMPTS):
        try:
            if not os.path.lexists(target):
                os.rename(new, target)
            elif not exchange(new, target):
                _in_two_steps(new, target, mark)
        except OSError as error:
            # Another writer may have put a report there meanwhile, or taken it away.
            meanwhile = error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)
            if not (meanwhile and new.exists()) or attempt + 1 == ATTEMPTS:
                raise
        else:
            return


def _in_two_steps(new: Path, target: Path, mark: str) -> None:
    old = target.with_name(f"{mark}{secrets.token_hex(4)}.old")
    try:
        os.rename(target, old)
        os.rename(new, target)
    finally:
        if os.path.lexists(target):
            shutil.rmtree(old, ignore_errors=True)
        elif os.path.lexists(old):
            os.rename(old, target)
