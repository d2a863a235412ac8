"""Sweeps: nodes × edit × metric → a tidy DataFrame, one row per node.

Two engines give the same numbers: "rerun" recomputes only what an edit can change (see `rerun`);
"naive" runs one whole forward per node, and is the yardstick.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from interp.core.finite import NotFinite, check_model, traced
from interp.core.memory import free_bytes
from interp.core.progress import counting
from interp.core.tap import ActivationCache
from interp.core.tokens import Tokens

from . import edits, metrics, naive, rerun
from .edits import Edit, Replace
from .journal import Journal, Measured, manifest
from .metrics import Bound, Metric
from .nodes import COLUMNS, Node, as_frame, read_nodes
from .nodes import nodes as make_nodes

if TYPE_CHECKING:
    from interp.model import HookedTransformer


@runtime_checkable
class PromptPairs(Protocol):
    """Clean and corrupted prompts with the ids of their answers, as `interp.tasks` makes them."""

    @property
    def clean(self) -> Tokens: ...
    @property
    def corrupted(self) -> Tokens: ...
    @property
    def answer(self) -> Tensor: ...
    @property
    def wrong(self) -> Tensor: ...


Nodes: TypeAlias = pd.DataFrame | Sequence[dict] | str | os.PathLike
"""A frame of `nodes`, records, or a .csv or .json file of them."""


@torch.no_grad()
def sweep(
    model: HookedTransformer,
    tokens: Any,
    nodes: Nodes,
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
    engine: by default "rerun"; "naive" on a view with hooks, behind the bridge, for a metric that
    needs all examples at once (of a cache, or a function of the output alone), and where the base
    run does not fit into memory. `attrs` records which and why, and the cost in whole forwards.
    journal: a file in which each pass is kept as soon as it is measured; the same call resumes from
    it after a kill, and ends in the same bytes. Raises ValueError on a node that the model does not
    have, a metric that is not finite (the node is named), and an edit that changes nothing at any
    node (unless allow_noop); JournalError on another run's journal.
    """
    if reduce not in ("mean", "none"):
        raise ValueError(f"reduce={reduce!r}: expected 'mean' or 'none'")
    tokens, frame = model.accept(tokens), as_frame(nodes)
    _warn_of_one_answer(tokens, edit, metric)
    with traced(model, tokens):
        job = _prepared(model, tokens, frame, edit, metric, engine)
    log = None
    if journal is not None:
        made_of = manifest(model, tokens, job.nodes, edit, metric, job.engine, job.baseline)
        log = Journal(journal, made_of, [one.rows for one in job.passes])
    title = f"{edit.name} × {metric.name}"
    with log or nullcontext(), counting(None, title, progress) as bar:
        try:
            values, changed = _run(job, log, bar)
        except NotFinite as error:
            if error.where:
                raise
            raise NotFinite(
                error.what,
                "the unedited run is finite, so it is what the edit puts there, or what "
                f"{model.dtype} cannot hold of it",
            ) from None
    if not changed and not allow_noop:
        raise ValueError(
            f"the edit {edit.name!r} changes nothing at any of the {len(job.nodes)} nodes; "
            "pass allow_noop=True if that is meant"
        )
    result = _tidy(frame, job.nodes, values, job.baseline, edit, metric, reduce)
    result.attrs |= _cost(job) | {"noop_nodes": len(job.nodes) - changed}
    if job.work is not None and job.work.halved:
        result.attrs["halved_passes"] = job.work.halved
    return result


@torch.no_grad()
def explain(
    model: HookedTransformer,
    tokens: Any,
    nodes: Nodes,
    edit: Edit,
    metric: Metric,
    *,
    engine: Literal["rerun", "naive"] | None = None,
) -> dict[str, Any]:
    """What a sweep would take, before running it: engine (and why), nodes, those whose edit changes
    nothing (None: the naive engine does not know before), passes, forward_equivalents,
    naive_equivalents, and predicted bytes above the weights.

    Costs the base run, and the reference run of an edit that needs one.
    """
    tokens = model.accept(tokens)
    with traced(model, tokens):
        job = _prepared(model, tokens, as_frame(nodes), edit, metric, engine)
    found = {row for one in job.passes for row, _, _ in one.rows}
    noop = None if job.engine == "naive" else len(job.nodes) - len(found)
    return _cost(job) | {
        "nodes": len(job.nodes),
        "noop_nodes": noop,
        "passes": len(job.passes),
        "bytes": job.bytes,
    }


