"""Probes at every place, with their controls, in one frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.core.indices import Indices, reusable
from interp.core.progress import counting

from . import controls, fitting, places, scores, splits
from .estimator import check_kind, checked_penalties, class_weights
from .fitting import ClassWeight, Kind
from .places import Activations, Features
from .scores import Predicted
from .splits import Examples, Folds

N_RANDOM = 3
"""Draws of random features."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is learned at every place."""

    examples: Examples
    made: Folds
    held: np.ndarray | None
    """[part, folds, n]: the rows of each training part that choose C, a part at a time; None:
    nothing is to be chosen."""
    labellings: np.ndarray
    """[l n]: the labels, then control tasks, then shuffles."""
    n_control: int
    kind: Kind
    Cs: tuple[float, ...]
    class_weight: ClassWeight
    standardise: bool
    tol: float

    @property
    def regression(self) -> bool:
        return self.examples.classes is None

    @property
    def n_classes(self) -> int:
        return 0 if self.examples.classes is None else len(self.examples.classes)

    @property
    def rows(self) -> int:
        """Decisions per example."""
        return self.n_classes if self.n_classes > 2 else 1

    @property
    def options(self) -> dict[str, Any]:
        """What `fitting.fit` is told, but for C."""
        return {
            "kind": self.kind,
            "n_classes": self.n_classes,
            "class_weight": self.class_weight,
            "tol": self.tol,
        }


def probe_sweep(
    activations: Activations,
    y: Any,
    *,
    sites: Any = None,
    positions: Indices | None = None,
    kind: Kind = "logistic",
    C: float | Sequence[float] | Literal["cv"] = 1.0,
    path: bool = False,
    cv: int = 5,
    split: Any = None,
    groups: Any = None,
    texts: Any = None,
    types: Any = None,
    class_weight: Literal["balanced"] | Mapping[Any, float] | None = None,
    standardise: bool = True,
    control: bool = True,
    n_control: int = 5,
    n_shuffles: int = 99,
    code: bool = True,
    shuffle: Literal["auto", "examples", "groups", "within"] = "auto",
    baselines: Mapping[str, Activations] | None = None,
    seed: int = 0,
    tol: float = 5e-5,
    progress: bool = True,
) -> pd.DataFrame:
    """A probe at every place of the activations, asked out of fold: one row per place (and C).

    activations: a mapping from places (a site's name, or (site, layer[, pos[, head]])) to [n d],
    [n pos d] or [n pos head d], an ActivationCache, or an array [problem n d]; arrays, or tensors
    of any device; pos counts along the axis that was given, of a cache along that of its run, and
    negative `positions` from its end. `baselines`: other activations by name,
    probed alike (the embedding; those of `random_copy`). y [n]: classes, or with kind="ridge"
    numbers. sites, positions: some of them.

    Learned on standardised features (by the training part alone), C as in `LinearProbe`. Several C
    ("cv": those of `PENALTIES`): chosen within each training part, anew for every labelling, of
    classes by the log-likelihood of a fifth of it, of numbers by the squared error of a
    five-fold cross-validation; with path=True one row for each instead. cv folds are stratified,
    and grouped by `groups`; `split` gives them instead (see `splits.folds`). texts: what each
    example was read from; one that stands on both sides of a split is refused.

    Columns: source site layer pos head C n_features | accuracy low high balanced_accuracy, auroc
    for two classes | n n_groups n_classes folds converged; for ridge r2 low high spearman mae.
    low and high: the 95 % Wilson interval over the examples (for r2 by the delta method). auroc:
    over pairs within a fold. C: the lower median over the folds. n_groups: n without groups.
    With control: constant (the majority class or mean of the training part), random_features
    (Gaussian ones of the same shape, the mean of 3 draws); null_mean null_low null_high p of
    n_shuffles permutations of the labels within the folds (see `splits.permuted`); with `types`
    control_accuracy (control_r2) and selectivity, against the mean of n_control control tasks
    (Hewitt & Liang 2019); and with `code`, for "logistic" alone, bits and compression (n log₂
    classes / bits) of the online code (Voita & Titov 2020), learned without class weights from all
    examples in a random order, whatever the folds. `attrs` says what was drawn.

    Random: folds, shuffles, control tasks, random features and the order of the code, all by
    `seed`. Raises ValueError on one class only, too few members or groups for the folds, leaks,
    activations of which none varies or that are not finite, and lengths that differ.
    """
    examples = as_examples(y, groups, texts, kind)
    n = len(examples)
    positions = reusable(positions)
    found = places.read(activations, n, sites=sites, positions=positions)
    for name, other in (baselines or {}).items():
        found += places.read(other, n, source=name, positions=positions)
    made = splits.folds(examples, cv, split, seed)
    Cs = penalties(kind, C, class_weight, examples)
    types = controls.check_types(types, n)
    counts = (n_control if types is not None else 0, n_shuffles) if control else (0, 0)
    labellings, shuffled = _labellings(examples, made, types, counts, shuffle, seed)
    plan = Plan(
        examples, made,
        splits.inner(examples, made, seed, kind == "ridge") if len(Cs) > 1 and not path else None,
        labellings, counts[0], kind, Cs,
        class_weights(class_weight, [] if examples.classes is None else examples.classes.tolist()),
        standardise, tol,
    )  # fmt: skip
    tables = _tables(plan, found, control, control and code and kind == "logistic", seed, progress)
    frame = pd.concat(tables).sort_index(kind="stable").reset_index(drop=True)
    frame.attrs = {
        "kind": kind, "seed": seed, "standardise": standardise, "shuffle": shuffled,
        "n_control": counts[0], "n_shuffles": counts[1],
        "left_out": [] if types is not None or not control else ["control tasks: no types given"],
    }  # fmt: skip
    return frame


