"""Concept direction: which direction is a concept, can it be read, and does the model use it?

Finds it in every layer in three ways, tests it on texts that it was not found on, ablates and adds
it beside random directions, and erases it (Marks & Tegmark 2023; Belrose et al. 2023).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from analyses import _task, main
from analyses._concept_causes import (
    DORMANCY,
    ERASURE,
    OFF_TARGET,
    causal_section,
    dormancy_section,
    erasure_section,
)
from analyses._concept_first import Outcome, first_screen
from analyses._concept_sections import (
    COSINES,
    TOKENS,
    cosine_section,
    separation_section,
    tokens_section,
)
from analyses._concepts import of_labelled
from analyses._task import Task, TaskConfig, task_pairs, task_section
from analyses._unknown import check_unknown
from interp.core.indices import index, indices
from interp.data.tasks import Pairs
from interp.loading.needs import Needs
from interp.methods.baseline import check_logits, measure_baseline
from interp.methods.concepts import (
    METHODS,
    Ask,
    Concept,
    Directions,
    Method,
    Verdict,
    asked,
    choose_layer,
    find_all,
    of_pairs,
    of_texts,
    other_tokens,
    separation,
    summary,
    verdict,
)
from interp.methods.concepts.causes import SUMMARY
from interp.methods.concepts.separation import SEPARATION
from interp.methods.stats import rounding
from interp.methods.steering import causal_check
from interp.report import Report
from interp.report.provenance import provenance
from interp.report.spine import listed, out_of_reach

CAUSAL = (
    *("arm", "draw", "action", "factor", "step", "value", "baseline", "effect", "stderr?"),
    *("size", "n", "off_value?", "off_baseline?", "off_effect?", "off_size?"),
    *("p_random", "p_covariance"),
)
NEEDS = Needs(
    text=True, tokenizer=True, wordless=("task", "induction"), logits=True, one_stack=True
)
TABLES = {
    **_task.TABLES,
    "separation-by-layer": ("layer", "method", "value", "low", "high"),
    "separation": SEPARATION,
    "projections": ("along", "class", "share", "low", "high"),
    "cosines-map": ("direction", "other", "cosine"),
    "cosines": COSINES,
    "tokens": TOKENS,
    "dose-response": ("factor", "added", "effect", "low", "high"),
    "causal-by-layer": ("layer", "added", "effect", "low", "high"),
    "causal-methods": SUMMARY,
    "causal-layers": SUMMARY,
    "causal": CAUSAL,
    "dormancy": DORMANCY,
    "erasure": ERASURE,
}


DEFAULT: Task = "gendered-pronoun"


@dataclass(frozen=True)
class Config(TaskConfig):
    """The concept, the prompts that ask for it, and how hard it is tested."""

    task: Task | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Bundled pairs of prompts: their two classes are the concept, unless --data is given, and
    their answers tell what the direction causes. By default gendered-pronoun; with --data none: the
    effect is then measured on these texts. Not used where --prompts is given."""
    n: int = 80
    """Pairs of the bundled task; of --prompts all are used."""
    data: Path | None = None
    """Your own concept: a CSV or JSON-lines file of texts with two labels; the direction leads from
    the label that is first by name to the other, and is read at the last token."""
    text_column: str = "text"
    """The column of --data that holds the texts."""
    label_column: str = "label"
    """The column of --data that holds the labels."""
    method: Method = "means"
    """The direction that is ablated, added and erased in all layers; the chosen layer has all."""
    layer: int | None = None
    """The layer looked at most closely; by default the one, before the last, where a step acts most
    on prompts that nothing else is measured on."""
    layers: tuple[int, ...] | None = None
    """The layers that are measured; by default all."""
    site: str = "resid_post"
    """The site of a layer: one with a vector for each position."""
    everywhere: bool = False
    """Whether all positions are ablated and moved; by default only where the answer is read."""
    factors: tuple[float, ...] = (-2.0, -1.0, 1.0, 2.0)
    """Standard deviations that are added."""
    n_random: int = 20
    """Directions of each kind of control, and shuffles of the labels."""
    top: int = 10
    """Tokens shown of those that the direction promotes, and of those it suppresses."""
    out: Path = Path("reports/concept-direction")
    """Directory of the report; an older report there is replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_random < 1 or self.top < 1:
            raise ValueError(f"n_random={self.n_random}, top={self.top}: expected 1 or more")
        if not any(f > 0 for f in self.factors) or not all(np.isfinite(self.factors)):
            raise ValueError(f"factors={self.factors}: expected numbers, one above 0 among them")
        if 0 in self.factors or len(set(self.factors)) < len(self.factors):
            raise ValueError(f"factors={self.factors}: expected each once, and no 0")
        if self.data is None and self.prompts is None and self.task is None:
            object.__setattr__(self, "task", DEFAULT)
        if self.method == "pca" and self.data is not None:
            raise ValueError("method='pca' takes pairs, and --data has none: use means or probe")
        if self.layer is not None and self.layers is not None and self.layer not in self.layers:
            raise ValueError(f"layer={self.layer} is not among layers={self.layers}")


def run(model: Any, config: Config) -> Report:
    """The report. Raises ValueError on a model without logits, on a layer or site that is not
    there, and on too few texts of a class."""
    report = Report(
        f"A concept's direction in {model.name}",
        "Which direction is the concept, can it be read, and does the model use it?",
        analysis="concept_direction",
        provenance=provenance(config, model),
    )
    if config.data is not None and config.task is None and config.prompts is None:
        check_logits(model)
        own = of_labelled(
            model, config.data, config.text_column, config.label_column, bos=config.bos
        )
        _check_words(report, model, own, config)
        report.skip(
            "The task: none was given with --data (--task or --prompts), so that effects are "
            "measured on its texts."
        )
        examine(report, model, own, of_texts(own), config)
        return report
    pairs = task_pairs(model, config)
    concept, ask = _asked(model, pairs, config)
    _check_words(report, model, concept, config)
    task_section(report, model, pairs, measure_baseline(model, pairs), config)
    examine(report, model, concept, ask, config)
    return report


def _check_words(report: Report, model: Any, concept: Concept, config: Config) -> None:
    if concept.texts:
        name = f"the texts of {concept.name}" if config.data is not None else concept.name
        check_unknown(report, model, concept.texts, name, allowed=config.allow_unknown)


def _asked(model: Any, pairs: Pairs, config: Config) -> tuple[Concept, Ask]:
    concept, ask = of_pairs(model, pairs)
    if config.data is None:
        return concept, ask
    own = of_labelled(model, config.data, config.text_column, config.label_column, bos=config.bos)
    if concept.classes == ("corrupted", "clean"):
        ones = torch.ones(len(pairs), dtype=torch.long)
        return own, asked(pairs, ("wrong answer", "answer"), ones, own=False)
    return own, asked(pairs, concept.classes, concept.labels[: len(pairs)], own=False)


def examine(
    report: Report, model: Any, concept: Concept, ask: Ask, config: Config, *, progress: bool = True
) -> Verdict:
    """All of it, for a concept and prompts of any origin; returns what was concluded."""
    layers = _layers(model, config)
    found = find_all(model, concept, config.site, layers, config.seed)
    _say_failed(report, found, config)
    chosen, held = ask.halves(found.halves, config.seed)
    where = "all" if config.everywhere else ask.pos
    layer = None if config.layer is None else index(config.layer, model.cfg.n_layers, "layer")
    if layer is None:
        layer, _ = choose_layer(model, found, chosen, config.method, where, progress)
    elif (layer, config.method) not in found.directions:
        raise ValueError(f"layer={layer}: nothing was found there by method={config.method!r}")
    separated = separation(found, config.n_random, config.seed)
    separation_section(report, found, separated, layer, config.method, config.n_random)
    checks = _checks(model, found, held, layer, config, where, progress)
    by_layer = [summary(f, *key) for key, f in checks.items() if key[1] == config.method]
    methods = [summary(f, *key) for key, f in checks.items() if key[0] == layer]
    both = pd.concat(by_layer, ignore_index=True), pd.concat(methods, ignore_index=True)
    own = checks[layer, config.method]
    causal_section(report, own, *both, layer, config.method, ask.name)
    direction = found.directions[layer, config.method]
    dormant = dormancy_section(
        report,
        model,
        ask.tokens,
        direction,
        ask.metric,
        where,
        direction.scale or None,
        progress=progress,
    )
    erasure_section(
        report,
        model,
        found,
        layer,
        everywhere=config.everywhere,
        n_random=config.n_random,
        seed=config.seed,
        progress=progress,
    )
    cosine_section(report, found, layer, config.method)
    tokens_section(report, model, direction, layer, config.top)
    row = separated[
        (separated["layer"] == layer) & (separated["method"] == METHODS[config.method])
    ].iloc[0]
    noise = _rounding(model, held)
    caused = summary(own, layer, config.method)
    told = verdict(row, caused, config.n_random, noise)
    changed = "the answer"
    if ask.toward is None:
        changed = "what comes next"
        _without_a_task(report, found)
    outcome = Outcome(
        layer, config.method, told, row, caused, own, bool(dormant), ask.name, changed
    )
    first_screen(report, found, outcome)
    _certainty(report, found, held, layer, config)
    _doubts(report, model, found, ask, config)
    return told


def _rounding(model: Any, ask: Ask) -> float:
    """The size up to which a mean effect on these prompts is nothing but rounding."""
    with torch.no_grad():
        largest = float(model(ask.tokens).amax(-1).abs().max())
    return rounding(largest, torch.finfo(model.dtype).eps, len(ask.tokens))


def _without_a_task(report: Report, found: Directions) -> None:
    """What effects on the labelled texts themselves can show, and what they cannot."""
    first, second = found.concept.classes
    report.findings.insert(
        0,
        "Without a task, effects are changes of the next token behind your own texts, whichever it "
        "is (KL): they show whether the output depends on the direction, not whether it moves an "
        f"answer from {first} to {second}.",
    )
    report.doubt(
        f"Whether the model uses the direction to tell {first} from {second} asks for prompts "
        "whose answer depends on it: --prompts takes pairs of yours (clean, corrupted, answer, "
        "wrong), --task bundled ones. A direction may change the next token for reasons that have "
        "nothing to do with the label; the random directions beside it are all that speaks against "
        "that."
    )


def _layers(model: Any, config: Config) -> tuple[int, ...]:
    n = model.cfg.n_layers
    return tuple(sorted(range(n) if config.layers is None else indices(config.layers, n, "layers")))


def _say_failed(report: Report, found: Directions, config: Config) -> None:
    for layer, method, why in found.failed:
        report.skip(f"{METHODS[method]} at layer {layer}: {why}.")
    if not found.concept.paired:
        report.skip("PCA of pairs: these texts are no pairs.")
    if not any(method == config.method for _, method in found.directions):
        raise ValueError(
            f"method={config.method!r} found no direction in any layer: the classes "
            f"{' and '.join(found.concept.classes)} do not differ at {config.site!r} where the "
            "texts are read"
        )


def _checks(
    model: Any, found: Directions, held: Ask, layer: int, config: Config, where: Any, progress: bool
) -> dict[tuple[int, Method], pd.DataFrame]:
    """The causal check of the chosen method in every layer, of all methods in the chosen one."""
    off = other_tokens(held)
    checks = {}
    for key, direction in found.directions.items():
        if key[0] == layer or key[1] == config.method:
            checks[key] = causal_check(
                model,
                held.tokens,
                direction,
                held.metric,
                off_target=off,
                factors=config.factors,
                n_random=config.n_random,
                pos=where,
                step=direction.scale or None,
                seed=config.seed,
                journal=config.kept(f"causal-{key[0]}-{key[1]}"),
                progress=progress,
            )
            if off is None:
                checks[key][list(OFF_TARGET)] = np.nan
                checks[key] = checks[key][[name.removesuffix("?") for name in CAUSAL]]
    return checks


def _certainty(report: Report, found: Directions, held: Ask, layer: int, config: Config) -> None:
    halves = found.halves
    chosen = "as asked for" if config.layer is not None else "on prompts used for nothing else"
    report.sure(
        f"Found on {len(halves.fit)} texts, read on {len(halves.held)} others, used on "
        f"{len(held.tokens)} prompts (seed {config.seed}); layer {layer} of "
        f"{listed(found.layers)} was chosen {chosen}. Intervals are 95 %: of AUROC by Hanley & "
        "McNeil's error, of shares by Wilson's, of effects normal over prompts."
    )
    report.sure(
        f"Controls: {config.n_random} directions uniform on the sphere, {config.n_random} drawn "
        f"as the prompts' activations vary, {config.n_random} shuffles of the labels; a p-value "
        f"is a rank and never below {1 / (1 + config.n_random):.3f}. Layers and methods are not "
        "corrected for their number; what the first sentence says is of one layer and one method."
    )
    if halves.twice:
        report.skip(
            f"{halves.twice} held-out texts also stand among the fitted ones and do not count."
        )
    short = out_of_reach(config.n_random, 1, "direction", "random directions", "n-random", "none")
    if short:
        report.warn(f"No verdict is possible: {short}.")


def _doubts(report: Report, model: Any, found: Directions, ask: Ask, config: Config) -> None:
    report.doubt(
        "The halves share templates and words, so what is read may be a list of words rather than "
        "the concept; --data with other words in other sentences would tell."
    )
    report.doubt(
        "That a direction moves the answer when added does not show that the model uses it: a long "
        "enough push along anything the unembedding reads does. Ablation asks that, but a concept "
        "that is held twice survives the ablation of one copy."
    )
    report.doubt(
        "Directions drawn as the data vary hold much of the concept itself where the texts differ "
        "in little else: the harder control is then harder than it should be."
    )
    rows = len(ask.tokens)
    if rows <= model.cfg.d_model:
        report.doubt(
            f"{rows} prompts span at most {rows - 1} of {model.cfg.d_model} dimensions, so that "
            "much counts as dormant that more prompts would vary along."
        )
    if not ask.own:
        report.doubt(
            f"The labels of {found.concept.name} and the answers of the task were not made for "
            "each other: the sign of an effect says only which answers go up along the direction."
        )


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