def _warn_of_one_answer(tokens: Tokens, edit: Edit, metric: Metric) -> None:
    """What is put in comes from the examples themselves, which all have one answer: it is there,
    too."""
    reference, answer = edit.reference, metric.answer
    if reference is None or answer is None or len(tokens) == 1:
        return
    if not metrics.single_answer(answer):
        return
    ids, theirs = tokens.ids, reference.ids
    if ids is None or theirs is None or ids.shape != theirs.shape:
        return
    if bool((ids == theirs.to(ids.device)).all()):
        warnings.warn(
            f"{edit.name} ablation: all {len(tokens)} examples have the same answer, and what is "
            "put in comes from them alone, so that it holds that answer: effects come out too "
            "small or with the wrong sign. Take the reference from examples of both answers, such "
            "as pairs.both (clean and corrupted prompts)",
            stacklevel=4,
        )


class Pass(NamedTuple):
    """What is computed, and written to the journal, in one go."""

    rows: list[tuple[int, int, int]]
    """`row` of the node, example, first position."""
    spent: float
    """Whole forwards."""
    measure: Callable[[], Measured]


class Job(NamedTuple):
    """A sweep that is ready to run."""

    engine: str
    why: str | None
    """Why it is not the usual engine."""
    nodes: Sequence[Node]
    passes: Sequence[Pass]
    baseline: Float[Tensor, " batch"]
    bytes: int
    """Predicted, above the weights."""
    work: rerun.Rerun | None


def _prepared(
    model: HookedTransformer,
    tokens: Tokens,
    frame: pd.DataFrame,
    edit: Edit,
    metric: Metric,
    engine: str | None,
) -> Job:
    check_model(model, tokens)
    chosen = read_nodes(frame, model, tokens)
    engine, why, lines = _engine(model, tokens, chosen, metric, engine)
    kept = rerun.base_run(model, tokens, chosen) if engine == "rerun" else None
    base = _base(model, tokens, kept)
    bound = metric.bind(model, tokens, base)
    _check_reached(model, chosen, bound)
    replace = edit.bind(model, tokens, edits.edited_positions(chosen, model, tokens))
    where = f"the unedited run ({metric.name})"
    if kept is None:
        out = base("cache", bound.sites) if bound.reads == "cache" else base(bound.reads)
        baseline = naive.measured(bound, out, tokens, where)
        passes, work = _naive(model, tokens, chosen, replace, bound), None
        stream = 12 * model.cfg.d_model
        width = stream + (model.cfg.d_vocab if model.cfg.head != "none" else 0)
        values = tokens.shape.numel() * width
        values += 0 if tokens.source is None else tokens.source.shape.numel() * stream
        needed = values * model.dtype.itemsize
    else:
        work = rerun.Rerun(model, tokens, kept, replace, bound)
        baseline = work.baseline(where)
        passes = _rerun(work, chosen, lines)
        needed = rerun.base_bytes(model, tokens, chosen) + rerun.pass_bytes(model, lines)
    return Job(engine, why, chosen, passes, baseline, needed, work)


def _engine(
    model: HookedTransformer,
    tokens: Tokens,
    nodes: Sequence[Node],
    metric: Metric,
    asked: str | None,
) -> tuple[str, str | None, int]:
    """Which engine, why not the usual one, and the lines per pass of a rerun."""
    if asked not in (None, "rerun", "naive"):
        raise ValueError(f"engine={asked!r}: expected 'rerun', 'naive' or None")
    if asked == "naive":
        return asked, model.opaque, 0
    obstacle = model.opaque or ("the model has hooks" if model.fwd_hooks else metric.whole)
    if obstacle and asked == "rerun":
        raise ValueError(
            f"engine='rerun' needs a native model without hooks and a metric of any rows of the "
            f"output, but {obstacle}; use engine='naive'"
        )
    if obstacle:
        return "naive", obstacle, 0
    free, base = free_bytes(tokens.device), rerun.base_bytes(model, tokens, nodes)
    width = tokens.shape[1] + (0 if tokens.source is None else tokens.source.shape[1])
    lines = rerun.lines_that_fit(model, width, None if free is None else free - base)
    if lines is None and asked is None:
        return "naive", f"the base run would keep {base:,} bytes and {free:,} are free", 0
    return "rerun", None, lines or width


def _naive(
    model: HookedTransformer, tokens: Tokens, nodes: Sequence[Node], replace: Replace, bound: Bound
) -> list[Pass]:
    work = naive.Naive(model, tokens, replace, bound)

    def measure(node: Node) -> Measured:
        return Measured(*work.measure(node))

    examples = range(len(tokens))
    return [
        Pass([(node.row, example, 0) for example in examples], 1.0, partial(measure, node))
        for node in nodes
    ]


def _rerun(work: rerun.Rerun, nodes: Sequence[Node], lines: int) -> list[Pass]:
    model, tokens, bound = work.model, work.tokens, work.bound
    rows = rerun.plan_rows(model, tokens, nodes, work.replace, work.base)
    forward = rerun.forward_multiplies(model, tokens, bound)
    source = 0 if tokens.source is None else tokens.source.shape[1]

    def measure(some: Sequence[rerun.Row]) -> Measured:
        return Measured(work.measure(some), changed=True)

    return [
        Pass(
            [(row.node.row, row.example, row.start) for row in some],
            rerun.multiplies(model, tokens, some, bound) / forward,
            partial(measure, some),
        )
        for some in rerun.passes(rows, tokens.shape[1], lines, source)
    ]