def as_examples(y: Any, groups: Any, texts: Any, kind: str) -> Examples:
    """What was given, checked. Raises ValueError on what `probe_sweep` says."""
    given = np.asarray(y.cpu() if isinstance(y, Tensor) else y)
    if given.ndim != 1:
        raise ValueError(f"y has shape {list(given.shape)}: expected one label per example")
    for name, other in (("groups", groups), ("texts", texts)):
        if other is not None and len(other) != len(given):
            raise ValueError(f"{len(other)} {name} for {len(given)} labels")
    groups = None if groups is None else np.asarray(groups)
    if given.dtype.kind == "f" and not np.isfinite(given).all():
        raise ValueError(f"{(~np.isfinite(given)).sum()} labels are NaN or infinite")
    if kind == "ridge":
        if given.dtype.kind not in "iufb":
            raise ValueError(f"kind='ridge' needs numbers as labels, got {given.dtype}")
        if given.min() == given.max():
            raise ValueError(f"every label is {given[0]}: there is nothing to learn")
        return Examples(given.astype(float), None, groups, texts)
    if given.dtype.kind == "f" and (given != given.round()).any():
        raise ValueError("the labels are not whole numbers; use kind='ridge' to learn numbers")
    classes, codes = np.unique(given, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"the labels have one class only, {classes.tolist()}; two are needed")
    return Examples(codes, classes, groups, texts)


def penalties(kind: str, C: Any, class_weight: Any, examples: Examples) -> tuple[float, ...]:
    """C as a path, in order. Raises ValueError on options that do not go together."""
    Cs = checked_penalties(C)
    if kind != "ridge":
        for one in Cs:
            check_kind(kind, one, class_weight)
    elif class_weight is not None:
        raise ValueError("kind='ridge' has no classes to weigh: leave out class_weight")
    return Cs


def _labellings(
    examples: Examples, made: Folds, types: Any, counts: tuple[int, int], shuffle: str, seed: int
) -> tuple[np.ndarray, str]:
    rng = np.random.default_rng([seed, 1])
    n_control, n_shuffles = counts
    rows = [examples.y[None]]
    if n_control:
        rows.append(controls.control_labels(examples.y, types, n_control, made, rng))
    if n_shuffles:
        drawn, shuffle = splits.permuted(examples, made.of, n_shuffles, shuffle, rng)
        rows.append(drawn)
    return np.concatenate(rows), shuffle


class _Batch(NamedTuple):
    """Sets of features of one width, and their numbers."""

    index: list[int]
    x: Float[Tensor, "b n d"]


