"""Sweeps: nodes × edit × metric → a tidy DataFrame, one row per node.

This engine is the naive one: one whole forward per node. It is the yardstick of every faster one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from . import edits, metrics
from .edits import Edit, Replace, Rows
from .metrics import Bound, Metric
from .selection import COLUMNS, Node, Part, Selection, as_frame, read_nodes
from .selection import nodes as make_nodes
from .tap import SILENT, ActivationCache, Hook, Tap
from .tokens import Tokens

if TYPE_CHECKING:
    from .model import HookedTransformer
    from .tasks import Pairs


@torch.no_grad()
def sweep(
    model: HookedTransformer,
    tokens: Any,
    nodes: pd.DataFrame,
    *,
    edit: Edit,
    metric: Metric,
    reduce: Literal["mean", "none"] = "mean",
    allow_noop: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Edit each node alone and measure: node columns + edit metric direction | value baseline
    effect stderr n.

    effect = value − baseline, both means over the n examples; stderr is that of the effect (NaN
    for one example). reduce="none": one row per node and example, with `example` and no stderr.
    `attrs` records the engine and its cost. Raises ValueError on a node that the model does not
    have, a metric that is not finite (the node is named), and an edit that changes nothing at any
    node (unless allow_noop).
    """
    if reduce not in ("mean", "none"):
        raise ValueError(f"reduce={reduce!r}: expected 'mean' or 'none'")
    tokens = model.accept(tokens)
    frame = as_frame(nodes)
    chosen = read_nodes(frame, model, tokens)
    names = list(dict.fromkeys(part.site for node in chosen for part in node.parts))
    base = _base(model, tokens)
    bound = metric.bind(model, tokens, base)
    replace = edit.bind(model, tokens, names)
    baseline = _measure(bound, base(bound.reads), tokens, f"the unedited run ({metric.name})")
    values, changed = [], 0
    for node in tqdm(
        chosen, desc=f"{edit.name} × {metric.name}", disable=not progress, leave=False
    ):
        out, edits_landed = _run_node(model, tokens, node, replace, bound)
        changed += edits_landed
        values.append(_measure(bound, out, tokens, f"node {node}"))
    if not changed and not allow_noop:
        raise ValueError(
            f"the edit {edit.name!r} changes nothing at any of the {len(chosen)} nodes; "
            "pass allow_noop=True if that is meant"
        )
    result = _tidy(frame, chosen, torch.stack(values), baseline, edit, metric, reduce)
    spent = float(len(chosen) + 1)
    result.attrs |= {"engine": "naive", "forward_equivalents": spent, "naive_equivalents": spent,
                     "noop_nodes": len(chosen) - changed}  # fmt: skip
    return result


