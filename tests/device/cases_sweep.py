"""Interventions: every edit and metric by both engines, and what is made of sweeps. `b`: a `Bench`.

Answers, directions, values and labels are given as they come from a file: on the CPU.
"""

from __future__ import annotations

import numpy as np
import torch

import interp
from interp import edits, metrics
from interp.methods.ablation import Options, removal_edits
from interp.methods.baseline import measure_baseline
from interp.methods.patching import Study
from interp.methods.tracing import subject_span
from interp.sweeps.nodes import read_nodes

QUIET = {"progress": False}


def nodes(b, site="z", by=("layer", "head"), **options):
    return interp.nodes(b.model, site, by=by, **options)


def swept(b, edit, site="z", by=("layer", "head"), metric=None, tokens=None, **options):
    """One edit at some nodes, by both engines."""
    pairs = b.pairs
    metric = metric or metrics.logit_diff(*b.answers)
    tokens = pairs.clean if tokens is None else tokens
    chosen = nodes(b, site, by, tokens=tokens)
    every = [
        interp.sweep(
            b.model, tokens, chosen, edit=edit, metric=metric, engine=engine, reduce="none",
            **QUIET, **options,
        )
        for engine in ("rerun", "naive")
    ]  # fmt: skip
    assert np.allclose(every[0]["value"], every[1]["value"], 1e-9, 1e-11), "rerun and naive"
    return every


def measured(b, metric, tokens=None, engines=("rerun", "naive")):
    """One metric under one edit."""
    options = {"edit": edits.zero(), "metric": metric, "reduce": "none", **QUIET}
    tokens = b.pairs.clean if tokens is None else tokens
    return [
        interp.sweep(b.model, tokens, nodes(b, "mlp_out", ("layer",)), engine=engine, **options)
        for engine in engines
    ]


def cache_of(b, tokens=None, device=None):
    return b.model.run_with_cache(b.pairs.corrupted if tokens is None else tokens, device=device)[1]


def ablated(f, b):
    """All parts by all kinds of removal; of the result every table."""
    removals = removal_edits(b.pairs.clean, b.pairs.corrupted, b.pairs.both, own_donor=True)
    options = Options(neurons=(0,), top=1, random_sets=1, own_donor=True)
    m = f(b.model, b.pairs, measure_baseline(b.model, b.pairs), removals, options, b.pairs.clean)
    tables = (m.heads.table, m.mlps.table, m.neurons.table)
    return *tables, m.losses, m.damage, m.seconds, m.curve, m.sets


def study(b):
    return Study.of(b.model, b.pairs)


def noise_case(f, b):
    return swept(b, f(0.3, seed=2)), swept(b, f(0.3, seed=2), "resid_pre", ("layer", "pos"))


def journalled(f, b):
    """A sweep that is written down, and read again."""
    options = {"edit": edits.zero(), "metric": metrics.loss(), "journal": b.folder / "sweep.jsonl"}
    return [f(b.model, b.pairs.clean, nodes(b), **options, **QUIET) for _ in range(2)]


def traced(b):
    pairs = b.pairs
    return b.model, pairs.clean, subject_span(pairs), *b.answers


