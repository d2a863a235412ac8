"""Causal tracing: at which layer and token does a model recall a fact?

Noises the subject's embeddings, so that the answer is lost, then restores one state of the clean
run at a time (the residual stream, an attention output or an MLP output, at one token and layer)
and measures how much of the answer comes back (Meng et al. 2022).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from analyses import _task, main
from analyses._task import Task, TaskConfig, task_pairs, task_section
from analyses._tracing_opening import MAPS, amount, interval, open_with, told
from interp.data.tasks import Pairs
from interp.loading.needs import Needs
from interp.methods.baseline import measure_baseline
from interp.methods.trace_averages import EFFECTS, NAMES, PARTS, TOTALS, Trace, averaged
from interp.methods.tracing import (
    PLACES,
    causal_trace,
    default_window,
    elsewhere,
    embedding_spread,
    noise_effect,
    subject_span,
)
from interp.report import Report
from interp.report.figures import curves, heatmap
from interp.report.provenance import provenance
from interp.report.spine import listed, no_effect

SUBJECT, END = "last subject token", "last token"
SHORT = {"hook_resid_post": "resid", "hook_attn_out": "attention", "hook_mlp_out": "mlp"}
NEEDS = Needs(
    text=True,
    tokenizer=True,
    wordless=("task", "induction"),
    logits=True,
    one_stack=True,
    native=True,
)
TABLES = {
    **_task.TABLES,
    "noised": ("clean", "subject", "other"),
    "total-effect": TOTALS,
    "effects": EFFECTS,
    MAPS: ("state", "place", "layer", "effect"),
    "positions": ("metric", "site", "layer", "pos", "place", "token?", "n", "effect"),
    **{f"map-{short}": ("place", "layer", "effect") for short in SHORT.values()},
    "first-prompt": ("pos", "layer", "effect"),
    "layers-subject": ("restored", "layer", "effect", "low", "high"),
    "layers-last": ("restored", "layer", "effect", "low", "high"),
}


@dataclass(frozen=True)
class Config(TaskConfig):
    """What to noise, and what to restore."""

    task: Task = "capitals"
    """Bundled pairs of prompts; not used where --prompts is given."""
    subject: str | None = None
    """Role of the pairs whose tokens are noised: of your own prompts the words of role:<name>. By
    default "subject" where there is that role, else the tokens at which clean and corrupted prompts
    differ."""
    noise: float = 3.0
    """Standard deviation of the noise, in standard deviations of the entries of the subjects'
    embeddings."""
    draws: int = 5
    """Draws of noise for each prompt."""
    window: int | None = None
    """Layers around each whose attention or MLP outputs are restored together; by default a fifth
    of all, at least 1. The residual stream is restored in one layer."""
    out: Path = Path("reports/causal-tracing")
    """Directory of the report; an older report there is replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.noise < float("inf"):
            raise ValueError(f"noise={self.noise}: expected a number above 0")
        if self.draws < 1:
            raise ValueError(f"draws={self.draws}: expected at least 1")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window}: expected at least 1 layer, or none given")


def run(model: Any, config: Config) -> Report:
    """The report. Raises ValueError on a model without logits, with an encoder beside its decoder,
    or behind the bridge, and on prompts without the role."""
    report = Report(
        f"Causal tracing in {model.name}",
        "At which layer and token does the model recall what the prompts ask for?",
        analysis="causal_tracing",
        provenance=provenance(config, model),
    )
    pairs = task_pairs(model, config)
    found = measure_baseline(model, pairs)
    task_section(report, model, pairs, found, config)
    role = "subject" if config.subject is None and "subject" in pairs.clean.roles else None
    mask = subject_span(pairs, config.subject or role)
    sigma = config.noise * embedding_spread(model, pairs.clean, mask)
    asked = {"pos": "end", "sigma": sigma, "draws": config.draws, "seed": config.seed}
    states = causal_trace(
        model, pairs.clean, mask, pairs.answer, pairs.wrong, **asked,
        window=config.window, journal=config.journal,
    )  # fmt: skip
    totals = noise_effect(model, pairs.clean, mask, pairs.answer, pairs.wrong, **asked)
    totals.insert(0, "noise", "subject")
    other = None
    try:
        other = elsewhere(model, pairs.clean, mask, pos="end", seed=config.seed)
        control = noise_effect(model, pairs.clean, other, pairs.answer, pairs.wrong, **asked)
        totals = pd.concat([totals, control.assign(noise="other tokens")], ignore_index=True)
    except ValueError as error:
        report.skip(f"Noise on other tokens, the control: {error}.")
    trace = averaged(states, totals, found.noise)
    open_with(report, trace)
    _findings(report, trace, sigma, config)
    _certainty(report, trace, model, config)
    _doubts(report, trace)
    _skips(report, states)
    _show_noise(report, trace, pairs, mask, other)
    _show_maps(report, trace)
    _show_first(report, trace, pairs)
    return report


