"""What head_ablation measures: single, second and cumulative removals by every kind of ablation."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

import interp
from analyses._ablation.config import Config
from analyses._reference import mean_edit
from interp import edits, metrics, stats
from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.methods.ablation import (
    cumulative_ablation,
    default_counts,
    second_removals,
    significance,
)
from interp.methods.baseline import Baseline, metric_of
from interp.report.spine import head_name
from interp.sweeps.edits import Edit
from interp.sweeps.metrics import Metric

ALPHA = 0.05
KEPT = 0.9
"""Share of the logit difference that the heads which carry the task must keep."""
SPLIT = 4
"""With fewer prompts heads are chosen and removed together on the same ones."""
PLACE = {"head": ["layer", "head"], "mlp": ["layer"], "neuron": ["layer", "neuron"]}
SITE = {"head": "z", "mlp": "mlp_out", "neuron": "mlp.hook_post"}


@dataclass(frozen=True, eq=False)
class Removals:
    """Every part of one sort, removed alone."""

    part: str
    """head, mlp or neuron."""
    nodes: pd.DataFrame
    effects: Mapping[str, np.ndarray]
    """Kind → change of the logit difference [node n]."""
    table: pd.DataFrame
    """One row per kind and node."""

    def of(self, kind: str) -> pd.DataFrame:
        return self.table[self.table["kind"] == kind].reset_index(drop=True)

    @property
    def names(self) -> list[str]:
        return [part_name(line) for _, line in self.nodes.iterrows()]


@dataclass(frozen=True, eq=False)
class Measured:
    """All that the report is made of."""

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


def part_name(line: Any) -> str:
    """L2 H1, MLP 2, or L2 N77."""
    if pd.notna(line.get("head")):
        return head_name(int(line["layer"]), int(line["head"]))
    if pd.notna(line.get("neuron")):
        return f"L{int(line['layer'])} N{int(line['neuron'])}"
    return f"MLP {int(line['layer'])}"


def aligned(tokens: Tokens) -> bool:
    """Whether rows are equally long, so that position i is the i-th of all."""
    return bool(tokens.real.all())


def edits_of(tokens: Tokens, donors: Tokens, mean_of: Tokens, config: Config) -> dict[str, Edit]:
    """The edit of each kind; without "resample" where donors cannot stand in for every row."""
    alike = aligned(tokens) and aligned(donors)
    made = {"zero": edits.zero(), "mean": mean_edit(tokens, mean_of, config.per)}
    if config.donors == "own" and donors is not tokens:
        made["resample"] = edits.patch(donors)
    elif alike and donors.shape[1] == tokens.shape[1]:
        made["resample"] = edits.resample(donors, config.seed)
    return {kind: made[kind] for kind in config.kinds if kind in made}


def nodes_of(model: Any, part: str, config: Config) -> pd.DataFrame | None:
    """The nodes of one sort of part that the config asks for; None where there are none."""
    layers = config.layers or None
    if part == "head":
        return interp.nodes(
            model, SITE[part], ("layer", "head"), layers=layers, heads=config.heads or None
        )
    if not model.cfg.d_mlp or (part == "neuron" and not config.neurons):
        return None
    if part == "mlp":
        return interp.nodes(model, SITE[part], layers=layers)
    return interp.nodes(model, SITE[part], ("layer", "neuron"), layers=config.neurons)


def measure(
    model: Any, pairs: Pairs, found: Baseline, made: Mapping[str, Edit], text: Tokens | None,
    text_edits: Mapping[str, Edit], config: Config,
) -> Measured:  # fmt: skip
    """All sweeps. `text`: whose loss is measured; None: the model predicts no next token."""
    parts = {part: nodes_of(model, part, config) for part in ("head", "mlp", "neuron")}
    single = {
        part: None if nodes is None else _removals(model, pairs, found, part, nodes, made, config)
        for part, nodes in parts.items()
    }
    heads = single["head"]
    assert heads is not None
    curve, sets, halves = _together(model, pairs, heads, made, config)
    return Measured(
        tuple(made), found, _has_shares(found), heads, single["mlp"], single["neuron"],
        _losses(model, pairs, parts, made, text, text_edits, config),
        _compared(single, found.noise), _damage(heads), _disagreement(heads),
        _seconds(model, pairs, found, heads, made, config), curve, sets, halves,
    )  # fmt: skip


def _has_shares(found: Baseline) -> bool:
    whole = stats.mean(found.clean)
    return bool(found.able and abs(whole.value) > 2 * np.nan_to_num(whole.stderr))


def _swept(
    model: Any, tokens: Tokens, nodes: pd.DataFrame, edit: Edit, metric: Metric, config: Config,
    name: str,
) -> np.ndarray:  # fmt: skip
    """[node n] effects."""
    frame = interp.sweep(
        model, tokens, nodes, edit=edit, metric=metric, reduce="none", journal=config.kept(name)
    )
    return frame["effect"].to_numpy(float).reshape(len(nodes), -1)


def _removals(
    model: Any, pairs: Pairs, found: Baseline, part: str, nodes: pd.DataFrame,
    made: Mapping[str, Edit], config: Config,
) -> Removals:  # fmt: skip
    metric, effects, tables = metric_of(pairs), {}, []
    neurons = part == "neuron"
    for kind, edit in made.items():
        own = _swept(model, pairs.clean, nodes, edit, metric, config, f"{part}s-{kind}")
        tested = significance(
            own,
            found.clean,
            least=0.0 if neurons else config.least,
            correction="bh" if neurons else "holm",
        )
        share = stats.Estimate(*[np.full(len(own), np.nan)] * 4)
        if _has_shares(found):
            share = stats.ratio_of_means(-own, found.clean)
        table = nodes[PLACE[part]].astype(int)
        table.insert(0, "kind", kind)
        tables.append(
            table.assign(
                **{name: tested[name] for name in ("effect", "stderr", "low", "high")},
                lost=share.value, lost_low=share.low, lost_high=share.high,
                p=tested["p"], p_corrected=tested["p_corrected"],
                named=(tested["p_corrected"] < ALPHA) & found.able
                & (tested["effect"].abs() > found.noise),
            )
        )  # fmt: skip
        effects[kind] = own
    return Removals(part, nodes, effects, pd.concat(tables, ignore_index=True))


def _losses(
    model: Any, pairs: Pairs, parts: Mapping[str, pd.DataFrame | None], made: Mapping[str, Edit],
    text: Tokens | None, text_edits: Mapping[str, Edit], config: Config,
) -> pd.DataFrame:  # fmt: skip
    """What each head and MLP costs in nats: of the answer, and of the text; blank where there is
    none."""
    answer, tables = metrics.log_prob(pairs.answer, pos="end"), []
    for (part, nodes), kind in itertools.product(list(parts.items())[:2], made):
        if nodes is None:
            continue
        own = stats.mean(
            -_swept(model, pairs.clean, nodes, made[kind], answer, config, f"answer-{part}s-{kind}")
        )
        plain = stats.Estimate(*[np.full(len(nodes), np.nan)] * 4)
        if text is not None and kind in text_edits:
            name = f"loss-{part}s-{kind}"
            loss = metrics.loss()
            plain = stats.mean(_swept(model, text, nodes, text_edits[kind], loss, config, name))
        tables.append(
            pd.DataFrame(
                {
                    "kind": kind, "part": part, "layer": nodes["layer"].astype(int),
                    "head": nodes["head"], "answer": own.value, "answer_stderr": own.stderr,
                    "text": plain.value, "text_stderr": plain.stderr,
                }
            )
        )  # fmt: skip
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
    model: Any, pairs: Pairs, found: Baseline, heads: Removals, made: Mapping[str, Edit],
    config: Config,
) -> pd.DataFrame | None:  # fmt: skip
    """Every head removed once more after each of the strongest, by every kind."""
    if len(heads.nodes) < 2:
        return None
    size = np.stack([np.abs(own.mean(1)) for own in heads.effects.values()]).max(0)
    firsts = np.argsort(-size, kind="stable")[: config.top].tolist()
    place = heads.nodes.set_index("row")[["layer", "head"]].astype(int)
    tables = []
    for kind, edit in made.items():
        frame = second_removals(
            model, pairs.clean, heads.nodes, firsts, edit=edit, metric=metric_of(pairs),
            least=config.least, journal=config.kept(f"seconds-{kind}"),
        )  # fmt: skip
        first, second = (
            place.loc[frame[one]].reset_index(drop=True) for one in ("first", "second")
        )
        numbers = frame.drop(columns=["first", "second", "n"])
        table = first.add_prefix("first_").join(second).join(numbers)
        table.insert(0, "kind", kind)
        tables.append(table.assign(wakes=_wakes(table, found)))
    return pd.concat(tables, ignore_index=True)


def _wakes(table: pd.DataFrame, found: Baseline) -> pd.Series:
    """Whether the second steps in for the first: both cost something, the second, once the first is
    gone, surely, and surely more than from the whole model; of the two it is the weaker alone."""
    more = (table["p_corrected"] < ALPHA) & (table["interaction"] < 0)
    costs = (table["given_p_corrected"] < ALPHA) & (table["given"] < 0) & (table["first_alone"] < 0)
    weaker = table["alone"].abs() < table["first_alone"].abs()
    real = table[["interaction", "given"]].abs().min(axis=1) > found.noise
    return more & costs & weaker & real & found.able


def _together(
    model: Any, pairs: Pairs, heads: Removals, made: Mapping[str, Edit], config: Config
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[int, int]]:
    """Heads removed together, ranked on one half of the prompts and removed on the other."""
    n = len(pairs)
    order = np.random.default_rng(config.seed).permutation(n)
    rank, remove = (order, order) if n < SPLIT else (order[: n // 2], order[n // 2 :])
    held = pairs[sorted(remove.tolist())]
    curves, sets = [], []
    if config.donors == "own" and "resample" in made:  # that edit counts in rows of its prompts
        made = {**made, "resample": edits.patch(held.corrupted)}
    for kind, edit in made.items():
        size = np.abs(heads.effects[kind][:, rank].mean(1))
        ranked = heads.nodes.iloc[np.argsort(-size, kind="stable")]
        found = int(heads.of(kind)["named"].sum()) or min(config.top, len(ranked))
        frame = cumulative_ablation(
            model, held.clean, ranked, edit=edit, metric=metric_of(held),
            counts=[*default_counts(len(ranked)), found],
            random_counts=[*default_counts(len(ranked), ends=0), found],
            orders=config.random_sets, seed=config.seed, journal=config.kept(f"together-{kind}"),
        )  # fmt: skip
        frame.insert(0, "kind", kind)
        curves.append(frame)
        names = [part_name(line) for _, line in ranked.head(found).iterrows()]
        sets.append({"kind": kind, "heads": ", ".join(names)} | _against_chance(frame, found))
    return pd.concat(curves, ignore_index=True), pd.DataFrame(sets), (len(rank), len(remove))


def _against_chance(frame: pd.DataFrame, k: int) -> dict[str, Any]:
    """The k strongest heads gone together, beside random sets of k heads; p: the share of sets,
    this one counted, whose removal changes as much."""
    at = frame[frame["removed"] == k]
    found = at[at["order"] == "most"].iloc[0]
    drawn = at[at["order"] == "random"]
    effects = drawn["effect"].to_numpy(float)
    as_much, holding = np.abs(effects) >= abs(found["effect"]), drawn["overlap"] > 0
    low, high = np.quantile(effects, [0.025, 0.975])
    return {
        "k": k,
        "effect": found["effect"],
        "stderr": found["stderr"],
        "random_mean": effects.mean(),
        "random_low": low,
        "random_high": high,
        "random_sets": len(drawn),
        "as_much": int(as_much.sum()),
        "as_much_without": int((as_much & ~holding).sum()),
        "without": int((~holding).sum()),
        "p": (1 + int(as_much.sum())) / (1 + len(drawn)),
    }


def carriers(curve: pd.DataFrame, kind: str) -> tuple[int, pd.Series] | None:
    """The smallest measured number of heads, from the strongest, with which alone and with all
    larger numbers at least `KEPT` of the logit difference is there; and that row of the curve.
    None where shares mean nothing."""
    own = curve[(curve["kind"] == kind) & (curve["order"] == "least")]
    if bool(own["share"].isna().any()):
        return None
    own = own.assign(kept=own["removed"].max() - own["removed"]).sort_values("kept")
    # All heads there, the share is 1: the last row is always enough.
    enough = np.minimum.accumulate((own["share"] >= KEPT).to_numpy()[::-1])
    best = own.iloc[len(own) - int(enough.sum())]
    return int(best["kept"]), best