def ablate(
    model: HookedTransformer,
    tokens: Any,
    site: str,
    by: Sequence[str] = ("layer", "head"),
    *,
    metric: Metric,
    kind: Literal["zero", "mean", "resample"] = "mean",
    reference: ActivationCache | Tokens | None = None,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Remove each node from the run: `sweep` with a zero, mean or resample edit.

    mean and resample take `reference`, by default the tokens themselves. `options` go to `nodes`
    (layers, heads, neurons, positions) and `sweep` (reduce, allow_noop, progress).
    """
    tokens = model.accept(tokens)
    reference = tokens if reference is None else reference
    if kind not in ("zero", "mean", "resample"):
        raise ValueError(f"kind={kind!r}: expected 'zero', 'mean' or 'resample'")
    edit = {
        "zero": edits.zero,
        "mean": lambda: edits.mean(reference),
        "resample": lambda: edits.resample(reference, seed),
    }[kind]()
    return _sweep_by(model, tokens, site, by, edit, metric, options)


def patch(
    model: HookedTransformer,
    pairs: Pairs,
    site: str,
    by: Sequence[str] = ("layer", "pos"),
    *,
    metric: Metric | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Put each node's clean value into the corrupted run (denoising); `pairs` from `tasks`.

    metric: by default the logit difference of the pairs' answer and wrong ids.
    """
    metric = metrics.logit_diff(pairs.answer, pairs.wrong) if metric is None else metric
    edit = edits.patch(model.accept(pairs.clean))
    return _sweep_by(model, pairs.corrupted, site, by, edit, metric, options)


NODE_OPTIONS = ("layers", "heads", "neurons", "positions")


def _sweep_by(
    model: Any, tokens: Any, site: str, by: Sequence[str], edit: Edit, metric: Metric, options: dict
) -> pd.DataFrame:
    tokens = model.accept(tokens)
    picked = {name: options.pop(name) for name in NODE_OPTIONS if name in options}
    frame = make_nodes(model, site, by, tokens=tokens, **picked)
    return sweep(model, tokens, frame, edit=edit, metric=metric, **options)


def _base(model: Any, tokens: Tokens) -> Callable[[str], Tensor]:
    """The unedited run's output, computed once per kind and only when asked for."""
    outputs: dict[str, Tensor] = {}

    def output(reads: str) -> Tensor:
        if reads not in outputs:
            outputs[reads] = _output(model, tokens, SILENT, reads)
        return outputs[reads]

    return output


def _output(model: Any, tokens: Tokens, tap: Any, reads: str) -> Tensor:
    if reads == "logits" and model.cfg.head == "none":
        raise ValueError(
            "head='none': this model has no logits; use a metric of the residual stream"
        )
    if isinstance(tap, Tap) or not model.fwd_hooks:
        stop = model.cfg.n_layers if reads == "residual" else None
        return model._run(tokens, tap, None, stop)
    return model(tokens, stop_at_layer=model.cfg.n_layers if reads == "residual" else None)


def _run_node(
    model: Any, tokens: Tokens, node: Node, replace: Replace, bound: Bound
) -> tuple[Tensor, bool]:
    """The output with one node edited, and whether any number there changed."""
    changed: list[bool] = []
    hooks = [*model.fwd_hooks]
    for part in node.parts:
        hooks.append((part.site, _hook(model, tokens, node, part, replace, changed)))
    tap = Tap(model.sites, fwd_hooks=hooks)
    out = _output(model, tokens, tap, bound.reads)
    tap.check_fired()
    return out, any(changed)


def _hook(
    model: Any, tokens: Tokens, node: Node, part: Part, replace: Replace, changed: list[bool]
) -> Callable[[Tensor, Hook], Tensor]:
    site = model.sites[part.site]
    examples = torch.arange(len(tokens), device=tokens.device)
    selection = Selection.of(part, examples, tokens)
    rows = Rows(site, examples, [node.key] * len(tokens))

    def hook(x: Tensor, hook: Hook) -> Tensor:
        new = torch.where(selection.mask(site, x), replace(x, rows), x)
        changed.append(not torch.equal(new, x))
        return new

    return hook


def _measure(bound: Bound, out: Tensor, tokens: Tokens, where: str) -> Float[Tensor, " batch"]:
    every = torch.arange(len(tokens), device=tokens.device)
    value = bound.measure(bound.pick(out, every), every)
    if not isinstance(value, Tensor) or value.shape != (len(tokens),):
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"the metric gave {got} at {where}: expected one number per example")
    if not bool(value.isfinite().all()):
        raise ValueError(f"the metric is not finite at {where}")
    return value.double().cpu()


def _tidy(
    frame: pd.DataFrame,
    chosen: Sequence[Node],
    values: Float[Tensor, "node batch"],
    baseline: Float[Tensor, " batch"],
    edit: Edit,
    metric: Metric,
    reduce: str,
) -> pd.DataFrame:
    n = len(baseline)
    effect = values - baseline
    named = {"edit": edit.name, "metric": metric.name, "direction": edit.direction}
    by_row = {node.row: i for i, node in enumerate(chosen)}
    index = torch.tensor([by_row[int(row)] for row in frame["row"]])
    if reduce == "none":
        long = frame.loc[frame.index.repeat(n)].reset_index(drop=True).assign(**named)
        long["example"] = list(range(n)) * len(frame)
        long["value"] = values[index].flatten().numpy()
        long["baseline"] = baseline.repeat(len(frame)).numpy()
        long["effect"] = effect[index].flatten().numpy()
        return long
    spread = effect.std(1) if n > 1 else effect.new_full((len(chosen),), float("nan"))
    return frame[list(COLUMNS)].assign(
        **named,
        value=values.mean(1)[index].numpy(),
        baseline=float(baseline.mean()),
        effect=effect.mean(1)[index].numpy(),
        stderr=(spread / n**0.5)[index].numpy(),
        n=n,
    )
