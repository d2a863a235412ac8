"""tinyworld: a small English without end, whose every word is known.

    data = tinyworld.data()                             # rows to train on
    model = HookedTransformer(tinyworld.config(), tinyworld.tokenizer())
    tinyworld.sentences("people", n=100)                # labelled sentences, for probes
    tinyworld.evaluate(model)                           # accuracy on what was never trained on

Royal and family words, countries and capitals, indirect objects, agreement, years that increase,
words of two senses, sentiment, pronouns, repeated random spans. Names, templates and pairs of a
country and a template that are held out are never drawn for training. A held-out name stands in no
indirect-object sentence; it does in sentences with a name of other kinds, in some of which two
people meet and talk but nothing is given, and among random words.
"""

from __future__ import annotations

from interp.core.config import TransformerConfig
from interp.training.config import TrainConfig
from interp.training.data import MaskedData

from .evaluation import evaluate
from .labels import Sentence, heldout, labelled, sentences
from .rows import data, tokenizer

__all__ = [
    "Sentence",
    "config",
    "data",
    "encoder_config",
    "encoder_data",
    "encoder_training",
    "evaluate",
    "heldout",
    "labelled",
    "sentences",
    "tokenizer",
    "training",
]


def config() -> TransformerConfig:
    """The decoder: 4 layers of 8 heads, LayerNorm before each sublayer, rotary positions: learned
    ones find only late which word stands before which."""
    return TransformerConfig(
        n_layers=4,
        d_model=192,
        n_heads=8,
        d_mlp=768,
        d_vocab=tokenizer().vocab_size,
        n_ctx=128,
        positions="rotary",
        tied=True,
    )


def encoder_config() -> TransformerConfig:
    """The masked language model: the decoder without its causal mask, whose weights it starts
    from."""
    return config().replace(causal=False)


def training() -> TrainConfig:
    """How the decoder is trained."""
    return TrainConfig(
        steps=12_000,
        batch_size=16,
        lr=2e-3,
        min_lr=5e-5,
        warmup=200,
        eval_every=200,
        eval_batches=5,
        checkpoints=30,
    )


def encoder_data(seed: int = 0) -> MaskedData:
    """The same rows with 30 % of the words hidden: twice what BERT hides teaches a small model
    sooner (Wettig et al. 2023)."""
    return MaskedData(data(seed=seed), tokenizer().vocab_size, share=0.3, seed=seed)


def encoder_training() -> TrainConfig:
    """How the masked language model is trained."""
    return TrainConfig(
        steps=6_000,
        batch_size=16,
        lr=1.5e-3,
        min_lr=5e-5,
        warmup=200,
        eval_every=200,
        eval_batches=5,
    )
