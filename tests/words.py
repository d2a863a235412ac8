"""A tokenizer of whole words for tests: what is not in its list falls into pieces."""

from __future__ import annotations

from interp.core.tokenizer import unused


class WordTokenizer:
    """Speaks the part of the protocol of `interp.tokenizer.Tokenizer` that geometry needs."""

    name = "words"
    hash = "0" * 64
    special_ids = frozenset()

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.vocab_size = len(words)

    def single(self, text: str) -> int:
        if text in self.words:
            return self.words.index(text)
        pieces = [text[:2], text[2:]]
        raise ValueError(f"{text!r} is 2 tokens, {pieces}")

    def str_tokens(self, ids) -> list[str]:
        return [self.words[i] if i < len(self.words) else unused(i) for i in ids]
