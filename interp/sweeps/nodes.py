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

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.core.files import Row, parse_json_text, read_csv, read_text, unguarded
from interp.core.indices import Indices, check_once, index, indices, listed, reusable, whole_number
from interp.core.sites import Site, SiteTable, stack_config
from interp.core.tokens import Tokens
from interp.model import HookedTransformer

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
WORDS = {"head": "heads", "neuron": "neurons", "expert": "experts", "pos": "positions",
         "k_pos": "positions"}  # fmt: skip
"""What restricts a column."""


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
    model: HookedTransformer,
    site: str,
    by: str | Sequence[str] = ("layer",),
    *,
    layers: Indices | None = None,
    heads: Indices | None = None,
    neurons: Indices | None = None,
    experts: Indices | None = None,
    positions: Indices | None = None,
    tokens: Any = None,
) -> pd.DataFrame:
    """One node per combination of `by` (layer, pos, head, k_pos, neuron, expert) at a site.

    What `by` leaves out is edited together. `layers`, `heads`, `neurons`, `experts` and `positions`
    restrict, in `by` or not: by=("layer",), heads=[1, 3] is one node per layer, heads 1 and 3
    together. They are indices, which count from the end where negative; positions may be names of
    roles as well, and are by default all those of `tokens` (Tokens, or ids as the model takes
    them); they are those of k_pos where `by` has that and no pos. Raises ValueError on a column
    that the site does not have, whether `by` or a restriction names it, and on an index or a role
    outside the model and the tokens.
    """
    table: SiteTable = model.sites
    tokens = None if tokens is None else model.accept(tokens)
    found = [table[name] for name in table.select(site)]
    kinds = list(dict.fromkeys(one.local_name for one in found))
    if len(kinds) > 1:
        raise ValueError(f"{site!r} names several sites: {', '.join(kinds)}; give one of these")
    allowed = ["layer"] + [c for c in AXES if any(a in found[0].axes for a in AXES[c])]
    by = (by,) if isinstance(by, str) else tuple(by)
    check_once(by, "by")
    for column in by:
        if column not in allowed:
            raise ValueError(f"by={column!r}: {found[0].local_name!r} has {', '.join(allowed)}")
    positions = reusable(positions)
    given = {"head": heads, "neuron": neurons, "expert": experts, "pos": positions}
    if "k_pos" in by:
        given |= {"k_pos": positions} | ({} if "pos" in by else {"pos": None})
    given = {column: values for column, values in given.items() if values is not None}
    for column in given:
        if column not in allowed:
            raise ValueError(
                f"{WORDS[column]}=: {found[0].local_name!r} has no {column} to restrict; it has "
                f"{', '.join(allowed)}"
            )
    found = _in_layers(found, layers, stack_config(found[0], model.cfg))
    columns = dict.fromkeys([*(column for column in by if column != "layer"), *given])
    ranges = [_range(column, found[0], model.cfg, given.get(column), tokens) for column in columns]
    rows: dict[tuple, int] = {}
    lines = []
    for one in found:
        for values in itertools.product(*ranges):
            line = {"layer": one.layer, **dict(zip(columns, values, strict=True))}
            row = rows.setdefault(tuple(line[column] for column in by), len(rows))
            if isinstance(line.get("pos"), str):
                line["role"] = line.pop("pos")
            lines.append({"row": row, "site": one.local_name, **line})
    return as_frame(lines)


def as_frame(rows: pd.DataFrame | Iterable[dict] | str | Path) -> pd.DataFrame:
    """Nodes with all columns, numbers as nullable integers, from a frame, records, or a file.

    A file is .csv with a header or .json with a list of objects. The columns that a sweep adds are
    left out, so that what came out can go in. Raises ValueError on other columns, on what is no
    whole number (a boolean, a float; not where a blank made pandas keep a whole column as floats),
    and on files that are neither.
    """
    if isinstance(rows, str | Path):
        rows = _read_file(Path(rows))
    frame = rows.copy() if isinstance(rows, pd.DataFrame) else _as_read(list(rows))
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
    if pd.api.types.is_integer_dtype(column.dtype):
        return column.astype("Int64")
    name, blank = f"nodes: {column.name}", column.isna()
    if pd.api.types.is_float_dtype(column.dtype) and bool(blank.any()):
        broken = column[~blank & (column % 1 != 0)]
        if len(broken):
            whole_number(float(broken.iloc[0]), name)  # raises
        return column.astype("Int64")
    values = [pd.NA if gap else value if type(value) is int else whole_number(value, name)
              for value, gap in zip(column.tolist(), blank, strict=True)]  # fmt: skip
    try:
        return pd.Series(values, index=column.index, dtype="Int64", name=column.name)
    except OverflowError:
        raise ValueError(f"{name} holds a number beyond 64 bits") from None


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