def _run(job: Job, log: Journal | None, bar: tqdm) -> tuple[Float[Tensor, "node batch"], int]:
    """Measure every pass that the journal does not have; and how many nodes changed anything."""
    number = {node.row: i for i, node in enumerate(job.nodes)}
    values = job.baseline.repeat(len(job.nodes), 1)  # where nothing changes
    changed = set()
    bar.reset(sum(len(one.rows) for one in job.passes))
    for i, one in enumerate(job.passes):
        done = one.measure() if log is None else log.once(i, one.measure)
        nodes = [number[row] for row, _, _ in one.rows]
        values[nodes, [example for _, example, _ in one.rows]] = done.values
        changed.update(nodes if done.changed else ())
        bar.update(len(one.rows))
    return values, len(changed)


def _cost(job: Job) -> dict[str, Any]:
    """In whole forwards, the base run among them."""
    spent = {
        "engine": job.engine,
        "forward_equivalents": sum(one.spent for one in job.passes) + 1.0,
        "naive_equivalents": len(job.nodes) + 1.0,
    }
    return spent if job.why is None else spent | {"why": job.why}


def _base(model: HookedTransformer, tokens: Tokens, kept: rerun.Base | None) -> Callable[..., Any]:
    """The unedited run's output, computed once per kind and only when asked for."""
    outputs: dict[str, Any] = {} if kept is None else {"residual": kept.residual}

    def output(reads: str, sites: tuple[str, ...] = ()) -> Any:
        if reads not in outputs and kept is not None and model.cfg.head != "none":
            outputs[reads] = model.to_logits(kept.residual)
        elif reads not in outputs:
            outputs[reads] = naive.run(model, tokens, reads, sites)
        return outputs[reads]

    return output


def _check_reached(model: HookedTransformer, chosen: Sequence[Node], bound: Bound) -> None:
    """A model without logits has none to read, and a metric of the residual stream does not see
    what lies behind the last block."""
    if bound.reads == "logits" and model.cfg.head == "none":
        raise ValueError(naive.NO_LOGITS)
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
    per: Literal["all", "pos"] | None = None,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Remove each node from the run: `sweep` with a zero, mean or resample edit.

    mean and resample take `reference`, by default the tokens themselves; it should hold examples of
    both answers, as `pairs.both` does (a warning says where all have one). resample takes a `seed`,
    mean takes `per`: "all" (the default) puts one mean over all real tokens of the reference at
    every position; "pos" puts at each position the mean over the reference's tokens at that very
    position, for prompts of one form. `options` go to `nodes` (layers, heads, neurons, experts,
    positions) and `sweep` (reduce, engine, allow_noop, journal, progress). Raises ValueError on
    per= with another kind.
    """
    tokens = model.accept(tokens)
    reference = tokens if reference is None else reference
    if kind not in ("zero", "mean", "resample"):
        raise ValueError(f"kind={kind!r}: expected 'zero', 'mean' or 'resample'")
    if per is not None and kind != "mean":
        raise ValueError(f"per={per!r} goes with kind='mean', and this is kind={kind!r}")
    edit = {
        "zero": edits.zero,
        "mean": lambda: edits.mean(reference, per or "all"),
        "resample": lambda: edits.resample(reference, seed),
    }[kind]()
    return _sweep_by(model, tokens, site, by, edit, metric, options)


def patch(
    model: HookedTransformer,
    pairs: PromptPairs,
    site: str,
    by: Sequence[str] = ("layer", "pos"),
    *,
    metric: Metric | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Put each node's clean value into the corrupted run (denoising); `pairs` as
    `interp.tasks` makes them.

    metric: by default the logit difference of the pairs' answer and wrong ids at their "end".
    """
    clean, corrupted = model.accept(pairs.clean), model.accept(pairs.corrupted)
    if metric is None:
        end = "end" if "end" in corrupted.roles else None
        metric = metrics.logit_diff(pairs.answer, pairs.wrong, pos=end)
    return _sweep_by(model, corrupted, site, by, edits.patch(clean), metric, options)


NODE_OPTIONS = ("layers", "heads", "neurons", "experts", "positions")


def _sweep_by(
    model: HookedTransformer,
    tokens: Any,
    site: str,
    by: Sequence[str],
    edit: Edit,
    metric: Metric,
    options: dict,
) -> pd.DataFrame:
    tokens = model.accept(tokens)
    picked = {name: options.pop(name) for name in NODE_OPTIONS if name in options}
    frame = make_nodes(model, site, by, tokens=tokens, **picked)
    return sweep(model, tokens, frame, edit=edit, metric=metric, **options)


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
