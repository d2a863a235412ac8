"""What the lenses say of a task: the answer's way to the top, by layer, by prompt, by position."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses._lens.config import Config
from analyses._lens.corrupted import (
    AGAINST,
    DIFFERENCE,
    FIRST,
    ON_CORRUPTED,
    Contrast,
    against,
    clean_against_corrupted,
    in_words,
    no_layer,
)
from analyses._lens.prompt import PROMPT_TABLES, prompt_section, token_words
from interp import stats
from interp.data.tasks import Pairs
from interp.methods.lens import TunedLens, logit_lens, random_lens
from interp.report import Report, Section
from interp.report.figures import curves
from interp.report.spine import number, percent

DRAWN = ("curve", "layer", "value", "low", "high")
ARRIVAL = ("lens", "example", "first_top?", "top_for_good?", "ahead_for_good?")
LENS_TABLES = {
    "rank-figure": DRAWN,
    "logit-diff-figure": DRAWN,
    "kl-figure": DRAWN,
    "entropy-figure": DRAWN,
    "clean-against-corrupted": AGAINST,
    "lens-by-layer": ("lens", "layer", "what", "value", "low?", "high?", "n"),
    "arrival": ARRIVAL,
    "lens-by-prompt": (
        *("lens", "example", "layer", "top_token", "top_prob", "entropy", "kl"),
        *("answer_rank", "answer_prob", "wrong_rank", "wrong_prob", "logit_diff", "other_rank?"),
    ),
    **PROMPT_TABLES,
}
PLAIN, TUNED, TURNED = "plain", "tuned", "turned"
LENSES = {PLAIN: "logit lens", TUNED: "tuned lens"}
RANKS = {
    "answer_rank": "rank of the answer",
    "wrong_rank": "rank of the wrong answer",
    "other_rank": "rank of another prompt's answer",
}
MEANS = {"logit_diff": "logit difference", "kl": "KL(output ‖ lens)", "entropy": "entropy"}
LAYER_AXIS = "layer (what it reads; the last: the output)"


def lens_sections(
    report: Report,
    model: Any,
    pairs: Pairs,
    layers: list[int],
    lens: TunedLens | None,
    read: pd.DataFrame,
    config: Config,
    noise: float,
) -> None:
    """Findings and evidence of all lenses at the answer, then over the first prompt. Differences up
    to `noise` are rounding."""
    summary, arrived, both = by_layer(read), arrival(read), against(read)
    for name in (one for one in LENSES if one in set(read["lens"])):
        own = arrived[arrived["lens"] == name]
        _tell(
            report,
            clean_against_corrupted(both, name, noise),
            own,
            LENSES[name],
            model.cfg.n_layers,
        )
    _controls(report, summary, both, config)
    section = report.section(
        "Layer by layer, where the answer is expected",
        "Layer l is what layer l reads, the last what the model ends with. Each stream goes "
        "through the final norm, computed anew on it, and the unembedding. “Turned” is the "
        "control: the same streams, turned by a random orthogonal matrix. “Corrupted” is the "
        "other: the same answer and wrong answer, read from the corrupted prompt of the pair, "
        "where a constant bias stands as well. Ranks count the tokens with at least the answer's "
        "logit.",
    )
    _draw(section, summary)
    section.table(
        both, "Clean against corrupted prompts, pair by pair (of shares by Newcombe 1998)",
        name="clean-against-corrupted", missing=("low", "high"), rows=2 * len(layers),
    )  # fmt: skip
    section.table(
        summary, "All curves as numbers: ranks are medians with quartiles, shares have Wilson "
        "intervals, all else is a mean with its 95 % interval", name="lens-by-layer",
        missing=("low", "high"), rows=14, formats=dict.fromkeys(("value", "low", "high"), ",.4g"),
    )  # fmt: skip
    section.table(
        arrived, "Per prompt, the layer at which the answer is first the top token, from which it "
        "stays so, and from which it stays ahead of the wrong answer (empty: never)",
        name="arrival", missing=tuple(one.removesuffix("?") for one in ARRIVAL if "?" in one),
        rows=10,
    )  # fmt: skip
    section.table(read, "Every prompt and layer", name="lens-by-prompt",
                  missing=("other_rank",), rows=len(layers))  # fmt: skip
    prompt_section(report, model, pairs, layers, lens)


def read_lenses(
    model: Any, pairs: Pairs, layers: list[int], lens: TunedLens | None, seed: int
) -> pd.DataFrame:
    """The columns of lens-by-prompt, for each lens, prompt and layer, at the role "end"."""
    turned = random_lens(model, seed)
    other = _others(pairs.answer, seed)
    readers = {
        PLAIN: lambda ids: logit_lens(model, pairs.clean, ids, pos="end", layers=layers),
        TURNED: lambda ids: turned.read(model, pairs.clean, ids, pos="end", layers=layers),
        PLAIN + ON_CORRUPTED: lambda ids: logit_lens(
            model, pairs.corrupted, ids, pos="end", layers=layers
        ),
    }
    if lens is not None:
        readers[TUNED] = lambda ids: lens.read(model, pairs.clean, ids, pos="end")
        readers[TUNED + ON_CORRUPTED] = lambda ids: lens.read(
            model, pairs.corrupted, ids, pos="end"
        )
    frames = []
    for name, reader in readers.items():
        right, wrong = reader(pairs.answer), reader(pairs.wrong)
        whose = None if other is None or name.endswith(ON_CORRUPTED) else pairs.answer[other]
        frame = right[["example", "layer", "top_prob", "entropy", "kl"]].assign(
            lens=name,
            top_token=token_words(model, right["top"]),
            answer_rank=right["rank"],
            answer_prob=right["prob"],
            wrong_rank=wrong["rank"],
            wrong_prob=wrong["prob"],
            logit_diff=right["logit"] - wrong["logit"],
            other_rank=np.nan if whose is None else reader(whose)["rank"],
        )
        frames.append(frame)
    columns = [one.removesuffix("?") for one in LENS_TABLES["lens-by-prompt"]]
    return pd.concat(frames, ignore_index=True)[columns]


def by_layer(read: pd.DataFrame) -> pd.DataFrame:
    """lens layer what value low high n: medians and quartiles of ranks, shares, means."""
    rows = []
    for key, own in read.groupby(["lens", "layer"], sort=False):
        (lens, layer), n = cast(tuple, key), len(own)
        for column, what in RANKS.items():
            if bool(np.isfinite(own[column].to_numpy(float)).all()):
                low, value, high = _quartiles(own[column].to_numpy())
                rows.append((lens, layer, what, value, low, high, n))
        first = int((own["answer_rank"] == 1).sum())
        low, high = stats.wilson(np.array([first]), np.array([n]))
        rows.append((lens, layer, FIRST, first / n, low[0], high[0], n))
        for column, what in MEANS.items():
            found = stats.mean(own[column].to_numpy())
            rows.append((lens, layer, what, found.value, found.low, found.high, n))
    columns = [one.removesuffix("?") for one in LENS_TABLES["lens-by-layer"]]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({"value": float, "low": float, "high": float})


def arrival(read: pd.DataFrame) -> pd.DataFrame:
    """Per lens and prompt the layers of `ARRIVAL`; missing where it never happens."""
    rows = []
    for key, own in read.groupby(["lens", "example"], sort=False):
        (lens, example), own = cast(tuple, key), own.sort_values("layer")
        layer, top = own["layer"].to_numpy(), (own["answer_rank"] == 1).to_numpy()
        ahead = (own["logit_diff"] > 0).to_numpy()
        reached = layer[top]
        first = int(reached[0]) if len(reached) else None
        rows.append((lens, example, first, _for_good(layer, top), _for_good(layer, ahead)))
    frame = pd.DataFrame(rows, columns=[one.removesuffix("?") for one in ARRIVAL])
    return frame.astype(dict.fromkeys(frame.columns[2:], "Int64"))


def _for_good(layer: np.ndarray, holds: np.ndarray) -> int | None:
    """The first layer from which it holds to the end."""
    if not holds[-1]:
        return None
    fails = np.flatnonzero(~holds)
    return int(layer[fails[-1] + 1 if len(fails) else 0])


def _quartiles(values: np.ndarray) -> np.ndarray:
    """Of what was observed: no average of two ranks or layers."""
    return np.quantile(values, [0.25, 0.5, 0.75], method="inverted_cdf")


def _others(answer: Tensor, seed: int) -> Tensor | None:
    """For each prompt another one with other answers, at random; None where there is none."""
    sets = [set(row) for row in answer.reshape(len(answer), -1).tolist()]
    rng, chosen = np.random.default_rng(seed), []
    for own in sets:
        free = [i for i, one in enumerate(sets) if not one & own]
        if not free:
            return None
        chosen.append(int(rng.choice(free)))
    return torch.tensor(chosen, device=answer.device)


def _draw(section: Section, summary: pd.DataFrame) -> None:
    own = dict(iter(summary.groupby("what", sort=False)))
    ranks = [
        (PLAIN, RANKS["answer_rank"], "answer"),
        (PLAIN, RANKS["wrong_rank"], "wrong answer"),
        (PLAIN, RANKS["other_rank"], "other prompt’s answer"),
        (TURNED, RANKS["answer_rank"], "answer, turned"),
        (TUNED, RANKS["answer_rank"], "answer, tuned lens"),
    ]
    drawn = [
        _curve(own[what][own[what]["lens"] == lens], label) for lens, what, label in ranks
        if what in own
    ]  # fmt: skip
    frame = pd.concat(drawn, ignore_index=True)
    frame[["value", "low", "high"]] = np.log10(frame[["value", "low", "high"]])
    last = frame[frame["curve"] == "answer"].iloc[-1]
    figure = curves(
        frame, x="layer", value="value", low="low", high="high", group="curve", x_axis=LAYER_AXIS,
        axis="log₁₀ rank (median, quartiles)",
        alt=f"Rank by layer of {', '.join(dict.fromkeys(frame['curve']))}. The answer ends at rank "
        f"{10 ** last['value']:.0f}.",
    )  # fmt: skip
    section.figure(figure, "The answer's way to the top: at 0 it is the likeliest token",
                   name="rank-figure")  # fmt: skip
    captions = {
        "logit_diff": (
            "logit-diff-figure",
            "Answer against wrong answer, on clean and corrupted prompts",
            "logits",
        ),
        "kl": ("kl-figure", "Distance from the output", "nats"),
        "entropy": ("entropy-figure", "How undecided each layer is", "bits"),
    }
    for column, (name, caption, unit) in captions.items():
        rows = own[MEANS[column]]
        if column != "logit_diff":  # the corrupted prompts have outputs of their own
            rows = rows[~rows["lens"].str.endswith(ON_CORRUPTED)]
        drawn = [_curve(one, str(lens)) for lens, one in rows.groupby("lens", sort=False)]
        frame = pd.concat(drawn, ignore_index=True)
        plain = frame[frame["curve"] == PLAIN]
        figure = curves(
            frame, x="layer", value="value", low="low", high="high", group="curve",
            x_axis=LAYER_AXIS, axis=f"{MEANS[column]}, {unit} (mean, 95 %)",
            alt=f"Mean {MEANS[column]} by layer. Plain lens: {plain['value'].iloc[0]:.2f} at the "
            f"first layer, {plain['value'].iloc[-1]:.2f} {unit} at the last.",
        )  # fmt: skip
        section.figure(figure, caption, name=name)


def _curve(rows: pd.DataFrame, label: str) -> pd.DataFrame:
    """One curve; without intervals its band has no width."""
    low, high = (rows[one].fillna(rows["value"]) for one in ("low", "high"))
    return rows[["layer", "value"]].assign(curve=label, low=low, high=high)[list(DRAWN)]


def _tell(
    report: Report, contrast: Contrast, arrived: pd.DataFrame, lens: str, n_layers: int
) -> None:
    """From which layer on clean prompts differ from corrupted ones, and when the answer is on top:
    only where it is less often so on corrupted prompts."""
    if contrast.layer is None:
        report.finding(no_layer(contrast, lens))
        return
    report.finding(
        f"By the {lens}, clean prompts differ from corrupted ones from layer {contrast.layer} on: "
        f"there {in_words(contrast.at(contrast.layer))}. {_on_top(contrast, arrived)} "
        f"(layer l: what layer l reads; {n_layers}: the output)."
    )
    jump = growth(contrast)
    if jump:
        report.finding(f"By the {lens}, {jump}.")


def in_one_sentence(contrast: Contrast, middle: int | None, n_layers: int) -> str:
    """The answer of the report: after how many layers the answer of the task can be read. `middle`
    is the layer from which it stays the top token, in half of the prompts or more."""
    if contrast.layer is None:
        return (
            "One pair of prompts cannot tell at which layer the answer appears."
            if int(contrast.table["n"].iloc[0]) == 1
            else "The answer appears at no layer: it is read as clearly from prompts that ask for "
            "another."
        )
    layers = sorted(set(contrast.table["layer"]))
    late = [layer for layer in layers if middle is not None and layer >= middle]
    told_apart = [all(contrast.sure(after, FIRST) for after in late[i:]) for i in range(len(late))]
    if True in told_apart:
        reached = late[told_apart.index(True)]
        return (
            f"The answer can be read {_after(reached, n_layers)}: from there on it is the "
            "likeliest token where the prompt asks for it, and not where it asks for another."
        )
    leans = (
        f"{_capital(_after(contrast.layer, n_layers))} the model leans towards the answer where "
        "the prompt asks for it, but"
    )
    if middle is None:
        return f"{leans} in half of the prompts or more another token stays likelier."
    return f"{leans} it is the likeliest token about as often where another is asked for."


def _after(layer: int, n_layers: int) -> str:
    """Behind how many layers what layer `layer` reads stands."""
    return {0: "before the first layer", n_layers: "only at the output"}.get(
        layer, f"after {layer} of {n_layers} layers"
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _on_top(contrast: Contrast, arrived: pd.DataFrame) -> str:
    """When the answer is first the top token, if corrupted prompts have it there less often."""
    first, stays = (_when(arrived[name]) for name in ("first_top", "top_for_good"))
    middle = middle_of(arrived["first_top"])
    if middle is None:
        return f"The answer is the top token at {first}"
    layers = sorted(set(contrast.table["layer"]))
    if contrast.sure(middle, FIRST):
        return (
            f"The answer is first the top token at {first} and stays so"
            f"{'' if first == stays else f' from {stays}'}"
        )
    named = next((layer for layer in layers if contrast.sure(layer, FIRST)), None)
    row = contrast.at(middle, FIRST)
    return (
        f"At layer {middle} it is the top token in {percent(row['clean'])} of clean and "
        f"{percent(row['corrupted'])} of corrupted prompts, which may be chance or a bias; "
        + (
            f"more often on clean ones from layer {named}"
            if named is not None
            and all(contrast.sure(layer, FIRST) for layer in layers if layer >= named)
            else "no layer is named for that"
        )
    )


def _controls(report: Report, summary: pd.DataFrame, both: pd.DataFrame, config: Config) -> None:
    turned = summary[(summary["lens"] == TURNED) & (summary["what"] == FIRST)]
    rank = summary[(summary["lens"] == TURNED) & (summary["what"] == RANKS["answer_rank"])]
    report.sure(
        f"Control: in streams turned at random (seed {config.seed}) the answer is the top token in "
        f"at most {percent(turned['value'].max())} of the prompts at any layer, with median "
        f"ranks of {rank['value'].min():.0f} and more; untouched, it ends as the top token in "
        f"{percent(_at_end(summary, FIRST))}."
    )
    top = both[(both["lens"] == PLAIN) & (both["what"] == FIRST)].sort_values("layer")
    last = top.iloc[-1]
    report.sure(
        "Control: read from the corrupted prompts, the same answer is the top token in "
        f"{percent(top['corrupted'].min())} to {percent(top['corrupted'].max())} of them by "
        f"layer, at the output in {percent(last['corrupted'])} (clean prompts "
        f"{percent(last['clean'])})."
    )
    others = RANKS["other_rank"]
    if others in set(summary["what"]):
        report.sure(
            "Control: the answer of another prompt ends at a median rank of "
            f"{_at_end(summary, others):.0f}, the prompt's own at "
            f"{_at_end(summary, RANKS['answer_rank']):.0f}. What both share by layer is knowledge "
            "of the kind of answer, not of this one."
        )
    else:
        report.skip("The control with another prompt's answer: all prompts share one answer.")


def middle_of(layers: pd.Series) -> int | None:
    """The median layer; None where it is never."""
    late = layers.astype(float).fillna(np.inf).to_numpy()
    middle = _quartiles(late)[1]
    return int(middle) if np.isfinite(middle) else None


def _when(layers: pd.Series) -> str:
    """Median and quartiles of layers, where never is later than all."""
    never = int(layers.isna().sum())
    if never == len(layers):
        return "no layer"
    late = layers.astype(float).fillna(np.inf).to_numpy()
    low, middle, high = _quartiles(late)
    if not np.isfinite(middle):
        return f"no layer in {never} of {len(layers)} prompts"
    if len(layers) == 1:
        return f"layer {middle:.0f}"
    ends = f"{low:.0f} to {high:.0f}" if np.isfinite(high) else f"{low:.0f} to never"
    most = f", never in {never} of {len(layers)}" if never else ""
    return f"layer {middle:.0f} (median; quartiles {ends}{most})"


def growth(contrast: Contrast) -> str | None:
    """Across which layer what tells clean from corrupted prompts grows most."""
    own = contrast.table[contrast.table["what"] == DIFFERENCE].sort_values("layer")
    steps = own["difference"].diff().iloc[1:]
    if steps.empty or steps.max() <= 0:
        return None
    at = int(steps.to_numpy().argmax())
    before, after = own.iloc[at], own.iloc[at + 1]
    return (
        "the difference between clean and corrupted prompts grows most between layer "
        f"{int(before['layer'])} and {int(after['layer'])}, from {number(before['difference'])} to "
        f"{number(after['difference'])} logits"
    )


def _at_end(summary: pd.DataFrame, what: str) -> float:
    own = summary[(summary["lens"] == PLAIN) & (summary["what"] == what)]
    return float(own.sort_values("layer")["value"].iloc[-1])
