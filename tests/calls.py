"""Every public verb and method, called on one tiny model: the table that kinds of faults run over.

A call takes a model and returns what the method gives. `EXACT` names those whose result depends on
the config alone. Discrete results (which token is first, a p-value by rank) may differ in half
precision without a fault: their columns are in `DISCRETE`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import interp
from interp import (
    attribution,
    directions,
    edits,
    erasure,
    geometry,
    heads,
    lens,
    metrics,
    moments,
    neurons,
    probes,
    steering,
    tracing,
)
from interp.core.tokenizer import Tokenizer
from interp.core.tokens import Tokens
from interp.data import activations as reading
from interp.data.tasks import Pairs
from interp.methods import ablation as removal
from interp.model import HookedTransformer

from .strategies import small_config
from .vocabularies import word_level

N = 29
"""Words of the vocabulary."""
ROWS = torch.tensor(
    [[3, 1, 4, 15, 9, 2, 6, 3, 1], [5, 8, 9, 7, 13, 2, 3, 5, 8], [8, 4, 6, 2, 16, 4, 3, 8, 4],
     [2, 7, 1, 8, 12, 8, 1, 2, 7], [1, 6, 1, 18, 0, 3, 3, 1, 6], [9, 5, 2, 7, 10, 5, 8, 9, 5],
     [6, 2, 8, 3, 11, 8, 5, 6, 2], [4, 9, 7, 14, 3, 2, 1, 4, 9], [0, 3, 5, 17, 2, 8, 7, 0, 3],
     [7, 0, 4, 19, 6, 1, 9, 7, 0]]
)  # fmt: skip
"""Whole numbers below 20, each row ending as it begins."""
ANSWER, WRONG = torch.arange(10) % 5 + 20, torch.arange(10) % 4 + 25
LABELS = torch.arange(10) % 2
WORDS = [f"w{i}" for i in range(8)]
TEXTS = [" ".join(f"w{i}" for i in row.tolist()) for row in ROWS]
NEURONS = [(0, 1), (0, 5), (1, 2)]
SITE = ("resid_post", 0)


def tiny(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> HookedTransformer:
    """Random weights whose parts all matter, rounded to bfloat16 and float16 alike, so that the
    same model exists in every dtype."""
    cfg = small_config(**{"n_layers": 2, "d_vocab": N, "tied": False} | changes)
    model = HookedTransformer(cfg, Tokenizer(word_level(N), {}, "words"), name="tiny")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.3
            drawn = drawn + 1 if name.endswith(".w") else drawn
            parameter.copy_(drawn.half().bfloat16())
    return model.to(dtype)


@cache
def pairs() -> Pairs:
    corrupted = ROWS.clone()
    corrupted[:, 3] = (ROWS[:, 3] + 5) % 20
    roles = {"end": torch.full((10,), 8), "subject": torch.full((10,), 3)}
    clean, other = (Tokens(ids, roles=roles) for ids in (ROWS, corrupted))
    return Pairs("tiny", clean, other, ANSWER, WRONG)


def metric() -> metrics.Metric:
    return metrics.logit_diff(ANSWER, WRONG)


def nodes(model: Any, site: str = "z") -> pd.DataFrame:
    return interp.nodes(model, site, by=("layer", "head") if site == "z" else ("layer",))


def swept(measure: Callable[[], metrics.Metric], **options: Any) -> Callable[[Any], Any]:
    def call(model: Any) -> pd.DataFrame:
        return interp.sweep(
            model, ROWS, nodes(model), edit=edits.zero(), metric=measure(), progress=False,
            **options,
        )  # fmt: skip

    return call


def edited(make: Callable[[Any], edits.Edit], site: str = "z") -> Callable[[Any], Any]:
    def call(model: Any) -> pd.DataFrame:
        return interp.sweep(
            model, ROWS, nodes(model, site), edit=make(model), metric=metric(), progress=False
        )

    return call


def unit(model: Any) -> Tensor:
    return torch.linspace(-1, 1, model.cfg.d_model)


def direction(model: Any) -> directions.Direction:
    x = reading.vectors_at(model, ROWS, SITE)
    return directions.difference_of_means(x, LABELS, site="blocks.0.hook_resid_post")


def harvested(model: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        found = interp.harvest(
            model, ROWS.tolist(), "resid_post", Path(folder) / "h", dtype="float32", progress=False
        )
        return found.read(("resid_post", 0))


def saved(model: Any) -> HookedTransformer:
    with tempfile.TemporaryDirectory() as folder:
        return interp.load(interp.save(model, folder))


def table(model: Any) -> geometry.Embedding:
    return interp.embedding(model)


ANALOGIES = pd.DataFrame(
    [("x", "w1", "w2", "w3", "w4"), ("x", "w5", "w6", "w7", "w8")],
    columns=["category", "a", "b", "c", "expected"],
)
SENSES = pd.DataFrame({"word": ["a"] * 10, "sense": ["one", "two"] * 5})
PAIRS = [("w1", "w2"), ("w3", "w4"), ("w5", "w6")]

RUNS: dict[str, Callable[[Any], Any]] = {
    # verbs of the model
    "pool mean": lambda m: m.pool(ROWS),
    "pool last": lambda m: m.pool(ROWS, "last"),
    "generate": lambda m: m.generate(ROWS, 3).new_ids,
    "stream": lambda m: torch.stack([step.ids for step in m.stream(ROWS, 3, temperature=1.0)]),
    "check_identities": lambda m: m.check_identities(ROWS),
    # sweeps
    "sweep logit_diff": swept(metric),
    "sweep naive": swept(metric, engine="naive"),
    "sweep none": swept(metric, reduce="none"),
    "sweep log_prob": swept(lambda: metrics.log_prob(ANSWER)),
    "sweep prob": swept(lambda: metrics.prob(ANSWER)),
    "sweep rank": swept(lambda: metrics.rank(ANSWER)),
    "sweep rank naive": swept(lambda: metrics.rank(ANSWER), engine="naive"),
    "sweep accuracy": swept(lambda: metrics.accuracy(ANSWER)),
    "sweep kl": swept(metrics.kl),
    "sweep kl all": swept(lambda: metrics.kl("all")),
    "sweep js": swept(metrics.js),
    "sweep loss": swept(metrics.loss),
    "sweep cosine": lambda m: swept(lambda: metrics.cosine(unit(m)))(m),
    "sweep pooled_cosine": swept(metrics.pooled_cosine),
    "sweep function": swept(lambda: metrics.function(lambda x: x[:, -1].float().amax(-1), "top")),
    "sweep cache_function": swept(
        lambda: metrics.cache_function(lambda c: c["z", 1].float().sum((1, 2, 3)), "z", "z")
    ),
    "edit mean": edited(lambda m: edits.mean(Tokens(ROWS))),
    "edit mean per pos": edited(lambda m: edits.mean(Tokens(ROWS), per="pos")),
    "edit resample": edited(lambda m: edits.resample(Tokens(ROWS))),
    "edit noise": edited(lambda m: edits.noise(0.5)),
    "edit scale": edited(lambda m: edits.scale(0.5)),
    "edit set_to": edited(lambda m: edits.set_to(0.25)),
    "edit add": edited(lambda m: edits.add(unit(m), 0.5), "resid_pre"),
    "edit project_out": edited(lambda m: edits.project_out(unit(m)), "resid_pre"),
    "edit patch": edited(lambda m: edits.patch(pairs().corrupted)),
    "edit patch cache": edited(
        lambda m: edits.patch(m.run_with_cache(pairs().corrupted, "z")[1])
    ),
    "explain": lambda m: interp.explain(m, ROWS, nodes(m), edits.zero(), metric()),
    "ablate": lambda m: interp.ablate(m, ROWS, "z", metric=metric(), progress=False),
    "patch": lambda m: interp.patch(m, pairs(), "resid_pre", by=("layer",), progress=False),
    "second_removals": lambda m: removal.second_removals(
        m, ROWS, nodes(m), [0, 1], edit=edits.zero(), metric=metric(), progress=False
    ),
    "cumulative_ablation": lambda m: removal.cumulative_ablation(
        m, ROWS, nodes(m), edit=edits.zero(), metric=metric(), orders=2, progress=False
    ),
    "path_patch": lambda m: interp.path_patch(m, pairs(), progress=False),
    "path_patch held": lambda m: interp.path_patch(m, pairs(), freeze_norms=True, progress=False),
    "path_patch to heads": lambda m: interp.path_patch(
        m, pairs(), receivers=[("q", 1, 0), ("v", 1, 2)], progress=False
    ),
    "causal_trace": lambda m: interp.causal_trace(
        m, pairs().clean, "subject", ANSWER, WRONG, draws=1, progress=False
    ),
    "noise_effect": lambda m: tracing.noise_effect(
        m, pairs().clean, "subject", ANSWER, sigma=0.5, draws=2
    ),
    "noised": lambda m: tracing.noised(m, pairs().clean, "subject", 0.5).vectors,
    "embedding_spread": lambda m: tracing.embedding_spread(m, pairs().clean, "subject"),
    # lenses and attribution
    "logit_lens": lambda m: interp.logit_lens(m, ROWS, ANSWER),
    "logit_lens no answer": lambda m: interp.logit_lens(m, ROWS),
    "top_tokens": lambda m: lens.top_tokens(m, ROWS, 3),
    "fit_tuned_lens": lambda m: interp.fit_tuned_lens(m, ROWS, steps=2, progress=False).table,
    "tuned read": lambda m: interp.fit_tuned_lens(m, ROWS, steps=0, progress=False).read(
        m, ROWS, ANSWER
    ),
    "random_lens": lambda m: lens.random_lens(m).read(m, ROWS, ANSWER),
    "logit_attribution": lambda m: interp.logit_attribution(m, ROWS, ANSWER, WRONG),
    "logit_attribution neuron": lambda m: interp.logit_attribution(m, ROWS, ANSWER, by="neuron"),
    "logit_attribution component": lambda m: attribution.logit_attribution(
        m, ROWS, ANSWER, by="component"
    ),
    # heads
    "attention_scores": lambda m: heads.attention_scores(m, ROWS),
    "head_scores": lambda m: interp.head_scores(m, ROWS),
    "head_roles": lambda m: interp.head_roles(m, ROWS, draws=5),
    "head_roles pairs": lambda m: interp.head_roles(m, None, pairs(), draws=5),
    "role_attention": lambda m: heads.role_attention(m, pairs().clean),
    "head promoted_tokens": lambda m: heads.promoted_tokens(m, ROWS),
    # neurons
    "neuron_stats": lambda m: neurons.neuron_stats(m, ROWS),
    "top_activations": lambda m: neurons.top_activations(m, ROWS, NEURONS, 3),
    # directions and concepts
    "vectors_at": lambda m: reading.vectors_at(m, ROWS, SITE),
    "direction": lambda m: direction(m).vector,
    "pair_direction": lambda m: directions.pair_direction(
        *reading.vectors_at(m, ROWS, SITE).split(5), site="blocks.0.hook_resid_post"
    ).vector.abs(),
    "direction promoted_tokens": lambda m: directions.promoted_tokens(m, direction(m), 3),
    "causal_check": lambda m: interp.causal_check(
        m, ROWS, direction(m), metric(), n_random=2, off_target=metrics.loss(), progress=False
    ),
    "dormancy": lambda m: steering.dormancy(m, ROWS, direction(m), metric(), progress=False),
    "fit_eraser": lambda m: interp.fit_eraser(
        reading.vectors_at(m, ROWS, SITE, "all"), LABELS.repeat_interleave(9)
    ).matrix,
    "random_eraser": lambda m: erasure.random_eraser(
        moments.Moments.of(reading.vectors_at(m, ROWS, SITE, "all")), 2, seed=0,
        method="mean_difference",
    ).matrix,
    "amnesic_check": lambda m: erasure.amnesic_check(
        m, ROWS, LABELS, SITE, metric(), n_random=2, progress=False
    ),
    # probes, moments, activations
    "probe": lambda m: interp.LinearProbe(standardise=True)
    .fit(reading.vectors_at(m, ROWS, SITE, "all"), LABELS.repeat_interleave(9))
    .coef_,
    "probe regressor": lambda m: interp.LinearProbeRegressor(standardise=True)
    .fit(reading.vectors_at(m, ROWS, SITE, "all"), ROWS.flatten().float())
    .coef_,
    "probe_sweep": lambda m: interp.probe_sweep(
        {SITE: reading.vectors_at(m, ROWS, SITE, "all")}, LABELS.repeat_interleave(9),
        n_shuffles=5, cv=3, groups=torch.arange(10).repeat_interleave(9), progress=False,
    ),
    "probe_sweep ridge": lambda m: interp.probe_sweep(
        {SITE: reading.vectors_at(m, ROWS, SITE)}, ROWS[:, 0].float(), kind="ridge",
        n_shuffles=5, cv=3, progress=False,
    ),
    "random_copy": lambda m: probes.random_copy(m).pool(ROWS),
    "moments": lambda m: moments.Moments.of(reading.vectors_at(m, ROWS, SITE, "all")).covariance,
    "moments ridge": lambda m: moments.Moments.of(
        reading.vectors_at(m, ROWS, SITE, "all"), ROWS.flatten().float()
    ).ridge().weight,
    "moments lda": lambda m: moments.Moments.of(
        reading.vectors_at(m, ROWS, SITE, "all"), LABELS.repeat_interleave(9)
    ).lda(0.5).weight,
    "harvest": harvested,
    # words in texts
    "contextual embedding": lambda m: interp.embedding(m, layer=0, texts=TEXTS).vectors,
    "at_words": lambda m: geometry.at_words(m, TEXTS, [t.split()[4] for t in TEXTS]).vectors,
    "at_tokens": lambda m: geometry.at_tokens(m, TEXTS, 20).vectors,
    "of_texts": lambda m: geometry.of_texts(m, TEXTS).vectors,
    "alignment": lambda m: geometry.alignment(geometry.of_texts(m, TEXTS).by_layer()),
    "procrustes": lambda m: geometry.procrustes(
        *geometry.of_texts(m, TEXTS).vectors[:2], folds=2
    ),
    "disambiguation": lambda m: geometry.disambiguation(
        geometry.of_texts(m, TEXTS).by_layer(), SENSES, draws=5
    ).pooled,
    # the whole examination
    "doctor": lambda m: interp.doctor(m, text="w1 w2 w3 w4 w5"),
}  # fmt: skip
"""What runs the model."""

WEIGHTS: dict[str, Callable[[Any], Any]] = {
    "copying": lambda m: heads.copying(m).score,
    "composition": heads.composition,
    "OV svd": lambda m: m.OV.svd()[1],
    "QK svd": lambda m: m.QK.svd()[1],
    "OV norm": lambda m: m.OV.norm(),
    "OV eigenvalues": lambda m: m.OV.eigenvalues.abs().sort(-1).values,
    "QK eigenvalues": lambda m: m.QK.eigenvalues.abs().sort(-1).values,
    "QK of tables": lambda m: (m.W_E @ m.QK[0, 0] @ m.W_E.T).svd()[1],
    "neuron_logits": lambda m: neurons.neuron_logits(m, NEURONS),
    "neuron promoted_tokens": lambda m: neurons.promoted_tokens(m, NEURONS, 3),
    "folded": lambda m: m.folded().pool(ROWS).norm(dim=-1),
    "neighbors": lambda m: table(m).neighbors("w1", 5),
    "neighbors unembed": lambda m: interp.embedding(m, "unembed").neighbors("w1", 5),
    "analogy": lambda m: table(m).analogy("w1", "w2", "w3"),
    "evaluate": lambda m: table(m).evaluate(ANALOGIES),
    "similarity": lambda m: table(m).similarity("w1", "w2"),
    "embedding direction": lambda m: np.abs(table(m).direction(PAIRS, method="pca")),
    "agreement": lambda m: table(m).agreement(PAIRS, draws=5),
    "along": lambda m: table(m).along(table(m).direction(PAIRS), WORDS, draws=5),
    "plane": lambda m: table(m).plane(WORDS, draws=5),
    "spectrum": lambda m: table(m).spectrum(),
    "dimension": lambda m: table(m).dimension(),
    "anisotropy": lambda m: table(m).anisotropy(),
    "cosine_histogram": lambda m: table(m).cosine_histogram(pairs=100),
    "cosine_quantiles": lambda m: table(m).cosine_quantiles(pairs=100),
    "orthogonality": lambda m: table(m).orthogonality(pairs=100),
    "clusters": lambda m: table(m).clusters(WORDS, 2, draws=5),
    "cka": lambda m: geometry.cka(table(m).vectors, interp.embedding(m, "unembed").vectors),
    "word_direction": lambda m: (
        directions.word_direction(table(m), PAIRS, site="blocks.0.hook_resid_pre").vector
    ),
    "save and load": lambda m: saved(m).W_E,
}
"""What reads weights alone."""

CALLS = RUNS | WEIGHTS


def numbers(result: Any) -> dict[str, np.ndarray]:
    """The floating numbers of a result, by column."""
    if isinstance(result, pd.DataFrame):
        floats = result.select_dtypes("float")
        return {str(name): floats[name].to_numpy(float) for name in floats}
    if isinstance(result, Tensor):
        return {"tensor": result.double().cpu().numpy()} if result.is_floating_point() else {}
    if isinstance(result, np.ndarray | float):
        return {"array": np.asarray(result, float)}
    return {}
