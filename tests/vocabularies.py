"""Tokenizers of several kinds that know the words of `interp.tasks`, and small models with them."""

from __future__ import annotations

import re
import string
from functools import cache
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from interp.core.tokenizer import Tokenizer
from interp.data.tasks import Pairs
from interp.data.tasks.prompts import words
from interp.model import HookedTransformer
from tests.strategies import small_config

BERT = {"mask_token": "[MASK]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def known_words(without: tuple[str, ...] = ()) -> list[str]:
    """Every word and mark of the lists and templates, but for those in `without`."""
    found: dict[str, None] = {}

    def walk(value: Any) -> None:
        if isinstance(value, str):
            text = re.sub(r"\{\w+\}", " ", value)
            found.update(dict.fromkeys(re.findall(r"\w+|[^\w\s]", text)))
        else:
            for one in value.values() if isinstance(value, dict) else value:
                walk(one)

    walk(words())
    return [word for word in found if word not in without]


def whole_words(without: tuple[str, ...] = (), years: range = range(1700, 1900)) -> Tokenizer:
    """One token per word; what it does not know is [UNK]."""
    entries = ["[PAD]", "[UNK]", "<s>", *known_words(without), *map(str, years)]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(entries))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "<s>"}
    return Tokenizer(backend.to_str(), special, "whole-words")


def word_level(n: int, special: tuple[str, ...] = ()) -> str:
    """A tokenizer.json of the words w0, w1 …, w(n−1), and special tokens behind them."""
    vocab = {f"w{i}": i for i in range(n)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(special))
    return backend.to_str()


def numbers_as_words(n: int) -> Tokenizer:
    """The words "0" to str(n − 1), each its own id; "1" ends a text, and "0" is the pad."""
    backend = tokenizers.Tokenizer(models.WordLevel({str(i): i for i in range(n)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A 1", special_tokens=[("1", 1)])
    return Tokenizer(backend.to_str(), {"eos_token": "1", "pad_token": "0"}, "numbers")


def single_letters() -> Tokenizer:
    """The letters a to z, ids 1 to 26, written without spaces; "." (id 0) ends a text."""
    vocab = {letter: i for i, letter in enumerate("." + string.ascii_lowercase)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return Tokenizer(backend.to_str(), {"eos_token": "."}, "letters")


def byte_pairs(
    without: tuple[str, ...] = (), digits: int = 2, numbers: str | None = None
) -> Tokenizer:
    """A byte-level BPE like that of GPT-2 ("Ġthe"); numbers fall into groups of `digits`, or into
    what the pattern `numbers` matches."""
    backend = tokenizers.Tokenizer(models.BPE())
    groups = Regex(numbers or rf" ?\d{{1,{digits}}}")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(groups, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    trainer = trainers.BpeTrainer(
        vocab_size=20_000,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [f"{word} {word}" for word in known_words(without)]
    corpus += [f"{year} {year}" for year in range(1100, 2000)]
    backend.train_from_iterator(corpus, trainer)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|end|>")
    return Tokenizer(backend.to_str(), special, "bpe")


def masked(without: tuple[str, ...] = ()) -> Tokenizer:
    """Lower-case WordPiece between [CLS] and [SEP], with a mask token, like that of BERT."""
    letters = [f"{mark}{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789" for mark in ("", "##")]
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    entries += [word.lower() for word in known_words(without)]
    entries += [str(year) for year in range(1500, 2000)]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(entries))}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    return Tokenizer(backend.to_str(), {**BERT, "pad_token": "[PAD]"}, "masked")


KINDS = ("whole words", "byte pairs", "masked")


def model_of(tokenizer: Tokenizer, **changes) -> HookedTransformer:
    cfg = small_config(n_layers=1, d_vocab=tokenizer.vocab_size, n_ctx=64, **changes)
    return HookedTransformer(cfg, tokenizer=tokenizer)


@cache
def models_by_kind() -> dict[str, HookedTransformer]:
    """A small model for each kind of tokenizer."""
    return {
        "whole words": model_of(whole_words()),
        "byte pairs": model_of(byte_pairs()),
        "masked": model_of(masked(), causal=False),
    }


def word_at(pairs: Pairs, role: str, row: int, side: str = "clean") -> str:
    tokens = getattr(pairs, side)
    return tokens.strings[row][int(tokens.roles[role][row])].strip()


def same(word: str, other: str) -> bool:
    """Equal but for case, which some tokenizers do not keep."""
    return word.lower() == other.lower()


def text_of(model, id) -> str:
    return model.tokenizer.str_tokens([int(id)])[0].strip()
