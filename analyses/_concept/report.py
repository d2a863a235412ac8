"""What the report on a concept's direction shows and says: found, read, used, erased."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from analyses._concept.measure import EVEN, SURE, Found, Verdict
from analyses._concepts import METHODS, Method
from interp.methods.directions import Direction, cosines, promoted_tokens
from interp.methods.erasure import amnesic_check
from interp.methods.stats import wilson
from interp.methods.steering import dormancy
from interp.report import Report
from interp.report.figures import bars, curves, heatmap
from interp.report.spine import listed, number, out_of_reach, percent, plus_minus, signed

COSINES = ("layer_a", "method_a", "layer_b", "method_b", "cosine", "chance")
TOKENS = ("side", "rank", "token", "logit", "z")
DORMANCY = ("part", "share", "expected", "sd", "effect", "stderr?")
ERASURE = (
    "erased", "draw", "rank", "accuracy", "low", "high", "chance", "moved", "value", "baseline",
    "effect", "stderr", "n", "p",
)  # fmt: skip
OFF_TARGET = ("off_value", "off_baseline", "off_effect", "off_size")
BINS = 12
NAMES = 24
"""Directions of one heatmap whose names can still be read."""


def separation_section(report: Report, found: Found, frame: pd.DataFrame, layer: int,
                       method: Method, n_random: int) -> None:  # fmt: skip
    """Held-out separation by layer and method, and the projections at the chosen layer."""
    first, second = found.concept.classes
    section = report.section(
        "Can it be read?",
        f"Each direction is found on {len(found.halves.fit)} texts; how it separates {second} from "
        f"{first} is measured on {len(found.halves.held)} others. Controls: directions at random, "
        "and directions found the same way from shuffled labels.",
    )
    section.figure(_by_layer(frame, found), "AUROC by layer", name="separation-by-layer")
    share = ("accuracy", "accuracy_low", "accuracy_high")
    section.table(frame, "Separation of held-out texts", name="separation", rows=24,
                  formats=dict.fromkeys(share, ".0%"))  # fmt: skip
    section.figure(
        _histogram(found, found.directions[layer, method], layer), "Held-out texts along it",
        name="projections",
    )  # fmt: skip
    own = _row(frame, layer, method)
    interval = f"{percent(own['auroc_low'])} to {percent(own['auroc_high'])}"
    report.finding(
        f"At layer {layer} the {METHODS[method]} puts {second} above {first} in "
        f"{percent(own['auroc'], 'z.1f')} of held-out comparisons (AUROC; 95 % interval "
        f"{interval}) and is right about {percent(own['accuracy'])} of "
        f"{int(own['n'])} texts. 95 % of random directions stay below {percent(own['random'])}, of "
        f"shuffled labels below {percent(own['shuffled'])} (p = {own['p_shuffled']:.2f})."
    )
    good = frame[(frame["auroc_low"] > 0.5) & (frame["p_shuffled"] <= SURE)]
    told = [
        f"{name} in {listed(sorted(some['layer']))}"
        for name, some in good.groupby("method", sort=False)
    ]
    short = out_of_reach(n_random, 1, "direction", "shuffles", "n-random", "none")
    report.finding(
        "Layers in which held-out texts are separated better than with shuffled labels: "
        + (f"none can be told; {short}." if short else f"{'; '.join(told) or 'none'}.")
    )


def _by_layer(frame: pd.DataFrame, found: Found) -> Any:
    control = frame[frame["method"] == frame["method"].iloc[0]]
    drawn = pd.concat(
        [
            frame.rename(columns={"auroc": "value", "auroc_low": "low", "auroc_high": "high"}),
            control.assign(method="shuffled labels (95 %)", value=control["shuffled"],
                           low=control["shuffled"], high=control["shuffled"]),
        ],
        ignore_index=True,
    )[["layer", "method", "value", "low", "high"]]  # fmt: skip
    best = frame.loc[frame["auroc"].idxmax()]
    return curves(
        drawn, x="layer", value="value", low="low", high="high", group="method",
        x_axis="layer", axis="AUROC on held-out texts (bands: 95 %)",
        alt=f"AUROC on held-out texts by layer and method; highest {best['auroc']:.2f} at layer "
        f"{best['layer']} ({best['method']}). Of shuffled labels 95 % stay below "
        f"{control['shuffled'].max():.2f}. Concept: {found.concept.name}.",
    )  # fmt: skip


def _histogram(found: Found, direction: Direction, layer: int) -> Any:
    held = found.halves.held
    along = direction.along(found.x[layer])[held].numpy()
    along = along / (direction.scale or 1.0)
    y = found.concept.labels.numpy()[held]
    edges = np.linspace(along.min(), along.max() + 1e-9, BINS + 1)
    if edges[-1] - edges[0] < 1e-6:
        edges = edges[0] + np.linspace(-0.5, 0.5, BINS + 1)
    rows = []
    for i in range(BINS):
        inside = (along >= edges[i]) & (along < edges[i + 1])
        for one, name in enumerate(found.concept.classes):
            hits, n = int((inside & (y == one)).sum()), int((y == one).sum())
            (low,), (high,) = wilson(np.array([hits]), np.array([n]))
            label = f"{signed(edges[i])} to {signed(edges[i + 1])}"
            rows.append((label, f"{one} {name}", hits / n, low, high))
    data = pd.DataFrame(rows, columns=["along", "class", "share", "low", "high"])
    means = [along[y == one].mean() for one in (0, 1)]
    return bars(
        data, label="along", value="share", low="low", high="high", group="class",
        axis="share of the class (rows: standard deviations along the direction)",
        alt=f"Histogram of held-out texts along the direction: {found.concept.classes[0]} lie at "
        f"{signed(means[0])} on average, {found.concept.classes[1]} at {signed(means[1])} standard "
        "deviations.",
    )  # fmt: skip


def cosine_section(report: Report, found: Found, layer: int, method: Method) -> None:
    """Every pair of directions of all layers and methods."""
    if len(found.directions) < 2:
        report.skip("Cosines: one direction alone was found.")
        return
    named = {f"L{at} {METHODS[how]}": key for key in found.directions for at, how in [key]}
    frame = cosines({name: found.directions[key] for name, key in named.items()})
    parts = {
        f"{what}_{side}": [named[name][i] for name in frame[side]]
        for side in "ab"
        for i, what in enumerate(("layer", "method"))
    }
    table = pd.DataFrame(parts).replace({f"method_{side}": dict(METHODS) for side in "ab"})
    table = table.assign(cosine=frame["cosine"], chance=frame["chance"])[list(COSINES)]
    section = report.section(
        "Do methods and layers agree?",
        f"Cosines of all pairs of directions; 95 % of pairs of random directions of that width "
        f"stay within ±{frame['chance'].iloc[0]:.2f}.",
    )
    shown = [*named] if len(named) <= NAMES else [n for n, key in named.items() if key[1] == method]
    units = torch.stack([found.directions[named[name]].unit for name in shown])
    grid = pd.DataFrame(
        [(a, b, float(units[i] @ units[j]))
         for i, a in enumerate(shown) for j, b in enumerate(shown)],
        columns=["direction", "other", "cosine"],
    )  # fmt: skip
    apart = grid[grid["direction"] != grid["other"]]["cosine"]
    section.figure(
        heatmap(grid, rows="direction", columns="other", value="cosine", axis="cosine", limit=1.0,
                titles={"direction": "", "other": ""},
                alt=f"Cosines of {len(shown)} directions, from {apart.min():.2f} to "
                f"{apart.max():.2f}."),
        "Cosines of directions", name="cosines-map",
    )  # fmt: skip
    section.table(table, "Cosines", name="cosines", rows=12)
    own = table[(table["layer_a"] == layer) & (table["layer_b"] == layer)]
    told = [f"{a} and {b} {c:.2f}" for a, b, c in
            zip(own["method_a"], own["method_b"], own["cosine"], strict=True)]  # fmt: skip
    if told:
        report.finding(
            f"Cosines of the methods at layer {layer}: {'; '.join(told)} (by chance within "
            f"±{frame['chance'].iloc[0]:.2f})."
        )


def tokens_section(report: Report, model: Any, direction: Direction, layer: int, k: int) -> None:
    """What the direction itself says to the unembedding."""
    try:
        frame = promoted_tokens(model, direction, min(k, model.cfg.d_vocab))
    except ValueError as error:
        report.skip(f"Tokens that the direction promotes: {error}.")
        return
    section = report.section(
        "What it says by itself",
        "Logits of the direction read by the unembedding directly, less their mean; z in standard "
        "deviations over the vocabulary.",
    )
    section.table(frame[list(TOKENS)], "Tokens promoted and suppressed", name="tokens",
                  formats={"logit": "+.3f", "z": "+.1f"})  # fmt: skip
    up, down = (frame[frame["side"] == side] for side in ("promoted", "suppressed"))
    report.finding(
        f"Read by the unembedding directly, the direction of layer {layer} raises "
        f"{_quoted(up)} most (z up to {number(up['z'].iloc[0], '.1f')}) and lowers "
        f"{_quoted(down)} most (z down to {number(down['z'].iloc[0], '.1f')}); later "
        "layers may do more with it."
    )


def _quoted(frame: pd.DataFrame) -> str:
    return listed(f"“{token.strip()[:30]}”" for token in frame["token"].head(4))


def causal_section(
    report: Report, frame: pd.DataFrame, layers: pd.DataFrame, methods: pd.DataFrame,
    layer: int, method: Method, name: str,
) -> None:  # fmt: skip
    """Dose and response at the chosen layer; steps of one standard deviation in all."""
    told = methods[(methods["layer"] == layer) & (methods["method"] == METHODS[method])]
    section = report.section(
        "Is it used?",
        f"Measured: the change of {name} on prompts that no direction was found on. Ablated: the "
        "direction is projected out. Added: steps of one standard deviation of the texts along it. "
        "Off target: the divergence over all other tokens, in nats, where some are asked for. "
        "Bands of controls: the middle 95 %; p is a rank among them by mean absolute effect.",
    )
    section.figure(
        _layers(layers, name, METHODS[method]), "One step in every layer", name="causal-by-layer"
    )
    missing = ("low", "high", "off_target", "off_random")
    section.table(methods, f"Every method at layer {layer}", name="causal-methods", rows=20,
                  missing=missing)  # fmt: skip
    section.table(layers, f"The {METHODS[method]} in every layer", name="causal-layers", rows=40,
                  missing=missing)  # fmt: skip
    section.table(frame, f"Every direction that was tried at layer {layer}", name="causal", rows=8,
                  missing=("stderr", *OFF_TARGET))  # fmt: skip
    added = told[told["action"] == "steer"]
    top, low = added.loc[added["factor"].idxmax()], added.loc[added["factor"].idxmin()]
    gone = told[told["action"] == "ablate"].iloc[0]
    report.finding(
        f"Adding {number(top['factor'], 'g')} standard deviations at layer {layer} changes {name} "
        f"by {_with(top)}; {number(low['factor'], 'g')} by {_with(low)}. Random directions of "
        f"equal norm stay within ±{top['random_size']:.2f} (p = {top['p_random']:.2f}), those "
        f"drawn as the data vary within ±{top['covariance_size']:.2f} (p = "
        f"{top['p_covariance']:.2f})."
    )
    report.finding(
        f"Ablating it changes {name} by {gone['size']:.2f} per prompt (mean absolute change); "
        f"random directions by less than {gone['random_size']:.2f} (p = {gone['p_random']:.2f}), "
        f"those drawn as the data vary by less than {gone['covariance_size']:.2f} (p = "
        f"{gone['p_covariance']:.2f})."
    )
    if top["off_target"] != top["off_target"]:
        return
    report.finding(
        f"Off target, over all other tokens: {top['off_target']:.3f} nats for adding "
        f"{number(top['factor'], 'g')} standard deviations (random directions "
        f"{top['off_random']:.3f} on average), {gone['off_target']:.3f} for ablating it "
        f"({gone['off_random']:.3f})."
    )


def _with(row: Any) -> str:
    if row["low"] != row["low"]:
        return f"{signed(row['effect'])} (one prompt: no interval)"
    return f"{signed(row['effect'])} ({signed(row['low'])} to {signed(row['high'])})"


def _dose(frame: pd.DataFrame, name: str, layer: int) -> Any:
    names = {"found": "the direction", "random": "random", "covariance": "drawn as the data vary"}
    rows = [(0.0, one, 0.0, 0.0, 0.0) for one in names.values()]
    steered = frame[frame["action"] == "steer"]
    for _, some in steered.groupby(["factor", "arm"], sort=False):
        effect, factor, arm = some["effect"], some["factor"].iloc[0], some["arm"].iloc[0]
        if arm == "found":
            own = some.iloc[0]
            reach = 1.96 * np.nan_to_num(own["stderr"])
            value, low, high = own["effect"], own["effect"] - reach, own["effect"] + reach
        else:
            value, low, high = effect.mean(), effect.quantile(0.025), effect.quantile(0.975)
        rows.append((float(factor), names[str(arm)], value, low, high))
    data = pd.DataFrame(rows, columns=["factor", "added", "effect", "low", "high"])
    own = data[data["added"] == names["found"]].sort_values("factor")
    return curves(
        data, x="factor", value="effect", low="low", high="high", group="added",
        x_axis=f"standard deviations added at layer {layer}", axis=f"change of {name}",
        alt=f"Dose and response: the direction moves {name} from {signed(own['effect'].iloc[0])} "
        f"at {number(own['factor'].iloc[0], 'g')} to {signed(own['effect'].iloc[-1])} at "
        f"{number(own['factor'].iloc[-1], 'g')} standard deviations; controls lie between "
        f"{signed(data[data['added'] != names['found']]['low'].min())} and "
        f"{signed(data[data['added'] != names['found']]['high'].max())}.",
    )  # fmt: skip


def _layers(frame: pd.DataFrame, name: str, method: str) -> Any:
    added = frame[frame["action"] == "steer"]
    own = added[added["factor"] == added.loc[added["factor"].abs().idxmin(), "factor"]]
    rows = []
    for row in own.to_dict("records"):
        low, high = (row["effect"] if np.isnan(row[i]) else row[i] for i in ("low", "high"))
        rows.append((int(row["layer"]), method, row["effect"], low, high))
        for arm in ("random", "covariance"):
            size = row[f"{arm}_size"]
            rows.append((int(row["layer"]), f"{arm} (±95 %)", 0.0, -size, size))
    data = pd.DataFrame(rows, columns=["layer", "added", "effect", "low", "high"])
    best = own.loc[own["effect"].abs().idxmax()]
    return curves(
        data, x="layer", value="effect", low="low", high="high", group="added", x_axis="layer",
        axis=f"change of {name}",
        alt=f"The effect of {number(best['factor'], 'g')} standard deviations by layer, largest at "
        f"layer {best['layer']} ({signed(best['effect'])}); random directions stay within "
        f"±{own['random_size'].max():.2f}.",
    )  # fmt: skip


def dormancy_section(
    report: Report, model: Any, tokens: Any, direction: Direction, metric: Any, pos: Any,
    step: float | None = None, *, site: str | None = None, progress: bool = True,
) -> bool | None:  # fmt: skip
    """Whether the direction acts by a part along which the data do not vary: an illusion.

    None where that cannot be measured.
    """
    try:
        frame = dormancy(model, tokens, direction, metric, pos=pos, step=step, site=site,
                         progress=progress)  # fmt: skip
    except ValueError as error:
        report.skip(f"Dormancy: {error}.")
        return None
    section = report.section(
        "Does it act through what the data vary along?",
        "The direction is cut into its part within the principal directions that hold 99.9 % of "
        "the variance of the prompts, and the rest. A rest that acts is dormant: no prompt ever "
        "uses it (Makelov et al. 2023). expected: the share of a random direction.",
    )
    section.table(frame, "Parts of the direction", name="dormancy", missing=("stderr",))
    whole, varies, dormant = (row for _, row in frame.iterrows())
    share = frame.attrs["dormant_effect"]
    parts = (
        f"{percent(dormant['share'])} of its squared length (a random direction "
        f"{percent(dormant['expected'])}) lies where the prompts do not vary; of one step's effect "
        f"{_effect(whole)} that part alone gives "
        f"{signed(dormant['effect'])}, the part that varies {signed(varies['effect'])}"
    )
    if share > 0.5:
        report.warn(
            f"The direction is dormant, acting by a part along which the data do not vary: {parts}."
        )
        report.finding(f"The direction is dormant, so that what it causes is an illusion: {parts}.")
        return True
    report.finding(f"The direction is not dormant: {parts}.")
    return False


def erasure_section(
    report: Report, model: Any, found: Found, layer: int, *, everywhere: bool, n_random: int,
    seed: int, progress: bool,
) -> None:  # fmt: skip
    """LEACE and the mean difference erased, beside as many random directions."""
    concept = found.concept
    try:
        frame = amnesic_check(
            model, concept.tokens, concept.labels, found.sites[layer], concept.task,
            pos=concept.pos, everywhere=everywhere, n_random=n_random, seed=seed,
            progress=progress,
        )  # fmt: skip
    except ValueError as error:
        report.skip(f"Erasure: {error}.")
        return
    section = report.section(
        "What is left when it is erased?",
        f"LEACE (Belrose et al. 2023) takes out all that is linear of the concept at layer {layer} "
        "and moves the activations least. accuracy: of a new probe on texts that neither it nor "
        f"the eraser has seen. value: {concept.task_name}.",
    )
    share = dict.fromkeys(("accuracy", "low", "high", "chance"), ".0%")
    section.table(frame[list(ERASURE)], "Erased, and what it costs", name="erasure", formats=share,
                  rows=8)  # fmt: skip
    none, leace = (frame[frame["erased"] == one].iloc[0] for one in ("none", "leace"))
    random = frame[frame["erased"] == "random"]
    interval = f"{percent(leace['low'])} to {percent(leace['high'])}"
    report.finding(
        f"Erasing it (LEACE, layer {layer}) takes a probe from {percent(none['accuracy'])} to "
        f"{percent(leace['accuracy'])} (chance {percent(leace['chance'])}; {interval}), "
        f"and changes {concept.task_name} by "
        f"{_effect(leace)}; as many random directions by "
        f"{random['effect'].abs().quantile(EVEN):.2f} at most in 95 % of draws (p = "
        f"{leace['p']:.2f})."
    )


@dataclass(frozen=True)
class Outcome:
    """What the first screen says of the direction of one layer and method."""

    layer: int
    method: Method
    verdict: Verdict
    separated: pd.Series
    """Its row of the separation of held-out texts."""
    caused: pd.DataFrame
    """Its rows of the causal summary: ablated, and added by each factor."""
    tried: pd.DataFrame
    """Every direction that was tried at this layer (`causal_check`)."""
    dormant: bool
    """Whether it acts by a part along which the texts do not vary."""
    asked: str
    """What the effects are changes of."""
    changed: str
    """The same in plain words: the answer, or the next token."""


def first_screen(report: Report, found: Found, outcome: Outcome) -> None:
    """The answer above dose and response, and three findings before all others; then the verdict
    with its provenance."""
    first, second = found.concept.classes
    report.answer(answer_of(found, outcome)).figure(
        _dose(outcome.tried, outcome.asked, outcome.layer),
        f"How far {outcome.asked} moves when the direction is added, beside random directions and "
        "ones drawn as the texts vary. Bands: 95 %.",
        name="dose-response",
    )
    further, report.findings = report.findings, []
    added, gone = outcome.caused[outcome.caused["action"] == "steer"], outcome.caused
    top = added.loc[added["factor"].idxmax()]
    gone = gone[gone["action"] == "ablate"].iloc[0]
    read = outcome.separated
    report.finding(
        f"New texts: it puts {second} above {first} in {percent(read['auroc'])} of comparisons; "
        f"directions from shuffled labels in up to {percent(read['shuffled'])}.",
        at="separation-by-layer",
    )
    report.finding(
        f"Adding {number(top['factor'], 'g')} standard deviations changes {outcome.asked} by "
        f"{signed(top['effect'])}; random directions by up to {top['random_size']:.2f}.",
        at="dose-response",
    )
    report.finding(
        f"Removing it changes that by {gone['size']:.2f} per prompt; random directions by up to "
        f"{gone['random_size']:.2f}, those drawn as texts vary {gone['covariance_size']:.2f}.",
        at="causal-methods",
    )
    report.finding(
        f"The direction from {first} to {second} ({found.concept.name}; {METHODS[outcome.method]}, "
        f"layer {outcome.layer}) is {outcome.verdict.words}.",
        at="causal-methods",
    )
    report.findings += further


def answer_of(found: Found, outcome: Outcome) -> str:
    """The sentence of the first screen."""
    first, second = found.concept.classes
    own, layer, changed = outcome.verdict, outcome.layer, outcome.changed
    illusion = (
        ", though only by a part of it along which no text varies"
        if outcome.dormant and (own.used or own.moves)
        else ""
    )
    if not own.testable:
        return (
            f"This run cannot tell whether the model uses a direction from {first} to {second}: "
            "too few random directions stand beside it."
        )
    if not own.readable:
        acts = ", though adding what was found acts" if own.moves else ""
        return (
            f"No direction is found: at layer {layer} none tells {first} and {second} of new texts "
            f"apart better than one from shuffled labels{acts}{illusion}."
        )
    read = f"A direction at layer {layer} tells {second} from {first}"
    if own.used and own.moves:
        return f"{read}, and the model uses it: removing or adding it changes {changed}{illusion}."
    if own.used:
        return (
            f"{read}, and the model needs it: removing it changes {changed}, but adding more of it "
            f"does no more than other directions do{illusion}."
        )
    if own.moves:
        return (
            f"{read}, and adding it changes {changed}, but the model does without it: removing it "
            f"does no more than removing other directions{illusion}."
        )
    if own.plain:
        return f"{read}, but acts no more on {changed} than whatever else the texts vary along."
    return f"{read}, but the model does not use it: it acts no more on {changed} than chance does."


def _effect(row: Any) -> str:
    """With its sign."""
    return plus_minus(row["effect"], row["stderr"], "+z.2f")


def _row(frame: pd.DataFrame, layer: int, method: Method) -> pd.Series:
    return frame[(frame["layer"] == layer) & (frame["method"] == METHODS[method])].iloc[0]
