"""The naive engine: one whole forward per node. It is the yardstick of the partial rerun, and what
is left for runs that nobody can see through: views with hooks, metrics of a whole cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.finite import check_edit
from interp.core.tap import SILENT, ActivationCache, Hook, Tap
from interp.core.tokens import Tokens
from interp.model import HookedTransformer

from . import metrics
from .edits import Replace, Rows
from .metrics import Bound, Reads
from .nodes import Node, Part, Selections

NO_LOGITS = "head='none': this model has no logits; use a metric of the residual stream"


class Naive:
    """Runs nodes one by one."""

    def __init__(
        self, model: HookedTransformer, tokens: Tokens, replace: Replace, bound: Bound
    ) -> None:
        self.model, self.tokens = model, tokens
        self.replace, self.bound = replace, bound

    def measure(self, node: Node) -> tuple[Float[Tensor, " batch"], bool]:
        """The metric with one node edited, and whether any number at its sites changed."""
        changed: list[bool] = []
        parts: dict[str, list[Part]] = {}
        for part in node.parts:
            parts.setdefault(part.site, []).append(part)
        hooks = [(site, self._hook(node, site, some, changed)) for site, some in parts.items()]
        out = run(self.model, self.tokens, self.bound.reads, self.bound.sites, hooks)
        return measured(self.bound, out, self.tokens, f"node {node}"), any(changed)

    def _hook(
        self, node: Node, name: str, parts: Sequence[Part], changed: list[bool]
    ) -> Callable[[Tensor, Hook], Tensor]:
        site, tokens, n = self.model.sites[name], self.tokens, len(self.tokens)
        examples = torch.arange(n, device=tokens.device)
        selections = Selections.of(site, [(example, parts) for example in range(n)], tokens)
        rows = Rows(site, examples, [node.key] * n, numbers=[node.row] * n)

        def hook(x: Tensor, hook: Hook) -> Tensor:
            new = torch.where(selections.mask(site, x), self.replace(x, rows), x)
            check_edit(new, name, [f"node {node}"] * n)
            changed.append(not torch.equal(new, x))
            return new

        return hook


def run(
    model: HookedTransformer,
    tokens: Tokens,
    reads: Reads,
    sites: tuple[str, ...] = (),
    hooks: list | None = None,
) -> Any:
    """One forward, the model's own hooks first: its logits, last residual stream, or a cache."""
    if reads == "logits" and model.cfg.head == "none":
        raise ValueError(NO_LOGITS)
    edits = [*model.fwd_hooks, *(hooks or ())]
    names = model.sites.select(list(sites)) if reads == "cache" else ()
    tap = Tap(model.sites, reads=names, fwd_hooks=edits) if edits or names else SILENT
    out = model._run(tokens, tap, None, model.cfg.n_layers if reads == "residual" else None)
    if isinstance(tap, Tap):
        tap.check_fired()
    if reads != "cache":
        return out
    return ActivationCache(tap.values, model.sites, tokens, model.stacks)


def measured(bound: Bound, out: Any, tokens: Tokens, where: str) -> Float[Tensor, " batch"]:
    """The metric of a whole run, in float64 on the CPU."""
    every = torch.arange(len(tokens), device=tokens.device)
    return metrics.measured(bound, bound.pick(out, every), every, [where] * len(tokens))
