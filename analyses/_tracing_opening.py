"""The first screen of causal_tracing: one sentence, three maps side by side, three findings."""

from __future__ import annotations

import pandas as pd

from interp.methods.trace_averages import NAMES, PARTS, Cell, Trace
from interp.methods.tracing import PLACES
from interp.report import Report
from interp.report.figures import Figure, heatmap
from interp.report.spine import counted, moved, percent

SUBJECT, END = "last subject token", "last token"
MAPS = "answer-maps"


def open_with(report: Report, trace: Trace) -> None:
    """The answer with its maps, and the findings that matter most."""
    answer = report.answer(_answer(trace))
    answer.figure(
        _maps(trace),
        "How much of the answer's probability comes back when one clean state is put into the "
        "noised run, by what is restored, where and in which layer",
        name=MAPS,
    )
    lost = trace.lost
    change = moved(lost["clean"], lost["corrupted"], "", "z.2f").strip()
    report.finding(
        f"With noise on the subject's words the probability of the answer {change}.",
        at="total-effect",
    )
    if not trace.traceable:
        return
    for place, name in ((SUBJECT, "layers-subject"), (END, "layers-last")):
        if not trace.effects[trace.effects["place"] == place].empty:
            report.finding(_at_place(trace, place), at=name)


def _maps(trace: Trace) -> Figure:
    shown = trace.effects[trace.effects["metric"] == "prob"]
    order = {place: i for i, place in enumerate(PLACES)}
    shown = shown.assign(order=shown["place"].map(order)).sort_values("order", kind="stable")
    frames = [
        shown.loc[shown["site"] == site, ["place", "layer", "effect"]].assign(state=_title(name))
        for site, name in NAMES.items()
    ]
    frame = pd.concat(frames, ignore_index=True)[["state", "place", "layer", "effect"]]
    return heatmap(
        frame,
        panel="state",
        rows="place",
        columns="layer",
        value="effect",
        limit=max(abs(trace.lost["effect"]), float(shown["effect"].abs().max())) or None,
        noise=trace.noise,
        axis="Probability of the answer that comes back",
        titles={"place": ""},
    )


def _title(name: str) -> str:
    return f"{name[0].upper()}{name[1:]}"


def _answer(trace: Trace) -> str:
    if not trace.traceable:
        return (
            "There is nothing to trace: noise on the subject's words does not surely cost the "
            "model its answer."
        )
    cells = [cell for site in PARTS if (cell := trace.best(site)) is not None and cell.effect > 0]
    if not cells:
        return "Restoring one attention or MLP output brings nothing of the answer back."
    top = max(cells, key=lambda cell: cell.effect)
    return (
        f"The answer comes back most where {NAMES[top.site]} of layer {top.layer} is restored at "
        f"the {top.place}: {_of_lost(top)} of what the noise took."
    )


def told(cell: Cell) -> str:
    """The effect in words: its amount, its interval, and its share of what was lost."""
    share = "" if cell.share != cell.share else f" ({round(cell.share, 2) + 0.0:.0%})"
    return f"{amount(cell.effect)}{interval(cell.low, cell.high)}{share}"


def amount(value: float) -> str:
    """A probability in two digits; never "-0.00"."""
    return f"{round(value, 2) + 0.0:.2f}"


def interval(low: float, high: float, sign: float = 1.0) -> str:
    """The bounds, of an amount whose sign is said in words; of one prompt there are none."""
    if low != low:
        return ""
    low, high = (low, high) if sign >= 0 else (-high, -low)
    return f" [{amount(low)}, {amount(high)}]"


def _of_lost(cell: Cell) -> str:
    """What it brings back, as a share of what was lost, else in probability."""
    return percent(cell.share) if cell.share == cell.share else amount(cell.effect)


def _at_place(trace: Trace, place: str) -> str:
    """What MLPs, attention and the stream bring back there."""
    words = []
    for site, what in zip(PARTS, ("an MLP", "attention"), strict=True):
        if trace.cells("prob", site, place).empty:
            continue
        cell = trace.best(site, place)
        if cell is None or cell.effect <= 0:
            words.append(f"{what} brings back nothing")
        else:
            words.append(f"{what} brings back {_of_lost(cell)} (layer {cell.layer})")
    layers = counted(len(trace.layers_over_half(place)), "layer")
    words.append(f"the residual stream over half in {layers}")
    return f"At the {place} {', '.join(words)}."
