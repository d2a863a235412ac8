"""Text to token ids and back, and what a model's folder says about it."""

from .folder import TOKENIZER_FILES
from .serialized import UnknownText
from .tokenizer import BLANK, Tokenizer, past, unused

__all__ = ["BLANK", "TOKENIZER_FILES", "Tokenizer", "UnknownText", "past", "unused"]
