"""Nodes: the parts of a model that one intervention touches, as rows of a DataFrame.

Columns `row site layer pos role head k_pos neuron expert`; a blank means all. Rows that share `row`
are edited together. `site` is the name without its layer ("attn.hook_z"; of an encoder–decoder
"decoder_blocks.attn.hook_z"), `layer` its block. Positions and roles are those of the tokens that
the site counts: the source's in an encoder, and in keys and values of cross-attention.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .files import Row, parse_json_text, read_csv, read_text, unguarded
from .sites import Site, SiteTable, stack_config
from .tokens import Tokens

COLUMNS = ("row", "site", "layer", "pos", "role", "head", "k_pos", "neuron", "expert")
NUMBERS = ("row", "layer", "pos", "head", "k_pos", "neuron", "expert")
RESULTS = ("edit", "metric", "direction", "example", "value", "baseline", "effect", "stderr", "n")
"""What a sweep adds to these."""
AXES = {
    "pos": ("pos", "q_pos"),
    "head": ("head", "kv_head"),
    "k_pos": ("k_pos",),
    "neuron": ("d_mlp",),
    "expert": ("expert",),
}
"""Which axis of a site a column picks from."""


class Part(NamedTuple):
    """One line of a node: a site and what of it; None: all."""

    site: str
    pos: int | None
    role: str | None
    head: int | None
    k_pos: int | None
    neuron: int | None
    expert: int | None = None


class Node(NamedTuple):
    """What one intervention edits."""

    row: int
    parts: tuple[Part, ...]

    @property
    def key(self) -> int:
        """What is random at this node follows from it: what the node is, not where it stands."""
        return stable_hash(*self.parts)

    def __str__(self) -> str:
        return " + ".join(
            part.site
            + "".join(
                f" {k}={v}" for k, v in part._asdict().items() if k != "site" and v is not None
            )
            for part in self.parts
        )


def nodes(
    model: Any,
    site: str,
    by: Sequence[str] = ("layer",),
    *,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    neurons: Iterable[int] | None = None,
    experts: Iterable[int] | None = None,
    positions: Iterable[int | str] | None = None,
    tokens: Tokens | None = None,
) -> pd.DataFrame:
    """One node per combination of `by` (layer, pos, head, k_pos, neuron, expert) at a site.

    `layers`, `heads`, `neurons`, `experts` and `positions` restrict; positions are indices or names
    of roles, by default all those of `tokens`. What `by` leaves out is edited together. Raises
    ValueError on a column that the site does not have, or an index outside the model.
    """
    table: SiteTable = model.sites
    found = [table[name] for name in table.select(site)]
    kinds = list(dict.fromkeys(one.local_name for one in found))
    if len(kinds) > 1:
        raise ValueError(f"{site!r} names several sites: {', '.join(kinds)}; give one of these")
    allowed = ["layer"] + [c for c in AXES if any(a in found[0].axes for a in AXES[c])]
    for column in by:
        if column not in allowed:
            raise ValueError(f"by={column!r}: {found[0].local_name!r} has {', '.join(allowed)}")
    found = _in_layers(found, layers, stack_config(found[0], model.cfg))
    given = {"head": heads, "neuron": neurons, "expert": experts,
             "pos": positions, "k_pos": positions}  # fmt: skip
    ranges = [_range(column, found[0], model.cfg, given[column], tokens) for column in by
              if column != "layer"]  # fmt: skip
    columns = [column for column in by if column != "layer"]
    rows = []
    for one in found:
        for values in itertools.product(*ranges):
            line = {"site": one.local_name, "layer": one.layer}
            for column, value in zip(columns, values, strict=True):
                line["role" if isinstance(value, str) else column] = value
            rows.append(line)
    if "layer" not in by:  # the layers of one combination are edited together
        key = len(rows) // len(found)
        return as_frame([{**line, "row": i % key} for i, line in enumerate(rows)])
    return as_frame([{**line, "row": i} for i, line in enumerate(rows)])


def as_frame(rows: pd.DataFrame | Iterable[dict] | str | Path) -> pd.DataFrame:
    """Nodes with all columns, numbers as nullable integers, from a frame, records, or a file.

    A file is .csv with a header or .json with a list of objects. The columns that a sweep adds are
    left out, so that what came out can go in. Raises ValueError on other columns, a number that is
    none, and files that are neither.
    """
    if isinstance(rows, str | Path):
        rows = _read_file(Path(rows))
    frame = rows.copy() if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    frame = frame.drop(columns=[c for c in frame.columns if c in RESULTS])
    unknown = [c for c in frame.columns if c not in COLUMNS]
    if unknown:
        raise ValueError(f"nodes have no column {unknown[0]!r}; they have {', '.join(COLUMNS)}")
    if frame.empty or "site" not in frame:
        raise ValueError(
            "the frame of nodes is empty" if frame.empty else "nodes need a column 'site'"
        )
    for column in COLUMNS:
        if column not in frame:
            frame[column] = range(len(frame)) if column == "row" else pd.NA
    for column in NUMBERS:
        frame[column] = _whole_numbers(frame[column])
    frame["role"] = frame["role"].astype(object).where(frame["role"].notna(), pd.NA)
    if bool(frame[["row", "site"]].isna().any(axis=None)):
        raise ValueError("nodes: 'row' and 'site' must not be blank")
    return frame[list(COLUMNS)].reset_index(drop=True)


def _whole_numbers(column: pd.Series) -> pd.Series:
    try:
        if any(isinstance(value, bool) for value in column):
            raise TypeError
        return column.astype("Int64")
    except (TypeError, ValueError):
        raise ValueError(
            f"nodes: column {column.name!r} holds something that is no index"
        ) from None


def _read_file(path: Path) -> pd.DataFrame:
    if path.suffix == ".csv":
        return _as_read([_csv_node(row) for row in read_csv(path, ("site",))])
    if path.suffix != ".json":
        raise ValueError(f"{str(path)!r}: nodes are read from .csv or .json")
    records = parse_json_text(read_text(path), str(path))
    if not isinstance(records, list) or not all(isinstance(one, dict) for one in records):
        raise ValueError(f"{str(path)!r}: expected a list of objects, one per node")
    return _as_read(records)


def _as_read(records: list[dict[str, object]]) -> pd.DataFrame:
    """A frame of these records, in which whole numbers beside blanks are not made floats."""
    frame = pd.DataFrame(records, dtype=object)
    return frame.assign(site=frame["site"].infer_objects()) if "site" in frame else frame


def _csv_node(row: Row) -> dict[str, object]:
    """A line of a file, whose blank cells mean all; names are as they were before a report wrote
    them (`unguarded`)."""
    node: dict[str, object] = {}
    for column, cell in row.cells.items():
        value = row.whole_number(column) if column in NUMBERS else unguarded(cell) or None
        node[column] = pd.NA if value is None else value
    if node["site"] is pd.NA:
        raise ValueError(f"{row.where}: 'site' must not be blank")
    return node


def read_nodes(frame: pd.DataFrame, model: Any, tokens: Tokens) -> list[Node]:
    """The nodes of a frame, checked against the model and the tokens, in order of first `row`."""
    frame = as_frame(frame)
    parts: dict[int, list[Part]] = {}
    for line in frame.itertuples(index=False):
        values = {c: None if pd.isna(v) else v for c, v in line._asdict().items()}
        values = {c: int(v) if c in NUMBERS and v is not None else v for c, v in values.items()}
        name = values["site"] if values["layer"] is None else (values["site"], values["layer"])
        names = model.sites.select(name)
        for full in names:
            part = Part(full, *(values[c] for c in COLUMNS[3:]))
            _check_part(part, model, tokens)
            parts.setdefault(values["row"], []).append(part)
    return [Node(row, tuple(some)) for row, some in parts.items()]


def stable_hash(*parts: object) -> int:
    """A number that depends on the parts alone: the same in every process and order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Selection(NamedTuple):
    """What of a site's tensor is replaced, per row of a batch; −1: all of that axis."""

    pos: Int[Tensor, " rows"]
    head: Int[Tensor, " rows"]
    k_pos: Int[Tensor, " rows"]
    neuron: Int[Tensor, " rows"]
    expert: Int[Tensor, " rows"]

    @classmethod
    def of(cls, site: Site, rows: Sequence[tuple[int, Part]], tokens: Tokens) -> Selection:
        """Per row an example and a part of a site; roles are looked up per example."""
        counted, keys = counted_by(site, tokens), counted_by(site, tokens, "k_pos")
        width = counted.shape[1]
        roles = {part.role: counted.roles[part.role].tolist() for _, part in rows if part.role}

        def pos(example: int, part: Part) -> int:
            if part.role is not None:
                return roles[part.role][example] % width
            return -1 if part.pos is None else part.pos % width

        columns = zip(*(
            (
                pos(example, part),
                -1 if part.head is None else part.head,
                -1 if part.k_pos is None else part.k_pos % keys.shape[1],
                -1 if part.neuron is None else part.neuron,
                -1 if part.expert is None else part.expert,
            )
            for example, part in rows
        ), strict=True)  # fmt: skip
        return cls(*(torch.tensor(column, device=tokens.device) for column in columns))

    def mask(self, site: Site, x: Tensor, start: int = 0) -> Bool[Tensor, "..."]:
        """True where x [rows, …] is replaced; its position axis begins at position `start`."""
        mask = torch.ones(x.shape[0], *[1] * (x.ndim - 1), dtype=torch.bool, device=x.device)
        for column, axes in AXES.items():
            wanted = getattr(self, column)
            for axis, word in enumerate(site.axes):
                if word in axes:
                    shape = [1] * x.ndim
                    shape[axis] = x.shape[axis]
                    first = start if word in AXES["pos"] else 0
                    index = (torch.arange(x.shape[axis], device=x.device) + first).view(shape)
                    per_row = wanted.view(-1, *[1] * (x.ndim - 1))
                    mask = mask & ((per_row < 0) | (per_row == index))
        return mask


