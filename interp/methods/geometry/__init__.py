"""Geometry of word vectors: tables of a model, what its layers make of words, and controls.

`embedding` reads a table, and `Embedding` answers questions about it (neighbours, analogies,
directions, spectrum, clusters); `every_setting` and `analogy_controls` ask analogies in every way
and beside controls. `at_words`, `at_tokens` and `of_texts` read what every layer makes
of places in texts; `disambiguation` says how far the senses of a word lie apart there, and
`alignment`, `cka` and `procrustes` how alike two layers or models are.
"""

from .context import Places, at_tokens, at_words, of_texts
from .likeness import alignment, cka, cka_matrix, procrustes
from .questions import analogy_controls, every_setting
from .reading import embedding
from .senses import Senses, disambiguation, separable
from .vectors import Embedding

__all__ = [
    "Embedding",
    "Places",
    "Senses",
    "alignment",
    "analogy_controls",
    "at_tokens",
    "at_words",
    "cka",
    "cka_matrix",
    "disambiguation",
    "embedding",
    "every_setting",
    "of_texts",
    "procrustes",
    "separable",
]
