"""Tokens: what one run reads, with padding, positions and beginning-of-sequence made explicit.

Padding may stand on either side: positions count real tokens only, and a pad is never attended to,
so the numbers of the real tokens are those of the unpadded run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tokens:
    """A batch of sequences. Make one with `model.to_tokens(texts)` or `Tokens.of(ids)`."""

    ids: Int[Tensor, "batch pos"] | None
    """Vocabulary ids; None when `vectors` are given."""
    vectors: Float[Tensor, "batch pos d_model"] | None = None
    """Embeddings in place of ids (soft prompts, image patches, audio frames, trajectories)."""
    mask: Bool[Tensor, "batch pos"] | None = None
    """True at real tokens; None: all are real."""
    positions: Int[Tensor, "batch pos"] | None = None
    """Position of each token; None: counted over the real tokens, from 0."""
    token_types: Int[Tensor, "batch pos"] | None = None
    """Segment of each token (BERT); None: all 0."""
    strings: Sequence[Sequence[str]] | None = None
    """Each token in words, where somebody knows them: " the", "patch 3,4", "state 12"."""
    kinds: Sequence[str] | None = None
    """What stands at each position, in all rows, where that is no word: "class", "patch", "frame",
    "return", "state", "action"."""
    roles: Mapping[str, Int[Tensor, " batch"]] = field(default_factory=dict)
    """Named positions, one index per row: {"subject": tensor([3, 4])}."""
    source: Tokens | None = None
    """What the encoder of an encoder–decoder reads; these tokens are then the decoder's."""
    bos: bool | None = None
    """Whether every row begins with the beginning-of-sequence token; None: not known."""

    @classmethod
    def of(cls, value: Tokens | Tensor | Sequence) -> Tokens:
        """Tokens from ids (tensor [pos] or [batch pos], list, list of lists) or vectors.

        Lists of unequal length are padded on the right. Raises ValueError on an empty prompt.
        """
        if isinstance(value, Tokens):
            return value
        if isinstance(value, Tensor):
            return cls._of_tensor(value)
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) == 0:
            what = (
                "an empty list" if isinstance(value, Sequence) and not len(value) else repr(value)
            )
            raise ValueError(f"expected token ids (or a model.to_tokens(text)), got {what}")
        if isinstance(value[0], Sequence) and not isinstance(value[0], str):
            return cls.from_rows(value)
        return cls._of_tensor(torch.as_tensor(value))

    @classmethod
    def _of_tensor(cls, value: Tensor) -> Tokens:
        if value.is_floating_point():
            if value.ndim != 3:
                raise ValueError(
                    f"vectors need the shape [batch pos d_model], got {list(value.shape)}; images "
                    "and spectrograms become tokens by model.to_tokens, on a model that reads them"
                )
            tokens = cls(None, vectors=value)
        elif value.dtype == torch.bool or value.is_complex() or value.ndim not in (1, 2):
            raise ValueError(
                "token ids need whole numbers of shape [pos] or [batch pos], "
                f"got {value.dtype} {list(value.shape)}"
            )
        else:
            tokens = cls(value.long() if value.ndim == 2 else value.long()[None])
        if 0 in tokens.shape:
            raise ValueError(f"empty prompt: tokens of shape {list(tokens.shape)}")
        return tokens

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Sequence[int]],
        *,
        pad_id: int = 0,
        side: Literal["left", "right"] = "right",
    ) -> Tokens:
        """One row per list of ids; shorter rows are padded on `side` with `pad_id`."""
        if side not in ("left", "right"):
            raise ValueError(f"side={side!r}: expected 'left' or 'right'")
        for i, row in enumerate(rows):
            if len(row) == 0:
                raise ValueError(f"empty prompt: row {i} has no tokens")
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), pad_id)
        mask = torch.zeros((len(rows), width), dtype=torch.bool)
        for i, row in enumerate(rows):
            where = slice(width - len(row), None) if side == "left" else slice(len(row))
            ids[i, where] = torch.as_tensor(row)
            mask[i, where] = True
        return cls(ids, mask=None if bool(mask.all()) else mask)

    @property
    def shape(self) -> torch.Size:
        """[batch pos]."""
        return self.ids.shape if self.ids is not None else self.vectors.shape[:2]

    @property
    def device(self) -> torch.device:
        return (self.ids if self.ids is not None else self.vectors).device

    @property
    def real(self) -> Bool[Tensor, "batch pos"]:
        """True at real tokens, as a tensor even where nothing is padded."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.shape, dtype=torch.bool, device=self.device)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> Tokens:
        """Some of the rows, as Tokens; the width stays."""
        if isinstance(rows, Tensor):
            rows = rows.cpu()  # where the index of all rows lies, whatever the device of the tokens
        index = torch.arange(len(self))[[rows] if isinstance(rows, int) else rows]
        return dataclasses.replace(
            self,
            **{name: t[index.to(t.device)] for name, t in self._tensors().items()},
            strings=None if self.strings is None else [self.strings[int(i)] for i in index],
            roles={name: where[index.to(where.device)] for name, where in self.roles.items()},
            source=None if self.source is None else self.source[index],
        )

    def to(self, device: torch.device | str) -> Tokens:
        """The same tokens on another device."""
        placed = [self] if self.source is None else [self, self.source]
        if all(one.device == torch.device(device) for one in placed):
            return self
        moved = {name: t.to(device) for name, t in self._tensors().items()}
        roles = {name: where.to(device) for name, where in self.roles.items()}
        source = None if self.source is None else self.source.to(device)
        return dataclasses.replace(self, **moved, roles=roles, source=source)

    def _tensors(self) -> dict[str, Tensor]:
        names = ("ids", "vectors", "mask", "positions", "token_types")
        return {name: t for name in names if (t := getattr(self, name)) is not None}

    def __repr__(self) -> str:
        batch, pos = self.shape
        pads = 0 if self.mask is None else int((~self.mask).sum())
        first = "" if self.strings is None else f", first row {list(self.strings[0])}"
        source = "" if self.source is None else f", source={self.source!r}"
        return f"Tokens(batch={batch}, pos={pos}, pads={pads}, bos={self.bos}{first}{source})"
