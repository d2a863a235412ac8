"""Tokens: what one run reads, with padding, positions and beginning-of-sequence made explicit.

Padding may stand on either side: positions count real tokens only, and a pad is never attended to,
so the numbers of the real tokens are those of the unpadded run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .indices import Indices, index_tensor, is_several, row_indices, whole_numbers

ENCODING = {"input_ids": "ids", "attention_mask": "mask", "token_type_ids": "token_types"}
"""What a tokenizer of Hugging Face returns, and what it is called here."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """A batch of sequences. Make one with `model.to_tokens(texts)` or `Tokens.of(ids)`.

    Whole numbers of any type become int64, and a mask of 0 and 1 becomes one of booleans. Raises
    ValueError on other numbers, on shapes that differ from [batch pos], and on a role that is not
    one position of a real token per row.
    """

    ids: Int[Tensor, "batch pos"] | None
    """Vocabulary ids; None when `vectors` are given."""
    vectors: Float[Tensor, "batch pos d_model"] | None = None
    """Embeddings in place of ids (soft prompts, image patches, audio frames, trajectories)."""
    mask: Bool[Tensor, "batch pos"] | None = None
    """True (or 1) at real tokens; None: all are real."""
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
    """Named positions, one index per row: {"subject": tensor([3, 4])}. Negative ones count from
    the end of the row, pads included: −1 is the last token of a row that is padded on the left, and
    refused in one that is padded on the right."""
    source: Tokens | None = None
    """What the encoder of an encoder–decoder reads; these tokens are then the decoder's."""
    bos: bool | None = None
    """Whether every row begins with the beginning-of-sequence token; None: not known."""

    def __post_init__(self) -> None:
        if torch.compiler.is_compiling():
            return
        for name, value in self._checked_fields().items():
            object.__setattr__(self, name, value)

    def _checked_fields(self) -> dict[str, Any]:
        """The fields that hold numbers, as they are used; looks at values only where it must."""
        if (self.ids is None) == (self.vectors is None):
            raise ValueError("tokens need either ids or vectors")
        fields: dict[str, Any] = {}
        for name in ("ids", "positions", "token_types"):
            if (value := getattr(self, name)) is not None:
                fields[name] = whole_numbers(value, name)
        whole = self.vectors if self.ids is None else fields["ids"]
        if self.ids is not None and whole.ndim != 2:
            raise ValueError(f"ids have the shape {list(whole.shape)}, expected [batch pos]")
        shape = whole.shape[:2]
        if self.mask is not None:
            fields["mask"] = _booleans(self.mask)
        for name in ("mask", "positions", "token_types"):
            if name in fields and fields[name].shape != shape:
                raise ValueError(
                    f"{name} has the shape {list(fields[name].shape)}, expected one per token: "
                    f"{list(shape)}"
                )
        if self.roles and not whole.is_meta:
            real = fields.get("mask")
            fields["roles"] = {
                name: _role(name, where, shape, real).to(whole.device)
                for name, where in self.roles.items()
            }
        return fields

    @classmethod
    def of(cls, value: Tokens | Tensor | np.ndarray | Sequence | Mapping[str, Indices]) -> Tokens:
        """Tokens from ids (tensor or array [pos] or [batch pos], list, list of lists), from vectors
        [batch pos d_model], or from what a tokenizer of Hugging Face returns (input_ids,
        attention_mask, token_type_ids).

        Lists of unequal length are padded on the right. Raises ValueError on an empty prompt.
        """
        if isinstance(value, Tokens):
            return value
        if isinstance(value, np.ndarray):
            plain = value.dtype.kind in "biufc"
            value = torch.from_numpy(value.copy()) if plain else whole_numbers(value, "ids")
        if isinstance(value, Tensor):
            return cls._of_tensor(value)
        if isinstance(value, Mapping):
            return cls._of_encoding(value)
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) == 0:
            what = (
                "an empty list" if isinstance(value, Sequence) and not len(value) else repr(value)
            )
            raise ValueError(f"expected token ids (or a model.to_tokens(text)), got {what}")
        if is_several(value[0]):
            return cls.from_rows(value)
        return cls._of_tensor(whole_numbers(value, "ids"))

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
    def _of_encoding(cls, value: Mapping[str, Indices]) -> Tokens:
        """From what a tokenizer of Hugging Face returns, padded or not."""
        other = [name for name in value if name not in ENCODING]
        if other or "input_ids" not in value:
            raise ValueError(
                f"expected token ids, got a mapping of {', '.join(map(repr, value))}; an encoding "
                "holds 'input_ids' and, where wanted, 'attention_mask' and 'token_type_ids' alone"
            )
        tokens = cls.of(value["input_ids"])
        if tokens.ids is None:
            raise ValueError("input_ids are floats: expected whole numbers")
        named = {}
        for name, field_name in ENCODING.items():
            if name != "input_ids" and name in value:
                rows = cls.of(value[name])  # padded as the ids are, where they are lists
                named[field_name] = rows.ids
        if tokens.mask is not None and "mask" in named:
            named["mask"] = _booleans(named["mask"]) & tokens.mask
        return dataclasses.replace(tokens, **named)

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Indices],
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
            ids[i, where] = whole_numbers(row, f"ids of row {i}")
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

    def __getitem__(self, rows: Indices) -> Tokens:
        """Some of the rows, as Tokens, by index, slice, list or mask; the width stays. A row may be
        asked for several times."""
        index = row_indices(rows, len(self))
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


def _booleans(mask: Bool[Tensor, "..."] | Indices) -> Bool[Tensor, "..."]:
    """A mask as it is written elsewhere, of 0 and 1, as one of booleans."""
    given = mask
    if not isinstance(mask, Tensor):
        array = np.array(mask)
        if array.dtype.kind not in "biuf":
            raise ValueError("the mask holds something else than booleans, or 1 and 0")
        given = torch.from_numpy(array)
    if given.dtype == torch.bool:
        return given
    if given.is_floating_point() or given.is_complex():
        raise ValueError(
            f"the mask is of {given.dtype}: expected booleans, or 1 at real tokens and 0 at pads"
        )
    strange = given[(given != 0) & (given != 1)]
    if len(strange):
        raise ValueError(
            f"the mask holds {int(strange[0])}: expected booleans, or 1 at real tokens and 0 at "
            "pads"
        )
    return given.bool()


def _role(
    name: str, where: Indices, shape: Sequence[int], real: Bool[Tensor, "batch pos"] | None
) -> Int[Tensor, " batch"]:
    """The positions of a role, counted from the start; `real` is None where nothing is padded."""
    batch, width = shape
    at = index_tensor(where, width, f"role {name!r}")
    if at.shape != (batch,):
        raise ValueError(
            f"role {name!r} has the shape {list(at.shape)}; expected one index per row, [{batch}]"
        )
    if real is not None:
        pads = ~real[torch.arange(batch, device=real.device), at.to(real.device)]
        if bool(pads.any()):
            row = int(pads.nonzero()[0])
            raise ValueError(
                f"role {name!r} of row {row} is position {int(at[row])}, which is a pad: the real "
                f"tokens of that row are {_span(real[row])}"
            )
    return at


def _span(real: Bool[Tensor, " pos"]) -> str:
    at = real.nonzero().flatten().tolist()
    return f"{at[0]} to {at[-1]}" if at else "none"
