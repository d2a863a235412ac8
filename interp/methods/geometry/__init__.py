"""Geometry of word vectors: tables of a model, what its layers make of words, and controls.

`embedding` reads a table, and `Embedding` answers questions about it (neighbours, analogies,
directions, spectrum, clusters). `at_words`, `at_tokens` and `of_texts` read what every layer makes
of places in texts; `disambiguation` says how far the senses of a word lie apart there, and
`alignment`, `cka` and `procrustes` how alike two layers or models are.
"""

from .context import Places, at_tokens, at_words, of_texts
from .likeness import alignment, cka, cka_matrix, procrustes
from .reading import embedding
from .senses import Senses, disambiguation, separable
from .vectors import Embedding

__all__ = [
    "Embedding",
    "Places",
    "Senses",
    "alignment",
    "at_tokens",
    "at_words",
    "cka",
    "cka_matrix",
    "disambiguation",
    "embedding",
    "of_texts",
    "procrustes",
    "separable",
]
