"""What a model is given: text, ids, vectors, images, sound or trajectories become `Tokens`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from interp.core.config import TransformerConfig
from interp.core.indices import whole_numbers
from interp.core.tokens import Tokens
from interp.core.unknown import warn_of_unknown

if TYPE_CHECKING:
    from interp.core.tokenizer import Tokenizer

Input: TypeAlias = Tokens | Tensor | np.ndarray | str | Sequence | Mapping
"""Tokens, ids (numpy's too), vectors [batch pos d_model], text where the model has a tokenizer, or
the images, spectrograms and trajectories of a model that reads those."""


class Reader(nn.Module):
    """The part of a model that makes `Tokens` of what it is given, and text of ids."""

    cfg: TransformerConfig
    tokenizer: Tokenizer | None
    name: str
    inputs: nn.Module | None
    """What makes vectors of inputs that are not words."""
    encoder: Reader | None
    stored_end_ids: tuple[int, ...] = ()
    """The end tokens that the model's files name."""

    @property
    def like(self) -> Tensor:
        """A weight that every model has, for its device and dtype."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return self.like.device

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    def accept(self, value: Input) -> Tokens:
        """Tokens on this model's device: ids inside the vocabulary, vectors d_model wide.

        To an encoder–decoder, what has no `source` of its own (text, ids, vectors, sound) is the
        source, and the decoder reads its start token; so does `generate`. `to_tokens(…, target=…)`
        or Tokens(ids, source=…) give both. Text, images, spectrograms and trajectories (a dict) go
        through `to_tokens`.
        """
        if self._reader.inputs is not None and not isinstance(value, Tokens):
            named = isinstance(value, Mapping)
            value = self.to_tokens(**value) if named else self.to_tokens(value)
        tokens = self.checked(value)
        if self.encoder is None:
            if tokens.source is not None:
                raise ValueError("these tokens have a source, but this model has no encoder")
            return tokens
        if tokens.source is None:
            tokens = dataclasses.replace(self._start(len(tokens)), source=tokens)
        source = self.encoder.accept(tokens.source)
        if len(source) != len(tokens):
            raise ValueError(f"a source of {len(source)} rows for {len(tokens)} rows of tokens")
        return dataclasses.replace(tokens, source=source)

    @property
    def _reader(self) -> Reader:
        """The stack that reads what the model is given."""
        return self if self.encoder is None else self.encoder

    def _start(self, batch: int) -> Tokens:
        """What the decoder of an encoder–decoder reads before anything is written."""
        start = self.cfg.decoder_start_token_id
        if start is None:
            raise ValueError(
                "decoder_start_token_id=None: this model does not say how its decoder begins; give "
                "Tokens(ids of the decoder, source=…)"
            )
        ids = torch.tensor([start, *self.cfg.decoder_forced_ids], device=self.device)
        return Tokens(ids.repeat(batch, 1))

    def checked(self, value: Input) -> Tokens:
        """Tokens as they are given, checked as `accept` says."""
        if isinstance(value, str) or (
            isinstance(value, (list, tuple)) and len(value) > 0 and isinstance(value[0], str)
        ):
            value = self.to_tokens(value)
        tokens = Tokens.of(value)
        if tokens.mask is not None and not torch.compiler.is_compiling():
            empty = ~tokens.mask.any(1)
            if bool(empty.any()):
                raise ValueError(f"row {int(empty.nonzero()[0])} holds nothing but pads")
        if tokens.vectors is not None:
            if tokens.vectors.shape[-1] != self.cfg.d_model:
                raise ValueError(
                    f"vectors are {tokens.vectors.shape[-1]} wide; d_model={self.cfg.d_model}"
                )
            vectors = tokens.vectors.to(self.device, self.dtype)
            return dataclasses.replace(tokens, vectors=vectors).to(self.device)
        if self.inputs is not None:
            raise ValueError(f"this model reads {self.cfg.inputs}, and these tokens are ids")
        if not torch.compiler.is_compiling() and not tokens.ids.is_meta:
            low, high = (int(v) for v in tokens.ids.aminmax())
            if low < 0 or high >= self.cfg.d_vocab:
                raise ValueError(
                    f"token id {low if low < 0 else high} is outside the vocabulary: "
                    f"expected 0 to {self.cfg.d_vocab - 1}"
                )
        return tokens.to(self.device)

    def to_tokens(
        self,
        value: Any = None,
        *,
        target: str | Sequence[str] | None = None,
        bos: bool | None = None,
        side: Literal["left", "right"] = "right",
        roles: Mapping[str, Tensor] | None = None,
        **named: Any,
    ) -> Tokens:
        """What this model reads, as Tokens, one row per example. cfg.inputs says what that is:

        tokens: a text or several, padded on `side`. bos=None follows the tokenizer's own template
        ([CLS] … [SEP] for BERT, BOS for Llama, nothing for GPT-2); True puts exactly one BOS first;
        False adds no special token.
        patches: pixels [batch channel height width], rescaled and normalised.
        frames: a log-mel spectrogram [batch mel column], or audio= [sample] or [batch sample] with
        rate= in samples per second.
        trajectory: returns= [batch step], states= [batch step d_state], actions= [batch step
        d_action] and, where wanted, timesteps= and mask= [batch step].

        Of an encoder–decoder that is the source, and `roles` are its. The decoder reads its start
        tokens and, where `target` is given (one text per source), what the tokenizer makes of it
        without the end token: the ids that a model is trained to continue.

        `roles` are named positions, beside those that images ("class") and trajectories ("return",
        "state", "action": the last step's) have. Raises ValueError on anything else.
        """
        if self.encoder is None and target is not None:
            raise ValueError("target= is what a decoder reads; this model has no encoder")
        reads = self._reader
        if reads.inputs is None:
            if named:
                raise ValueError(f"this model reads text, not {'= and '.join(named)}=")
            tokens = self._text_to_tokens(value, bos, side)
        else:
            if self.encoder is None and (bos is not None or side != "right"):
                raise ValueError(f"bos= and side= go with text; this model reads {self.cfg.inputs}")
            tokens = reads.inputs(*(() if value is None else (value,)), **named)
        tokens = dataclasses.replace(tokens, roles={**tokens.roles, **(roles or {})})
        if self.encoder is None:
            return tokens
        return dataclasses.replace(self._target(target, len(tokens), bos, side), source=tokens)

    def _text_to_tokens(
        self, texts: Any, bos: bool | None, side: Literal["left", "right"]
    ) -> Tokens:
        if texts is None:
            raise ValueError("empty prompt: no text was given")
        tokenizer = self._tokenizer()
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("empty prompt: no text was given")
        rows = [tokenizer.encode(text, bos=bos) for text in texts]
        warn_of_unknown(tokenizer, texts)
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise ValueError(f"empty prompt: {text!r} has no tokens (bos=True would add one)")
        return self._of_rows(rows, side)

    def _of_rows(self, rows: list[list[int]], side: Literal["left", "right"]) -> Tokens:
        tokenizer = self._tokenizer()
        pad_id = next((i for i in (tokenizer.pad_id, tokenizer.eos_id) if i is not None), 0)
        tokens = Tokens.from_rows(rows, pad_id=pad_id, side=side)
        begins = tokenizer.bos_id is not None and all(row[0] == tokenizer.bos_id for row in rows)
        strings = [tokenizer.str_tokens(ids) for ids in tokens.ids.tolist()]
        return dataclasses.replace(tokens, strings=strings, bos=begins).to(self.device)

    def _target(
        self,
        target: str | Sequence[str] | None,
        batch: int,
        bos: bool | None,
        side: Literal["left", "right"],
    ) -> Tokens:
        """What the decoder of an encoder–decoder reads: its start tokens, and text."""
        if target is None and self.tokenizer is None:
            return self._start(batch)
        tokenizer = self._tokenizer()
        texts = [target] if isinstance(target, str) else [""] * batch if target is None else target
        if len(texts) != batch:
            raise ValueError(f"{len(texts)} targets for {batch} sources: expected one per source")
        rows = self._start(batch).ids.tolist()
        for row, text in zip(rows, texts, strict=True):
            ids = tokenizer.encode(text, bos=bos) if text else []
            if bos is None and ids[:1] == row[:1]:  # a template that begins as the decoder does
                ids = tokenizer.encode(text, bos=False)
            row += ids[:-1] if bos is None and ids[-1:] == [tokenizer.eos_id] else ids
        return self._of_rows(rows, side)

    def to_str_tokens(self, text: str, *, bos: bool | None = None) -> list[str]:
        """The readable pieces of a text, one per token."""
        return self._tokenizer().str_tokens(self._tokenizer().encode(text, bos=bos))

    def to_string(self, ids: Tensor | Sequence[int]) -> str:
        """The text of some ids. One that the model can predict and no token has stands in it by its
        name, "<unused 1995>"."""
        tokenizer, flat = self._tokenizer(), whole_numbers(ids, "ids").flatten().tolist()
        for id in flat:
            if id >= self.cfg.d_vocab:
                tokenizer.token(id)  # raises where the tokenizer does not have it either
        return tokenizer.decode(flat)

    def to_single_token(self, word: str) -> int:
        """The one id of a word. Raises ValueError naming the pieces when it is several."""
        return self._tokenizer().single(word)

    @property
    def end_ids(self) -> frozenset[int]:
        """Every token that ends a text: the tokenizer's, and those that config.json and
        generation_config.json name."""
        eos = None if self.tokenizer is None else self.tokenizer.eos_id
        return frozenset(self.stored_end_ids).union([] if eos is None else [eos])

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(f"model {self.name!r} has no tokenizer: give token ids, not text")
        return self.tokenizer
