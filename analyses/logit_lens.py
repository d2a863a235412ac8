"""Logit lens: at which layer does the answer of a task appear, and which parts write it?

Reads the residual stream of every layer as if it were the last one, plainly and by a lens trained
for it, at the answer and over a whole prompt; then splits the logit difference of answer and wrong
answer into what every layer, head and neuron writes. Beside each stands a control: the corrupted
prompts, a turned stream, another prompt's answer, a random pair of tokens.
"""

from __future__ import annotations

import sys
from typing import Any

from analyses import _task, main
from analyses._lens.config import Config
from analyses._lens.direct import DIRECT_TABLES, direct_sections
from analyses._lens.reading import LENS_TABLES, lens_sections
from analyses._lens.tuned import TUNED_TABLES, train_lens, tuned_section
from analyses._task import task_pairs, task_section
from interp.data.tasks import Pairs
from interp.loading.needs import Needs
from interp.methods.baseline import measure_baseline
from interp.methods.lens.reading import check_layers, check_readable
from interp.report import Report
from interp.report.provenance import provenance

NEEDS = Needs(text=True, tokenizer=True, logits=True, one_stack=True, native=True)
TABLES = {**_task.TABLES, **LENS_TABLES, **TUNED_TABLES, **DIRECT_TABLES}
"""The CSV files of the report and their columns."""


def run(model: Any, config: Config) -> Report:
    """The report. Raises ValueError on a model without logits or behind the bridge, and on layers
    that it does not have."""
    pairs = task_pairs(model, config)
    name = config.prompts.name if config.prompts is not None else config.task
    report = Report(
        f"Logit lens on {name} in {model.name}",
        "At which layer does the answer appear, and which layers, heads and neurons write it?",
        analysis="logit_lens",
        provenance=provenance(config, model),
    )
    examine(report, model, pairs, config)
    return report


def examine(report: Report, model: Any, pairs: Pairs, config: Config) -> None:
    """Everything below the title; pairs may be anybody's."""
    check_readable(model)
    layers = check_layers(model, config.layers)
    layers = sorted({*layers, model.cfg.n_layers})
    found = measure_baseline(model, pairs)
    task_section(report, model, pairs, found, config)
    trained = train_lens(report, model, pairs, layers, config)
    lens = None if trained is None else trained.lens
    lens_sections(report, model, pairs, layers, lens, config, found.noise)
    if trained is not None:
        tuned_section(report, trained)
    direct_sections(report, model, pairs, layers[:-1], config, found.noise)
    _doubts(report, model)


def _doubts(report: Report, model: Any) -> None:
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
