"""Tokenizers made from the text that a model is trained on, with the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers

from interp.core.tokenizer import Tokenizer

SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
MAX_WORDS = 200_000


def train_tokenizer(
    text: str,
    kind: Literal["char", "word", "bpe"],
    vocab_size: int | None = None,
    name: str = "tokenizer",
    *,
    masked: bool = False,
) -> Tokenizer:
    """A tokenizer of a text: its characters, its words, or byte-level BPE with `vocab_size` entries
    (Sennrich et al. 2016; bytes as in GPT-2).

    Words are what spaces part; punctuation stands by itself. Only "word" has an unknown token, and
    `vocab_size` keeps the commonest. `masked` adds a mask token where the kind has none. Raises
    ValueError on an empty text, and where there are fewer words or pairs than asked for.
    """
    if not text.strip():
        raise ValueError("the text is empty: a tokenizer needs something to read")
    mask = {"mask_token": SPECIAL["mask_token"]} if masked else {}
    if kind == "char":
        return _characters(sorted(set(text)), name, mask)
    if kind == "word":
        pieces = pre_tokenizers.Sequence(_WORDS).pre_tokenize_str(text)
        counts: dict[str, int] = {}
        for piece, _ in pieces:
            counts[piece] = counts.get(piece, 0) + 1
        room = MAX_WORDS if vocab_size is None else vocab_size - len(SPECIAL)
        if vocab_size is not None and not 0 < room <= len(counts):
            raise ValueError(
                f"vocab_size={vocab_size}: the text has {len(counts)} different words, besides "
                f"{len(SPECIAL)} special tokens"
            )
        common = sorted(counts, key=lambda word: (-counts[word], word))[:room]
        return from_words(common, name)
    if kind == "bpe":
        return _bpe(text, vocab_size or 4096, name, mask)
    raise ValueError(f"kind={kind!r}: expected 'char', 'word' or 'bpe'")


_WORDS = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]


def from_words(
    words: Iterable[str], name: str, *, digits: int | None = None, bos: bool = False
) -> Tokenizer:
    """One id per word; words are parted by spaces, punctuation stands by itself.

    digits: numbers fall into groups of so many, from the left ("1732" → "17" "32"). bos: the
    tokenizer's own template puts `<s>` first. Decoding joins groups of digits, and leaves no space
    before a mark.
    """
    vocab = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL.values(), *words]))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, SPECIAL["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(_WORDS)
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    if digits is not None:
        groups = pre_tokenizers.Split(Regex(rf"\d{{1,{digits}}}"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([*_WORDS, groups])
        joined = decoders.Replace(Regex(r"(?<=\d) (?=\d)| (?=[.,;:?!])"), "")
        spaced = decoders.WordPiece(prefix="##", cleanup=False)
        # A decoder sees one token at a time until they are fused.
        backend.decoder = decoders.Sequence([spaced, decoders.Fuse(), joined])
    if bos:
        start = SPECIAL["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, vocab[start])]
        )
    return _finished(backend, SPECIAL, name)


def _characters(pieces: Iterable[str], name: str, special: dict[str, str]) -> Tokenizer:
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.decoder = decoders.Fuse()
    return _finished(backend, special, name)


def _bpe(text: str, vocab_size: int, name: str, mask: dict[str, str]) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", **mask}
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(dict.fromkeys(special.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(text.splitlines(keepends=True), trainer)
    if backend.get_vocab_size() != vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size}: byte-level BPE of this text has from "
            f"{256 + len(set(special.values()))} to {backend.get_vocab_size()} entries"
        )
    return _finished(backend, special, name)


def _finished(backend: tokenizers.Tokenizer, special: dict[str, str], name: str) -> Tokenizer:
    backend.add_special_tokens(list(dict.fromkeys(special.values())))
    return Tokenizer(backend.to_str(), special, name)
