"""The six sweeps that are measured: which nodes, on which batch, under which edit and metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

import interp
from interp import Tokens, edits, metrics

SHAPES = {"8x16": (8, 16), "4x128": (4, 128)}

Nodes = Callable[[interp.HookedTransformer, Tokens], pd.DataFrame]


class Sweep(NamedTuple):
    """Nodes under the patch of a clean run, or under zeros where the loss is measured."""

    what: str
    nodes: Nodes
    shape: tuple[int, int] | None = None
    """Batch and positions, where they are not those asked for."""
    loss: bool = False


def by(site: str, *axes: str) -> Nodes:
    return lambda model, tokens: interp.nodes(model, site, by=axes, tokens=tokens)


def outputs(model: interp.HookedTransformer, tokens: Tokens) -> pd.DataFrame:
    frames = [by(site, "layer", "pos")(model, tokens) for site in ("hook_attn_out", "hook_mlp_out")]
    both = pd.concat(frames, ignore_index=True)
    return both.assign(row=range(len(both)))


def neurons(model: interp.HookedTransformer, tokens: Tokens) -> pd.DataFrame:
    layer = model.cfg.n_layers // 2 - 1
    return interp.nodes(
        model, "mlp.hook_post", by=("layer", "neuron"), layers=[layer], tokens=tokens
    )


SWEEPS = {
    "i": Sweep("resid_pre, layer × position", by("resid_pre", "layer", "pos")),
    "ii": Sweep("z of all heads", by("z", "layer", "head")),
    "iii": Sweep("z, heads × position", by("z", "layer", "head", "pos")),
    "iv": Sweep("attn_out and mlp_out, layer × position", outputs),
    "v": Sweep("zero z of all heads, loss", by("z", "layer", "head"), shape=(8, 64), loss=True),
    "vi": Sweep("neurons of the sixth layer", neurons),
}


@dataclass(frozen=True, eq=False)
class Job:
    """One sweep on a batch: random ids, of which clean and corrupted differ at one position."""

    name: str
    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    answer: Int[Tensor, " batch"]
    wrong: Int[Tensor, " batch"]

    @classmethod
    def of(cls, name: str, shape: tuple[int, int], n_vocab: int, device: str) -> Job:
        """Differs at position 9 of 16, or as far along as that."""
        batch, width = SWEEPS[name].shape or shape
        generator = torch.Generator().manual_seed(0)
        clean = torch.randint(0, n_vocab, (batch, width), generator=generator).to(device)
        corrupted, where = clean.clone(), width * 9 // 16
        corrupted[:, where] = (clean[:, where] + 1) % n_vocab
        answer = torch.arange(batch, device=device)
        return cls(name, clean, corrupted, answer, answer + 1)

    @property
    def loss(self) -> bool:
        return SWEEPS[self.name].loss

    @property
    def size(self) -> int:
        """Tokens of the batch."""
        return self.clean.numel()

    def nodes(self, model: interp.HookedTransformer, most: int | None = None) -> pd.DataFrame:
        """The nodes, or a sample of them."""
        return sample(SWEEPS[self.name].nodes(model, Tokens.of(self.corrupted)), most)

    def run(self, model: interp.HookedTransformer, nodes: pd.DataFrame, **options: Any):
        """interp's own sweep."""
        metric = metrics.loss() if self.loss else metrics.logit_diff(self.answer, self.wrong)
        edit = edits.zero() if self.loss else edits.patch(Tokens.of(self.clean))
        options = {"edit": edit, "metric": metric, "progress": False, **options}
        return interp.sweep(model, Tokens.of(self.corrupted), nodes, **options)

    def measure(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, ""]:
        """The metric, mean over the batch, for those who have the logits."""
        if self.loss:
            ids = self.corrupted[:, 1:].flatten()
            return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids)
        pick = partial(torch.gather, logits[:, -1].float(), 1)
        return (pick(self.answer[:, None]) - pick(self.wrong[:, None])).mean()


def sample(nodes: pd.DataFrame, most: int | None) -> pd.DataFrame:
    """At most so many rows, drawn with a fixed seed, in their order."""
    if most is None or len(nodes) <= most:
        return nodes
    return nodes.sample(most, random_state=0).sort_index().reset_index(drop=True)
