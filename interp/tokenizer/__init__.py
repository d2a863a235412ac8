"""Text to token ids and back, and what a model's folder says about it."""

from .folder import TOKENIZER_FILES
from .tokenizer import Tokenizer, past, unused

__all__ = ["TOKENIZER_FILES", "Tokenizer", "past", "unused"]
