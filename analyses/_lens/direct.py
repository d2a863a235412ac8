"""Who writes the answer: the logit difference, split into layers, heads and neurons, with controls.

Every part is measured per prompt, so that it has an interval; the same split towards a random pair
of tokens is what parts come to when there is nothing to find.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import interp
from analyses._lens.config import Config
from interp import edits, stats
from interp.data.tasks import Pairs
from interp.methods.attribution import NONE, logit_attribution
from interp.methods.baseline import metric_of
from interp.report import Report, Section
from interp.report.figures import bars, curves, heatmap, scatter
from interp.report.spine import (
    head_name,
    listed,
    no_effect,
    number,
    percent,
    plus_minus,
    strongest,
)

INTERVAL = ("value", "stderr?", "low?", "high?")
KEY = ["component", "layer", "head"]
DIRECT_TABLES = {
    "direct-heads-figure": ("layer", "head", "value"),
    "direct-parts-figure": ("part", "towards", "value", "low", "high"),
    "direct-layers-figure": ("part", "layer", "value", "low", "high"),
    "direct-parts": ("part", *KEY, *INTERVAL, "random_pair", "random_low?", "random_high?"),
    "direct-neurons": ("layer", "neuron", *INTERVAL),
    "direct-and-total": ("part", "layer", "head", "direct", "total"),
    "direct-and-total-by-head": (
        *("part", "layer", "head", "direct", "direct_stderr?", "total", "total_stderr?", "n"),
    ),
}
ASKED, RANDOM = "answer − wrong answer", "random pair of tokens"
REST = "all other parts"


@dataclass(frozen=True, eq=False)
class Split:
    """Logit differences, split into parts."""

    by: Literal["head", "component"]
    parts: pd.DataFrame
    """component layer head part, one row per part."""
    values: np.ndarray
    """[part prompt]: what each adds to logit(answer) − logit(wrong)."""
    total: np.ndarray
    """[prompt]: the logit difference itself, before any soft-cap."""

    @property
    def error(self) -> float:
        """The most that the parts of a prompt miss its total by; rounding."""
        return float(np.abs(self.values.sum(0) - self.total).max())


@dataclass(frozen=True, eq=False)
class Direct:
    """What every part writes towards the answer, and towards a random pair of tokens."""

    split: Split
    null: Split
    table: pd.DataFrame
    """`direct-parts`, in the order of the split."""
    removed: pd.DataFrame | None
    """`direct-and-total-by-head`; None where no head is split off."""


def measure_direct(
    report: Report, model: Any, pairs: Pairs, layers: list[int], config: Config
) -> Direct | None:
    """The split by heads (or, where a norm stands between, by components), and what removing the
    heads does; None, and said, where a logit is no sum of parts."""
    by = _divisible(report, model, pairs)
    if by is None:
        return None
    split = divide(model, pairs, pairs.answer, pairs.wrong, by, layers)
    null = divide(model, pairs, *_random_pair(model, pairs, config.seed), by, layers)
    table = _table(split, null)
    heads = table[(table["component"] == "attn") & (table["head"] != NONE)]
    if by == "head" and heads.empty:
        report.skip("Removing heads: no layer is split into heads.")
    removed = None if heads.empty else _removed(model, pairs, heads, config)
    return Direct(split, null, table, removed)


def direct_sections(
    report: Report,
    model: Any,
    pairs: Pairs,
    layers: list[int],
    direct: Direct,
    config: Config,
    noise: float,
) -> None:
    """The evidence behind the split: its parts, neurons, and the heads removed."""
    split, null, table = direct.split, direct.null, direct.table
    shown = table.reindex(table["value"].abs().nlargest(config.top).index)
    shown = shown.sort_values("value", ascending=False, kind="stable")
    section = report.section(
        "What writes the answer",
        "With the final norm's scale held at what it was, the logit difference is a sum over all "
        "that was added to the residual stream (Elhage et al. 2021). Values are logits, towards "
        "the answer above zero. This is what a part says to the unembedding itself, not what "
        "later layers make of it.",
    )
    _draw(section, split, null, table, shown)
    section.table(
        strongest(table, by="value"),
        "All parts, the largest first, with what they come to for a random pair of tokens",
        name="direct-parts",
        missing=("stderr", "low", "high", "random_low", "random_high"),
        rows=config.top,
    )
    _tell(report, split, table, shown, config, noise)
    if config.neurons:
        _neurons(report, section, model, pairs, layers, config)
    else:
        report.skip("Single neurons: neurons is off.")
    if direct.removed is not None:
        _show_removed(report, direct.removed, noise)


def most_written(report: Report, direct: Direct, noise: float) -> None:
    """The part that writes most of the answer itself, where one clearly does."""
    table, total = direct.table, float(direct.split.total.mean())
    row = table.loc[table["value"].idxmax()]
    by_chance = max(noise, float(table["random_pair"].abs().max()))
    clear = row["value"] > by_chance and not row["low"] <= 0
    report.finding(
        f"{row['part']} itself writes most towards the answer: {number(row['value'], 'z.1f')} "
        f"logits of its lead over the wrong one, which is {number(total, 'z.1f')} in all."
        if clear
        else "No part clearly writes the answer itself: none writes more towards it than parts do "
        "towards random tokens.",
        at="direct-parts-figure",
    )


def most_lost(report: Report, removed: pd.DataFrame, noise: float) -> None:
    """The head whose removal takes most of the answer, beside what it writes itself."""
    row = removed.loc[removed["total"].idxmax()]
    needed = 0.0 if int(row["n"]) < 2 else stats.errors_needed(int(row["n"]), len(removed))
    lost, written = float(row["total"]), float(row["direct"])
    if lost <= max(noise, needed * float(np.nan_to_num(row["total_stderr"]))):
        text = "Of the heads that write most, none takes the answer along when it is removed."
    elif lost > 2 * max(written, noise):
        text = (
            f"Without {row['part']}, {number(lost, 'z.1f')} logits of the answer's lead are lost, "
            f"though it writes {number(written, 'z.1f')} itself: it acts through later layers."
        )
    else:
        text = (
            f"Without {row['part']}, {number(lost, 'z.1f')} logits of the answer's lead are lost; "
            f"it writes {number(written, 'z.1f')} itself."
        )
    report.finding(text, at="direct-and-total")


def divide(
    model: Any,
    pairs: Pairs,
    answer: Tensor,
    wrong: Tensor,
    by: Literal["head", "component"],
    layers: list[int],
) -> Split:
    """The split of the clean prompts at the role "end"."""
    frame = logit_attribution(model, pairs.clean, answer, wrong, pos="end", by=by, layers=layers)
    whole = frame["component"] == "total"
    total = frame[whole].sort_values("example")["value"].to_numpy(float)
    wide = frame[~whole].pivot_table(index=KEY, columns="example", values="value", sort=False)
    parts = wide.index.to_frame(index=False)
    split_layers = set(layers) if by == "head" else set()
    parts["part"] = [_name(*row, split_layers) for row in parts.itertuples(index=False)]
    return Split(by, parts, wide.to_numpy(float), total)


def _name(component: str, layer: int, head: int, split: set[int]) -> str:
    if layer == NONE:
        names = {"embed": "embedding", "pos_embed": "positions", "bias": "final bias"}
        return names[component]
    if component != "attn":
        return f"L{layer} {'MLP' if component == 'mlp' else 'cross-attention'}"
    if head != NONE:
        return head_name(layer, head)
    return f"L{layer} attention bias" if layer in split else f"L{layer} attention"


def _divisible(report: Report, model: Any, pairs: Pairs) -> Literal["head", "component"] | None:
    """How far the logit can be split; asked of the first prompt, which costs one run."""
    reason = ""
    for by in ("head", "component"):
        try:
            logit_attribution(model, pairs[0].clean, pairs[0].answer, pos="end", by=by)
        except ValueError as error:
            reason = str(error)
            continue
        if by == "component":
            report.skip("Single heads and neurons: a norm stands between them and the stream.")
        return by
    report.skip(f"Direct attribution: {reason}.")
    return None


def _random_pair(model: Any, pairs: Pairs, seed: int) -> tuple[Tensor, Tensor]:
    """Two different tokens per prompt, drawn from the vocabulary."""
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(model.cfg.d_vocab, 2, replace=False) for _ in range(len(pairs))]
    first, second = torch.tensor(np.array(drawn)).T
    return first.to(pairs.answer.device), second.to(pairs.answer.device)


def _table(split: Split, null: Split) -> pd.DataFrame:
    own, other = stats.mean(split.values), stats.mean(null.values)
    return pd.DataFrame(
        {
            "part": split.parts["part"],
            **{name: split.parts[name] for name in KEY},
            "value": own.value,
            "stderr": own.stderr,
            "low": own.low,
            "high": own.high,
            "random_pair": other.value,
            "random_low": other.low,
            "random_high": other.high,
        }
    )


def _draw(
    section: Section, split: Split, null: Split, table: pd.DataFrame, shown: pd.DataFrame
) -> None:
    heads = table[(table["component"] == "attn") & (table["head"] != NONE)]
    if len(heads):
        best, worst = (heads.loc[getattr(heads["value"], f"idx{way}")()] for way in ("max", "min"))
        figure = heatmap(
            heads[["layer", "head", "value"]], rows="layer", columns="head", value="value",
            noise=float(heads["random_pair"].abs().max()),
            axis="mean logits that each head writes towards the answer, against the wrong one "
            "(grey: no more than towards a random pair of tokens)",
            alt=f"Heads by layer. Most towards the answer: {best['part']}, {best['value']:.2f}; "
            f"most against it: {worst['part']}, {worst['value']:.2f} logits.",
        )  # fmt: skip
        section.figure(figure, "What every head writes towards the answer",
                       name="direct-heads-figure")  # fmt: skip
    drawn = pd.concat([_bars(split, shown.index, ASKED), _bars(null, shown.index, RANDOM)])
    largest = shown.iloc[0]
    figure = bars(
        drawn, label="part", value="value", low="low", high="high", group="towards",
        axis="logits (mean over prompts, 95 %)",
        alt=f"The {len(shown)} largest parts of the logit difference and the sum of all others, "
        f"beside the same parts for a random pair of tokens. First: {largest['part']}, "
        f"{largest['value']:.2f} logits.",
    )  # fmt: skip
    section.figure(figure, "The largest parts, and the sum of all others",
                   name="direct-parts-figure")  # fmt: skip
    layers = _layers(split)
    top = layers.loc[layers["value"].abs().idxmax()]
    figure = curves(
        layers, x="layer", value="value", low="low", high="high", group="part",
        x_axis="layer that writes", axis="logits towards the answer (mean, 95 %)",
        alt=f"What attention and MLP of each layer write. Largest: {top['part']} of layer "
        f"{int(top['layer'])}, {top['value']:.2f} logits.",
    )  # fmt: skip
    section.figure(figure, "What every layer writes towards the answer",
                   name="direct-layers-figure")  # fmt: skip


def _bars(split: Split, shown: pd.Index, towards: str) -> pd.DataFrame:
    """The parts shown, from the top, and the sum of all that are not."""
    rest = np.delete(split.values, shown, axis=0).sum(0)
    names = [*split.parts["part"][shown], REST]
    found = stats.mean(np.vstack([split.values[shown], rest]))
    return _drawable(pd.DataFrame({"part": names, "towards": towards}), found)


def _layers(split: Split) -> pd.DataFrame:
    """part layer value low high: attention with its bias, and the MLP, of each layer."""
    kinds = {"attn": "attention", "cross_attn": "cross-attention", "mlp": "MLP"}
    rows, sums = [], []
    for key, own in split.parts.groupby(["component", "layer"], sort=True):
        component, layer = cast(tuple, key)
        if component in kinds:
            rows.append({"part": kinds[component], "layer": layer})
            sums.append(split.values[own.index].sum(0))
    return _drawable(pd.DataFrame(rows), stats.mean(np.array(sums)))


def _drawable(frame: pd.DataFrame, found: stats.Estimate) -> pd.DataFrame:
    """With value, low, high; of one prompt the interval has no width."""
    low, high = (np.where(np.isnan(one), found.value, one) for one in (found.low, found.high))
    return frame.assign(value=found.value, low=low, high=high)


def _tell(
    report: Report, split: Split, table: pd.DataFrame, shown: pd.DataFrame, config: Config,
    noise: float,
) -> None:  # fmt: skip
    heads = table[(table["component"] == "attn") & (table["head"] != NONE)]
    clear = "" if split.total.size == 1 else ", of parts whose 95 % interval leaves zero out"
    report.finding(f"Written directly to the output (logits{clear}): {_both_ways(table, noise)}.")
    if len(heads):
        report.finding(f"Of the {len(heads)} heads alone: {_both_ways(heads, noise)}.")
    carried = split.values[shown.index].sum(0)
    rest = split.total - carried
    total = stats.mean(split.total)
    sum_of, left = stats.mean(carried), stats.mean(rest)
    share = ""
    if abs(total.value) > 2 * np.nan_to_num(total.stderr) and total.value != 0:
        share = f", {percent(float(sum_of.value / total.value))} of it,"
    report.finding(
        f"The mean logit difference is {_with_error(total)}. The {len(shown)} parts shown write "
        f"{_with_error(sum_of)}{share} and the other {len(table) - len(shown)} parts "
        f"{_with_error(left)}."
    )
    report.sure(
        f"All {len(table)} parts add up to the logit difference of every prompt to within "
        f"{split.error:.1g} logits (rounding), with the final norm's scale held."
    )
    largest = table["random_pair"].abs().max()
    clear = ((table["low"] > 0) | (table["high"] < 0)).sum()
    null = ((table["random_low"] > 0) | (table["random_high"] < 0)).sum()
    told = (
        f"; intervals (95 %, each for itself) leave zero out for {clear} of {len(table)} parts, "
        f"towards the random pairs for {null}"
        if split.total.size > 1
        else ""
    )
    report.sure(
        "Control: towards a random pair of tokens per prompt (seed "
        f"{config.seed}), no part's mean is larger than {largest:.2f} logits; towards the answer "
        f"the largest is {table['value'].abs().max():.2f}{told}."
    )
    report.doubt(
        "Direct attribution counts what a part says to the unembedding with the norm's scale held. "
        "A part that acts through later layers shows nothing here, and one whose writing later "
        "parts undo shows too much; below, the heads are removed to see."
        if split.by == "head"
        else "Direct attribution counts what a part says to the unembedding with the norm's scale "
        "held; a part that acts through later layers shows nothing here."
    )


def _with_error(estimate: stats.Estimate) -> str:
    """A mean over prompts with its standard error."""
    return plus_minus(float(estimate.value), float(estimate.stderr))


def _both_ways(table: pd.DataFrame, noise: float, most: int = 3) -> str:
    """The parts that write most towards and against the answer, of those that clearly do."""
    clear = table[(table["low"] > 0) | (table["high"] < 0) | table["stderr"].isna()]
    clear = clear[clear["value"].abs() > noise]
    if float(table["value"].abs().max()) <= noise:
        return no_effect(noise)
    ranked = clear.sort_values("value", kind="stable")
    towards = ranked[ranked["value"] > 0].iloc[::-1]
    against = ranked[ranked["value"] < 0]
    told = [
        listed(f"{row['part']} ({plus_minus(row['value'], row['stderr'])})"
               for _, row in some.head(most).iterrows())
        for some in (towards, against)
    ]  # fmt: skip
    return f"towards the answer {told[0]}; against it {told[1]}"


def _neurons(
    report: Report,
    section: Section,
    model: Any,
    pairs: Pairs,
    layers: list[int],
    config: Config,
) -> None:
    """The neurons that write most, layer by layer so that no more than one is held."""
    frames = []
    for layer in layers:
        try:
            frame = logit_attribution(
                model, pairs.clean, pairs.answer, pairs.wrong, pos="end", by="neuron",
                layers=[layer],
            )  # fmt: skip
        except ValueError as error:
            report.skip(f"Single neurons: {error}.")
            return
        own = frame[(frame["layer"] == layer) & (frame["neuron"] != NONE)]
        wide = own.pivot_table(index=["layer", "neuron"], columns="example", values="value")
        found = stats.mean(wide.to_numpy(float))
        rows = wide.index.to_frame(index=False)
        frames.append(rows.assign(**found._asdict()))
    every = pd.concat(frames, ignore_index=True)
    top = every.reindex(every["value"].abs().nlargest(config.top).index)
    top = top.sort_values("value", ascending=False, kind="stable")
    section.table(
        top, f"The {len(top)} neurons that write most, of {len(every):,}", name="direct-neurons",
        missing=("stderr", "low", "high"),
    )  # fmt: skip
    report.finding(
        f"The {len(top)} neurons that write most, of {len(every):,}, write "
        f"{top['value'].sum():.2f} of the {every['value'].sum():.2f} logits of all neurons; the "
        f"first is neuron {int(top['neuron'].iloc[0])} of layer {int(top['layer'].iloc[0])} with "
        f"{plus_minus(top['value'].iloc[0], top['stderr'].iloc[0])}."
    )


def _removed(model: Any, pairs: Pairs, heads: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Each of the heads that write most set to zero where the answer is expected:
    `direct-and-total-by-head`."""
    heads = strongest(heads, config.top, by="value")
    nodes = [
        {"row": i, "site": "attn.hook_z", "layer": row["layer"], "head": row["head"], "role": "end"}
        for i, (_, row) in enumerate(heads.iterrows())
    ]
    swept = interp.sweep(
        model, pairs.clean, nodes, edit=edits.zero(), metric=metric_of(pairs), allow_noop=True,
        journal=config.kept("shown-heads"),
    )  # fmt: skip
    frame = pd.DataFrame(
        {
            **{name: heads[name].to_numpy() for name in ("part", "layer", "head")},
            "direct": heads["value"].to_numpy(),
            "direct_stderr": heads["stderr"].to_numpy(),
            "total": -swept["effect"].to_numpy(float),
            "total_stderr": swept["stderr"].to_numpy(float),
            "n": swept["n"].to_numpy(int),
        }
    )
    frame.attrs = swept.attrs
    return frame


