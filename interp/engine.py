"""Sweeps: nodes × edit × metric → a tidy DataFrame, one row per node.

Two engines give the same numbers: "rerun" recomputes only what an edit can change (see `rerun`);
"naive" runs one whole forward per node, and is the yardstick.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from . import edits, metrics, rerun
from .edits import Edit, Replace, Rows
from .journal import Journal, Measured, manifest
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
    engine: Literal["rerun", "naive"] | None = None,
    allow_noop: bool = False,
    journal: str | os.PathLike | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Edit each node alone and measure: node columns + edit metric direction | value baseline
    effect stderr n.

    effect = value − baseline, both means over the n examples; stderr is that of the effect (NaN
    for one example). reduce="none": one row per node and example, with `example` and no stderr.
    engine: by default "rerun", and "naive" on a view with hooks; `attrs` records which, and its
    cost in whole forwards. journal: a file in which each pass is kept as soon as it is measured;
    the same call resumes from it after a kill, and ends in the same bytes. Raises ValueError on a
    node that the model does not have, a metric that is not finite (the node is named), and an edit
    that changes nothing at any node (unless allow_noop); JournalError on the journal of another
    run.
    """
    if reduce not in ("mean", "none"):
        raise ValueError(f"reduce={reduce!r}: expected 'mean' or 'none'")
    tokens = model.accept(tokens)
    frame = as_frame(nodes)
    chosen = read_nodes(frame, model, tokens)
    names = list(dict.fromkeys(part.site for node in chosen for part in node.parts))
    engine = _engine(model, engine)
    kept = rerun.base_run(model, tokens, chosen) if engine == "rerun" else None
    base = _base(model, tokens, {} if kept is None else {"residual": kept.residual})
    bound = metric.bind(model, tokens, base)
    replace = edit.bind(model, tokens, names)
    baseline = _measure(bound, base(bound.reads), tokens, f"the unedited run ({metric.name})")
    _check_reached(model, chosen, bound)
    job = Job(model, tokens, chosen, replace, bound, kept, baseline)
    passes = {"naive": _naive, "rerun": _rerun}[engine](job)
    log = None
    if journal is not None:
        made_of = manifest(model, tokens, chosen, edit, metric, engine, baseline)
        log = Journal(journal, made_of, [one.rows for one in passes])
    title = f"{edit.name} × {metric.name}"
    with log or nullcontext(), tqdm(desc=title, disable=not progress, leave=False) as bar:
        values, changed, spent = _run(job, passes, log, bar)
    if not changed and not allow_noop:
        raise ValueError(
            f"the edit {edit.name!r} changes nothing at any of the {len(chosen)} nodes; "
            "pass allow_noop=True if that is meant"
        )
    result = _tidy(frame, chosen, values, baseline, edit, metric, reduce)
    result.attrs |= {
        "engine": engine,
        "forward_equivalents": spent,
        "naive_equivalents": len(chosen) + 1.0,
        "noop_nodes": len(chosen) - changed,
    }
    return result


class Job(NamedTuple):
    """What an engine is given."""

    model: Any
    tokens: Tokens
    nodes: Sequence[Node]
    replace: Replace
    bound: Bound
    kept: rerun.Base | None
    """The base run that a rerun enters."""
    baseline: Float[Tensor, " batch"]


class Pass(NamedTuple):
    """What is computed, and written to the journal, in one go."""

    rows: list[tuple[int, int, int]]
    """`row` of the node, example, first position."""
    spent: float
    """Whole forwards."""
    measure: Callable[[], Measured]


class Done(NamedTuple):
    """What the passes gave."""

    values: Float[Tensor, "node batch"]
    changed: int
    """Nodes whose edit changed a number at its site."""
    spent: float
    """Whole forwards."""


def _naive(job: Job) -> list[Pass]:
    def measure(node: Node) -> Measured:
        out, changed = _run_node(job, node)
        return Measured(_measure(job.bound, out, job.tokens, f"node {node}"), changed)

    examples = range(len(job.tokens))
    return [
        Pass([(node.row, example, 0) for example in examples], 1.0, partial(measure, node))
        for node in job.nodes
    ]


