"""The folder of a harvest: a manifest, and shards that are whole or absent.

A shard is a safetensors file with checksums: one tensor per site [row …], and for every row which
text, window, position and token it is of. Its header says what it counts and where the text stood
behind it. The manifest says what the harvest is made of, and at the end, with the totals, that it
is complete. Manifest and headers are checked when a harvest is opened, tensors when they are read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.core.files.writing import UNFINISHED, locked, sweep, write_file
from interp.core.indices import span
from interp.core.sites import Site, SiteName, SiteTable
from interp.loading import CorruptFile
from interp.loading.fingerprint import digest
from interp.loading.stored import check_header, check_tensors, write_tensors

KIND = "interp harvest"
MANIFEST = "manifest.json"
CHECK = "check"
"""Under which name the manifest holds a hash of all else in it."""
FIELDS = {"kind", "made_of", "sites", "roles", "complete", CHECK}
"""Of a manifest."""
ROW = {"text": torch.int64, "window": torch.int32, "pos": torch.int32, "token": torch.int32}
"""What is known of every row."""
ROLE = {"role": torch.int32}
"""And, where roles were asked for, the number of its role."""


class HarvestError(ValueError):
    """A harvest that cannot be written or read: another run's, damaged, taken, on a full disk."""


class Shard(NamedTuple):
    """One file."""

    path: Path
    counts: Mapping[str, int]
    """rows, windows, tokens read, and texts that were cut."""
    after: tuple[int, ...]
    """Where the text stood behind it."""

    @property
    def rows(self) -> int:
        return self.counts["rows"]

    @classmethod
    def read(cls, path: Path, signed: bool = True) -> Shard:
        """What a file says of itself. Raises HarvestError on one that is damaged, or lacks its
        checksums though the harvest is `signed`."""
        try:
            check_header(path, required=signed)
            with safe_open(path, "pt") as file:
                header = json.loads(file.metadata()[KIND])
            return cls(path, header["counts"], tuple(header["after"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from None

    def check(self, names: Sequence[str] | None = None, *, signed: bool = True) -> None:
        """Raises HarvestError where the named tensors, by default all, are not as written."""
        try:
            check_tensors(self.path, names, required=signed)
        except (OSError, CorruptFile) as error:
            raise _damaged(self.path, error) from None

    @property
    def header(self) -> str:
        return json.dumps({"counts": dict(self.counts), "after": list(self.after)})


@dataclass(frozen=True, eq=False)
class Harvest:
    """Activations in a folder, opened without reading them: rows in the order of the text.

    The files are mapped: what is read of a chunk is what memory it takes.
    """

    folder: Path
    manifest: Mapping[str, Any]
    shards: tuple[Shard, ...]
    sites: SiteTable
    """Those that were kept; short forms and pairs ("resid_post", 3) name them here too."""
    _sound: set[tuple[Path, str]] = field(default_factory=set, repr=False)
    """The tensors whose checksums were found right; each is read once for that."""

    @classmethod
    def load(cls, folder: str | os.PathLike, *, partial: bool = False) -> Harvest:
        """Raises HarvestError on a folder that is no harvest, is damaged, lacks a shard, or, unless
        `partial`, is not finished."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        shards = shards_of(folder, CHECK in manifest)
        complete = manifest.get("complete")
        if complete is None and not partial:
            raise HarvestError(
                f"{folder} is not finished ({len(shards)} shards): make the same call again to go "
                "on, or open what there is with partial=True"
            )
        if complete is not None and sum(shard.rows for shard in shards) != complete["rows"]:
            raise HarvestError(
                f"{folder} holds {len(shards)} of {complete['shards']} shards: some were removed"
            )
        described = (
            Site(name, layer, tuple(axes), tuple(source))
            for name, layer, axes, source in manifest["sites"]
        )
        n_layers = manifest["made_of"].get("n_layers", {})  # older harvests do not say
        return cls(folder, manifest, tuple(shards), SiteTable.of(described, n_layers))

    def __len__(self) -> int:
        """Rows."""
        return sum(shard.rows for shard in self.shards)

    @property
    def complete(self) -> bool:
        """Whether all of the text is there."""
        return "complete" in self.manifest

    @property
    def cut(self) -> int:
        """Texts that were longer than a window."""
        return sum(shard.counts["cut"] for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Tokens that the model read."""
        return sum(shard.counts["tokens"] for shard in self.shards)

    @property
    def rows(self) -> pd.DataFrame:
        """What each row is of: text (line of the file, or entry of the list), window, pos (in the
        window), token (id; −1: none), and role where roles were asked for."""
        columns = [*ROW, *(ROLE if self.manifest["roles"] else ())]
        frame = pd.DataFrame({name: self._column(name).numpy() for name in columns})
        if "role" in frame:
            frame["role"] = [self.manifest["roles"][i] for i in frame["role"]]
        return frame

    def chunks(
        self, site: SiteName, size: int = 8192, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Every row once, in order, at most `size` at a time: which rows, and their values
        [n …] in `dtype` (default: as stored)."""
        if size < 1:
            raise ValueError(f"size={size}: expected 1 or more")
        name, start = self.sites[site].name, 0
        for shard in self.shards:
            with self._opened(shard, name) as file:
                stored = file.get_slice(name)
                for at in range(0, shard.rows, size):
                    values = stored[at : min(at + size, shard.rows)]
                    yield slice(start + at, start + at + len(values)), values.to(dtype)
            start += shard.rows

    def read(
        self, site: SiteName, rows: slice = slice(None), dtype: torch.dtype | None = None
    ) -> Tensor:
        """Some rows in succession at once, by default all [n …]."""
        chosen = span(rows, len(self), "rows")
        if chosen.step != 1 or not chosen:
            raise ValueError(f"rows={rows}: expected some rows in succession of {len(self)}")
        first, last = chosen.start, chosen.stop
        name, start, parts = self.sites[site].name, 0, []
        for shard in self.shards:
            low, high = max(first - start, 0), min(last - start, shard.rows)
            if low < high:
                with self._opened(shard, name) as file:
                    parts.append(file.get_slice(name)[low:high].to(dtype))
            start += shard.rows
        return torch.cat(parts)

    def _column(self, name: str) -> Tensor:
        parts = []
        for shard in self.shards:
            with self._opened(shard, name) as file:
                parts.append(file.get_tensor(name))
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)

    def _opened(self, shard: Shard, name: str) -> Any:
        """A file whose tensor `name` is as it was written, for a `with`."""
        if (shard.path, name) not in self._sound:
            shard.check([name], signed=CHECK in self.manifest)
            self._sound.add((shard.path, name))
        return safe_open(shard.path, "pt")

    def __repr__(self) -> str:
        unfinished = "" if self.complete else ", unfinished"
        return (
            f"Harvest({len(self)} rows, {len(self.sites)} sites, {len(self.shards)} shards"
            f"{unfinished})"
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises HarvestError on a folder that is not a harvest, or whose manifest is damaged. Those of
    earlier versions bear no checksum."""
    file = folder / MANIFEST
    try:
        content = file.read_bytes()
    except OSError:
        raise HarvestError(f"{folder} is not a harvest; name another folder") from None
    try:
        manifest = json.loads(content)
        known = manifest["kind"] == KIND and {"made_of", "sites", "roles"} <= manifest.keys()
    except (ValueError, KeyError, TypeError):
        known, manifest = False, {}
    unsigned = {name: value for name, value in manifest.items() if name != CHECK}
    if known and not manifest.keys() - FIELDS and manifest.get(CHECK) in (None, digest(unsigned)):
        return manifest
    if KIND.encode() in content or any(folder.glob("shard-*.safetensors")):
        raise HarvestError(f"{file} is damaged: it is not as it was written")
    raise HarvestError(f"{folder} is not a harvest; name another folder")


def shards_of(folder: Path, signed: bool = True) -> list[Shard]:
    """In order. Raises HarvestError where one is missing or damaged."""
    paths = sorted(folder.glob("shard-*.safetensors"))
    for i, path in enumerate(paths):
        if path != _path(folder, i):
            raise HarvestError(f"{folder} lacks {_path(folder, i).name}: it was removed")
    return [Shard.read(path, signed) for path in paths]


class Piece(NamedTuple):
    """What one batch leaves."""

    values: Mapping[str, Tensor]
    counts: Mapping[str, int]
    after: tuple[int, ...]


class Sink:
    """Gathers pieces until they fill a shard, and writes it."""

    def __init__(self, folder: Path, dtype: torch.dtype, shard_size: int) -> None:
        self.folder, self.dtype, self.shard_size = folder, dtype, shard_size
        self.shards = shards_of(folder)
        self._pieces: list[Piece] = []
        self._bytes = 0
        self._broken = False

    def take(self, piece: Piece) -> None:
        """Raises HarvestError on numbers that the dtype does not hold, and a full disk."""
        if self._broken:  # what follows a shard that failed must not take its place
            return
        self._broken = True
        values = {name: self._stored(name, value) for name, value in piece.values.items()}
        self._pieces.append(piece._replace(values=values))
        self._bytes += sum(value.nbytes for value in values.values())
        if self._bytes >= self.shard_size:
            self._write()
        self._broken = False

    def close(self) -> None:
        """Write what is left."""
        if self._pieces and not self._broken:
            self._write()

    def _write(self) -> None:
        names, counts = self._pieces[0].values, self._pieces[0].counts
        values = {name: torch.cat([one.values[name] for one in self._pieces]) for name in names}
        counts = {name: sum(one.counts[name] for one in self._pieces) for name in counts}
        shard = Shard(_path(self.folder, len(self.shards)), counts, self._pieces[-1].after)
        with self._safely():
            write_tensors(shard.path, values, {KIND: shard.header})
        self.shards.append(shard)
        self._pieces, self._bytes = [], 0

    def _stored(self, name: str, value: Tensor) -> Tensor:
        if name in ROW | ROLE:
            return value.to("cpu", (ROW | ROLE)[name])
        stored = value.to(self.dtype).cpu()
        if not bool(stored.isfinite().all()):
            own = "are not finite" if not bool(value.isfinite().all()) else (
                f"reach {float(value.abs().max()):.3g} and do not fit into {self.dtype}; "
                "use dtype='bfloat16' or 'float32'"
            )  # fmt: skip
            raise HarvestError(f"the activations at {name!r} {own}")
        return stored

    @contextmanager
    def _safely(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            rows = sum(shard.rows for shard in self.shards)
            raise HarvestError(
                f"shard {len(self.shards)} cannot be written into {self.folder}: {error}; "
                f"{len(self.shards)} shards ({rows} rows) are whole, and the same call goes on "
                "behind them"
            ) from error


@contextmanager
def opened(
    folder: Path, made_of: dict, sites: Sequence[Site], roles: Sequence[str], resume: bool
) -> Iterator[Harvest | None]:
    """The folder, locked and with a manifest; the harvest in it where that is finished."""
    if folder.exists() and not folder.is_dir():
        raise HarvestError(f"{folder} is a file; name a folder for the harvest")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, UNFINISHED)
    except OSError as error:
        raise HarvestError(f"{folder} cannot be written: {error.strerror}") from None
    with _alone(folder):
        manifest = _checked(folder, made_of, resume)
        shards = shards_of(folder)
        if manifest and len(shards) >= manifest.get("complete", {"shards": math.inf})["shards"]:
            yield Harvest.load(folder)
            return
        if manifest is None:
            described = [(site.name, site.layer, site.axes, site.source) for site in sites]
            known = {"made_of": made_of, "sites": described, "roles": list(roles)}
            _write_manifest(folder, {"kind": KIND, **known})
        for shard in shards:
            shard.check()
        yield None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with locked(folder):
            yield
    except BlockingIOError:
        raise HarvestError(f"{folder}: another harvest is writing it") from None


def _checked(folder: Path, made_of: dict, resume: bool) -> dict | None:
    """The manifest of an earlier run of the same; None in an empty folder."""
    if not any(not one.name.endswith(".tmp") for one in folder.iterdir()):
        return None
    manifest = read_manifest(folder)
    if not resume:
        raise HarvestError(f"{folder} holds a harvest already; name another folder, or remove it")
    theirs, ours = manifest["made_of"], json.loads(json.dumps(made_of))
    differences = [
        f"{name}: there {theirs.get(name)}, now {ours.get(name)}"
        for name in ours | theirs
        if theirs.get(name) != ours.get(name)
    ]
    if differences:
        raise HarvestError(
            f"{folder} is the harvest of something else ({'; '.join(differences)}); name another "
            "folder, or remove it to start anew"
        )
    return manifest


def finish(folder: Path, shards: Sequence[Shard]) -> None:
    if not shards:
        raise ValueError("there is no text: the source holds nothing but blank lines")
    manifest = read_manifest(folder)
    totals = {name: sum(shard.counts[name] for shard in shards) for name in shards[0].counts}
    _write_manifest(folder, manifest | {"complete": {"shards": len(shards), **totals}})


def _write_manifest(folder: Path, values: dict[str, Any]) -> None:
    unsigned = json.loads(json.dumps({k: v for k, v in values.items() if k != CHECK}))
    text = json.dumps({**unsigned, CHECK: digest(unsigned)}, indent=1) + "\n"
    try:
        write_file(folder / MANIFEST, text.encode())
    except OSError as error:
        raise HarvestError(f"{folder}: {error}") from error


def _damaged(path: Path, error: Exception) -> HarvestError:
    return HarvestError(
        f"{path} is damaged ({error}); delete it and the shards behind it to go on from there"
    )


def _path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"
