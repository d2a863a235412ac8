"""Concepts from a user's file of labelled texts."""

from __future__ import annotations

from pathlib import Path

import torch

from analyses._labelled import read_labelled
from interp import metrics
from interp.methods.concepts import Concept
from interp.model import HookedTransformer
from interp.report.spine import listed


def of_labelled(
    model: HookedTransformer, path: Path, text: str, label: str, *, bos: bool | None = None
) -> Concept:
    """The texts of a file with two labels, in order of the labels' names, read at their last token.

    Raises ValueError on another number of labels, and on a text longer than the context.
    """
    frame = read_labelled(path, text=text, label=label)
    classes = sorted(frame["label"].unique())
    if len(classes) != 2:
        raise ValueError(
            f"{path}: column {label!r} has {len(classes)} labels ({listed(classes)}); a direction "
            "leads from one to another: keep two"
        )
    tokens = model.to_tokens(frame["text"].tolist(), bos=bos)
    if tokens.shape[1] > model.cfg.n_ctx:
        raise ValueError(
            f"{path}: a text has {tokens.shape[1]} tokens; the context of {model.name} is "
            f"{model.cfg.n_ctx}"
        )
    labels = torch.tensor([classes.index(one) for one in frame["label"]])
    kl, name = metrics.kl(), "KL of the next token, before and after"
    return Concept(
        path.name, (classes[0], classes[1]), tokens, labels, kl, name, texts=frame["text"].tolist()
    )