SWEEP_CASES = {
    "edits.zero": lambda f, b: swept(b, f(), "mlp.hook_post", ("layer", "pos")),
    "edits.set_to": lambda f, b: (
        swept(b, f(0.5)), swept(b, f(b.direction), "resid_mid", ("layer",)),
    ),
    "edits.scale": lambda f, b: swept(b, f(0.5), "pattern"),
    "edits.add": lambda f, b: swept(b, f(b.direction, 2.0), "resid_post", ("layer", "pos")),
    "edits.project_out": lambda f, b: (
        swept(b, f(b.direction), "resid_pre", ("layer",)),
        swept(b, f(torch.stack([b.direction, b.direction.flip(0)])), "resid_pre", ("layer",)),
    ),
    "edits.noise": noise_case,
    "edits.patch": lambda f, b: [
        swept(b, f(source), site, by)
        for site, by in (("z", ("layer", "head")), ("resid_pre", ("layer", "pos")))
        for source in (b.pairs.corrupted, cache_of(b), cache_of(b, device="cpu"))
    ],
    "edits.mean": lambda f, b: [
        swept(b, f(source, per))
        for source in (b.pairs.corrupted, cache_of(b), cache_of(b, device="cpu"))
        for per in ("all", "pos")
    ],
    "edits.resample": lambda f, b: [
        swept(b, f(source, seed=3), "q")
        for source in (b.pairs.corrupted, cache_of(b), cache_of(b, device="cpu"))
    ],
    "edits.edited_positions": lambda f, b: list(
        f(
            read_nodes(nodes(b, "z", ("layer", "pos"), positions=[0, -1]), b.model, b.pairs.clean),
            b.model, b.pairs.clean,
        ).values()
    ),
    "edits.each": lambda f, b: swept(
        b, f({i: edits.scale(0.1 * i) for i in range(len(nodes(b)))})
    ),
    "metrics.logit_diff": lambda f, b: measured(b, f(*b.answers, pos="end")),
    "metrics.log_prob": lambda f, b: measured(b, f(b.answers[0])),
    "metrics.prob": lambda f, b: measured(b, f(b.answers[0], pos=-1)),
    "metrics.rank": lambda f, b: measured(b, f(b.answers[0])),
    "metrics.accuracy": lambda f, b: measured(b, f(b.answers[0])),
    "metrics.kl": lambda f, b: measured(b, f()) + measured(b, f("all")),
    "metrics.js": lambda f, b: measured(b, f()) + measured(b, f("all")),
    "metrics.loss": lambda f, b: measured(b, f()) + measured(b, f(), b.tokens),
    "metrics.cosine": lambda f, b: measured(b, f(b.direction)),
    "metrics.pooled_cosine": lambda f, b: (
        measured(b, f()), measured(b, f(b.direction.expand(len(b.pairs), -1)))
    ),
    "metrics.function": lambda f, b: [
        measured(b, f(lambda x: x.logsumexp(-1).mean(-1)), engines=("naive",)),
        measured(b, f(lambda x, examples: x.logsumexp(-1).mean(-1) + examples)),
    ],
    "metrics.cache_function": lambda f, b: measured(
        b, f(lambda cache: cache["z", 1].square().mean((1, 2, 3)), "z"), engines=("naive",)
    ),
    "metrics.checked": lambda f, b: f(b.there(torch.tensor([1.0, 2.0])), ["a", "b"]),
    "metrics.answer_ids": lambda f, b: f(b.answers[0], b.pairs.clean, b.model),
    "metrics.one_position": lambda f, b: [
        f(pos, b.pairs.clean) for pos in (None, -2, "end", torch.arange(len(b.pairs)) % 3)
    ],
    "engine.sweep": lambda f, b: (journalled(f, b), f(
        b.model.with_hooks([("z", lambda x, hook: x * 2)]), b.tokens, nodes(b),
        edit=edits.zero(), metric=metrics.loss(), **QUIET,
    )),
    "engine.explain": lambda f, b: {
        key: value
        for key, value in f(
            b.model, b.pairs.clean, nodes(b), edits.patch(b.pairs.corrupted),
            metrics.logit_diff(*b.answers),
        ).items() if isinstance(value, (int, str))
    },
    "engine.ablate": lambda f, b: [
        f(
            b.model, b.pairs.clean, "z", kind=kind, reference=b.pairs.corrupted,
            metric=metrics.logit_diff(*b.answers), **QUIET,
        )
        for kind in ("zero", "mean", "resample")
    ],
    "engine.patch": lambda f, b: f(b.model, b.pairs, "resid_pre", **QUIET),
    "metrics.single_answer": lambda f, b: f(b.answers[0]),
    "nodes.nodes": lambda f, b: f(b.model, "z", by=("layer", "head")),
    "nodes.as_frame": lambda f, b: f([{"site": "z", "layer": 0}]),
    "nodes.read_nodes": lambda f, b: [
        str(node) for node in f(nodes(b, "mlp.hook_post", ("layer",)), b.model, b.pairs.clean)
    ],
    "attribution.logit_attribution": lambda f, b: [
        f(b.model, b.pairs.clean, *b.answers, by=by) for by in ("component", "head", "neuron")
    ],
    "paths.path_patch": lambda f, b: [
        f(b.model, b.pairs, receivers=receivers, direction=way, freeze_norms=held, **QUIET)
        for receivers, way, held in (
            ("logits", "denoise", False), ([("q", 1, 0), ("k", 1, 1), ("v", 1, 2)], "noise", False),
            ("logits", "denoise", True),
        )
    ],
    "tracing.causal_trace": lambda f, b: f(*traced(b), draws=1, **QUIET),
    "tracing.noise_effect": lambda f, b: f(*traced(b), sigma=0.5, draws=2),
    "tracing.noised": lambda f, b: f(b.model, b.pairs.clean, subject_span(b.pairs), 0.5, seed=2),
    "tracing.embedding_spread": lambda f, b: f(b.model, b.pairs.clean, "end"),
    "tracing.subject_span": lambda f, b: f(b.pairs),
    "tracing.elsewhere": lambda f, b: f(b.model, b.pairs.clean, "end", seed=1),
    "tracing.subject_mask": lambda f, b: (
        f(b.pairs.clean, "end"), f(b.pairs.clean, subject_span(b.pairs).cpu()),
    ),
    "ablation.second_removals": lambda f, b: f(
        b.model, b.pairs.clean, nodes(b), [0, 1], edit=edits.zero(),
        metric=metrics.logit_diff(*b.answers), **QUIET,
    ),
    "ablation.ablate_parts": lambda f, b: ablated(f, b),
    "ablation.mean_edit": lambda f, b: interp.sweep(
        b.model, b.pairs.clean, nodes(b), edit=f(b.pairs.clean, b.pairs.both),
        metric=metrics.logit_diff(*b.answers), **QUIET,
    ),
    "ablation.removal_edits": lambda f, b: [
        swept(b, edit) for edit in f(b.pairs.clean, b.pairs.corrupted, b.pairs.both).values()
    ],
    "patching.Study.both": lambda f, b: f(study(b), nodes(b)).ways,
    "patching.Study.table": lambda f, b: f(study(b), study(b).both(nodes(b))),
    "patching.Study.together": lambda f, b: f(study(b), {"heads": nodes(b)}),
    "patching.Study.unrelated_words": lambda f, b: f(study(b), nodes(b), study(b).runs(["z"])),
    "patching.Study.itself": lambda f, b: f(study(b), nodes(b)),
    "patching.strongest_paths": lambda f, b: f(study(b), [(0, 0), (0, 1)], [(0, 0), (1, 1)]),
    "patching.unrelated": lambda f, b: f(b.model, b.pairs, 0),
    "ablation.cumulative_ablation": lambda f, b: f(
        b.model, b.pairs.clean, nodes(b), edit=edits.mean(b.pairs.clean), orders=2,
        metric=metrics.logit_diff(*b.answers), **QUIET,
    ),
}  # fmt: skip

