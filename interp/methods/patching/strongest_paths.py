"""Paths of the heads that matter: all heads to the logits, and the strongest to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.methods.paths import Head, path_patch

from .effects import EFFECTS, WAYS, Study

KEYS = ("from_layer", "from_head", "to", "to_layer", "to_head")
PATHS = (
    *("from_layer", "from_head", "to", "to_layer?", "to_head?", *EFFECTS),
    *("held?", "held_share?"),
)
"""`held` is denoising with the norms on the way dividing by what they do in the unpatched run."""
RECEIVERS = 3
"""Of the strongest heads, those that receive."""
KINDS = ("q", "k", "v")


def strongest_paths(study: Study, heads: Sequence[Head], strongest: Sequence[Head]) -> pd.DataFrame:
    """`PATHS`: each of `heads` to the logits, and the strongest to q, k and v of the first three
    strongest behind the earliest of them.

    Where the strongest lie in one layer none reads another, and only paths to the logits have rows.
    Norms are not held before a masked-LM head, which has a norm of its own: `held` is blank there.
    Raises ValueError on models where paths are not defined (`path_patch`).
    """
    frames = [_paths(study, heads, ["logits"])]
    first = min(layer for layer, _ in strongest)
    receiving = [head for head in strongest if head[0] > first][:RECEIVERS]
    if receiving:
        last = max(layer for layer, _ in receiving)
        receivers = dict.fromkeys(
            (kind, layer, head if kind == "q" else study.group(head))
            for layer, head in receiving
            for kind in KINDS
        )
        senders = [head for head in strongest if head[0] < last]
        frames.append(_paths(study, senders, list(receivers)))
    table = pd.concat(frames, ignore_index=True)
    table.attrs |= frames[0].attrs
    return table


def _paths(study: Study, senders: Sequence[Head], receivers: list[Any]) -> pd.DataFrame:
    model, pairs, n = study.model, study.pairs, len(study.pairs)
    columns: dict[str, np.ndarray] = {}
    frame = pd.DataFrame()
    for way in WAYS:
        frame = path_patch(model, pairs, senders, receivers, direction=way, reduce="none")
        columns |= study.columns(way, frame["effect"].to_numpy().reshape(-1, n))
    keys = frame.loc[frame["example"] == 0, list(KEYS)].reset_index(drop=True)
    held = {name: np.full(len(keys), np.nan) for name in ("denoise", "denoise_share")}
    if not (model.cfg.head == "mlm" and "logits" in receivers):
        fixed = path_patch(model, pairs, senders, receivers, freeze_norms=True, reduce="none")
        held = study.columns("denoise", fixed["effect"].to_numpy().reshape(-1, n))
    table = keys.assign(**columns, held=held["denoise"], held_share=held["denoise_share"])
    table.attrs |= {"engine": "rerun", "paths": frame.attrs}
    return table
