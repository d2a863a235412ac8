"""Logit lens: at which layer does the answer of a task appear, and which parts write it?

Reads the residual stream of every layer as if it were the last one, plainly and by a lens trained
for it, at the answer and over a whole prompt; then splits the logit difference of answer and wrong
answer into what every layer, head and neuron writes. Beside each stands a control: the corrupted
prompts, a turned stream, another prompt's answer, a random pair of tokens.
"""

from __future__ import annotations

import sys

import pandas as pd

from analyses import _task, main
from analyses._lens.config import Config
from analyses._lens.corrupted import FIRST, against, clean_against_corrupted
from analyses._lens.direct import (
    DIRECT_TABLES,
    Direct,
    direct_sections,
    measure_direct,
    most_lost,
    most_written,
)
from analyses._lens.prompt import ranks_figure
from analyses._lens.reading import (
    LENS_TABLES,
    PLAIN,
    arrival,
    growth,
    in_one_sentence,
    lens_sections,
    middle_of,
    read_lenses,
)
from analyses._lens.tuned import TUNED_TABLES, train_lens, tuned_section
from analyses._task import task_pairs, task_section
from interp.data.tasks import Pairs
from interp.loading.needs import Needs
from interp.methods.baseline import measure_baseline
from interp.methods.lens.reading import check_layers, check_readable
from interp.model import HookedTransformer
from interp.report import Report
from interp.report.provenance import provenance
from interp.report.spine import percent

NEEDS = Needs(text=True, tokenizer=True, logits=True, one_stack=True, native=True)
TABLES = {**_task.TABLES, **LENS_TABLES, **TUNED_TABLES, **DIRECT_TABLES}
"""The CSV files of the report and their columns."""


def run(model: HookedTransformer, config: Config) -> Report:
    """The report. Raises ValueError on a model without logits or behind the bridge, and on layers
    that it does not have."""
    pairs = task_pairs(model, config)
    name = config.prompts.name if config.prompts is not None else config.task
    report = Report(
        f"Logit lens on {name} in {model.name}",
        "At which layer does the answer appear, and which layers, heads and neurons write it?",
        analysis="logit_lens",
        provenance=provenance(config, model),
        tables=TABLES,
    )
    examine(report, model, pairs, config)
    return report


def examine(report: Report, model: HookedTransformer, pairs: Pairs, config: Config) -> None:
    """Everything below the title; pairs may be anybody's."""
    check_readable(model)
    layers = check_layers(model, config.layers)
    layers = sorted({*layers, model.cfg.n_layers})
    baseline = measure_baseline(model, pairs)
    noise = baseline.noise
    task_section(report, model, pairs, baseline, config)
    trained = train_lens(report, model, pairs, layers, config)
    lens = None if trained is None else trained.lens
    read = read_lenses(model, pairs, layers, lens, config.seed)
    direct = measure_direct(report, model, pairs, layers[:-1], config)
    _opening(report, model, pairs, layers, read, noise)
    _first_findings(report, read, direct, noise)
    lens_sections(report, model, pairs, layers, lens, read, config, noise)
    if trained is not None:
        tuned_section(report, trained)
    if direct is not None:
        direct_sections(report, model, pairs, layers[:-1], direct, config, noise)
    _doubts(report, model)


def _opening(
    report: Report,
    model: HookedTransformer,
    pairs: Pairs,
    layers: list[int],
    read: pd.DataFrame,
    noise: float,
) -> None:
    """The answer, and the answer's rank by layer and token of the first prompt."""
    clean = clean_against_corrupted(against(read), PLAIN, noise)
    arrived = arrival(read)
    middle = middle_of(arrived.loc[arrived["lens"] == PLAIN, "top_for_good"])
    opening = report.answer(in_one_sentence(clean, middle, model.cfg.n_layers))
    ranks_figure(opening, model, pairs[0], layers, None)


def _first_findings(
    report: Report, read: pd.DataFrame, direct: Direct | None, noise: float
) -> None:
    """The three findings of the first screen: who writes the answer, what removing a head takes,
    and the control; where a logit is no sum of parts, what the lenses say in their place."""
    if direct is not None:
        most_written(report, direct, noise)
        if direct.removed is not None:
            most_lost(report, direct.removed, noise)
    clean = clean_against_corrupted(against(read), PLAIN, noise)
    last = clean.at(int(clean.table["layer"].max()), FIRST)
    report.finding(
        f"At the output the answer is the likeliest token in {percent(last['clean'])} of prompts "
        f"that ask for it, {percent(last['corrupted'])} of others.",
        at="clean-against-corrupted",
    )
    if direct is None:
        jump = growth(clean)
        if jump is not None:
            report.finding(f"{jump[:1].upper()}{jump[1:]}.", at="logit-diff-figure")


def _doubts(report: Report, model: HookedTransformer) -> None:
    report.doubt(
        "A lens shows what the last norm and the unembedding would make of a stream, not what the "
        "later layers take from it: an answer may be there long before it can be read this way, "
        "and what is read early may be changed later. Patching tells what is used."
    )
    if model.cfg.norm != "none" and model.cfg.norm_position == "post":
        report.doubt(
            "In this model norms stand on the residual stream itself (post-norm): every block "
            "rescales what the blocks before it wrote, so that streams of two layers are not in "
            "one basis by construction. The plain lens says what the head makes of such a stream; "
            "only the tuned lens accounts for the change."
        )
    if model.cfg.head == "mlm":
        report.doubt(
            "This model predicts masked tokens. At a token that is not masked its output mostly "
            "repeats the token, so agreement with the output there says little."
        )
    if getattr(model.cfg, "final_softcap", None) is not None:
        report.doubt("Logits are soft-capped at the end; parts are logits before the cap.")


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
