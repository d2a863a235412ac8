"""What a probe says of each example: the answers that the scores of `probe_sweep` count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from . import places, splits
from .estimator import class_weights
from .fitting import Kind
from .sweep import Plan, as_examples, penalties, predict


def held_out_predictions(
    x: Any,
    y: Any,
    *,
    kind: Kind = "logistic",
    C: float | Sequence[float] | Literal["cv"] = 1.0,
    cv: int = 5,
    split: Any = None,
    groups: Any = None,
    texts: Any = None,
    class_weight: Literal["balanced"] | Mapping[Any, float] | None = None,
    standardise: bool = True,
    seed: int = 0,
    tol: float = 5e-5,
) -> pd.DataFrame:
    """The prediction for every example that some fold is asked about, by that fold's probe.

    x: one set of features [n d]. All options mean what they mean in `probe_sweep`, and the folds
    and the choice of C are those of the same call there, so that the share of right rows is its
    `accuracy`.

    Columns: example fold label predicted, and for two classes decision (above 0: the second class,
    in sorted order). Random: the folds, by `seed`. Raises ValueError as `probe_sweep` does.
    """
    examples = as_examples(y, groups, texts, kind)
    (found,) = places.read({"features": x}, len(examples))
    made = splits.folds(examples, cv, split, seed)
    Cs = penalties(kind, C, class_weight, examples)
    names = [] if examples.classes is None else examples.classes.tolist()
    plan = Plan(
        examples, made,
        splits.inner(examples, made, seed, kind == "ridge") if len(Cs) > 1 else None,
        examples.y[None], 0, kind, Cs, class_weights(class_weight, names), standardise, tol,
    )  # fmt: skip
    ((predicted, _),) = predict(plan, found.x[None])
    asked, value = made.asked, predicted.value[0, 0]
    labels = examples.y[asked]
    if examples.classes is not None:
        value, labels = examples.classes[value], examples.classes[labels]
    columns = {"example": asked, "fold": made.of[asked], "label": labels, "predicted": value}
    if predicted.decision.shape[1]:
        columns["decision"] = predicted.decision[0]
    return pd.DataFrame(columns)