def counted_by(site: Site, tokens: Tokens, column: str = "pos") -> Tokens:
    """The tokens whose positions a site's axis of positions, or of keys, counts."""
    words = AXES[column]
    own = tokens.source is None or not any(word in site.source for word in words)
    return tokens if own else tokens.source


def _in_layers(found: list[Site], layers: Iterable[int] | None, cfg: Any) -> list[Site]:
    if layers is None:
        return found
    wanted = {_index("layer", layer, cfg.n_layers) for layer in layers}
    chosen = [one for one in found if one.layer in wanted]
    if not chosen:
        raise ValueError(f"layers={sorted(wanted)}: {found[0].local_name!r} is in none of them")
    return chosen


def _range(
    column: str,
    site: Site,
    cfg: Any,
    given: Iterable[int | str] | None,
    tokens: Tokens | None,
) -> list[int | str]:
    if column in ("pos", "k_pos"):
        if given is not None:
            return list(given)
        if tokens is None:
            raise ValueError(f"by={column!r} needs positions= (indices or roles) or tokens=")
        return list(range(counted_by(site, tokens, column).shape[1]))
    size = _size(column, site, cfg)
    return list(range(size)) if given is None else [_index(column, i, size) for i in given]


def _size(column: str, site: Site, cfg: Any) -> int:
    cfg = stack_config(site, cfg)
    if column == "neuron":
        return cfg.d_mlp
    if column == "expert":
        return cfg.n_experts
    return cfg.n_kv_heads if "kv_head" in site.axes else cfg.n_heads


def _index(column: str, value: Any, size: int) -> int:
    if not isinstance(value, int) or not -size <= value < size:
        raise ValueError(f"{column}={value!r}: this model has 0 to {size - 1}")
    return value % size


def _check_part(part: Part, model: Any, tokens: Tokens) -> None:
    site = model.sites[part.site]
    for column, axes in AXES.items():
        value = getattr(part, column)
        if value is None:
            continue
        if not any(axis in site.axes for axis in axes):
            raise ValueError(f"{column}={value}: the site {part.site!r} has no such axis")
        positions = column in ("pos", "k_pos")
        size = (
            counted_by(site, tokens, column).shape[1]
            if positions
            else _size(column, site, model.cfg)
        )
        low = -size if positions else 0
        if not low <= value < size:
            raise ValueError(f"{column}={value} at {part.site!r}: expected {low} to {size - 1}")
    if part.role is not None:
        if part.pos is not None:
            raise ValueError(f"a node has both pos={part.pos} and role={part.role!r}")
        roles = counted_by(site, tokens).roles
        if part.role not in roles:
            known = ", ".join(roles) or "none"
            raise ValueError(
                f"role={part.role!r} at {site.name!r}: its tokens have the roles {known}"
            )
