"""Lenses: what the model would say if it stopped early.

The logit lens (nostalgebraist 2020) reads every residual stream by the final norm, computed anew on
it, and the unembedding. The tuned lens (Belrose et al. 2023) puts an affine map in front, one per
layer, trained to say what the model will say in the end. Both give the same frame.
"""

from .fit import fit_tuned_lens
from .reading import logit_lens, top_tokens
from .tuned import Translator, TunedLens, random_lens

__all__ = [
    "Translator",
    "TunedLens",
    "fit_tuned_lens",
    "logit_lens",
    "random_lens",
    "top_tokens",
]
