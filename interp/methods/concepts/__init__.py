"""A concept's directions: found on texts of two classes, read on others, used by the model or not.

`of_pairs`, `of_words` and `Concept` itself say what the texts are; `find_all` finds directions by
every method in every layer, `separation` says how they tell held-out texts apart, `causal_check`
(in `interp.steering`) what they change, and `verdict` what that allows to say (Marks & Tegmark
2023).
"""

from .causes import Verdict, choose_layer, other_tokens, summary, verdict
from .finding import METHODS, Directions, Method, find, find_all
from .separation import auroc, auroc_interval, separation
from .texts import Ask, Concept, Halves, asked, of_pairs, of_texts, of_words

__all__ = [
    "METHODS",
    "Ask",
    "Concept",
    "Directions",
    "Halves",
    "Method",
    "Verdict",
    "asked",
    "auroc",
    "auroc_interval",
    "choose_layer",
    "find",
    "find_all",
    "of_pairs",
    "of_texts",
    "of_words",
    "other_tokens",
    "separation",
    "summary",
    "verdict",
]
