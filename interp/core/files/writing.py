"""Files that are whole or absent: written beside their place, flushed, then renamed into it.

Whatever happens on the way (an error, a full disk, Ctrl-C, a kill, a power cut), what lay in the
place before stays as it was. What is being written is locked by its writer, so that leftovers of a
dead one can be told from the work of a live one, and are removed by whoever writes there next.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

UNFINISHED = re.compile(r"\.interp-[0-9a-f]{16}\.tmp")
"""How a file is called while it is written."""
STALE_SECONDS = 3600
"""Where there are no locks, leftovers older than this are taken for those of a dead writer."""
CANNOT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""What the system says where names cannot change places in one step: an old kernel, some network
and container file systems."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux' renameat2."""
log = logging.getLogger(__name__)


class WriteError(OSError):
    """A file that cannot be written; what lay in its place before is unchanged."""


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A stream to fill; when the block ends, what was written to it takes the place of `path`.

    Raises WriteError, which names the file and the system's reason, where it cannot be written or
    something other than an ordinary file lies there.
    """
    path = Path(path)
    try:
        if os.path.lexists(path) and not (path.is_symlink() or path.is_file()):
            raise WriteError(f"{path} is not an ordinary file and is not overwritten")
        sweep(path.parent, UNFINISHED)
        with _unfinished_file(path.parent) as (beside, stream):
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            if fcntl is None:  # Windows renames no open file
                stream.close()
            os.replace(beside, path)
    except WriteError:
        raise
    except OSError as error:
        raise _write_error(path, error) from error
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise named(error, f"{path} is written, but a power cut may undo it") from error


def write_file(path: str | os.PathLike, data: bytes) -> None:
    """Put these bytes in the place of `path` (see `whole_file`)."""
    with whole_file(path) as stream:
        stream.write(data)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder alone. The lock ends with the process, so a kill leaves none behind.

    Raises BlockingIOError where another writer holds it.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not _lock(handle):
            raise BlockingIOError(errno.EWOULDBLOCK, "another process holds it", str(folder))
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def unfinished_folder(parent: Path, mark: str) -> Iterator[Path]:
    """A new folder `<mark><random>.new` to fill, removed afterwards with what is then in it."""
    while True:
        folder = parent / f"{mark}{secrets.token_hex(4)}.new"
        folder.mkdir()
        with _held(folder) as is_held:
            if not is_held:  # a sweep has taken it for a leftover
                continue
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Whether a new folder could be locked, and is still there."""
    if fcntl is None:
        yield True
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _lock(handle) and folder.exists()
    finally:
        os.close(handle)


def sweep(parent: Path, leftover: re.Pattern[str]) -> None:
    """Remove what dead writers left in a folder under names of this form."""
    with os.scandir(parent) as entries:
        paths = [Path(entry.path) for entry in entries if leftover.fullmatch(entry.name)]
    for path in paths:
        if not _is_alive(path):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step; False where the system cannot do that."""
    if _renameat2 is None:
        return False
    code = _renameat2(
        AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), ctypes.c_uint(RENAME_EXCHANGE)
    )
    if code == 0:
        return True
    number = ctypes.get_errno()
    if number in CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def sync_folder(folder: Path) -> None:
    """Let the names in a folder survive a power cut."""
    if os.name != "posix":
        return  # Windows cannot open a directory to flush it
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def named(error: OSError, what: str) -> WriteError:
    """The system's error in plain words: what it stopped, and why."""
    full = " (the disk is full)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    plain = WriteError(f"{what}: {error.strerror or error}{full}")
    plain.errno = error.errno
    return plain


@contextlib.contextmanager
def _unfinished_file(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file of its own name, locked while it is open; removed where it was not renamed."""
    while True:
        beside = folder / f".interp-{secrets.token_hex(8)}.tmp"
        stream = beside.open("xb")
        # Between the two lines a sweep may have taken it for a leftover.
        if _lock(stream.fileno()) and beside.exists():
            break
        stream.close()
    try:
        with stream:
            yield beside, stream
    finally:
        beside.unlink(missing_ok=True)


def _lock(handle: int) -> bool:
    """Lock an open file or folder; False where another has locked it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("this file system has no locks (%s): let nobody else write there", error)
    return True


def _is_alive(path: Path) -> bool:
    """Whether a writer is at work on a file or folder; also where nobody can tell."""
    try:
        if fcntl is None:
            return path.stat().st_mtime > time.time() - STALE_SECONDS
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(handle)
    except OSError:
        return True
    return False


def _write_error(path: Path, error: OSError) -> WriteError:
    plain = named(error, f"{path} cannot be written")
    if os.path.lexists(path):
        plain.args = (f"{plain}; what lay there before is unchanged",)
    return plain


def _linux_exchange() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


_renameat2 = _linux_exchange()
