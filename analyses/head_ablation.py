"""Head ablation: which heads, MLPs and neurons does a task need, and who steps in for them?

Removes every part in three ways (zero, mean, resample) and measures the logit difference and the
loss; removes every head once more after each of the strongest (backups); removes more and more
heads together, beside random sets of as many.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from analyses import _task, main
from analyses._ablation.config import Config
from analyses._ablation.report import show
from analyses._ablation.words import tell
from analyses._reference import reference_of, warn_of_one_class
from analyses._task import task_pairs, task_section
from analyses._text import text_windows
from interp.core.indices import indices
from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.loading.needs import Needs
from interp.methods.ablation import KINDS, ablate_parts, removal_edits
from interp.methods.baseline import measure_baseline
from interp.report import Report
from interp.report.provenance import provenance
from interp.sweeps.metrics import single_answer

EFFECT = (
    *("effect", "stderr?", "low?", "high?", "lost?", "lost_low?", "lost_high?", "p?"),
    *("p_corrected?", "named"),
)
CURVE = (
    *("kind", "order", "draw", "removed", "overlap", "value", "baseline", "effect", "stderr?"),
    *("n", "share?", "low?", "high?"),
)
BAND = ("order", "removed", "value", "low", "high")
NEEDS = Needs(
    text=True, tokenizer=True, wordless=("task", "induction"), logits=True, one_stack=True
)
TABLES = _task.TABLES | {
    "heads": ("kind", "layer", "head", *EFFECT),
    "mlps": ("kind", "layer", *EFFECT),
    "neurons": ("kind", "layer", "neuron", *EFFECT),
    "strongest": ("name", "kind", "effect", "low", "high"),
    "losses": (
        *("kind", "part", "layer", "head?", "answer", "answer_stderr?", "text?", "text_stderr?"),
    ),
    "kinds": ("part", "one", "other", "n", "spearman", "spearman_of_size"),
    "damage": ("kind", "damage", "low?", "high?", "size"),
    "disagreement": ("layer", "head", "spread", ...),
    "second-removals": (
        *("kind", "first_layer", "first_head", "layer", "head", "first_alone", "alone", "given"),
        *("given_stderr?", "given_p_corrected?", "interaction", "stderr?", "low?", "high?", "p?"),
        *("p_corrected?", "wakes"),
    ),
    "together": CURVE,
    "random-sets": (
        *("kind", "heads", "k", "effect", "stderr?", "random_mean", "random_low", "random_high"),
        *("random_sets", "as_much", "as_much_without", "without", "p"),
    ),
}
for _kind in KINDS:
    TABLES |= {
        f"heads-{_kind}": ("layer", "head", "effect"),
        f"pairs-{_kind}": ("first", "second", "interaction"),
        f"together-{_kind}": BAND,
        **{f"{_kind}-against-{other}": ("part", _kind, other) for other in KINDS},
    }


def run(model: Any, config: Config) -> Report:
    """The report. Raises ValueError on a layer, head or layer of neurons that the model does not
    have, on a model without logits or with two stacks, and on neurons where there are none."""
    config = _checked(model, config)
    report = Report(
        f"Head ablation in {model.name}",
        "Which heads, MLPs and neurons does the task need, and who steps in for them?",
        analysis="head_ablation",
        provenance=provenance(config, model),
    )
    examine(report, model, task_pairs(model, config), config)
    return report


def examine(report: Report, model: Any, pairs: Pairs, config: Config) -> None:
    """Everything, on pairs of whatever origin."""
    config = _checked(model, config)
    found = measure_baseline(model, pairs)
    task_section(report, model, pairs, found, config)
    if "mean" in config.kinds:
        warn_of_one_class(report, pairs, config)
    alike = len(pairs) > 1 and single_answer(pairs.answer)
    if "resample" in config.kinds and config.donors == "clean" and alike:
        report.warn(
            f"All {len(pairs)} clean prompts have the same answer, and the donors are among them: "
            "what resample ablation puts in holds the answer, too. --donors corrupted takes others."
        )
    donors = pairs.clean if config.donors == "clean" else pairs.corrupted
    asked = {
        "kinds": config.kinds,
        "per": config.per,
        "own_donor": config.donors == "own",
        "seed": config.seed,
    }
    made = removal_edits(pairs.clean, donors, reference_of(pairs, config.reference), **asked)
    if not made:
        raise ValueError(f"kinds={config.kinds}: {_UNEVEN}")
    if len(made) < len(config.kinds):
        report.skip(f"Resample ablation: {_UNEVEN}.")
    text = _text(report, model, pairs, config)
    text_edits = (
        made if text is pairs.clean or text is None else removal_edits(text, text, text, **asked)
    )
    if len(text_edits) < len(made):
        report.skip("Resample ablation on the text: its windows are not equally long.")
    if not model.cfg.d_mlp:
        report.skip("MLPs: this model has none.")
    measured = ablate_parts(model, pairs, found, made, config.options, text, text_edits)
    tell(report, measured, pairs, text, config)
    show(report, measured, config)


_UNEVEN = (
    "the prompts are not equally long, and a donor of another length has nothing to give at some "
    "positions; donors='own' takes each prompt's own corrupted one"
)


def _checked(model: Any, config: Config) -> Config:
    """The config with its layers and heads counted from the start."""
    cfg = model.cfg
    if getattr(model, "encoder", None) is not None:
        raise ValueError(
            f"{model.name} has an encoder and a decoder; its sites are swept by "
            "interp.ablate(model, tokens, 'decoder_blocks.attn.hook_z', …)"
        )
    sizes = {"layers": cfg.n_layers, "heads": cfg.n_heads, "neurons": cfg.n_layers}
    chosen = {
        name: tuple(indices(getattr(config, name), size, name))
        for name, size in sizes.items()
        if len(getattr(config, name))
    }
    if config.neurons and (not cfg.d_mlp or cfg.n_experts):
        why = "its MLPs are made of experts" if cfg.n_experts else "it has no MLP"
        raise ValueError(f"neurons={config.neurons}: {model.name} has no neurons to remove; {why}")
    return dataclasses.replace(config, **chosen)


def _text(report: Report, model: Any, pairs: Pairs, config: Config) -> Tokens | None:
    """What the plain loss is measured on."""
    if model.cfg.head != "unembed" or not model.cfg.causal:
        report.skip("The plain loss: this model predicts no next token.")
        return None
    if config.text is None:
        return pairs.clean
    return text_windows(report, model, config)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
