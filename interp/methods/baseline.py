"""How an unedited model does on pairs of prompts: what every effect on them is measured against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.finite import check_model, finite
from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.model import HookedTransformer
from interp.sweeps import metrics

from . import stats

COLUMNS = ("run", "n", "above_wrong", "low", "high", "first", "logit_diff", "stderr?")
"""The columns of `Baseline.table`; stderr is blank where there is one pair."""
BATCH = 64


def check_logits(model: HookedTransformer) -> None:
    """Raises ValueError on a model without logits."""
    if model.cfg.head == "none":
        raise ValueError(
            f"{model.name} has head='none': it gives no logits, so no answer can be read from it"
        )


@dataclass(frozen=True, eq=False)
class Baseline:
    """How the unedited model does on the pairs; logit differences are answer − wrong, at "end"."""

    clean: Float[np.ndarray, " n"]
    """The logit difference of the clean prompt."""
    corrupted: Float[np.ndarray, " n"]
    """The same answer and wrong, after the corrupted prompt."""
    table: pd.DataFrame
    """The rows clean and corrupted: `COLUMNS`."""
    noise: float = 0.0
    """The size up to which a mean effect on these pairs may be nothing but rounding
    (`stats.rounding`), in logits; a change of nats or of probability is no larger."""

    @property
    def gap(self) -> Float[np.ndarray, " n"]:
        """What the corruption costs."""
        return self.clean - self.corrupted

    @property
    def able(self) -> bool:
        """Whether the model does the task: the answer lies above the wrong one more often than by
        chance (95 % Wilson interval; of fewer than four pairs, in all)."""
        row = self.table.iloc[0]
        return bool(row["low"] > 0.5 or (row["n"] < 4 and row["above_wrong"] == 1))

    @property
    def normal(self) -> bool:
        """Whether effects can be stated as shares of the gap: its mean is away from zero, and
        more than rounding."""
        gap = stats.mean(self.gap)
        return bool(abs(gap.value) > max(2 * np.nan_to_num(gap.stderr), self.noise))


def metric_of(pairs: Pairs) -> metrics.Metric:
    """The logit difference of answer and wrong at "end"."""
    return metrics.logit_diff(pairs.answer, pairs.wrong, pos="end")


@torch.no_grad()
def measure_baseline(model: HookedTransformer, pairs: Pairs) -> Baseline:
    """Run both prompts of each pair unedited; see `Baseline`.

    Raises ValueError on a model without logits, and NotFinite where a logit is no number.
    """
    check_logits(model)
    rows, differences, scale = [], [], 0.0
    for run, tokens in (("clean", pairs.clean), ("corrupted", pairs.corrupted)):
        logits = _answer_logits(model, tokens)
        answer, wrong = (
            ids.reshape(len(pairs), -1).to(logits.device) for ids in (pairs.answer, pairs.wrong)
        )
        first = (logits.argmax(-1, keepdim=True) == answer).any(-1).double().mean()
        right, other = logits.gather(1, answer).mean(-1), logits.gather(1, wrong).mean(-1)
        # What is read: answers, and of a softmax its top; not a vocabulary masked by −∞.
        scale = max(scale, *(float(read.abs().max()) for read in (right, other, logits.amax(-1))))
        difference = (right - other).double().cpu().numpy()
        above = int((difference > 0).sum())
        low, high = stats.wilson(np.array([above]), np.array([len(pairs)]))
        mean = stats.mean(difference)
        rows.append(
            {
                "run": run,
                "n": len(pairs),
                "above_wrong": above / len(pairs),
                "low": low[0],
                "high": high[0],
                "first": float(first),
                "logit_diff": float(mean.value),
                "stderr": float(mean.stderr),
            }
        )
        differences.append(difference)
    noise = stats.rounding(scale, torch.finfo(model.dtype).eps, len(pairs))
    return Baseline(*differences, pd.DataFrame(rows), noise)


def _answer_logits(model: HookedTransformer, tokens: Tokens) -> Tensor:
    """[n d_vocab]: at the role "end", a batch at a time."""
    answers = []
    for rows in torch.arange(len(tokens)).split(BATCH):
        batch = model.accept(tokens[rows])
        check_model(model, batch)
        logits = finite(model(batch), model, "the logits", batch)
        end = batch.roles["end"].to(logits.device)
        answers.append(logits[torch.arange(len(rows), device=logits.device), end].float())
    return torch.cat(answers)
