"""A large text as a stream of batches that fit into a model's context.

A file is read line by line and never held; each line is a text. What is longer than the context is
cut into windows, each with the special tokens of the tokenizer's template. A stream can be taken up
again at any batch: `Place` says where it stands.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.core.files import decode, open_regular
from interp.core.indices import is_several, whole_numbers
from interp.core.tokens import Tokens
from interp.core.unknown import warn_of_unknown
from interp.loading.fingerprint import SIZE, digest
from interp.model import HookedTransformer

LONGEST = 1 << 20
"""Bytes of a line that are held at once; a longer one is cut at a space."""
LOOKED_AT = 200
"""Texts whose unknown tokens are counted before any is run."""


class Place(NamedTuple):
    """Where a stream stands."""

    offset: int = 0
    """The byte of the file, or the number in the list, at which the current piece begins."""
    text: int = 0
    """Which text it is of."""
    window: int = 0
    """How many windows of that text lie before the piece."""
    skip: int = 0
    """How many windows of the piece have been given."""


class Batch(NamedTuple):
    """Some windows, and where the stream stands behind them."""

    tokens: Tokens
    text: Int[Tensor, " batch"]
    """Which line of the file, or entry of the list."""
    window: Int[Tensor, " batch"]
    """Which window of it."""
    after: Place


class Windows:
    """What `source` holds, in batches of windows of at most `width` tokens (default: the context).

    source: a file (a Path) of UTF-8 text, one text per line, blank lines left out; texts; lists of
    ids; or Tokens, whose rows, where they carry more than ids and a mask, are taken as they are.
    bos as in `model.to_tokens`; of ids nothing is added. Raises ValueError on a source that holds
    nothing, and one that can be read only once.
    """

    def __init__(
        self,
        model: HookedTransformer,
        source: Any,
        *,
        width: int | None = None,
        bos: bool | None = None,
        batch_size: int = 32,
    ) -> None:
        n_ctx = model.cfg.n_ctx
        self.model, self.bos, self.batch_size = model, bos, batch_size
        self.width = n_ctx if width is None else width
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected 1 or more")
        if not 1 <= self.width <= n_ctx:
            raise ValueError(f"width={width}: this model reads 1 to {n_ctx} tokens")
        self.source = _read(model, source)
        self._around: tuple[list[int], list[int]] | None = None
        self._stat = self._file_state()
        pieces = (piece for _, _, piece in self._pieces(Place()) if isinstance(piece, str))
        if texts := list(itertools.islice(pieces, LOOKED_AT)):
            warn_of_unknown(model.tokenizer, texts)

    @property
    def size(self) -> int:
        """Of the whole, in the units of `Place.offset`."""
        return self._stat[0] if isinstance(self.source, Path) else len(self.source)

    def fingerprint(self) -> str:
        """What tells sources apart: their kind, size and a hash. Reads a file once through."""
        if isinstance(self.source, Path):
            with open_regular(self.source) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()[:SIZE]
            return f"file of {self.size} bytes {found}"
        kind = "tokens" if isinstance(self.source, Tokens) else type(self.source[0]).__name__
        return f"{len(self.source)} of {kind} {digest(self.source)}"

    def check_unchanged(self) -> None:
        """Raise ValueError where the file was written to since the stream was made."""
        if self._file_state() != self._stat:
            raise ValueError(f"{self.source} was changed while it was read")

    def batches(self, place: Place | None = None) -> Iterator[Batch]:
        """All windows behind a place, by default all; always cut into the same batches."""
        if isinstance(self.source, Tokens):
            yield from self._rows(self.source, (place or Place()).offset)
            return
        rows: list[list[int]] = []
        text: list[int] = []
        window: list[int] = []
        for ids, number, count, after in self._windows(place or Place()):
            rows.append(ids)
            text.append(number)
            window.append(count)
            if len(rows) == self.batch_size:
                yield self._batch(rows, text, window, after)
                rows, text, window = [], [], []
        if rows:
            yield self._batch(rows, text, window, after)

    def _rows(self, tokens: Tokens, start: int) -> Iterator[Batch]:
        for i in range(start, len(tokens), self.batch_size):
            end = min(i + self.batch_size, len(tokens))
            some = tokens[slice(i, end)]
            count = torch.arange(i, end)
            yield Batch(some, count, torch.zeros_like(count), Place(offset=end, text=end))

    def _batch(self, rows: list, text: list, window: list, after: Place) -> Batch:
        tokenizer = self.model.tokenizer
        pads = (None, None) if tokenizer is None else (tokenizer.pad_id, tokenizer.eos_id)
        pad_id = next((i for i in pads if i is not None), 0)
        tokens = Tokens.from_rows(rows, pad_id=pad_id)
        return Batch(tokens, torch.tensor(text), torch.tensor(window), after)

    def _windows(self, place: Place) -> Iterator[tuple[list[int], int, int, Place]]:
        """Ids, text, window, and where the stream then stands."""
        base, current = place.window, place.text
        for offset, text, piece in self._pieces(place):
            base = base if text == current else 0
            current = text
            cut = self._cut(piece, text)
            for i, ids in enumerate(cut):
                if offset == place.offset and i < place.skip:
                    continue
                yield ids, text, base + i, Place(offset, text, base, i + 1)
            base += len(cut)

    def _pieces(self, place: Place) -> Iterator[tuple[int, int, Any]]:
        """Where a piece begins, which text it is of, and itself."""
        if isinstance(self.source, Path):
            yield from _lines(self.source, place.offset, place.text)
        else:
            for i in range(place.offset, len(self.source)):
                yield i, i, self.source[i]

    def _cut(self, piece: str | Sequence[int], text: int) -> list[list[int]]:
        """The ids of a piece, in windows."""
        if not isinstance(piece, str):
            given = whole_numbers(piece, f"ids of text {text}")
            if given.ndim != 1:
                raise ValueError(f"text {text} has ids of {given.ndim} axes: expected one")
            if not len(given):
                raise ValueError(f"empty prompt: text {text} has no tokens")
            ids = given.tolist()
            return [ids[i : i + self.width] for i in range(0, len(ids), self.width)]
        ids = self.model.tokenizer.encode(piece, bos=self.bos) if piece else []
        if not ids:
            raise ValueError(f"empty prompt: text {text}, {piece!r}, has no tokens")
        if len(ids) <= self.width:
            return [ids]
        before, behind = self._template()
        own = self.width - len(before) - len(behind)
        body = self.model.tokenizer.encode(piece, bos=False)
        parts = (body[i : i + own] for i in range(0, len(body), own))
        return [[*before, *part, *behind] for part in parts]

    def _template(self) -> tuple[list[int], list[int]]:
        """The special tokens before and behind a text."""
        if self._around is None:
            tokenizer, probe = self.model.tokenizer, "a"
            body, whole = tokenizer.encode(probe, bos=False), tokenizer.encode(probe, bos=self.bos)
            at = next(
                i for i in range(len(whole) + 1) if whole[i : i + len(body)] == body or not body
            )
            self._around = whole[:at], whole[at + len(body) :]
            if len(whole) - len(body) >= self.width:
                raise ValueError(
                    f"width={self.width}: the {len(whole) - len(body)} special tokens of a text "
                    "leave no room for it"
                )
        return self._around

    def _file_state(self) -> tuple[int, int]:
        if not isinstance(self.source, Path):
            return 0, 0
        found = self.source.stat()
        return found.st_size, found.st_mtime_ns


def _read(model: HookedTransformer, source: Any) -> Path | Tokens | list:
    """A source in the form in which it is read, checked as far as that costs nothing."""
    if isinstance(source, os.PathLike):
        source = Path(source)
        open_regular(source).close()  # refuses what is no file
    elif isinstance(source, str):
        if len(source) < 1000 and "\n" not in source and Path(source).is_file():
            raise ValueError(f"{source!r} is the name of a file: give Path({source!r}) to read it")
        source = [source]
    elif isinstance(source, (Tensor, Tokens, np.ndarray)):
        source = _plain_rows(Tokens.of(source))
    elif isinstance(source, Sequence):
        whole = len(source) > 0 and not is_several(source[0]) and not isinstance(source[0], str)
        source = [source] if whole else list(source)  # ids of one text, or several texts
    else:
        raise ValueError(
            f"a {type(source).__name__} can be read only once, so a stopped run could not go on; "
            "give a list, or write it to a file, one text per line, and give its Path"
        )
    if not isinstance(source, Path) and not len(source):
        raise ValueError("there is no text: the list is empty")
    text = isinstance(source, Path) or (isinstance(source, list) and isinstance(source[0], str))
    if text and model.tokenizer is None:
        raise ValueError(f"model {model.name!r} has no tokenizer: give token ids, not text")
    return source


def _plain_rows(tokens: Tokens) -> Tokens | list[list[int]]:
    """Rows of ids that can be cut; the Tokens themselves where they say more than that."""
    more = (tokens.vectors, tokens.positions, tokens.token_types, tokens.source)
    if tokens.roles or any(one is not None for one in more):
        return tokens
    assert tokens.ids is not None
    return [ids[real].tolist() for ids, real in zip(tokens.ids, tokens.real, strict=True)]


def _lines(path: Path, offset: int, text: int) -> Iterator[tuple[int, int, str]]:
    """The lines of a file from a byte on, without the blank ones; long ones in pieces."""
    with open_regular(path) as file:
        file.seek(offset)
        while read := file.readline(LONGEST):
            if read.endswith(b"\r") and file.peek(1)[:1] == b"\n":
                read += file.read(1)
            lines = read.splitlines(keepends=True)  # a lone CR ends a line, too
            whole = read.endswith((b"\n", b"\r")) or len(read) < LONGEST
            if not whole:  # the last line goes on: it is read again, or in pieces where it is long
                lines = lines[:-1] or [read[: _place_to_cut(read)]]
                whole = lines[0].endswith(b"\r")
                file.seek(offset + sum(map(len, lines)))
            for line in lines:
                words = decode(line, path, offset=offset, line=text + 1).strip("\r\n")
                if words.strip():
                    yield offset, text, words
                offset += len(line)
                text += whole


def _place_to_cut(line: bytes) -> int:
    """Before the last space of the second half, else between two characters."""
    space = line.rfind(b" ", len(line) // 2)
    if space > 0:
        return space
    end = len(line)
    while end > len(line) - 4 and line[end - 1] & 0xC0 == 0x80:  # inside a character
        end -= 1
    return end - 1 if line[end - 1] & 0xC0 == 0xC0 else len(line)
