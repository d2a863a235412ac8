"""What makes a sweep resumable: one file of JSON lines, a header and then a line per pass.

The header says what the run is made of (its manifest) and how it is packed; a run that differs in
anything is refused. A line is the commit point: once it is on the disk (fsync) its pass is not
measured again. What a kill tore is dropped at the next opening. The file itself is the lock, which
is why it is never replaced by another, and there is nothing beside it that could be stale.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import json
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.files.writing import sync_folder
from interp.core.tokens import Tokens
from interp.loading import weights_hash
from interp.loading.fingerprint import SIZE, digest, machine_facts
from interp.model import HookedTransformer

from .edits import Edit
from .metrics import Metric
from .nodes import Node

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = 1
MAGIC = b'{"journal":"interp sweep",'
"""How every journal begins: a file that does not is somebody else's."""


class JournalError(ValueError):
    """A journal that cannot be used: another run's, damaged, taken, or on a full disk."""


class Measured(NamedTuple):
    """What one pass found."""

    values: Float[Tensor, " rows"]
    """In float64, on the CPU."""
    changed: bool
    """Whether the edit changed a number at its site."""


class Journal:
    """An open journal, locked until it is closed; made where there is none.

    `plan` is how the run is packed: the rows (node, example, start) of each pass. Raises
    JournalError on the journal of another run (naming each difference), a file that is no journal,
    one that is damaged before its last line, and one that another sweep is writing.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        manifest: Mapping[str, Any],
        plan: Sequence[Sequence[tuple[int, int, int]]],
    ) -> None:
        self.path = Path(path)
        self.sizes = [len(rows) for rows in plan]
        self.done: list[Measured] = []
        """The acknowledged passes, which are the first ones: passes run in order."""
        header = {
            "journal": "interp sweep",
            "format": FORMAT,
            "manifest": dict(manifest),
            "plan": {"passes": len(plan), "packing": _packing(plan)},
        }
        self._file = _locked(self.path)
        try:
            self._open(header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def once(self, number: int, measure: Callable[[], Measured]) -> Measured:
        """A pass out of the file, or else measured now and committed.

        Ctrl-C waits until the pass in flight is committed; a second one does not.
        """
        if number < len(self.done):
            return self.done[number]
        with unbroken():
            measured = measure()
            self._append(_pass_record(number, measured))
            self.done.append(measured)
        return measured

    def _open(self, header: dict[str, Any]) -> None:
        content = self._file.read()
        if not (content.startswith(MAGIC) or MAGIC.startswith(content)):
            raise JournalError(
                f"{self.path} is not the journal of a sweep, and is not overwritten; "
                "use another path"
            )
        lines = io.BytesIO(content).readlines()
        records = [_record(line) for line in lines]
        if records and records[-1] is None:  # torn
            records, lines = records[:-1], lines[:-1]
        self._check(records, header)
        self.done = [self._measured(i, record) for i, record in enumerate(records[1:])]
        self._end = sum(map(len, lines))
        with self._safely():
            self._file.truncate(self._end)
            if not records:
                self._append(header)
                sync_folder(self.path.parent)

    def _check(self, records: Sequence[dict | None], header: dict[str, Any]) -> None:
        """Refuse what is damaged, and another run's."""
        if None in records:
            raise self._damaged(records.index(None))
        theirs, ours = _flat(records[0] or {}) if records else {}, _flat(header)
        differences = [
            f"{name}: journal {theirs.get(name)}, this run {ours.get(name)}"
            for name in ours | theirs
            if theirs.get(name) != ours.get(name)
        ]
        if records and differences:
            raise JournalError(
                f"{self.path} is the journal of another run ({'; '.join(differences)}); "
                "use another path, or delete the file to start anew"
            )

    def _measured(self, number: int, record: dict[str, Any]) -> Measured:
        """A pass as its line says."""
        try:
            values = np.frombuffer(base64.b64decode(record["values"]), "<f8").astype(np.float64)
            if record["pass"] != number or len(values) != self.sizes[number]:
                raise ValueError
            return Measured(torch.from_numpy(values), record["changed"])
        except (KeyError, IndexError, TypeError, ValueError):
            raise self._damaged(number + 1) from None

    def _damaged(self, index: int) -> JournalError:
        return JournalError(
            f"{self.path}: line {index + 1} is damaged; delete it and those behind it to resume "
            "from there, or use another path"
        )

    def _append(self, record: dict[str, Any]) -> None:
        """Write a line and wait until it is on the disk."""
        line = _line(record)
        with self._safely():
            written = 0
            while written < len(line):
                written += os.write(self._file.fileno(), line[written:])
            os.fsync(self._file.fileno())
        self._end += len(line)

    @contextlib.contextmanager
    def _safely(self) -> Iterator[None]:
        """A disk that is full, or gone, leaves what was acknowledged and says so."""
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError):  # else the next opening drops what is torn
                self._file.truncate(self._end)
            full = " (the disk is full)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise JournalError(
                f"{self.path} cannot be written: {error.strerror}{full}; {len(self.done)} of "
                f"{len(self.sizes)} passes are safe in it, and the same call resumes behind them"
            ) from error


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """A first Ctrl-C waits for the end of the block; a second one, as always, does not wait."""
    old = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or old in (signal.SIG_IGN, None):
        yield
        return
    waiting = False

    def wait(number: int, frame: Any) -> None:
        nonlocal waiting
        waiting = True
        signal.signal(signal.SIGINT, old)

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)
    if waiting:
        signal.raise_signal(signal.SIGINT)


