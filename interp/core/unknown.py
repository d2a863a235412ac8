"""What of a text a tokenizer does not know.

A word that is not in the vocabulary becomes the unknown token, whatever it is, or is dropped
without one; what is then measured is about nothing. Counted are unknown tokens that do not stand
for their own name in the text, and characters of which nothing is left.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from .tokenizer import BLANK, Tokenizer, UnknownText

logger = logging.getLogger(__name__)
STRIPPED = range(0x300, 0x370)
"""Accents of Latin that tokenizers strip by design, as they lower the case of letters."""
SHOWN = 5
WORTH_A_WARNING = 0.05


class Unknown(NamedTuple):
    """How much of some texts is unknown."""

    tokens: int
    """Tokens of the texts, without special ones of a template, and the characters dropped."""
    unknown: int
    """Of these, the unknown tokens and the characters dropped."""
    examples: tuple[str, ...]
    """The commonest words that are unknown or lose a character, at most five."""

    @property
    def share(self) -> float:
        """Of the tokens, those unknown; 0 where there are none."""
        return self.unknown / self.tokens if self.tokens else 0.0

    def __str__(self) -> str:
        if not self.unknown:
            return f"none of {self.tokens:,} tokens is unknown to the tokenizer"
        words = ", ".join(repr(word[:40]) for word in self.examples)
        share = f"{self.share:.1%}" if self.share < 0.1 else f"{self.share:.0%}"
        return (
            f"{self.unknown:,} of {self.tokens:,} tokens ({share}) are unknown to the tokenizer: "
            f"{words}"
        )


def unknown_tokens(model: Any, texts: str | Sequence[str]) -> Unknown:
    """How much of these texts the tokenizer of a model (or a tokenizer) does not know.

    Raises ValueError on a model without a tokenizer.
    """
    tokenizer = model if isinstance(model, Tokenizer) else model.tokenizer
    if tokenizer is None:
        raise ValueError(f"model {model.name!r} has no tokenizer, to which words could be unknown")
    texts = [texts] if isinstance(texts, str) else list(texts)
    tokens = unknown = 0
    count = _counter(tokenizer)
    for text in texts:
        more, missed = count(text)
        tokens, unknown = tokens + more, unknown + missed
    return Unknown(tokens, unknown, _examples(count, texts) if unknown else ())


def warn_of_unknown(tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    """Log a warning, once for the same words, where more than 5 % of the tokens are unknown."""
    found = unknown_tokens(tokenizer, list(texts))
    if found.share > WORTH_A_WARNING:
        _say(f"{tokenizer.name}: {found}")


@cache
def _say(message: str) -> None:
    logger.warning(message)


def _counter(tokenizer: Tokenizer) -> Callable[[str], tuple[int, int]]:
    """A function from a text to its tokens and those of them that are unknown."""
    ids = tokenizer.unknown_ids
    names = [tokenizer.token(i) for i in ids]

    @cache
    def is_dropped(character: str) -> bool:
        if character in BLANK or unicodedata.category(character)[0] in "ZC":
            return False
        if ord(character) in STRIPPED:
            return False
        try:
            pieces = [tokenizer.token(i) for i in tokenizer.encode(character, bos=False)]
        except UnknownText:  # known as a part of words alone
            return False
        return not any(piece.strip(BLANK) for piece in pieces)  # a space may stand before a text

    def count(text: str) -> tuple[int, int]:
        tokens = len(tokenizer.encode(text, bos=False))
        for name in names:
            text = text.replace(name, " ")
        missed = sum(i in ids for i in tokenizer.encode(text, bos=False))
        dropped = sum(n for c, n in Counter(text).items() if is_dropped(c))
        return tokens + dropped, missed + dropped

    return count


def _examples(count: Callable[[str], tuple[int, int]], texts: Iterable[str]) -> tuple[str, ...]:
    words = Counter(word for text in texts for word in text.split())
    unknown = (word for word, _ in words.most_common() if count(word)[1])
    return tuple(word for word, _ in zip(unknown, range(SHOWN), strict=False))
