"""Text to token ids and back, over the `tokenizers` library.

A `Tokenizer` is read from the files of a model's folder, as data. Whether a BOS token is added is
said at every call, never a setting; padding and truncation that a file switches on are switched
off, because they change a sequence without anybody having asked.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from tokenizers import decoders

from ..indices import whole_number
from .folder import read_folder
from .serialized import UnknownText, backend, panics_named

BLANK = "▁Ġ "
"""How vocabularies write a space."""
RARE = ("\U00010600", "\U00010601")
"""Two signs of Linear A, which no vocabulary has: they are the same token where that is unknown."""
MAX_ID = 2**32
"""What the library counts to."""


def unused(id: int) -> str:
    """The name of an id that no token has."""
    return f"<unused {id}>"


def past(start: str, whole: str) -> str:
    """What a text has beyond what it shares with its beginning. That beginning, decoded alone, may
    end in U+FFFD where the next token completes a character."""
    shared = os.path.commonprefix([start, whole])  # noqa: RUF071  # of characters
    return whole[len(shared) :]


class Tokenizer:
    """A vocabulary with its special tokens. Made by `from_folder`, or from the text of a
    tokenizer.json and the special tokens' strings ({"bos_token": "<s>", …})."""

    def __init__(
        self, serialized: str, special: dict[str, str] | None = None, name: str = "tokenizer"
    ) -> None:
        self.name = name
        self.special = dict(special or {})
        self.unread: tuple[str, ...] = ()
        """Files and fields of its folder that are not read."""
        self._serialized = serialized
        self._backend = backend(serialized, name)
        self._pieces: dict[int, str] = {}

    @classmethod
    def from_folder(cls, folder: str | Path, name: str | None = None) -> Tokenizer | None:
        """The tokenizer of a model's folder; None where the folder has no tokenizer files."""
        found = read_folder(Path(folder))
        if found is None:
            return None
        tokenizer = cls(found.serialized, found.special, name or Path(folder).name)
        tokenizer.unread = found.unread
        return tokenizer

    @cached_property
    def hash(self) -> str:
        """sha256 of the tokenizer.json."""
        return hashlib.sha256(self._serialized.encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Entries, added tokens included; a model's d_vocab may be padded past it."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def entries_past(self, d_vocab: int) -> dict[str, int]:
        """Entries, with their ids, for which an embedding of so many rows has none."""
        last_added = max(self._backend.get_added_tokens_decoder(), default=-1)
        if self.vocab_size <= d_vocab and last_added < d_vocab:
            return {}  # all others are numbered from 0; listing 50,000 takes as long as a check
        return {token: i for token, i in self.vocab().items() if i >= d_vocab}

    @property
    def bos_id(self) -> int | None:
        """Beginning of sequence."""
        return self._special_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """End of sequence."""
        return self._special_id("eos_token")

    @property
    def pad_id(self) -> int | None:
        """Padding."""
        return self._special_id("pad_token")

    @property
    def unk_id(self) -> int | None:
        """What an unknown word becomes; byte-level vocabularies have none."""
        return self._special_id("unk_token")

    @cached_property
    def unknown_ids(self) -> frozenset[int]:
        """What an unknown word becomes, as the special tokens say and as the vocabulary does, which
        a folder need not state."""
        stated = [] if self.unk_id is None else [self.unk_id]
        try:
            first, second = (self.encode(sign, bos=False) for sign in RARE)
        except UnknownText:
            return frozenset(stated)
        same = first == second and any(self.token(i).strip(BLANK) for i in first)
        return frozenset([*stated, *(first[-1:] if same else [])])

    @property
    def mask_id(self) -> int | None:
        """The blank of masked language models."""
        return self._special_id("mask_token")

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of all tokens that stand for no text."""
        added = self._backend.get_added_tokens_decoder()
        named = (self._special_id(role) for role in self.special)
        found = {i for i, token in added.items() if token.special}
        return frozenset(found.union(i for i in named if i is not None))

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        """Ids of a text.

        bos=None: with the special tokens of the tokenizer's own template ([CLS] … [SEP] for BERT,
        BOS for Llama, nothing for GPT-2). True: exactly one BOS at the start and nothing else
        added; raises where there is none. False: no special token is added.
        """
        if not isinstance(text, str):
            raise ValueError(f"text {text!r}: expected a string, not a {type(text).__name__}")
        start = self.bos_id
        if bos and start is None:
            raise ValueError(
                f"tokenizer {self.name!r} has no BOS token; bos=None gives its own template, "
                "bos=False no special token"
            )
        text.encode("utf-8")  # a lone surrogate raises UnicodeEncodeError, which says where it is
        with panics_named(self.name):
            ids = self._backend.encode(text, add_special_tokens=bos is None).ids
        return [start, *ids] if bos and start is not None and ids[:1] != [start] else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids, special tokens included. An id without a token stands in it by its
        name ("<unused 1995>"); raises ValueError on a number that no vocabulary has."""
        ids = [whole_number(i, "token id") for i in ids]
        if all(map(self._has, set(ids))):
            return self._decoded(ids)
        text, known = "", []
        for has, run in itertools.groupby(ids, self._has):
            if has:
                before, known = known, [*known, *run]
                text += past(self._decoded(before), self._decoded(known))
            else:
                text += "".join(map(unused, run))
        return text

    def token(self, id: int) -> str:
        """The raw vocabulary entry of an id: "Ġthe", "▁the", "##ing"."""
        id = whole_number(id, "token id")
        if not self._has(id):
            raise ValueError(
                f"id {id} is not in the vocabulary of {self.name!r}, which has {self.vocab_size}"
            )
        return self._backend.id_to_token(id)

    def str_tokens(self, ids: Iterable[int]) -> list[str]:
        """A readable piece per id (" the"); bytes that are no whole character become U+FFFD.

        An embedding may have rows that no token of the tokenizer has: "<unused 1995>".
        """
        return [self._piece(whole_number(i, "token id")) for i in ids]

    def single(self, text: str) -> int:
        """The one id of a text, without special tokens.

        Raises ValueError, naming the pieces, when the text is several tokens or an unknown one.
        """
        ids = self.encode(text, bos=False)
        if len(ids) == 1 and (ids[0] not in self.unknown_ids or text == self.token(ids[0])):
            return ids[0]
        if len(ids) == 1:
            raise ValueError(f"{text!r} is unknown to the tokenizer {self.name!r}")
        raise ValueError(
            f"{text!r} is {len(ids)} tokens, {self.str_tokens(ids)}, where one is needed"
            f"{self._single_variant(text)}"
        )

    def vocab(self) -> dict[str, int]:
        """Raw entry to id, added tokens included."""
        return self._backend.get_vocab(with_added_tokens=True)

    def files(self) -> dict[str, bytes]:
        """What `from_folder` reads back: tokenizer.json byte for byte, and the special tokens."""
        config = json.dumps(self.special, indent=2, sort_keys=True) + "\n"
        return {
            "tokenizer.json": self._serialized.encode(),
            "tokenizer_config.json": config.encode(),
        }

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, {self.vocab_size} entries, {self.special})"

    def _special_id(self, role: str) -> int | None:
        token = self.special.get(role)
        return None if token is None else self._backend.token_to_id(token)

    def _has(self, id: int) -> bool:
        if not 0 <= id < MAX_ID:
            raise ValueError(
                f"id {id} is not in the vocabulary of {self.name!r}, which has {self.vocab_size}: "
                "expected a whole number, not negative"
            )
        return self._backend.id_to_token(id) is not None

    def _decoded(self, ids: list[int]) -> str:
        with panics_named(self.name):
            return self._backend.decode(ids, skip_special_tokens=False)

    def _piece(self, id: int) -> str:
        if id not in self._pieces:
            self._pieces[id] = self._raw_or_decoded(id) if self._has(id) else unused(id)
        return self._pieces[id]

    def _raw_or_decoded(self, id: int) -> str:
        raw, decoder = self.token(id), self._backend.decoder
        if decoder is None or isinstance(decoder, decoders.WordPiece) or id in self.special_ids:
            return raw
        # Twice minus once, because decoders strip the space in front of a text's first token.
        once, twice = self._decoded([id]), self._decoded([id, id])
        return twice[len(once) :] or raw

    def _single_variant(self, text: str) -> str:
        """A hint where the word is one token with, or without, the space in front of it."""
        other = text.strip() if text != text.strip() else f" {text}"
        if not other:
            return ""
        ids = self.encode(other, bos=False)
        return f"; {other!r} is one" if len(ids) == 1 and ids[0] not in self.unknown_ids else ""
