"""Methods that read a model, and the objects that they fit. `b` is a `Bench`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

import interp
from interp import erasure, heads, lens, metrics, probes
from interp.data.moments import Moments
from interp.methods import concepts, continuations
from interp.methods.geometry import Embedding, at_words
from interp.training import SampledData, TextData, TrainConfig
from tests.device.cases_sweep import QUIET, nodes

TEXTS = ["the king and the queen", "a woman and a man", "the man and the king", "a queen"]
SITE = "blocks.0.hook_resid_post"
FEW = {"n": 3, "length": 6}


def moments(b, **options) -> Moments:
    return Moments.of(*b.features, **options)


def parts(m: Moments) -> tuple:
    return m.n, m.mean, m.target_mean, m.scatter, m.cross_scatter, m.target_scatter


def direction(b) -> interp.Direction:
    x = b.model.run_with_cache(b.pairs.clean, SITE)[1][SITE][:, -1]
    return interp.directions.difference_of_means(x, b.labels, site=SITE, model="bench")


def fitted(b) -> lens.TunedLens:
    return lens.fit_tuned_lens(b.model, b.repeats, steps=2, positions=12, **QUIET)


def told(found: lens.TunedLens) -> tuple:
    return dict(found.translators), found.table, dict(found.made_of)


def saved_lens(f, b):
    found = fitted(b)
    return told(lens.TunedLens.load(f(found, b.folder / "lens.safetensors"), b.model))


def saved_direction(f, b):
    return interp.Direction.load(f(direction(b), b.folder / "direction.safetensors"))


def causal(b) -> tuple:
    return b.model, b.pairs.clean, direction(b), metrics.logit_diff(*b.answers)


def probe(b):
    return probes.LinearProbe().fit(*b.features)


LABELLED = pd.DataFrame(
    [(f"{one} and {other}", str(i % 2)) for i, one in enumerate(TEXTS) for other in TEXTS],
    columns=["text", "label"],
)


def concept(b) -> concepts.Concept:
    return concepts.of_pairs(b.model, b.pairs)[0]


def labelled(b) -> probes.TextExamples:
    return probes.text_examples(b.model, LABELLED)


def harvested(f, b):
    found = f(
        b.model, b.tokens, "resid_post", b.folder / "harvest", dtype="float64", sample=2, seed=3,
        **QUIET,
    )  # fmt: skip
    chunks = [values for _, values in found.chunks(("resid_post", 1))]
    return found.rows, found.read(("resid_post", 0)), chunks


def table(b) -> Embedding:
    return interp.embedding(b.model)


def drawn(rng: np.random.Generator, split: str, size: int) -> np.ndarray:
    return rng.integers(1, 50, (size, 9))


def trained(f, b):
    """A few steps from weights that are drawn, a stop, and the steps that are left."""
    config = {"batch_size": 2, "eval_every": 2, "eval_batches": 1, "warmup": 1, "accumulate": 2}
    model = probes.random_copy(b.model, seed=4)
    out = b.folder / "trained"
    f(model, SampledData(drawn, b.model.tokenizer, "drawn"), out, TrainConfig(steps=4, **config),
      **QUIET)  # fmt: skip
    again = probes.random_copy(b.model, seed=5)
    f(again, SampledData(drawn, None, "asked"), b.folder / "again", TrainConfig(steps=2, **config),
      fresh=False, **QUIET)  # fmt: skip
    back = interp.load(out, device=b.device)
    assert back.device.type == b.device
    return model, again, back


def trained_on_text(f, b):
    text = b.folder / "text.txt"
    text.write_text("the king saw the man and the queen saw the king. " * 30, encoding="utf-8")
    run = interp.training.TextRun(
        text=text, out=b.folder / "run", tokenizer="word", n_layers=1, n_heads=2, d_model=16,
        n_ctx=8, device=b.device, train=TrainConfig(steps=2, batch_size=2, eval_batches=1),
    )  # fmt: skip
    return f(run, **QUIET).double().W_E.float().round(decimals=4)


def tuned_layers(b):
    return lens.random_lens(b.model, seed=1)


METHOD_CASES = {
    "baseline.measure_baseline": lambda f, b: [
        (made.clean, made.corrupted, made.table, made.noise) for made in [f(b.model, b.pairs)]
    ],
    "baseline.metric_of": lambda f, b: interp.sweep(
        b.model, b.pairs.clean, nodes(b), edit=interp.edits.zero(), metric=f(b.pairs)
    ),
    "heads.attention_scores": lambda f, b: f(b.model, b.repeats),
    "heads.composition": lambda f, b: f(b.model),
    "heads.copying": lambda f, b: f(b.model),
    "heads.head_roles": lambda f, b: (
        f(b.model, **FEW, draws=20), f(b.model, b.repeats, b.pairs, draws=20)
    ),
    "heads.head_labels": lambda f, b: f(heads.head_roles(b.model, b.repeats, draws=5)),
    "heads.head_scores": lambda f, b: (f(b.model, b.repeats), f(b.model, **FEW)),
    "heads.promoted_tokens": lambda f, b: f(b.model, b.pairs.clean),
    "heads.random_repeats": lambda f, b: f(b.model, 3, 6),
    "heads.role_attention": lambda f, b: f(b.model, b.pairs.clean),
    "lens.logit_lens": lambda f, b: (
        f(b.model, b.tokens), f(b.model, b.pairs.clean, b.answers[0], pos="end")
    ),
    "lens.top_tokens": lambda f, b: f(b.model, b.tokens, 3, lens=tuned_layers(b)),
    "lens.fit_tuned_lens": lambda f, b: told(
        f(b.model, b.repeats, steps=2, positions=12, **QUIET)
    ),
    "lens.random_lens": lambda f, b: told(f(b.model, seed=2)),
    "lens.TunedLens.translate": lambda f, b: f(
        tuned_layers(b), 1, b.model.run_with_cache(b.tokens, SITE)[1][SITE]
    ),
    "lens.TunedLens.read": lambda f, b: f(fitted(b), b.model, b.pairs.clean, b.answers[0]),
    "lens.TunedLens.check": lambda f, b: f(fitted(b), b.model),
    "lens.TunedLens.save": saved_lens,
    "notebook.attention": lambda f, b: [one.table.frame for one in f(b.model, TEXTS).exhibits()],
    "neurons.neuron_stats": lambda f, b: f(b.model, b.tokens),
    "neurons.top_activations": lambda f, b: f(b.model, b.tokens, [(0, 1), (1, 2), (0, 5)], 2),
    "neurons.neuron_logits": lambda f, b: f(b.model, [(0, 1), (1, 2)]),
    "neurons.promoted_tokens": lambda f, b: f(b.model, [(0, 1), (1, 2)], 3),
    "neurons.layer_effects": lambda f, b: f(b.model, b.pairs),
    "neurons.rank_neurons": lambda f, b: f(b.model, b.pairs, [0], "mean").table,
    "neurons.sets_against_random": lambda f, b: f(
        b.model, b.pairs, interp.neurons.rank_neurons(b.model, b.pairs, [0]), "mean"
    ),
    "neurons.set_effects": lambda f, b: f(
        b.model, b.pairs, [[(0, 1), (1, 2)], [(0, 3)]], "mean", metrics.loss()
    ),
    "neurons.neuron_nodes": lambda f, b: f(b.model, [[(0, 1), (1, 2)], [(0, 3)]]),
    "moments.Moments.of": lambda f, b: (
        parts(f(b.features[0])), parts(f(*b.features)),
        parts(f(b.features[0], b.features[1].double())),
    ),
    "moments.Moments.add": lambda f, b: parts(f(moments(b), *b.features)),
    "moments.Moments.merge": lambda f, b: parts(
        f(moments(b), Moments.of(b.features[0].cpu(), b.features[1]))
    ),
    **{
        f"moments.Moments.{name}": lambda f, b: f(moments(b))
        for name in (
            *("covariance", "cross_covariance", "target_covariance", "class_counts"),
            *("class_means", "within_covariance", "mean_difference"),
        )
    },
    "moments.Moments.ridge": lambda f, b: f(moments(b))(b.features[0]),
    "moments.Moments.lda": lambda f, b: f(moments(b), 0.1)(b.features[0]),
    "moments.Linear.__call__": lambda f, b: f(moments(b).ridge(), b.features[0].cpu()),
    "erasure.fit_eraser": lambda f, b: [
        f(*b.features, method=how) for how in ("leace", "mean_difference")
    ],
    "erasure.random_eraser": lambda f, b: [
        f(moments(b), 1, seed=2, method=how) for how in ("leace", "mean_difference")
    ],
    "erasure.amnesic_check": lambda f, b: f(
        b.model, b.pairs.clean, b.labels, SITE, metrics.logit_diff(*b.answers), n_random=2,
        **QUIET,
    ),
    "erasure.Eraser.matrix": lambda f, b: f(erasure.fit_eraser(*b.features)),
    "erasure.Eraser.bias": lambda f, b: f(erasure.fit_eraser(*b.features)),
    "erasure.Eraser.__call__": lambda f, b: f(erasure.fit_eraser(*b.features), b.features[0]),
    "erasure.Eraser.edit": lambda f, b: interp.sweep(
        b.model, b.pairs.clean, [{"site": SITE}], edit=f(erasure.fit_eraser(*b.features)),
        metric=metrics.loss(), **QUIET,
    ),
    "erasure.Eraser.hooks": lambda f, b: b.model.with_hooks(
        f(erasure.fit_eraser(*b.features, site=SITE))
    )(b.tokens),
    "directions.difference_of_means": lambda f, b: f(*b.features, site=SITE),
    "directions.pair_direction": lambda f, b: [
        f(b.features[0][::2], b.features[0][1::2], site=SITE, method=how)
        for how in ("mean", "pca")
    ],
    "directions.word_direction": lambda f, b: f(table(b), [("man", "king")], site=SITE),
    "directions.cosines": lambda f, b: f({
        "cpu": interp.Direction(b.direction, SITE, "by hand"), "means": direction(b),
        "there": interp.Direction(b.there(b.direction), SITE, "by hand"),
    }),
    "directions.promoted_tokens": lambda f, b: f(
        b.model, interp.Direction(b.there(b.direction), "blocks.1.hook_resid_post", "by hand"), 3
    ),
    "directions.Direction.unit": lambda f, b: f(direction(b)),
    "directions.Direction.check": lambda f, b: f(direction(b), b.model),
    "directions.Direction.along": lambda f, b: [
        f(interp.Direction(vector, SITE, "by hand", mean=vector), b.features[0])
        for vector in (b.direction, b.there(b.direction))
    ],
    "directions.Direction.save": saved_direction,
    "steering.causal_check": lambda f, b: (
        f(*causal(b), n_random=2, factors=(1.0,), off_target=metrics.loss(), **QUIET),
        f(*causal(b)[:2], interp.Direction(b.there(b.direction), SITE, "by hand"),
          metrics.loss(), n_random=1, factors=(1.0,), pos="end", **QUIET),
    ),
    "steering.dormancy": lambda f, b: f(*causal(b), **QUIET),
    "harvest.harvest": harvested,
    "activations.vectors_at": lambda f, b: [
        f(b.model, b.pairs.clean, SITE, pos)
        for pos in (None, "all", "end", torch.arange(len(b.pairs)) % 3)
    ],
    "activations.node_at": lambda f, b: f(b.model, b.pairs.clean, SITE, -1),
    "probes.probe_sweep": lambda f, b: [
        f(x, y, cv=2, n_shuffles=9, types=(np.arange(40) // 4), code=code, kind=kind, **QUIET)
        for x, y, kind, code in (
            ({SITE: b.features[0]}, b.features[1], "logistic", True),
            ({SITE: b.features[0]}, b.features[1].double(), "ridge", False),
            (b.features[0][None], b.features[1].tolist(), "mean_difference", False),
        )
    ],
    "probes.held_out_predictions": lambda f, b: f(*b.features, C=[0.1, 1.0]),
    "concepts.of_pairs": lambda f, b: [
        (concept.labels, concept.tokens.ids, ask.toward, ask.away)
        for concept, ask in [f(b.model, b.pairs)]
    ],
    "concepts.find_all": lambda f, b: [
        direction.vector
        for direction in f(b.model, concept(b), "resid_post", (0,), 0).directions.values()
    ],
    "concepts.separation": lambda f, b: f(
        concepts.find_all(b.model, concept(b), "resid_post", (0,), 0), 3, 0
    ),
    "continuations.steer_texts": lambda f, b: f(
        b.model, direction(b), b.tokens, continuations.Counted(*b.answers),
        continuations.Writing((-1.0, 2.0), 1.0, new_tokens=2, samples=2, n_random=2),
    ),
    "probes.text_examples": lambda f, b: [
        (examples.tokens.ids, examples.weight)
        for examples in (f(b.model, LABELLED, position=where) for where in ("last", "mean"))
    ],
    "probes.compare_probes": lambda f, b: [
        getattr(f(b.model, labelled(b), [SITE], folds=2, shuffles=19), name)
        for name in ("sweep", "rivals", "predictions")
    ],
    "probes.random_copy": lambda f, b: f(b.model, seed=3),
    "probes.LinearProbe.fit": lambda f, b: (
        f(probes.LinearProbe(), *b.features).coef_,
        f(probes.LinearProbe(kind="lda"), *b.features).coef_,
        f(probes.LinearProbe(), b.features[0], b.there(b.features[1])).coef_,
    ),
    "probes.LinearProbe.decision_function": lambda f, b: f(probe(b), b.features[0]),
    "probes.LinearProbe.predict": lambda f, b: f(probe(b), b.features[0]),
    "probes.LinearProbe.predict_proba": lambda f, b: f(probe(b), b.features[0]),
    "probes.LinearProbeRegressor.fit": lambda f, b: f(
        probes.LinearProbeRegressor(), b.features[0], b.features[1].double()
    ).coef_,
    "probes.LinearProbeRegressor.predict": lambda f, b: f(
        probes.LinearProbeRegressor().fit(b.features[0], b.features[1].double()), b.features[0]
    ),
    "geometry.embedding": lambda f, b: [
        (made.vectors, made.neighbors("king", 3), made.analogy("man", "king", "woman", 3))
        for made in (f(b.model), f(b.model, side="unembed"))
    ],
    "geometry.at_tokens": lambda f, b: f(b.model, TEXTS, 5),
    "geometry.at_words": lambda f, b: f(b.model, TEXTS[:2], ["king", "man"]),
    "geometry.of_texts": lambda f, b: f(b.model, TEXTS),
    "geometry.alignment": lambda f, b: f(interp.geometry.of_texts(b.model, TEXTS).by_layer()),
    "geometry.disambiguation": lambda f, b: f(
        at_words(b.model, TEXTS[:2] * 4, ["king", "man"] * 4).by_layer(),
        pd.DataFrame({"word": ["x"] * 8, "sense": ["a", "b"] * 4}), draws=9,
    ),
    **{
        f"tasks.{name}": lambda f, b: f(b.model, 6)
        for name in ("agreement", "capitals", "gendered_pronoun", "induction")
    },
    "tasks.indirect_object": lambda f, b: f(b.world, 4),
    "tasks.greater_than": lambda f, b: f(b.world, 4),
    "tasks.from_csv": lambda f, b: f(prompts(b), b.model),
    "tasks.Pairs.both": lambda f, b: f(b.pairs),
    "tasks.Pairs.__getitem__": lambda f, b: (
        f(b.pairs, slice(2, 5)), f(b.pairs, b.there(torch.tensor([0, 3])))
    ),
    "training.train": trained,
    "training.train_on_text": trained_on_text,
    "training.TextData.batch": lambda f, b: f(
        TextData("the king " * 50, b.model.tokenizer, 5), "train", 1, 2
    ),
    "training.SampledData.batch": lambda f, b: f(SampledData(drawn, None, "x"), "val", 0, 2),
}  # fmt: skip


def prompts(b):
    file = b.folder / "prompts.csv"
    line = {"clean": "the king and the", "corrupted": "the man and the", "answer": "queen",
            "wrong": "woman"}  # fmt: skip
    pd.DataFrame([line]).to_csv(file, index=False)
    return file


METHOD_EXEMPT = {
    "baseline.Baseline": "numpy: what measure_baseline has measured",
    "baseline.check_logits": "no tensors",
    "lens.TunedLens.layers": "no tensors",
    "lens.TunedLens.readable": "no tensors",
    "lens.TunedLens.load": "run by save's case",
    "neurons.Ranking": "numpy: what rank_neurons has measured",
    "neurons.neuron_ids": "no tensors",
    "neurons.checked_neurons": "no tensors",
    "erasure.Eraser.rank": "no tensors",
    "directions.Direction.width": "no tensors",
    "directions.Direction.load": "run by save's case",
    "activations.vector_site": "no tensors",
    "geometry.Embedding": "numpy: a table that `embedding` has read",
    "geometry.Places": "numpy",
    **dict.fromkeys(
        ("concepts.asked", "concepts.Ask", "concepts.Concept"), "run by of_pairs and find_all"
    ),
    "concepts.Directions": "what find_all has found",
    "concepts.find": "run by find_all",
    **dict.fromkeys(
        ("concepts.auroc", "concepts.auroc_interval", "concepts.summary", "concepts.verdict"),
        "numpy",
    ),
    "concepts.Verdict": "no tensors",
    **dict.fromkeys(
        (
            *("concepts.of_texts", "concepts.of_words", "concepts.choose_layer"),
            *("concepts.other_tokens", "continuations.side_by_side", "continuations.shaded"),
        ),
        "run by the analyses concept-direction and steering",
    ),
    **dict.fromkeys(
        (
            *("continuations.steered", "continuations.continued", "continuations.measured"),
            "continuations.arms",
        ),
        "run by steer_texts",
    ),
    "continuations.summary": "numpy",
    "continuations.name_of": "no tensors",
    "probes.Compared": "numpy",
    "probes.TextExamples": "run by compare_probes",
    "geometry.analogy_controls": "numpy",
    "geometry.every_setting": "numpy",
    "geometry.cka": "numpy",
    "geometry.cka_matrix": "numpy",
    "geometry.procrustes": "numpy",
    "geometry.separable": "no tensors",
    "shards": "files on the CPU: run by harvest",
    "windows": "ids on the CPU: run by harvest",
    "training.TrainConfig": "no tensors",
    "training.train_tokenizer": "no tensors",
    "training.MaskedData.batch": "the bench has no mask token",
}
