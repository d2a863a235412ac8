"""Text to token ids and back, and what a model's folder says about it."""

from .folder import TOKENIZER_FILES, has_tokenizer
from .serialized import UnknownText
from .tokenizer import BLANK, Tokenizer, past, unused

__all__ = [
    "BLANK",
    "TOKENIZER_FILES",
    "Tokenizer",
    "UnknownText",
    "has_tokenizer",
    "past",
    "unused",
]