def manifest(
    model: HookedTransformer,
    tokens: Tokens,
    nodes: Sequence[Node],
    edit: Edit,
    metric: Metric,
    engine: str,
    baseline: Float[Tensor, " batch"],
) -> dict[str, str | int]:
    """All that a value of a sweep depends on, under the names that a refusal shows.

    Hooks and functions: a model with hooks is refused, and functions are compared as `digest` says.
    """
    if model.fwd_hooks:
        raise JournalError(
            "a journal needs a model without hooks: nobody can tell after a restart whether they "
            "are the same functions; sweep without journal=, or without the hooks"
        )
    return {
        **machine_facts(model.device, model.dtype),
        "model": model.name,
        "config": digest(model.cfg.to_dict()),
        "weights": weights_hash(model)[:SIZE],
        "engine": engine,
        "tokens": digest(tokens),
        "nodes": f"{len(nodes)} {digest(repr([tuple(node) for node in nodes]))}",
        "edit": f"{edit.name} ({edit.direction}) {_made_of(edit)}",
        "metric": f"{metric.name} {_made_of(metric)}",
        "baseline": digest(baseline),
    }


def _made_of(what: Edit | Metric) -> str:
    """What an edit or metric was made with, and what its code holds, such as a cache's numbers."""
    try:
        return digest((what.made_of, what.bind))
    except ValueError as error:
        raise JournalError(f"{what.name!r} cannot be journalled: {error}") from None


def _packing(plan: Sequence[Sequence[tuple[int, int, int]]]) -> str:
    """A hash of which rows run together."""
    rows = [(number, *row) for number, rows in enumerate(plan) for row in rows]
    return digest(torch.tensor(rows, dtype=torch.long))


def _pass_record(number: int, measured: Measured) -> dict[str, Any]:
    values = base64.b64encode(measured.values.numpy().astype("<f8").tobytes()).decode()
    return {"pass": number, "values": values, "changed": measured.changed}


def _line(record: Mapping[str, Any]) -> bytes:
    checked = {**record, "check": digest(json.dumps(record))}
    return json.dumps(checked, separators=(",", ":")).encode() + b"\n"


def _record(line: bytes) -> dict[str, Any] | None:
    """What a line holds; None where it is torn."""
    try:
        record = json.loads(line)
        whole = line.endswith(b"\n") and record.pop("check") == digest(json.dumps(record))
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
    return record if whole else None


def _flat(header: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": header.get("format"), **header.get("manifest", {}), **header.get("plan", {})}


def _locked(path: Path) -> io.FileIO:
    """The file, made where there is none. The lock ends with the process that holds it."""
    if fcntl is None:
        raise JournalError("journal=: this platform has no file locks (fcntl); leave it out")
    try:
        file = io.FileIO(path, "a+")
    except OSError as error:
        raise JournalError(f"journal={str(path)!r}: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise JournalError(f"journal={str(path)!r} is not an ordinary file")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.seek(0)
    except OSError as error:
        file.close()
        taken = isinstance(error, BlockingIOError)
        why = "another sweep is writing it" if taken else f"it cannot be locked: {error.strerror}"
        raise JournalError(f"journal={str(path)!r}: {why}; use another path") from None
    except JournalError:
        file.close()
        raise
    return file
