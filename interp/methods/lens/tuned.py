"""The tuned lens (Belrose et al. 2023): an affine map of each layer's stream before the logit lens.

h ↦ h + A h + b, one per layer, trained by `fit_tuned_lens` so that what is read then is closest to
what the model says in the end. It is a safetensors file on disk, and belongs to one model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import safetensors
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core import chance
from interp.core.basis import random_orthonormal
from interp.core.files.untrusted import parse_json
from interp.core.indices import Indices, index
from interp.loading import weights_hash
from interp.loading.stored import check_tensors, write_tensors
from interp.sweeps.metrics import Where

from .reading import check_layers, check_readable, lens_frame

KIND = "interp tuned lens"
TABLE = ("layer", "plain", "plain_stderr", "tuned", "tuned_stderr", "train_plain", "train_tuned")
"""Columns of `TunedLens.table`."""


class Translator(NamedTuple):
    """h ↦ h + A h + b."""

    A: Float[Tensor, "d_model d_model"]
    b: Float[Tensor, " d_model"]


@dataclass(frozen=True, eq=False)
class TunedLens:
    """A translator for some layers of one model. Made by `fit_tuned_lens`, or `TunedLens.load`."""

    translators: Mapping[int, Translator]
    """By layer; the last stream, n_layers, is read as it is unless it has one too."""
    n_layers: int
    weights: str
    """sha256 of the model's weights: the lens reads this model and no other."""
    table: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(TABLE)))
    """What training came to, nats per position: layer, KL of the plain and the tuned lens on text
    held out, their standard errors over its rows (NaN: one row), and the same on text trained on.
    """
    made_of: Mapping[str, Any] = field(default_factory=dict)
    """Steps, seed and sizes of the training."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have a translator."""
        return tuple(sorted(self.translators))

    @property
    def readable(self) -> tuple[int, ...]:
        """The layers that `read` gives by default: these, and what the last one leaves."""
        return tuple(sorted({*self.translators, self.n_layers}))

    def translate(self, layer: int, resid: Tensor) -> Tensor:
        """Streams [… d_model] of a layer as the final norm is to read them."""
        layer = index(layer, self.n_layers + 1, "layer")
        if layer not in self.translators:
            if layer == self.n_layers:
                return resid
            raise ValueError(f"layer {layer}: this lens was trained for {list(self.layers)}")
        A, b = (one.to(resid.device) for one in self.translators[layer])
        return resid + resid.to(A) @ A.T + b

    def read(
        self,
        model: Any,
        tokens: Any,
        answer: Tensor | None = None,
        *,
        pos: Where = None,
        layers: Indices | None = None,
    ) -> pd.DataFrame:
        """The frame of `logit_lens`, by default of the layers that were trained and the last.

        Raises ValueError also on another model than it was trained on: its weights are hashed at
        every call, a second for 500 MB.
        """
        self.check(model)
        chosen = check_layers(model, self.readable if layers is None else layers)
        lost = [layer for layer in chosen if layer not in self.readable]
        if lost:
            raise ValueError(f"layers={lost}: this lens was trained for {list(self.layers)}")
        return lens_frame(model, tokens, answer, pos, chosen, self.translate)

    def check(self, model: Any) -> None:
        """Raises ValueError unless this lens is that model's."""
        check_readable(model)
        d_model = len(next(iter(self.translators.values())).b)
        own = (self.n_layers, d_model)
        theirs = (model.cfg.n_layers, model.cfg.d_model)
        if own != theirs:
            raise ValueError(
                f"this lens is for n_layers={own[0]}, d_model={own[1]}; {model.name} has "
                f"n_layers={theirs[0]}, d_model={theirs[1]}"
            )
        if self.weights != weights_hash(model):
            raise ValueError(
                f"this lens was trained on other weights (or in another dtype) than those of "
                f"{model.name}; fit_tuned_lens(model, tokens) makes one for it"
            )

    def save(self, path: str | os.PathLike) -> Path:
        """Write it as one safetensors file, whole or not at all."""
        path = Path(path)
        tensors = {}
        for layer, (A, b) in self.translators.items():
            tensors |= {f"{layer}.A": A, f"{layer}.b": b}
        described = {
            "n_layers": self.n_layers,
            "weights": self.weights,
            "made_of": dict(self.made_of),
            # JSON has no NaN: of one row held out there is no standard error.
            "table": self.table.astype(object).where(self.table.notna(), None).to_dict("list"),
        }
        metadata = {"kind": KIND, "lens": json.dumps(described, allow_nan=False)}
        write_tensors(path, tensors, metadata)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike, model: Any) -> TunedLens:
        """The lens in a file. Raises ValueError where it is no lens, damaged, or of other weights
        than the model's."""
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            check_tensors(Path(path), required=False)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file ({error})") from None
        if metadata.get("kind") != KIND:
            raise ValueError(f"{path}: not a tuned lens; TunedLens.save writes one")
        told = parse_json(metadata.get("lens", "").encode(), str(path))
        try:
            n_layers = int(told["n_layers"])
            table = pd.DataFrame(told["table"], columns=list(TABLE)).astype(float)
            lens = cls(
                _translators(tensors, n_layers),
                n_layers,
                str(told["weights"]),
                table.astype({"layer": int}),
                dict(told["made_of"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: a damaged tuned lens ({error})") from None
        lens.check(model)
        return lens


def random_lens(model: Any, seed: int = 0) -> TunedLens:
    """A control: every stream, the last one too, turned by one random orthogonal matrix, uniform
    over all of them (Mezzadri 2007). What it reads, the directions of the stream do not say."""
    check_readable(model)
    d, generator = model.cfg.d_model, chance.seeded(seed)
    wide = torch.promote_types(model.dtype, torch.float32)
    turn = (random_orthonormal(d, d, generator=generator) - torch.eye(d)).to(model.device, wide)
    own = Translator(turn, turn.new_zeros(d))
    layers = range(model.cfg.n_layers + 1)
    return TunedLens(
        dict.fromkeys(layers, own), model.cfg.n_layers, weights_hash(model), made_of={"seed": seed}
    )


def _translators(tensors: Mapping[str, Tensor], n_layers: int) -> dict[int, Translator]:
    layers = sorted({int(name.partition(".")[0]) for name in tensors})
    found = {layer: Translator(tensors[f"{layer}.A"], tensors[f"{layer}.b"]) for layer in layers}
    if not found or len(tensors) != 2 * len(found) or not 0 <= layers[0] <= layers[-1] <= n_layers:
        raise ValueError(f"its tensors are {sorted(tensors)}")
    d = found[layers[0]].b.numel()
    for layer, (A, b) in found.items():
        if A.shape != (d, d) or b.shape != (d,):
            raise ValueError(f"layer {layer} has the shapes {list(A.shape)} and {list(b.shape)}")
        if not (A.is_floating_point() and A.isfinite().all() and b.isfinite().all()):
            raise ValueError(f"layer {layer} holds values that are no finite numbers")
    return found
