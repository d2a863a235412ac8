"""What `load` makes sure of before it hands a model out.

The family's reference costs some ten milliseconds, once per process. The identities cost several
times as much as loading (a forward that keeps every site), so that they run where they are asked
for: `load(check=True)`, `interp doctor`.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from interp.core.config import TransformerConfig
from interp.core.finite import NotFinite, weight_faults
from interp.core.precision import dtype_name
from interp.core.tokenizer import Tokenizer
from interp.core.tokens import Tokens
from interp.model import HookedTransformer

from .reference import FamilyCheck, check_family, families, numbers

N_PROBES = 8
"""Tokens on which the identities are measured."""

ANYWAY = "check=False opens it anyway; if its files are sound, please report this as a fault"


OPEN = "check=False opens it, to look for the fault; methods refuse it"


class CheckFailed(ValueError):
    """A model that opened, and does not compute what it should."""


def check_loaded(model: HookedTransformer, family: str, check: bool | None) -> None:
    """That every weight is finite, the family's reference, and the identities on this model where
    `check` is True.

    Raises CheckFailed, with what failed, by how much, and what to do.
    """
    faults = weight_faults(model)
    if faults:
        more = f", and {len(faults) - 1} more weights are not finite" if len(faults) > 1 else ""
        stored, why = model.source.get("dtype"), "Its file is damaged"
        if stored not in (None, dtype_name(model.dtype)):
            why += f", or holds numbers that {model.dtype} does not (dtype={stored!r} keeps them)"
        raise CheckFailed(f"{model.name}: {faults[0]}{more}. {why}. {OPEN}")
    if family in families():
        found = _once(family)
        if not found.holds:
            raise CheckFailed(
                f"{model.name}: this installation computes another {family} than the one recorded: "
                f"relative error {found.error:.1e}, allowed {found.tolerance:.0e}. {ANYWAY}"
            )
    if check:
        try:
            frame = model.check_identities(probe(model))
        except NotFinite as error:
            raise CheckFailed(f"{model.name}: {error}. {OPEN}") from None
        broken = frame[~frame["holds"]]
        if len(broken):
            lines = [
                f"{row.identity} in layer {row.layer}: error {row.error:.1e}, "
                f"allowed {row.tolerance:.0e}"
                for row in broken.head(3).itertuples()
            ]
            more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
            raise CheckFailed(
                f"{model.name}: {len(broken)} of {len(frame)} identities do not hold: "
                f"{'; '.join(lines)}{more}. {ANYWAY}"
            )


def check_tokenizer(tokenizer: Tokenizer, cfg: TransformerConfig, where: str) -> None:
    """Raise ValueError where a text, or padding, may give an id that the embedding does not have.

    Special tokens past the embedding that only somebody who writes them can give are let through
    (Gemma 3's image token): such an id raises when it is run.
    """
    past = tokenizer.entries_past(cfg.d_vocab)
    named = set(tokenizer.special.values())
    reached = {t: i for t, i in past.items() if t in named or i not in tokenizer.special_ids}
    if reached:
        token, id = min(reached.items(), key=lambda item: item[1])
        raise ValueError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} entries with ids up to "
            f"{max(past.values())}, but the embedding has {cfg.d_vocab} rows (0 to "
            f"{cfg.d_vocab - 1}), so that a text may give an id that is not there, as {token!r} "
            f"({id}) would. Put the tokenizer that belongs to these weights in the folder; "
            "check=False opens the model anyway, and such an id then raises when it is run"
        )


def probe(model: HookedTransformer, n: int = N_PROBES) -> Tokens:
    """Something that the model reads, the same for every model of one size: n ids (of a decoder and
    its source, n each), an image, a spectrogram, or a trajectory of n steps."""
    reads = model.cfg if model.encoder is None else model.cfg.encoder
    if reads.inputs == "patches":
        given = numbers("pixels", (1, reads.n_channels, *reads.image_size))
    elif reads.inputs == "frames":
        given = numbers("frames", (1, reads.n_mels, 2 * reads.n_ctx))
    elif reads.inputs == "trajectory":
        widths = {"returns": 1, "states": reads.d_state, "actions": reads.d_vocab}
        steps = min(n, reads.n_ctx)
        given = {name: numbers(name, (1, steps, width)) for name, width in widths.items()}
    else:
        given = _ids(reads, n)
    if model.encoder is None:
        return model.accept(given)
    return model.accept(Tokens(_ids(model.cfg, n), source=model.encoder.accept(given)))


def _ids(cfg: TransformerConfig, n: int) -> Tensor:
    """Ids [1, n] spread over the vocabulary."""
    return (torch.arange(1, min(n, cfg.n_ctx) + 1) * 7919 % cfg.d_vocab)[None]


@cache
def _once(family: str) -> FamilyCheck:
    return check_family(family)