def _findings(report: Report, trace: Trace, sigma: float, config: Config) -> None:
    lost = trace.lost
    cost = (
        f"Noise on the subject (σ = {sigma:.3g}, {config.noise:g} × the standard deviation of its "
        f"embedding entries) takes the probability of the answer from {lost['clean']:.2f} to "
        f"{lost['corrupted']:.2f}"
    )
    if not trace.traceable:
        report.warn(
            f"{cost}: no loss beyond its uncertainty, so there is nothing to trace. More noise, or "
            "prompts that the model can answer, may help."
        )
        report.finding(f"{cost}; nothing is lost that restoring a state could bring back.")
        return
    report.finding(f"{cost}. {_compared(trace, SUBJECT)}")
    report.finding(_compared(trace, END))
    _way(report, trace)
    other = trace.totals[trace.totals["metric"] == "prob"].iloc[1:]
    for _, row in other.iterrows():
        report.finding(
            f"Control: the same noise on as many random other tokens costs {row['effect']:.2f}"
            f"{interval(row['low'], row['high'])} of probability, on the subject "
            f"{lost['effect']:.2f}{interval(lost['low'], lost['high'])}."
        )


def _compared(trace: Trace, place: str) -> str:
    """What MLPs and attention bring back at a place."""
    here = [site for site in PARTS if not trace.cells("prob", site, place).empty]
    best = {site: trace.best(site, place) for site in here}
    if not any(best.values()):
        return (
            f"Restoring a single MLP or attention output at the {place} has "
            f"{no_effect(trace.noise)} on that probability."
        )
    sides = [
        f"{NAMES[site]} of layer {cell.layer}: {told(cell)}" if cell
        else f"{NAMES[site]}: {no_effect(trace.noise)}"
        for site, cell in best.items()
    ]  # fmt: skip
    found = trace.difference(place)
    text = (
        f"Of the probability that was lost, at the {place} the best single output of its kind "
        f"brings back – {', '.join(sides)}"
    )
    if found is None:
        return f"{text}."
    value, _, low, high = map(float, found)
    if low <= 0 <= high:
        return f"{text}; between the two there is no difference beyond its interval."
    more = "the MLP" if value > 0 else "attention"
    return f"{text}; {more} brings back more, by {amount(abs(value))}{interval(low, high, value)}."


def _way(report: Report, trace: Trace) -> None:
    """Where the residual stream holds the answer, layer by layer."""
    at_subject, at_end = (trace.layers_over_half(place) for place in (SUBJECT, END))
    if not at_subject and not at_end:
        report.finding(
            "No residual stream at the subject or the last token alone brings back more than half "
            "of what was lost."
        )
        return
    plural = "s" if len(at_subject) > 1 else ""
    early = f"at the {SUBJECT} behind layer{plural} {listed(at_subject)}" if at_subject else ""
    late = f"at the {END} from layer {min(at_end)} on" if at_end else ""
    report.finding(
        "The residual stream brings back more than half of what was lost "
        f"{' and '.join(one for one in (early, late) if one)}"
        "."
    )


