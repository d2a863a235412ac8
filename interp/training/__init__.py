"""Training of small models, on text or on a generated language: read `loop.py`, it is short."""

from .config import TrainConfig
from .data import Data, MaskedData, SampledData, TextData
from .loop import train
from .state import TrainingError
from .text import TextRun, train_on_text
from .vocabulary import train_tokenizer

__all__ = [
    "Data",
    "MaskedData",
    "SampledData",
    "TextData",
    "TextRun",
    "TrainConfig",
    "TrainingError",
    "train",
    "train_on_text",
    "train_tokenizer",
]
