"""From the tensors of a checkpoint to our parameters: every key accounted for, then filled.

`plan` compares names and shapes without reading a number, and its error lists everything that does
not fit. `fill` allocates and reads one parameter at a time.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from interp.core.config import TransformerConfig
from interp.model import HookedTransformer

from .families.family import Family, Target
from .parts import PARTS
from .tensors import BYTES, FLOATS, Entry, Reader

SHOWN = 10
"""Keys listed per kind of fault, before the count."""


class WeightsError(ValueError):
    """Weights that do not fit the architecture that their config describes."""


class Piece(NamedTuple):
    """One tensor of the file, and the rows of our parameter that it fills; without one, zeros."""

    entry: Entry | None
    rows: slice
    transposed: bool
    heads: tuple[int, int, int] | None = None
    """Key-value heads, query heads of each and d_head, where the file sorts rows by them."""
    placed: Callable[[Tensor, Tensor], None] | None = None
    """Puts the tensor into our parameter, where it does not fill whole rows in their order."""
    added: bool = False
    """To what another tensor has filled."""


class Plan(NamedTuple):
    """What fills each parameter, and a stored unembedding that should equal the embedding."""

    pieces: dict[str, list[Piece]]
    tied: Entry | None


def assembled(
    family: Family,
    cfg: TransformerConfig,
    entries: Mapping[str, Entry],
    dtype: torch.dtype | None,
    device: torch.device,
    name: str,
    reader: Callable[[], Reader] = Reader,
) -> HookedTransformer:
    """The model of this config with these tensors; dtype None: as they are stored.

    It is made without memory, then filled one parameter at a time. Raises WeightsError.
    """
    with torch.device("meta"):
        model = HookedTransformer(cfg, name=name)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    chosen = plan(family, cfg, shapes, entries)
    parameters = fill(chosen, shapes, dtype or common_dtype(chosen), device, reader)
    model.load_state_dict(dict(parameters), assign=True)
    return model


def plan(
    family: Family,
    cfg: TransformerConfig,
    shapes: Mapping[str, Sequence[int]],
    entries: Mapping[str, Entry],
) -> Plan:
    """Which tensor of the file fills which parameter.

    Raises WeightsError, listing all missing, unexpected and wrongly shaped keys.
    """
    stored = _without_prefix(family, entries)
    faults: dict[str, list[str]] = {"missing": [], "unexpected": [], "wrongly shaped": []}
    faults["of a dtype that is not read"] = []
    pieces: dict[str, list[Piece]] = {name: [] for name in shapes}
    sources, absent = _sources(family, cfg, shapes), pattern(family.absent)
    for target, keys in sources.items():
        found = [stored.pop(key) for key in keys if key in stored]
        of = cfg.of_parameter(target.name)
        if not found and absent.fullmatch(keys[0]):
            pieces[target.name].append(Piece(None, _rows(of, target.part), transposed=False))
            continue
        if not found:
            faults["missing"].append(keys[0])
            continue
        faults["unexpected"] += [f"{entry.key} (beside {found[0].key})" for entry in found[1:]]
        piece, shape, dtypes = _piece(found[0], target, of, shapes[target.name])
        found[0] = piece.entry
        if list(found[0].shape) != shape:
            given = list(found[0].shape)
            faults["wrongly shaped"].append(f"{found[0].key} {given}, expected {shape}")
        if found[0].dtype not in dtypes:
            fault = f"{found[0].key} ({found[0].dtype}; read are {', '.join(dtypes)})"
            faults["of a dtype that is not read"].append(fault)
        pieces[target.name].append(piece)
    homeless = sorted(set(shapes) - {target.name for target in sources})
    assert not homeless, f"the rename table of {family.name} has no key for {homeless}"
    tied = _pop_tied(family, cfg, stored)
    dropped = pattern(family.dropped)
    faults["unexpected"] += [e.key for key, e in stored.items() if not dropped.fullmatch(key)]
    raise_faults(f"family {family.name}", faults)
    return Plan(pieces, tied)


def _piece(
    entry: Entry, target: Target, cfg: TransformerConfig, ours: Sequence[int]
) -> tuple[Piece, list[int], Mapping[str, torch.dtype]]:
    """Where an entry goes, and the shape and the dtypes that it may have."""
    if target.part in PARTS:
        part = PARTS[target.part]
        put = functools.partial(part.put, cfg, target.index)
        piece = Piece(entry, slice(None), target.transposed, placed=put)
        return piece, part.shape(cfg), BYTES if part.packed else FLOATS
    rows, shape = _rows(cfg, target.part), list(ours)
    added = target.part == "first row added"
    entry = _first_row(entry) if added else _without_ones(entry, len(shape))
    if target.part and not added:
        shape[0] = rows.stop - rows.start
    if target.transposed:
        shape.reverse()
    heads = (cfg.n_kv_heads, cfg.n_heads // cfg.n_kv_heads, cfg.d_head)
    heads = heads if target.part == "heads" else None
    return Piece(entry, rows, target.transposed, heads, added=added), shape, FLOATS


def with_stored_head(
    family: Family, cfg: TransformerConfig, entries: Mapping[str, Entry]
) -> TransformerConfig:
    """The config without its masked-LM head where the file has nothing of the head's transform, and
    without what else the family's files may lack."""
    if cfg.unembed_bias and family.optional_bias not in (None, *entries):
        cfg = cfg.replace(unembed_bias=False)
    if cfg.head != "mlm" or family.rename is None:
        return cfg
    keys = [key for key, target in family.rename.items() if target.name.startswith("mlm_head.")]
    if any(prefix + key in entries for prefix in ("", *family.prefixes) for key in keys):
        return cfg
    return cfg.replace(head="none", tied=False, unembed_bias=False, final_softcap=None)