def _show_removed(report: Report, frame: pd.DataFrame, noise: float) -> None:
    """What removing the heads does, beside what they write."""
    section = report.section(
        "What removing these heads does",
        "Direct attribution is no cause. Here the output of each of these heads is set to zero "
        "where the answer is expected, and everything behind it runs anew: “total” is what the "
        "logit difference loses. On the diagonal a head acts by what it writes alone; away from "
        "it later layers, or the norm's scale, answer.",
    )
    figure = scatter(
        frame[["part", "layer", "head", "direct", "total"]], x="direct", y="total",
        x_axis="direct: logits written towards the answer",
        y_axis="total: logits lost without the head",
        alt=f"Direct against total effect of {len(frame)} heads.",
    )  # fmt: skip
    section.figure(figure, "Direct and total effect of the heads", name="direct-and-total")
    section.table(frame, "The same, by head", name="direct-and-total-by-head",
                  missing=("direct_stderr", "total_stderr"))  # fmt: skip
    away = frame.loc[(frame["direct"] - frame["total"]).abs().idxmax()]
    if bool(np.max(frame[["direct", "total"]].abs()) <= noise):
        report.finding(f"What these heads write, and removing them: {no_effect(noise)}.")
        return
    report.finding(
        f"Direct and total effect of these heads differ most for {away['part']}: it writes "
        f"{plus_minus(away['direct'], away['direct_stderr'])} logits towards the answer, and "
        f"without it {plus_minus(away['total'], away['total_stderr'])} are lost."
    )