def _rerun(job: Job) -> list[Pass]:
    model, tokens, bound = job.model, job.tokens, job.bound
    rows = rerun.plan_rows(model, tokens, job.nodes, job.replace, job.kept)
    work = rerun.Rerun(model, tokens, job.kept, job.replace, bound)
    forward = rerun.forward_multiplies(model, tokens, bound)

    def measure(some: Sequence[rerun.Row]) -> Measured:
        values = work.measure(some)
        _check_measured(values, len(some), [f"node {row.node}" for row in some])
        return Measured(values.double().cpu(), changed=True)

    return [
        Pass(
            [(row.node.row, row.example, row.start) for row in some],
            rerun.multiplies(model, tokens, some, bound) / forward,
            partial(measure, some),
        )
        for some in rerun.passes(rows, tokens.shape[1])
    ]


def _run(job: Job, passes: Sequence[Pass], log: Journal | None, bar: tqdm) -> Done:
    """Measure every pass that the journal does not have."""
    number = {node.row: i for i, node in enumerate(job.nodes)}
    values = job.baseline.repeat(len(job.nodes), 1)  # where nothing changes
    changed = set()
    bar.reset(sum(len(one.rows) for one in passes))
    for i, one in enumerate(passes):
        done = one.measure() if log is None else log.once(i, one.measure)
        nodes = [number[row] for row, _, _ in one.rows]
        values[nodes, [example for _, example, _ in one.rows]] = done.values
        changed.update(nodes if done.changed else ())
        bar.update(len(one.rows))
    return Done(values, len(changed), sum(one.spent for one in passes) + 1.0)  # and the base run


def _engine(model: Any, engine: str | None) -> str:
    if engine not in (None, "rerun", "naive"):
        raise ValueError(f"engine={engine!r}: expected 'rerun', 'naive' or None")
    if engine == "rerun" and model.fwd_hooks:
        raise ValueError("engine='rerun' needs a model without hooks; use engine='naive'")
    return engine or ("naive" if model.fwd_hooks else "rerun")


def _check_reached(model: Any, chosen: Sequence[Node], bound: Bound) -> None:
    """A metric of the residual stream does not see what lies behind the last block."""
    late = [s.name for s in model.sites if s.name.startswith(("ln_final", "hook_logits"))]
    for node in chosen:
        for part in node.parts:
            if bound.reads == "residual" and part.site in late:
                raise ValueError(
                    f"node {node}: this metric reads the last residual stream, which lies before "
                    f"{part.site!r}"
                )


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
    (layers, heads, neurons, positions) and `sweep` (reduce, engine, allow_noop, journal, progress).
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

    metric: by default the logit difference of the pairs' answer and wrong ids at their "end".
    """
    if metric is None:
        end = "end" if "end" in pairs.corrupted.roles else None
        metric = metrics.logit_diff(pairs.answer, pairs.wrong, pos=end)
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


def _base(model: Any, tokens: Tokens, outputs: dict[str, Tensor]) -> Callable[[str], Tensor]:
    """The unedited run's output, computed once per kind and only when asked for."""

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


def _run_node(job: Job, node: Node) -> tuple[Tensor, bool]:
    """The output with one node edited, and whether any number there changed."""
    changed: list[bool] = []
    hooks = [*job.model.fwd_hooks]
    for part in node.parts:
        hooks.append((part.site, _hook(job, node, part, changed)))
    tap = Tap(job.model.sites, fwd_hooks=hooks)
    out = _output(job.model, job.tokens, tap, job.bound.reads)
    tap.check_fired()
    return out, any(changed)


def _hook(
    job: Job, node: Node, part: Part, changed: list[bool]
) -> Callable[[Tensor, Hook], Tensor]:
    site, tokens = job.model.sites[part.site], job.tokens
    examples = torch.arange(len(tokens), device=tokens.device)
    selection = Selection.of(part, examples, tokens)
    rows = Rows(site, examples, [node.key] * len(tokens))

    def hook(x: Tensor, hook: Hook) -> Tensor:
        new = torch.where(selection.mask(site, x), job.replace(x, rows), x)
        changed.append(not torch.equal(new, x))
        return new

    return hook


def _measure(bound: Bound, out: Tensor, tokens: Tokens, where: str) -> Float[Tensor, " batch"]:
    every = torch.arange(len(tokens), device=tokens.device)
    value = bound.measure(bound.pick(out, every), every)
    _check_measured(value, len(tokens), [where] * len(tokens))
    return value.double().cpu()


def _check_measured(value: Any, n: int, where: Sequence[str]) -> None:
    if not isinstance(value, Tensor) or value.shape != (n,):
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"the metric gave {got} at {where[0]}: expected one number per example")
    finite = value.isfinite()
    if not bool(finite.all()):
        raise ValueError(f"the metric is not finite at {where[int((~finite).nonzero()[0])]}")


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