def _certainty(report: Report, trace: Trace, model: Any, config: Config) -> None:
    n, draws = int(trace.lost["n"]), config.draws
    report.sure(
        f"{n} prompts × {draws} draws of noise (seed {config.seed}). Numbers in brackets are 95 % "
        "intervals over prompts; a prompt's draws, and its tokens at one place, are averaged first."
    )
    window = config.window or default_window(model)
    report.sure(
        f"Attention and MLP outputs are restored in windows of {window} of {model.cfg.n_layers} "
        f"layers, the residual stream in one; {len(trace.effects) // 2} averages in all, the "
        "largest of which is named, so that it is a little too large."
    )
    for site, place in (("hook_mlp_out", SUBJECT), ("hook_attn_out", END)):
        held = trace.held_out(site, place) if trace.traceable else None
        if held is not None:
            layer, found = held
            report.sure(
                f"Layer chosen on one half of the prompts, measured on the other: {NAMES[site]} of "
                f"layer {layer} at the {place} brings back {float(found.value):.2f}"
                f"{interval(float(found.low), float(found.high))}."
            )
    agreement = trace.agreement()
    if agreement == agreement:
        report.sure(
            "Ranked by probability and by logit difference, the states have a rank correlation of "
            f"{agreement:.2f} (Spearman's)."
        )


def _doubts(report: Report, trace: Trace) -> None:
    report.doubt(
        "What restores an answer need not be where it is stored: tracing does not tell in which "
        "layer an edit of the weights would succeed (Hase et al. 2023)."
    )
    report.doubt(
        "Noised embeddings are like no word, so later layers may behave as they never do; another "
        "strength of noise, or another word in place of noise, can give another picture (Zhang and "
        "Nanda 2024). Activation patching does the latter."
    )
    report.doubt(
        "A restored output was computed from clean inputs, so it carries along what earlier layers "
        "did. Its effect does not say that this layer alone did the work, and parts that stand in "
        "for one another each bring back the answer."
    )
    best = trace.best("hook_mlp_out", SUBJECT)
    if best is not None and best.layer == 0:
        report.doubt(
            "In layer 0 an MLP at the subject reads little but the word itself: restoring its "
            "output undoes the noise there, which is recall only if that layer looks the fact up."
        )


def _skips(report: Report, states: pd.DataFrame) -> None:
    absent = [NAMES[site] for site in NAMES if site not in set(states["site"])]
    if absent:
        report.skip(f"This model has no {listed(absent)} to restore.")


def _show_noise(
    report: Report,
    trace: Trace,
    pairs: Pairs,
    mask: torch.Tensor,
    other: torch.Tensor | None,
) -> None:
    section = report.section(
        "The noise",
        "What is lost when the subject is noised, and when as many other tokens get the same "
        "noise. Effects are clean − corrupted: of the answer's probability, and of the logit "
        "difference to the wrong answer.",
    )
    section.table(
        trace.totals, "What the noise costs", name="total-effect", missing=("stderr", "low", "high")
    )
    strings = pairs.clean.strings or [[""] * pairs.clean.shape[1]] * len(pairs)
    none = torch.zeros_like(mask)
    words = {
        name: [
            " ".join(word.strip() for word, on in zip(row, own, strict=False) if on)
            for row, own in zip(strings, marks.tolist(), strict=True)
        ]
        for name, marks in (("subject", mask), ("other", none if other is None else other))
    }
    texts = list(pairs.clean_texts) or ["".join(row) for row in strings]
    # As objects: a token may be half a character, which no string column holds.
    frame = pd.DataFrame({"clean": texts, **words}, dtype=object)
    section.table(frame, "The words that are noised", name="noised", rows=10)


def _show_maps(report: Report, trace: Trace) -> None:
    section = report.section(
        "What brings the answer back",
        "Each cell restores one state of the clean run in the noised one. The average indirect "
        "effect is the probability of the answer that returns; all maps have one scale, and the "
        f"noise costs {amount(trace.lost['effect'])} in all.",
    )
    shown = trace.effects.loc[trace.effects["metric"] == "prob", "effect"]
    limit = max(abs(trace.lost["effect"]), shown.abs().max()) or None
    for site, short in SHORT.items():
        frame = trace.cells("prob", site)[["place", "layer", "effect"]]
        if frame.empty:
            continue
        order = frame["place"].astype(pd.CategoricalDtype([*PLACES], ordered=True))
        frame = frame.assign(place=order).sort_values(["place", "layer"])
        frame = frame.assign(place=frame["place"].astype(str)).reset_index(drop=True)
        cell = trace.best(site)
        most = (
            f"Nothing does: {no_effect(trace.noise)}." if cell is None
            else f"Most at the {cell.place} in layer {cell.layer}: {cell.effect:.2f}."
        )  # fmt: skip
        section.figure(
            heatmap(
                frame, rows="place", columns="layer", value="effect", limit=limit,
                noise=trace.noise,
                axis=f"Probability that returns when {_state(site)} is restored",
                alt=f"Probability of the answer that returns per place and layer: {_state(site)}. "
                f"{most}",
                titles={"place": ""},
            ),
            f"{NAMES[site][0].upper()}{NAMES[site][1:]}",
            name=f"map-{short}",
        )  # fmt: skip
    for place, name in ((SUBJECT, "layers-subject"), (END, "layers-last")):
        _show_layers(section, trace, place, name)
    ordered = trace.effects.sort_values(["metric", "effect"], ascending=False, kind="stable")
    section.table(
        ordered, "Average indirect effects, the largest first", name="effects", rows=20,
        missing=("stderr", "low", "high", "share"),
    )  # fmt: skip


