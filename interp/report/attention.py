"""Attention patterns as a page carries them, and what they say of each head in numbers.

A weight travels as one byte (weight × 255, rounded), of a causal pattern only the lower triangle;
each head is a piece of its own, gzip and base64, that the browser unpacks when it is looked at.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from pandas.api import types

from .table import Table
from .text import json_block, token_text

TOLERANCE = 0.01
"""How far a row may be from 1: bfloat16 rounds it by about half of that."""
STEPS = 255
TILE = 32
"""Edge of a head's small picture where the patterns themselves stand on other pages."""
MEASURES = ("first_token", "previous_token", "itself", "entropy_bits")


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt and what every head makes of it."""

    tokens: tuple[str, ...]
    codes: np.ndarray
    """uint8 [layer head q_pos k_pos], weight × 255."""

    @cached_property
    def causal(self) -> bool:
        """Whether nothing is attended to that comes later."""
        return not np.triu(self.codes.max(axis=(0, 1)), 1).any()

    def pieces(self, layers: Sequence[int], heads: Sequence[int]) -> list[list[str]]:
        """Per layer and head: the bytes row by row (causal: up to the diagonal), gzip, base64."""
        size = self.codes.shape[-1]
        kept = np.tril_indices(size) if self.causal else np.indices((size, size)).reshape(2, -1)
        return [
            [_packed(self.codes[layer, head][*kept].tobytes()) for head in heads]
            for layer in layers
        ]

    def small(self) -> Prompt:
        """At most `TILE` positions: each cell the largest weight of those that it stands for."""
        size = self.codes.shape[-1]
        edges = np.unique(np.arange(min(TILE, size)) * size // min(TILE, size))
        codes = np.maximum.reduceat(self.codes, edges, axis=2)
        return replace(self, codes=np.maximum.reduceat(codes, edges, axis=3))


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


@dataclass(frozen=True, eq=False)
class Attention:
    """The patterns of all heads on some prompts, and the table of the heads."""

    prompts: tuple[Prompt, ...]
    table: Table
    """One row per layer and head: what `heads_table` returns."""
    layers: tuple[int, ...]
    """Those whose patterns this page holds."""
    pages: Mapping[int, str] = field(default_factory=dict)
    """Where each layer has a page of its own: its file."""
    index: str = ""
    """The page that a layer's page belongs to."""
    heads: tuple[int, ...] = ()
    """Those whose patterns this page holds; none named: all."""
    prompt: int = 1
    """The prompt that is shown first, counted from 1."""

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def caption(self) -> str:
        return self.table.caption

    def shows(self, layer: int, head: int, prompt: int) -> bool:
        """Whether this page, or a page per layer beside it, can open a head at a prompt, counted
        from 1."""
        frame = self.table.frame
        there = ((frame["layer"] == layer) & (frame["head"] == head)).any()
        return bool(there) and 1 <= prompt <= len(self.prompts)

    @cached_property
    def data(self) -> Markup:
        """What viewer.js reads: names, tokens, scores and packed patterns, as harmless JSON."""
        frame = self.table.frame
        heads = self.heads or tuple(range(int(frame["head"].max()) + 1))
        rows = frame[frame["layer"].isin(self.layers) & frame["head"].isin(heads)]
        scores = {
            str(name).replace("_", " "): [float(f"{value:.4g}") for value in rows[name]]
            for name in rows
            if name not in ("layer", "head", "label")
        }
        content = {
            "name": self.name,
            "layers": list(self.layers),
            "heads": list(heads),
            "scores": scores,
            "labels": [token_text(str(one)) for one in rows["label"]] if "label" in rows else None,
            "pages": {str(layer): page for layer, page in self.pages.items()},
            "index": self.index,
            "prompt": self.prompt,
            "prompts": [self._prompt(prompt, heads) for prompt in self.prompts],
        }
        return Markup(json_block(content))

    def _prompt(self, prompt: Prompt, heads: Sequence[int]) -> dict[str, Any]:
        shown = prompt.small() if self.pages and not self.index else prompt
        return {
            "tokens": [token_text(str(token)) for token in prompt.tokens],
            "size": shown.codes.shape[-1],
            "causal": prompt.causal,
            "pieces": shown.pieces(self.layers, heads),
        }

    def split(self, index: str) -> dict[str, Attention]:
        """The same on several pages, by file name: the small pictures on `index`, and one page per
        layer with its patterns."""
        digits = max(2, len(str(max(self.layers))))
        pages = {layer: f"{self.name}-layer-{layer:0{digits}}.html" for layer in self.layers}
        whole = replace(self, pages=pages)
        return {index: whole} | {
            pages[layer]: replace(whole, layers=(layer,), index=index, table=self._table_of(layer))
            for layer in self.layers
        }

    def one(self, layer: int, head: int, caption: str, prompt: int | None = None) -> Attention:
        """The same of one head, for a page of its own, opened at a prompt."""
        table = self._table_of(layer)
        of_head = table.frame[table.frame["head"] == head].reset_index(drop=True)
        table = replace(table, frame=of_head, caption=caption)
        first = self.prompt if prompt is None else check_prompt(prompt, len(self.prompts))
        return replace(self, layers=(layer,), heads=(head,), table=table, prompt=first)

    def _table_of(self, layer: int) -> Table:
        frame = self.table.frame
        return replace(self.table, frame=frame[frame["layer"] == layer].reset_index(drop=True))


