"""What the report on a concept's direction shows and says of what it causes: added, ablated, cut
into what the data vary along and what not, erased."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from interp.methods.concepts import METHODS, Directions, Method
from interp.methods.concepts.separation import EVEN
from interp.methods.directions import Direction
from interp.methods.erasure import amnesic_check
from interp.methods.steering import dormancy
from interp.report import Report
from interp.report.figures import Figure, curves
from interp.report.spine import number, percent, plus_minus, signed

DORMANCY = ("part", "share", "expected", "sd", "effect", "stderr?")
ERASURE = (
    *("erased", "draw", "rank", "accuracy", "low", "high", "chance", "moved"),
    *("value", "baseline", "effect", "stderr", "n", "p"),
)
OFF_TARGET = ("off_value", "off_baseline", "off_effect", "off_size")


def causal_section(
    report: Report,
    frame: pd.DataFrame,
    layers: pd.DataFrame,
    methods: pd.DataFrame,
    layer: int,
    method: Method,
    name: str,
) -> None:
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
    section.table(
        methods, f"Every method at layer {layer}", name="causal-methods", rows=20, missing=missing
    )
    section.table(
        layers,
        f"The {METHODS[method]} in every layer",
        name="causal-layers",
        rows=40,
        missing=missing,
    )
    section.table(
        frame,
        f"Every direction that was tried at layer {layer}",
        name="causal",
        rows=8,
        missing=("stderr", *OFF_TARGET),
    )
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


def dose(frame: pd.DataFrame, name: str, layer: int) -> Figure:
    """How far `name` moves by the steps added, beside both kinds of random directions."""
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
        data,
        x="factor",
        value="effect",
        low="low",
        high="high",
        group="added",
        x_axis=f"standard deviations added at layer {layer}",
        axis=f"change of {name}",
        alt=f"Dose and response: the direction moves {name} from {signed(own['effect'].iloc[0])} "
        f"at {number(own['factor'].iloc[0], 'g')} to {signed(own['effect'].iloc[-1])} at "
        f"{number(own['factor'].iloc[-1], 'g')} standard deviations; controls lie between "
        f"{signed(data[data['added'] != names['found']]['low'].min())} and "
        f"{signed(data[data['added'] != names['found']]['high'].max())}.",
    )


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
        data,
        x="layer",
        value="effect",
        low="low",
        high="high",
        group="added",
        x_axis="layer",
        axis=f"change of {name}",
        alt=f"The effect of {number(best['factor'], 'g')} standard deviations by layer, largest at "
        f"layer {best['layer']} ({signed(best['effect'])}); random directions stay within "
        f"±{own['random_size'].max():.2f}.",
    )


def dormancy_section(
    report: Report,
    model: Any,
    tokens: Any,
    direction: Direction,
    metric: Any,
    pos: Any,
    step: float | None = None,
    *,
    site: str | None = None,
    progress: bool = True,
) -> bool | None:
    """Whether the direction acts by a part along which the data do not vary: an illusion.

    None where that cannot be measured.
    """
    try:
        frame = dormancy(
            model, tokens, direction, metric, pos=pos, step=step, site=site, progress=progress
        )
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
    report: Report,
    model: Any,
    found: Directions,
    layer: int,
    *,
    everywhere: bool,
    n_random: int,
    seed: int,
    progress: bool,
) -> None:
    """LEACE and the mean difference erased, beside as many random directions."""
    concept = found.concept
    try:
        frame = amnesic_check(
            model,
            concept.tokens,
            concept.labels,
            found.sites[layer],
            concept.task,
            pos=concept.pos,
            everywhere=everywhere,
            n_random=n_random,
            seed=seed,
            progress=progress,
        )
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
    section.table(
        frame[list(ERASURE)], "Erased, and what it costs", name="erasure", formats=share, rows=8
    )
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


def _effect(row: Any) -> str:
    """With its sign."""
    return plus_minus(row["effect"], row["stderr"], "+z.2f")
