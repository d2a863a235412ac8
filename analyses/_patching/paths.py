"""The paths of activation patching: strongest heads to the logits, and to each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analyses._patching.effects import EFFECTS, WAYS, Study
from interp.methods.paths import path_patch
from interp.report import Report

KEYS = ("from_layer", "from_head", "to", "to_layer", "to_head")
PATHS = ("from_layer", "from_head", "to", "to_layer?", "to_head?", *EFFECTS,
         "held?", "held_share?")  # fmt: skip
RECEIVERS = 3
"""Of the strongest heads, those that receive."""
KINDS = ("q", "k", "v")


def measure_paths(
    report: Report, study: Study, config: Any, strongest: pd.DataFrame
) -> pd.DataFrame | None:
    """`PATHS`: all heads to the logits, and the strongest to q, k and v of the strongest behind
    them; `held` is denoising with norms held. None where the model has no such paths."""
    if study.model.opaque:
        report.skip(f"Paths are left out: they hold z of a native model ({study.model.opaque}).")
        return None
    own = [(int(one.layer), int(one.head)) for one in strongest.itertuples()]
    cfg = study.model.cfg
    layers = range(cfg.n_layers) if config.layers is None else config.layers
    heads = range(cfg.n_heads) if config.heads is None else config.heads
    every = [(layer, head) for layer in layers for head in heads]
    frames = [_paths(report, study, every, ["logits"])]
    first = min(layer for layer, _ in own)
    receiving = [one for one in own if one[0] > first][:RECEIVERS]
    if receiving:
        last = max(layer for layer, _ in receiving)
        receivers = dict.fromkeys(
            (kind, layer, head if kind == "q" else study.group(head))
            for layer, head in receiving for kind in KINDS
        )  # fmt: skip
        senders = [one for one in own if one[0] < last]
        frames.append(_paths(report, study, senders, list(receivers)))
    else:
        report.skip("The strongest heads lie in one layer, so that none reads another.")
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs |= frames[0].attrs
    return frame


def _paths(report: Report, study: Study, senders: list, receivers: list[Any]) -> pd.DataFrame:
    options: dict[str, Any] = {"reduce": "none"}
    n, frame, columns = len(study.pairs), None, {}
    for way in WAYS:
        frame = path_patch(study.model, study.pairs, senders, receivers, direction=way, **options)
        columns |= study.columns(way, frame["effect"].to_numpy().reshape(-1, n))
    assert frame is not None
    keys = frame.loc[frame["example"] == 0, list(KEYS)].reset_index(drop=True)
    held = np.full((2, len(keys)), np.nan)
    if study.model.cfg.head == "mlm" and "logits" in receivers:
        report.skip("Norms are not held before a masked-LM head, which has a norm of its own.")
    else:
        fixed = path_patch(
            study.model, study.pairs, senders, receivers, freeze_norms=True, **options
        )
        told = study.columns("denoise", fixed["effect"].to_numpy().reshape(-1, n))
        held = np.stack([told["denoise"], told["denoise_share"]])
    found = keys.assign(**columns, held=held[0], held_share=held[1])
    found.attrs |= {"engine": "rerun", "paths": frame.attrs}
    return found
