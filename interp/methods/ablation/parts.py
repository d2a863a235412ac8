"""Every head, MLP and neuron removed alone, heads once more after others, and many together, each
by several kinds of ablation."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.methods import stats
from interp.methods.baseline import Baseline, metric_of
from interp.model import HookedTransformer
from interp.sweeps import metrics
from interp.sweeps.edits import Edit
from interp.sweeps.engine import sweep
from interp.sweeps.metrics import Metric
from interp.sweeps.nodes import nodes as make_nodes

from .joint import second_removals
from .options import ALPHA, Options, Removals
from .significance import significance
from .together import remove_together

PLACE = {"head": ["layer", "head"], "mlp": ["layer"], "neuron": ["layer", "neuron"]}
SITE = {"head": "z", "mlp": "mlp_out", "neuron": "mlp.hook_post"}


@dataclass(frozen=True, eq=False)
class Ablations:
    """What removing parts of a model does to the logit difference of pairs."""

    kinds: tuple[str, ...]
    """The first one leads."""
    baseline: Baseline
    shares: bool
    """Whether effects can be stated as shares of the unedited logit difference."""
    heads: Removals
    mlps: Removals | None
    neurons: Removals | None
    losses: pd.DataFrame
    kinds_table: pd.DataFrame
    damage: pd.DataFrame
    disagreement: pd.DataFrame | None
    seconds: pd.DataFrame | None
    curve: pd.DataFrame
    sets: pd.DataFrame
    halves: tuple[int, int]
    """Prompts on which heads were ranked, and on which they were removed together."""

    @property
    def noise(self) -> float:
        """The size up to which an effect is rounding."""
        return self.baseline.noise

    def silent(self, kind: str, part: str = "head") -> bool:
        """Whether no part of a sort has an effect beyond rounding by this kind of ablation."""
        one = self.mlps if part == "mlp" else self.heads
        assert one is not None
        return bool(one.of(kind)["effect"].abs().max() <= self.noise)


def nodes_of(model: HookedTransformer, part: str, options: Options) -> pd.DataFrame | None:
    """The nodes of one sort of part that the options ask for; None where there are none."""
    layers = options.layers or None
    if part == "head":
        return make_nodes(
            model, SITE[part], ("layer", "head"), layers=layers, heads=options.heads or None
        )
    if not model.cfg.d_mlp or (part == "neuron" and not options.neurons):
        return None
    if part == "mlp":
        return make_nodes(model, SITE[part], layers=layers)
    return make_nodes(model, SITE[part], ("layer", "neuron"), layers=options.neurons)


def ablate_parts(
    model: HookedTransformer,
    pairs: Pairs,
    baseline: Baseline,
    removals: Mapping[str, Edit],
    options: Options,
    text: Tokens | None = None,
    text_removals: Mapping[str, Edit] | None = None,
) -> Ablations:
    """Remove the parts that the options name by each of `removals` (kind → edit, as
    `removal_edits` makes them), alone, second and together.

    `text` is what the plain loss is measured on, with edits of its own (by default `removals`);
    None: it is left out.
    """
    parts = {part: nodes_of(model, part, options) for part in ("head", "mlp", "neuron")}
    single = {
        part: None
        if nodes is None
        else _removals(model, pairs, baseline, part, nodes, removals, options)
        for part, nodes in parts.items()
    }
    heads = single["head"]
    assert heads is not None
    curve, sets, halves = remove_together(model, pairs, heads, removals, options)
    of_text = removals if text_removals is None else text_removals
    return Ablations(
        kinds=tuple(removals),
        baseline=baseline,
        shares=_has_shares(baseline),
        heads=heads,
        mlps=single["mlp"],
        neurons=single["neuron"],
        losses=_losses(model, pairs, parts, removals, text, of_text, options),
        kinds_table=_compared(single, baseline.noise),
        damage=_damage(heads),
        disagreement=_disagreement(heads),
        seconds=_seconds(model, pairs, baseline, heads, removals, options),
        curve=curve,
        sets=sets,
        halves=halves,
    )


def _has_shares(baseline: Baseline) -> bool:
    whole = stats.mean(baseline.clean)
    return bool(baseline.able and abs(whole.value) > 2 * np.nan_to_num(whole.stderr))


def _swept(
    model: HookedTransformer,
    tokens: Tokens,
    nodes: pd.DataFrame,
    edit: Edit,
    metric: Metric,
    options: Options,
    name: str,
) -> np.ndarray:
    """[node n] effects."""
    frame = sweep(
        model, tokens, nodes, edit=edit, metric=metric, reduce="none", journal=options.kept(name)
    )
    return frame["effect"].to_numpy(float).reshape(len(nodes), -1)


def _removals(
    model: HookedTransformer,
    pairs: Pairs,
    baseline: Baseline,
    part: str,
    nodes: pd.DataFrame,
    made: Mapping[str, Edit],
    options: Options,
) -> Removals:
    metric, effects, tables = metric_of(pairs), {}, []
    neurons = part == "neuron"
    for kind, edit in made.items():
        own = _swept(model, pairs.clean, nodes, edit, metric, options, f"{part}s-{kind}")
        tested = significance(
            own,
            baseline.clean,
            least=0.0 if neurons else options.least,
            correction="bh" if neurons else "holm",
        )
        share = stats.Estimate(*[np.full(len(own), np.nan)] * 4)
        if _has_shares(baseline):
            share = stats.ratio_of_means(-own, baseline.clean)
        table = nodes[PLACE[part]].astype(int)
        table.insert(0, "kind", kind)
        tables.append(
            table.assign(
                **{name: tested[name] for name in ("effect", "stderr", "low", "high")},
                lost=share.value,
                lost_low=share.low,
                lost_high=share.high,
                p=tested["p"],
                p_corrected=tested["p_corrected"],
                named=(tested["p_corrected"] < ALPHA)
                & baseline.able
                & (tested["effect"].abs() > baseline.noise),
            )
        )
        effects[kind] = own
    return Removals(part, nodes, effects, pd.concat(tables, ignore_index=True))


def _losses(
    model: HookedTransformer,
    pairs: Pairs,
    parts: Mapping[str, pd.DataFrame | None],
    made: Mapping[str, Edit],
    text: Tokens | None,
    text_edits: Mapping[str, Edit],
    options: Options,
) -> pd.DataFrame:
    """What each head and MLP costs in nats: of the answer, and of the text; blank where there is
    none."""
    answer, tables = metrics.log_prob(pairs.answer, pos="end"), []
    for (part, nodes), kind in itertools.product(list(parts.items())[:2], made):
        if nodes is None:
            continue
        own = stats.mean(
            -_swept(
                model, pairs.clean, nodes, made[kind], answer, options, f"answer-{part}s-{kind}"
            )
        )
        plain = stats.Estimate(*[np.full(len(nodes), np.nan)] * 4)
        if text is not None and kind in text_edits:
            name = f"loss-{part}s-{kind}"
            loss = metrics.loss()
            plain = stats.mean(_swept(model, text, nodes, text_edits[kind], loss, options, name))
        tables.append(
            pd.DataFrame(
                {
                    "kind": kind,
                    "part": part,
                    "layer": nodes["layer"].astype(int),
                    "head": nodes["head"],
                    "answer": own.value,
                    "answer_stderr": own.stderr,
                    "text": plain.value,
                    "text_stderr": plain.stderr,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def _compared(single: Mapping[str, Removals | None], noise: float) -> pd.DataFrame:
    """Rank correlations of every two kinds over the nodes of each sort; effects that are rounding
    are all alike."""
    lines = []
    for part, one in single.items():
        if one is None or len(one.nodes) < 2:
            continue
        means = pd.DataFrame({kind: own.mean(1) for kind, own in one.effects.items()})
        means = means.where(means.abs() > noise, 0.0)
        for a, b in itertools.combinations(means, 2):
            if bool(means[[a, b]].nunique().gt(1).all()):  # no rank of what is all alike
                rank = means[a].corr(means[b], method="spearman")
                size = means[a].abs().corr(means[b].abs(), method="spearman")
                lines.append((part, a, b, len(means), rank, size))
    return pd.DataFrame(
        lines, columns=["part", "one", "other", "n", "spearman", "spearman_of_size"]
    )


def _damage(heads: Removals) -> pd.DataFrame:
    """What removing a head costs on average over heads, by kind."""
    found = {kind: stats.mean(-own.mean(0)) for kind, own in heads.effects.items()}
    return pd.DataFrame(
        {
            "kind": list(found),
            "damage": [float(one.value) for one in found.values()],
            "low": [float(one.low) for one in found.values()],
            "high": [float(one.high) for one in found.values()],
            "size": [np.abs(own.mean(1)).mean() for own in heads.effects.values()],
        }
    )


def _disagreement(heads: Removals) -> pd.DataFrame | None:
    """The effect by each kind side by side, the heads on which they differ most first."""
    if len(heads.effects) < 2:
        return None
    means = pd.DataFrame({kind: own.mean(1) for kind, own in heads.effects.items()})
    place = heads.nodes[["layer", "head"]].astype(int).assign(spread=np.ptp(means, axis=1))
    return place.join(means).sort_values("spread", ascending=False, ignore_index=True)


def _seconds(
    model: HookedTransformer,
    pairs: Pairs,
    baseline: Baseline,
    heads: Removals,
    made: Mapping[str, Edit],
    options: Options,
) -> pd.DataFrame | None:
    """Every head removed once more after each of the strongest, by every kind."""
    if len(heads.nodes) < 2:
        return None
    size = np.stack([np.abs(own.mean(1)) for own in heads.effects.values()]).max(0)
    firsts = np.argsort(-size, kind="stable")[: options.top].tolist()
    place = heads.nodes.set_index("row")[["layer", "head"]].astype(int)
    tables = []
    for kind, edit in made.items():
        frame = second_removals(
            model,
            pairs.clean,
            heads.nodes,
            firsts,
            edit=edit,
            metric=metric_of(pairs),
            least=options.least,
            journal=options.kept(f"seconds-{kind}"),
        )
        first, second = (
            place.loc[frame[one]].reset_index(drop=True) for one in ("first", "second")
        )
        numbers = frame.drop(columns=["first", "second", "n"])
        table = first.add_prefix("first_").join(second).join(numbers)
        table.insert(0, "kind", kind)
        tables.append(table.assign(wakes=_wakes(table, baseline)))
    return pd.concat(tables, ignore_index=True)


def _wakes(table: pd.DataFrame, baseline: Baseline) -> pd.Series:
    """Whether the second steps in for the first: both cost something, the second, once the first is
    gone, surely, and surely more than from the whole model; of the two it is the weaker alone."""
    more = (table["p_corrected"] < ALPHA) & (table["interaction"] < 0)
    costs = (table["given_p_corrected"] < ALPHA) & (table["given"] < 0) & (table["first_alone"] < 0)
    weaker = table["alone"].abs() < table["first_alone"].abs()
    real = table[["interaction", "given"]].abs().min(axis=1) > baseline.noise
    return more & costs & weaker & real & baseline.able