def _batches(plan: Plan, found: Sequence[Features]) -> Iterator[_Batch]:
    """So many at once that features, coefficients and predictions stay in bounds."""
    kinds: dict[tuple, list[int]] = {}
    for i, one in enumerate(found):
        kinds.setdefault((one.x.shape[1], one.x.dtype, one.x.device), []).append(i)
    for (d, _, _), index in kinds.items():
        n, folds, tasks = len(plan.examples), len(plan.made.train), len(plan.labellings) * plan.rows
        width = min(d, n) + 1
        features = folds * width * (n + width)  # where each fold has its own
        learned = tasks * (len(plan.Cs) * n + folds * (6 * n + 30 * width))
        size = max(1, fitting.NUMBERS // (features + learned))
        for i in range(0, len(index), size):
            some = index[i : i + size]
            yield _Batch(some, torch.stack([found[j].x for j in some]))


def _tables(
    plan: Plan, found: Sequence[Features], control: bool, code: bool, seed: int, progress: bool
) -> list[pd.DataFrame]:
    """A frame per batch and C, indexed by place."""
    named, tables = places.frame(found), []
    chance: dict[int, list[float]] = {}
    with counting(len(found), "probes", progress) as bar:
        for index, x in _batches(plan, found):
            try:
                by_C = predict(plan, x)
            except ValueError as error:
                where = ", ".join(str(found[i].place) for i in index[:3])
                more = f" and {len(index) - 3} more" if len(index) > 3 else ""
                raise ValueError(f"{error} (at {where}{more})") from error
            if control and x.shape[2] not in chance:
                chance[x.shape[2]] = _chance(plan, x, seed)
            for number, (predicted, converged) in enumerate(by_C):
                table = named.loc[index].assign(
                    C=predicted.C,
                    n_features=x.shape[2],
                    **_columns(plan, predicted),
                )
                if control:
                    table["random_features"] = chance[x.shape[2]][number]
                    for name, values in _controls(plan, predicted).items():
                        table[name] = values
                if code:
                    _add_code(plan, table, x, seed)
                tables.append(table.assign(**_sizes(plan), converged=converged))
            bar.update(len(index))
    return tables


def _columns(plan: Plan, found: Predicted) -> dict[str, Any]:
    asked = plan.made.asked
    y = plan.examples.y[asked]
    if plan.regression:
        return scores.of_numbers(found, y)
    return scores.of_classes(found, y, plan.made.of[asked], plan.n_classes)


def _controls(plan: Plan, found: Predicted) -> dict[str, Any]:
    every = scores.score(found, plan.labellings[:, plan.made.asked], plan.regression)
    name = "r2" if plan.regression else "accuracy"
    columns: dict[str, Any] = {
        "constant": scores.constant(plan.examples.y, plan.made, plan.regression)
    }
    after = 1 + plan.n_control
    if plan.n_control:
        columns[f"control_{name}"] = every[:, 1:after].mean(-1)
        columns["selectivity"] = every[:, 0] - columns[f"control_{name}"]
    if every.shape[1] > after:
        keep = [0, *range(after, every.shape[1])]
        columns |= scores.against_null(every[:, keep], found.log_likelihood[:, keep])
    return columns


def _sizes(plan: Plan) -> dict[str, int]:
    groups = plan.examples.groups
    sizes = {
        "n": len(plan.made.asked),
        "n_groups": len(plan.examples) if groups is None else len(np.unique(groups)),
        "n_classes": plan.n_classes,
        "folds": len(plan.made.train),
    }
    return {k: v for k, v in sizes.items() if not (plan.regression and k == "n_classes")}


def _chance(plan: Plan, x: Tensor, seed: int) -> list[float]:
    """What random features of the same shape score, for each C."""
    drawn = controls.random_features(len(plan.examples), x.shape[2], N_RANDOM, seed, x)
    only = Plan(**{**vars(plan), "labellings": plan.labellings[:1], "n_control": 0})
    y = plan.labellings[:1, plan.made.asked]
    return [float(scores.score(one, y, plan.regression).mean()) for one, _ in predict(only, drawn)]


def _add_code(plan: Plan, table: pd.DataFrame, x: Tensor, seed: int) -> None:
    """bits and compression; where C was chosen, with each place's own."""
    bits = np.empty(len(table))
    for C in np.unique(table["C"]):
        own = np.array(table["C"] == C)
        options = plan.options | {"C": float(C)}
        del options["n_classes"], options["class_weight"]
        bits[own] = controls.description_length(
            x[torch.from_numpy(own).to(x.device)], plan.examples, seed, **options
        )
    table["bits"] = bits
    table["compression"] = len(plan.examples) * np.log2(plan.n_classes) / bits


def predict(plan: Plan, x: Float[Tensor, "b n d"]) -> list[tuple[Predicted, np.ndarray]]:
    """Out of fold: one for each C of a path, else one; and whether all of a place converged."""
    train = torch.from_numpy(plan.made.train).to(x.device)
    every = list(_path(plan, x, train))
    if len(every) == 1 or plan.held is None:
        return [
            (_predicted(plan, z, np.full(len(x), C)), converged)
            for C, (z, converged) in zip(plan.Cs, every, strict=True)
        ]
    best = _best(plan, x, train)
    fold = torch.from_numpy(plan.made.of[plan.made.asked]).to(x.device)
    of_row = best[:, fold].mT[:, :, None].expand_as(every[0][0])
    z = torch.stack([z for z, _ in every]).gather(0, of_row[None])[0]
    index = best[:, :, 0].sort(1).values[:, (best.shape[1] - 1) // 2].cpu().numpy()
    converged = np.logical_and.reduce([converged for _, converged in every])
    return [(_predicted(plan, z, np.array(plan.Cs)[index]), converged)]


def _path(
    plan: Plan, x: Tensor, train: Tensor
) -> Iterator[tuple[Float[Tensor, "b l k n"], np.ndarray]]:
    """For each C the decisions on the asked examples, each by the fold that is asked."""
    prepared = fitting.prepare(x, train, plan.standardise)
    y = _targets(plan, x)
    asked = torch.from_numpy(plan.made.asked).to(x.device)
    fold = torch.from_numpy(plan.made.of[plan.made.asked]).to(x.device)
    for found in fitting.path(prepared, y, plan.Cs, **plan.options):
        z = x.new_empty(len(x), len(y), plan.rows, len(asked))
        for i in range(len(train)):
            z[..., fold == i] = prepared.decide(found.coef, i, asked[fold == i])
        yield z, found.converged.flatten(1).all(1).cpu().numpy()


def _best(plan: Plan, x: Tensor, train: Tensor) -> Int[Tensor, "b f l"]:
    """The number of the C that does best on the rows of each training part that choose it."""
    assert plan.held is not None
    parts = torch.from_numpy(plan.held).to(x.device)
    return torch.stack([_goods(plan, x, train, held) for held in parts]).sum(0).argmax(0)


def _goods(plan: Plan, x: Tensor, train: Tensor, held: Tensor) -> Float[Tensor, "c b f l"]:
    """How well each C does on the held-out rows [fold n] of the training parts."""
    prepared = fitting.prepare(x, train & ~held, plan.standardise)
    y, rows = _targets(plan, x), [one.nonzero().flatten() for one in held]
    goods = [
        torch.stack(
            [
                _log_likelihood(plan, prepared.decide(found.coef, fold, own), y[:, own])
                for fold, own in enumerate(rows)
            ],
            1,
        )
        for found in fitting.path(prepared, y, plan.Cs, **plan.options)
    ]
    return torch.stack(goods)


def _targets(plan: Plan, x: Tensor) -> Tensor:
    y = torch.from_numpy(plan.labellings).to(x.device)
    return y.to(x.dtype) if plan.regression else y


def _log_likelihood(plan: Plan, z: Float[Tensor, "b l k n"], y: Tensor) -> Float[Tensor, "b l"]:
    """Of the labels [l n]; of a regression minus the squared error."""
    if plan.regression:
        return -(z[:, :, 0] - y).square().sum(-1)
    logs = controls.log_probabilities(z)
    index = y[None, :, None].expand(len(z), -1, 1, -1)
    return logs.gather(2, index).sum((2, 3))


def _predicted(plan: Plan, z: Float[Tensor, "b l k n"], C: np.ndarray) -> Predicted:
    y = _targets(plan, z)[:, torch.from_numpy(plan.made.asked).to(z.device)]
    if plan.regression:
        value = z[:, :, 0]
    else:
        value = (z[:, :, 0] > 0).long() if plan.rows == 1 else z.argmax(2)
    decision = z[:, 0, 0] if plan.n_classes == 2 else z[:, 0, 0, :0]
    arrays = (value, _log_likelihood(plan, z.double(), y), decision)
    return Predicted(*(one.cpu().numpy() for one in arrays), C)