def _show_layers(section: Any, trace: Trace, place: str, name: str) -> None:
    frame = trace.effects
    frame = frame[(frame["metric"] == "prob") & (frame["place"] == place)]
    if frame.empty:
        return
    frame = frame.assign(restored=frame["site"].map(NAMES))
    for bound in ("low", "high"):
        frame[bound] = frame[bound].fillna(frame["effect"])
    tops = frame.loc[frame.groupby("restored", sort=False)["effect"].idxmax()]
    peaks = "; ".join(
        f"{row['restored']} most in layer {row['layer']} ({row['effect']:.2f})"
        for _, row in tops.iterrows()
    )
    figure = curves(
        frame[list(TABLES[name])].reset_index(drop=True), x="layer", value="effect", low="low",
        high="high", group="restored", x_axis="layer", axis="probability that returns",
        alt=f"Average indirect effect per layer at the {place}: {peaks}.",
    )  # fmt: skip
    section.figure(figure, f"Restored at the {place} (bands: 95 % intervals)", name=name)


def _show_first(report: Report, trace: Trace, pairs: Pairs) -> None:
    states, row = trace.states, 0
    mine = states[(states["metric"] == "prob") & (states["example"] == row)]
    strings = pairs.clean.strings
    tokens = strings[row] if strings else [""] * pairs.clean.shape[1]
    subject = mine.loc[mine["place"].str.contains("subject token"), "pos"].unique()
    names = [f"{word.strip()}{'*' if pos in subject else ''}" for pos, word in enumerate(tokens)]
    section = report.section(
        "One prompt, and every position",
        "The first prompt token by token, averaged over draws of noise; * marks what is noised.",
    )
    site = "hook_resid_post"
    frame = mine[mine["site"] == site].groupby(["pos", "layer"])["effect"].mean().reset_index()
    top = frame.loc[frame["effect"].idxmax()]
    figure = heatmap(
        frame, rows="pos", columns="layer", value="effect", names={"pos": names},
        axis=f"Probability that returns when {_state(site)} is restored",
        alt=f"First prompt, {_state(site)}: most returns at {names[int(top['pos'])]!r} in "
        f"layer {int(top['layer'])}, {top['effect']:.2f}.",
        titles={"pos": ""},
    )  # fmt: skip
    section.figure(figure, f"First prompt: {NAMES[site]}", name="first-prompt")
    frame = (
        states.groupby(["metric", "site", "layer", "pos", "place"], sort=False)["effect"]
        .agg(["mean", "size"])
        .reset_index()
        .rename(columns={"mean": "effect", "size": "n"})
    )
    same = {pos: {line[pos] for line in strings or [] if pos < len(line)} for pos in range(
        pairs.clean.shape[1])}  # fmt: skip
    words = [next(iter(same[at])).strip() if len(same[at]) == 1 else "" for at in frame["pos"]]
    frame["token"] = pd.Series(words, dtype=object)
    caption = "By position, over prompts and draws; the token where all prompts have the same"
    columns = [column.removesuffix("?") for column in TABLES["positions"]]
    section.table(frame[columns], caption, name="positions", rows=20)


def _state(site: str) -> str:
    return {
        "hook_resid_post": "the residual stream behind a layer",
        "hook_attn_out": "what attention adds",
        "hook_mlp_out": "what the MLP adds",
    }[site]


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