def _without_prefix(family: Family, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    stored: dict[str, Entry] = {}
    for key, entry in entries.items():
        prefix = next((p for p in family.prefixes if key.startswith(p)), "")
        short = key.removeprefix(prefix)
        if short in stored:
            raise WeightsError(f"both {key!r} and {stored[short].key!r} are in the file")
        stored[short] = entry
    return stored


def _sources(
    family: Family, cfg: TransformerConfig, shapes: Mapping[str, Sequence[int]]
) -> dict[Target, list[str]]:
    """For each part of each parameter, the keys under which a file may have it."""
    if family.rename is None:
        return {Target(name): [name] for name in shapes}
    sources: dict[Target, list[str]] = {}
    halved = {target.name for target in family.rename.values() if target.part == "gate"}
    for template, target in family.rename.items():
        of = cfg.of_parameter(target.name)
        if target.name in halved and of.mlp_gated == (target.part is None):
            continue  # a table for both kinds of MLP
        for layer in range(of.n_layers) if "{}" in template else (0,):
            name = target.name.format(layer)
            if name not in shapes:
                continue
            several = {"{expert}": of.n_experts, "{head}": shapes[name][0]}
            count = next((n for mark, n in several.items() if mark in template), 1)
            for i in range(count):
                filled = target._replace(name=name, index=i)
                sources.setdefault(filled, []).append(template.format(layer, expert=i, head=i))
    return sources


def _rows(cfg: TransformerConfig, part: str | None) -> slice:
    q, kv = cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head
    return {
        **dict.fromkeys((None, "first row added"), slice(None)),
        "q": slice(0, q),
        "k": slice(q, q + kv),
        "v": slice(q + kv, q + 2 * kv),
        "heads": slice(0, q + 2 * kv),
        "gate": slice(0, cfg.d_mlp),
        "in": slice(cfg.d_mlp, 2 * cfg.d_mlp),
    }[part]


def _without_ones(entry: Entry, n_axes: int) -> Entry:
    """The same numbers without leading axes of length 1, down to `n_axes`."""
    shape = entry.shape
    while len(shape) > n_axes and shape[0] == 1:
        shape = shape[1:]
    return entry._replace(shape=shape)


def _first_row(entry: Entry) -> Entry:
    """The first row of a table, which lies first in the file."""
    return entry._replace(shape=entry.shape[1:]) if entry.shape[:1] != (0,) else entry


def _pop_tied(family: Family, cfg: TransformerConfig, stored: dict[str, Entry]) -> Entry | None:
    """The unembedding that a tied checkpoint stores a second time."""
    keys = [k for k, t in (family.rename or {}).items() if t.name == "unembed.weight"]
    found = [stored.pop(key) for key in keys if cfg.tied and key in stored]
    return found[0] if found else None


def pattern(templates: Sequence[str]) -> re.Pattern[str]:
    parts = (re.escape(t).replace(r"\{\}", r"\d+").replace(r"\*", ".*") for t in templates)
    return re.compile("|".join(parts) or r"(?!)")


def raise_faults(of: str, faults: Mapping[str, Sequence[str]]) -> None:
    lines = [
        f"{len(found)} {kind}: {', '.join(found[:SHOWN])}{', …' if len(found) > SHOWN else ''}"
        for kind, found in faults.items()
        if found
    ]
    if lines:
        raise WeightsError(f"the weights do not fit the config ({of}):\n  " + "\n  ".join(lines))


def common_dtype(plan: Plan) -> torch.dtype:
    """The dtype of the stored weights; the smallest that holds all where they differ."""
    return stored_dtype(
        piece.entry for pieces in plan.pieces.values() for piece in pieces if piece.entry
    )


def stored_dtype(entries: Iterable[Entry]) -> torch.dtype:
    """The smallest that holds all the floating numbers of some tensors of a file."""
    dtypes = {FLOATS[entry.dtype] for entry in entries if entry.dtype in FLOATS}
    return functools.reduce(torch.promote_types, dtypes)


def fill(
    plan: Plan,
    shapes: Mapping[str, Sequence[int]],
    dtype: torch.dtype,
    device: torch.device,
    reader: Callable[[], Reader] = Reader,
) -> Iterator[tuple[str, Tensor]]:
    """Each parameter with its numbers, one after the other.

    Raises WeightsError where a tied model stores an unembedding that is not its embedding.
    """
    with reader() as files:
        for name, pieces in plan.pieces.items():
            transposed = pieces[0].transposed
            shape = list(shapes[name])
            memory = torch.empty(shape[::-1] if transposed else shape, dtype=dtype, device=device)
            parameter = memory.T if transposed else memory
            for piece in sorted(pieces, key=lambda piece: piece.added):
                if piece.placed is not None:
                    piece.placed(parameter, files.read(piece.entry))
                    continue
                rows = parameter[piece.rows]
                if piece.entry is None:
                    rows.zero_()
                elif piece.added:
                    term = torch.empty_like(rows)
                    files.copy(piece.entry, term)
                    rows += term
                else:
                    files.copy(piece.entry, rows.T if transposed else rows)
                if piece.heads:
                    _sort_heads(rows, *piece.heads)
            if name == "embed.W_E" and plan.tied and not files.equals(plan.tied, parameter):
                raise WeightsError(
                    f"{plan.tied.key} differs from the embedding, but the config says that they "
                    'are tied; set "tie_word_embeddings": false in config.json'
                )
            yield name, parameter


def _sort_heads(rows: Tensor, n_kv_heads: int, n_queries: int, d_head: int) -> None:
    """From each key-value head's queries, key and value to all queries, all keys, all values.

    In place, through one copy of this parameter.
    """
    q, kv = n_kv_heads * n_queries * d_head, n_kv_heads * d_head
    stored = rows.unflatten(0, (n_kv_heads, n_queries + 2, d_head)).clone()
    parts = stored.split_with_sizes((n_queries, 1, 1), 1)
    for target, part in zip(rows.split_with_sizes((q, kv, kv)), parts, strict=True):
        target.unflatten(0, part.shape[:3]).copy_(part)