SWEEP_EXEMPT = {
    "edits.Rows": "run by every edit",
    "metrics.Bound": "run by every sweep",
    "metrics.measured": "run by every sweep",
    "nodes.Node": "run by every sweep",
    "nodes.Selection": "run by every sweep",
    "nodes.Selections": "run by every sweep",
    "nodes.stable_hash": "no tensors",
    "nodes.counted_by": "run by every sweep of an encoder–decoder",
    "ablation.significance": "numpy",
    "ablation.default_counts": "no tensors",
    "ablation.carriers": "no tensors",
    "ablation.usual_per": "run by mean_edit",
    "ablation.Ablations": "numpy: what ablate_parts has measured",
    "ablation.Removals": "numpy: what ablate_parts has measured",
    "ablation.Options": "no tensors",
    "patching.Effects": "numpy: what Study.both has measured",
    "patching.Study.of": "run by every case of Study",
    "patching.Study.runs": "run by unrelated_words",
    "patching.Study.has": "no tensors",
    "patching.Study.nodes": "no tensors",
    "patching.Study.group": "no tensors",
    "patching.Study.columns": "numpy",
    "patching.stacked": "no tensors",
    "patching.strongest_heads": "numpy",
    "patching.named_heads": "numpy",
    "tracing.default_window": "no tensors",
}