def check_prompt(prompt: int, number: int) -> int:
    """The prompt that a viewer shows first, counted from 1; raises ValueError on what is none."""
    if isinstance(prompt, bool) or not isinstance(prompt, Integral) or not 1 <= prompt <= number:
        raise ValueError(f"prompt={prompt!r}: expected one of 1 to {number}")
    return int(prompt)


def check_patterns(
    patterns: np.ndarray | Sequence[np.ndarray], tokens: Sequence[str] | Sequence[Sequence[str]]
) -> tuple[list[np.ndarray], list[list[str]]]:
    """One float32 array and one list of tokens per prompt; a single prompt may be given bare.

    Raises ValueError on shapes that do not fit, weights that are none, and rows that do not sum to
    one.
    """
    if isinstance(patterns, np.ndarray) and patterns.ndim == 4:
        patterns = [patterns]
    if tokens and all(isinstance(one, str) for one in tokens):
        tokens = [tokens]
    arrays, words = [np.asarray(one) for one in patterns], [list(row) for row in tokens]
    if not arrays or len(arrays) != len(words):
        raise ValueError(
            f"{len(arrays)} arrays of patterns for {len(words)} lists of tokens: give one of each "
            "per prompt, and at least one prompt"
        )
    for number, (array, row) in enumerate(zip(arrays, words, strict=True)):
        _check_shape(f"prompt {number}", array, row, arrays[0].shape)
        _check_weights(f"prompt {number}", array)
    return [array.astype(np.float32) for array in arrays], words


def _check_shape(where: str, array: np.ndarray, tokens: list[str], first: tuple) -> None:
    shape = list(array.shape)
    if array.ndim != 4 or not np.issubdtype(array.dtype, np.floating) or 0 in shape:
        raise ValueError(
            f"{where}: patterns need floats of shape [layer head q_pos k_pos], got {array.dtype} "
            f'{shape}; torch.stack([cache["pattern", l][0] for l in …]).float().numpy() has it'
        )
    if shape[2] != shape[3]:
        raise ValueError(
            f"{where}: patterns of {shape[2]} queries and {shape[3]} keys; the viewer shows "
            "self-attention, where both are the same tokens"
        )
    if len(tokens) != shape[2]:
        raise ValueError(
            f"{where}: {len(tokens)} tokens for patterns of {shape[2]} positions; special tokens "
            "count, padding must be cut from both"
        )
    if shape[2] < 2:
        raise ValueError(f"{where}: one token attends to itself; give a prompt of two or more")
    if array.shape[:2] != first[:2]:
        raise ValueError(
            f"{where}: {shape[0]} layers of {shape[1]} heads, but prompt 0 has {first[0]} of "
            f"{first[1]}; the prompts of one viewer are read by one model"
        )