def read_nodes(frame: pd.DataFrame, model: HookedTransformer, tokens: Tokens) -> list[Node]:
    """The nodes of a frame, checked against the model and the tokens, in order of first `row`."""
    frame = as_frame(frame)
    parts: dict[int, list[Part]] = {}
    for line in frame.itertuples(index=False):
        values = {c: None if pd.isna(v) else v for c, v in line._asdict().items()}
        values = {c: int(v) if c in NUMBERS and v is not None else v for c, v in values.items()}
        name = values["site"] if values["layer"] is None else (values["site"], values["layer"])
        for full in model.sites.select(name):
            part = _part(model.sites[full], values, model, tokens)
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
        counted = counted_by(site, tokens)
        roles = {part.role: counted.roles[part.role].tolist() for _, part in rows if part.role}

        def pos(example: int, part: Part) -> int | None:
            return part.pos if part.role is None else roles[part.role][example]

        columns = zip(*(
            (
                -1 if value is None else value
                for value in (pos(example, part), part.head, part.k_pos, part.neuron, part.expert)
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


class Selections:
    """What of a site's tensor is replaced, per row of a batch: all that any of its parts names,
    in one go. Two parts that name the same number replace it once."""

    def __init__(self, turns: Sequence[tuple[np.ndarray, Selection]]) -> None:
        self.turns = turns
        """First parts, second ones, …: which rows have one, in order, and what it names."""

    @classmethod
    def of(
        cls, site: Site, rows: Sequence[tuple[int, Sequence[Part]]], tokens: Tokens
    ) -> Selections:
        """Per row an example and one or more parts of the site."""
        turns = []
        for turn in range(max(len(parts) for _, parts in rows)):
            at = [i for i, (_, parts) in enumerate(rows) if turn < len(parts)]
            lines = [(rows[i][0], rows[i][1][turn]) for i in at]
            turns.append((np.array(at), Selection.of(site, lines, tokens)))
        return cls(turns)

    def mask(self, site: Site, x: Tensor, start: int = 0) -> Bool[Tensor, "..."]:
        """True where x [rows, …] is replaced; its position axis begins at position `start`."""
        (_, first), *others = self.turns
        mask = first.mask(site, x, start)
        for at, selection in others:
            rows = torch.as_tensor(at, device=x.device)
            mask[rows] |= selection.mask(site, x[: len(at)], start)  # of x its shape counts
        return mask

    def only(self, rows: np.ndarray) -> Selections:
        """Those of some rows, in order."""
        turns = []
        for turn, (at, selection) in enumerate(self.turns):
            kept = np.flatnonzero(np.isin(at, rows)) if turn else rows  # each row has a first part
            if len(kept):
                index = torch.as_tensor(kept, device=selection.pos.device)
                some = Selection(*(column[index] for column in selection))
                turns.append((np.searchsorted(rows, at[kept]), some))
        return Selections(turns)


def counted_by(site: Site, tokens: Tokens, column: str = "pos") -> Tokens:
    """The tokens whose positions a site's axis of positions, or of keys, counts."""
    words = AXES[column]
    own = tokens.source is None or not any(word in site.source for word in words)
    return tokens if own else tokens.source


def _in_layers(found: list[Site], layers: Indices | None, cfg: Any) -> list[Site]:
    if layers is None:
        return found
    wanted = indices(layers, cfg.n_layers, "layers")
    chosen = [one for one in found if one.layer in wanted]
    if not chosen:
        raise ValueError(f"layers={wanted}: {found[0].local_name!r} is in none of them")
    return chosen


def _range(
    column: str, site: Site, cfg: Any, given: Indices | None, tokens: Tokens | None
) -> Sequence[int | str]:
    if column not in ("pos", "k_pos"):
        size = _size(column, site, cfg)
        return range(size) if given is None else indices(given, size, WORDS[column])
    if given is not None:
        return _positions(
            column, given, None if tokens is None else counted_by(site, tokens, column)
        )
    if tokens is None:
        raise ValueError(f"by={column!r} needs positions= (indices or roles) or tokens=")
    return range(counted_by(site, tokens, column).shape[1])


def _positions(column: str, given: Indices, tokens: Tokens | None) -> list[int | str]:
    """Indices and names of roles, checked where the tokens are known."""
    name = WORDS[column]
    if isinstance(given, slice):
        if tokens is None:
            raise ValueError(f"{name}={given}: a slice needs tokens=, which have an end")
        return list(indices(given, tokens.shape[1], name))
    chosen: list[int | str] = []
    for value in [given] if isinstance(given, str) else listed(given, name):
        if isinstance(value, str):
            _check_role(column, value, tokens)
            chosen.append(value)
        else:
            known = tokens is not None
            chosen.append(
                index(value, tokens.shape[1], name) if known else whole_number(value, name)
            )
    if not chosen:
        raise ValueError(f"{name} is empty; leave it out for all of them")
    check_once(chosen, name)
    return chosen


def _check_role(column: str, role: str, tokens: Tokens | None) -> None:
    if column == "k_pos":
        raise ValueError(f"positions={role!r}: k_pos takes indices; a role names a place of pos")
    if tokens is not None and role not in tokens.roles:
        known = ", ".join(tokens.roles) or "none"
        raise ValueError(f"role={role!r}: these tokens have the roles {known}")


def _size(column: str, site: Site, cfg: Any) -> int:
    cfg = stack_config(site, cfg)
    if column == "neuron":
        return cfg.d_mlp
    if column == "expert":
        return cfg.n_experts
    return cfg.n_kv_heads if "kv_head" in site.axes else cfg.n_heads


def _part(site: Site, values: dict[str, Any], model: HookedTransformer, tokens: Tokens) -> Part:
    """What a line of a frame names of a site, counted from the start. Raises ValueError on what is
    not there."""
    named: dict[str, int | None] = {}
    for column, axes in AXES.items():
        value = named[column] = values[column]
        if value is None:
            continue
        if not any(axis in site.axes for axis in axes):
            raise ValueError(f"{column}={value}: the site {site.name!r} has no such axis")
        of_tokens = column in ("pos", "k_pos")
        size = (
            counted_by(site, tokens, column).shape[1]
            if of_tokens
            else _size(column, site, model.cfg)
        )
        named[column] = index(value, size, f"{site.name!r}: {column}")
    role = values["role"]
    if role is not None:
        if named["pos"] is not None:
            raise ValueError(f"a node has both pos={values['pos']} and role={role!r}")
        roles = counted_by(site, tokens).roles
        if role not in roles:
            known = ", ".join(roles) or "none"
            raise ValueError(f"role={role!r} at {site.name!r}: its tokens have the roles {known}")
    return Part(site.name, role=role, **named)