def _check_weights(where: str, array: np.ndarray) -> None:
    def place(bad: np.ndarray) -> str:
        at = np.argwhere(bad)[0]
        return ", ".join(
            f"{name} {i}" for name, i in zip(("layer", "head", "q_pos", "k_pos"), at, strict=False)
        )

    bad = ~np.isfinite(array)
    if bad.any():
        raise ValueError(
            f"{where}: {int(bad.sum())} weights are no finite numbers, the first at {place(bad)}; "
            "a padding query has none, so run prompts one at a time"
        )
    bad = (array < 0) | (array > 1 + TOLERANCE)
    if bad.any():
        value = float(array[bad][0])
        raise ValueError(
            f"{where}: the weight at {place(bad)} is {value:.4g}, expected 0 to 1; give the site "
            '"pattern", not "attn_scores"'
        )
    sums = array.sum(axis=-1, dtype=np.float64)
    bad = np.abs(sums - 1) > TOLERANCE
    if bad.any():
        raise ValueError(
            f"{where}: the weights at {place(bad)} sum to {sums[bad][0]:.4g}, not to 1; give whole "
            "rows of the softmax, with every key and without padding"
        )


def encode(patterns: list[np.ndarray], tokens: list[list[str]]) -> tuple[Prompt, ...]:
    """Prompts with their weights as bytes; what `check_patterns` returns."""
    return tuple(
        Prompt(tuple(row), np.rint(np.clip(array, 0, 1) * STEPS).astype(np.uint8))
        for array, row in zip(patterns, tokens, strict=True)
    )


def heads_table(patterns: list[np.ndarray], scores: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per head: layer head [label] first_token previous_token itself entropy_bits, then
    the given scores.

    The shares of attention, and the entropy of a row in bits, are averaged over the positions of a
    prompt but its first, which has nowhere else to look, then over prompts. `scores` has one row
    per layer and head, numeric columns, and perhaps a text column `label`.
    """
    shape = patterns[0].shape[:2]
    measured = np.mean([_measured(array) for array in patterns], axis=0)
    layer, head = np.indices(shape).reshape(2, -1)
    frame = pd.DataFrame({"layer": layer, "head": head})
    frame[list(MEASURES)] = measured.reshape(len(MEASURES), -1).T
    return frame if scores is None else _with_scores(frame, scores)


def _measured(array: np.ndarray) -> np.ndarray:
    """[measure layer head] of one prompt; layer by layer, since float64 takes twice the room."""
    at = np.arange(1, array.shape[-1])
    measured = []
    for layer in array:
        rows = layer[:, 1:].astype(np.float64)
        bits = -(rows * np.log2(np.where(rows > 0, rows, 1))).sum(axis=-1)
        shares = (rows[..., 0], rows[:, at - 1, at - 1], rows[:, at - 1, at], bits)
        measured.append([one.mean(axis=-1) for one in shares])
    return np.stack(measured, axis=1)


def _with_scores(frame: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    keys = ["layer", "head"]
    if not set(keys) <= set(scores.columns):
        raise ValueError(f"scores need the columns layer and head, got {list(scores.columns)}")
    wanted = pd.MultiIndex.from_frame(frame[keys])
    given = pd.MultiIndex.from_frame(scores[keys])
    if given.has_duplicates or set(given) != set(wanted):
        raise ValueError(
            f"scores have {len(scores)} rows; expected one for each of the {len(frame)} heads, "
            f"layer 0 to {frame['layer'].max()} and head 0 to {frame['head'].max()}"
        )
    own = [name for name in scores.columns if name not in keys]
    for name in own:
        if name in MEASURES:
            raise ValueError(f"the score {name!r} is measured already: rename the column")
        column = scores[name]
        if name == "label":
            continue
        if not types.is_numeric_dtype(column):
            raise ValueError(f"the score {name!r} holds no numbers; text goes in a column 'label'")
        if not np.isfinite(column.to_numpy(dtype=float, na_value=np.nan)).all():
            raise ValueError(f"the score {name!r} holds values that are no finite numbers")
    joined = frame.merge(scores, on=keys, how="left", validate="one_to_one")
    first = ["label"] if "label" in own else []
    return joined[[*keys, *first, *MEASURES, *(name for name in own if name not in first)]]
