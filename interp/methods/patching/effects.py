"""Patching both ways, side by side: what every node restores, and what it costs.

Denoising puts the clean value into the corrupted run, noising the corrupted value into the clean
one. Effects are kept per node and example, so that a share of the gap is a ratio of means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from interp.core.files.untrusted import safe_join
from interp.core.finite import finite_cache
from interp.core.sites import UnknownSite
from interp.core.tap import ActivationCache
from interp.data.tasks import Pairs
from interp.methods import stats
from interp.methods.baseline import Baseline, measure_baseline, metric_of
from interp.model import HookedTransformer
from interp.sweeps import edits, metrics
from interp.sweeps.engine import sweep
from interp.sweeps.nodes import nodes as make_nodes

WAYS = ("denoise", "noise")
MEASURES = ("", "_stderr?", "_sd?", "_share?", "_low?", "_high?")
EFFECTS = tuple(f"{way}{what}" for way in WAYS for what in MEASURES)
"""Per way: the mean effect in logits, its standard error, the spread over examples (standard
deviation), the share of the gap and its 95 % interval; of noising the share is what is lost."""
HOLES = tuple(name[:-1] for name in EFFECTS if name.endswith("?"))
"""Columns that stay empty where there is one prompt, or no gap to state shares of."""
OF_HEADS = ("q", "k", "v", "pattern", "z")
"""The sites of a head, from what it reads to what it writes."""
KEYS = ("site", "layer", "head", "pos", "neuron")


@dataclass(frozen=True, eq=False)
class Effects:
    """What was measured of some nodes."""

    nodes: pd.DataFrame
    """One row per node: those of `KEYS` that tell them apart."""
    ways: Mapping[str, np.ndarray]
    """Way → effect [node example], in logits."""
    attrs: dict[str, Any]
    """How the sweeps ran."""

    def of(self, chosen: np.ndarray) -> Effects:
        """Those of some nodes."""
        nodes = self.nodes[chosen].reset_index(drop=True)
        return Effects(nodes, {way: one[chosen] for way, one in self.ways.items()}, self.attrs)


@dataclass(frozen=True, eq=False)
class Study:
    """A model, pairs of prompts, and patches of either run into the other.

    study = Study.of(model, pairs)
    effects = study.both(study.nodes("z", ("layer", "head")))
    study.table(effects)
    """

    model: HookedTransformer
    pairs: Pairs
    baseline: Baseline
    """How the unedited model does on these pairs."""
    journal: Path | None = None
    """A folder in which named sweeps keep what they have measured; None: nothing is kept."""

    @classmethod
    def of(cls, model: HookedTransformer, pairs: Pairs, journal: Path | None = None) -> Study:
        """A study of these pairs, whose baseline is measured. Raises ValueError on a model without
        logits."""
        return cls(model, pairs, measure_baseline(model, pairs), journal)

    def both(
        self,
        nodes: pd.DataFrame,
        runs: Mapping[str, ActivationCache] | None = None,
        name: str = "",
    ) -> Effects:
        """The effects of these nodes, by both ways.

        `runs` are caches of the runs that values come from, by way, as `runs` gives them; without
        them each sweep reads its own. `name` is that of the journals of both sweeps.
        """
        metric, by_way, attrs = metric_of(self.pairs), {}, {}
        for way in WAYS:
            tokens, other = self.pairs.corrupted, self.pairs.clean
            if way == "noise":
                tokens, other = other, tokens
            frame = sweep(
                self.model,
                tokens,
                nodes,
                edit=edits.patch(runs[way] if runs else other),
                metric=metric,
                reduce="none",
                allow_noop=True,
                journal=self._kept(f"{name}-{way}" if name else ""),
            )
            attrs[way] = frame.attrs
            by_way[way] = _by_node(frame, nodes, len(self.pairs))
        first = nodes.drop_duplicates("row").reset_index(drop=True)
        keys = [key for key in KEYS if bool(first[key].notna().to_numpy().all())]
        first = first[keys].astype({key: int for key in keys if key != "site"})
        first["site"] = first["site"].map(short)
        return Effects(first, by_way, {"engine": attrs["denoise"]["engine"], **attrs})

    def together(self, groups: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        """Nodes patched at once, a group at a time: nodes (the group's name) count and `EFFECTS`.
        They act through each other, so that their single effects need not add up."""
        joint = [frame.assign(row=row) for row, frame in enumerate(groups.values())]
        nodes = pd.concat(joint, ignore_index=True)
        table = self.table(self.both(nodes, name="together"))
        table = table[[column.rstrip("?") for column in EFFECTS]]
        table.insert(0, "nodes", list(groups))
        table.insert(1, "count", [len(frame) for frame in groups.values()])
        return table

    def runs(self, sites: Iterable[str]) -> dict[str, ActivationCache]:
        """By way, the run that values are taken from, read once for several sweeps."""
        names, model = list(sites), self.model
        sources = {"denoise": self.pairs.clean, "noise": self.pairs.corrupted}
        return {way: finite_cache(model, model.accept(one), names) for way, one in sources.items()}

    def has(self, site: str) -> bool:
        """Whether the model has a site of this name."""
        try:
            return bool(self.model.sites.select(site))
        except UnknownSite:
            return False

    def nodes(
        self, site: str, by: Sequence[str], heads: Iterable[int] | None = None, **options: Any
    ) -> pd.DataFrame:
        """As `interp.nodes`, for these pairs; heads that share keys and values count once."""
        if heads is not None and site in ("k", "v"):
            heads = sorted({self.group(head) for head in heads})
        return make_nodes(
            self.model, site, by, heads=heads, tokens=self.model.accept(self.pairs.clean), **options
        )

    def group(self, head: int) -> int:
        """The key-value head that a head reads by."""
        return head // (self.model.cfg.n_heads // self.model.cfg.n_kv_heads)

    def table(self, effects: Effects) -> pd.DataFrame:
        """The nodes with `EFFECTS`."""
        columns: dict[str, np.ndarray] = {}
        for way, values in effects.ways.items():
            columns |= self.columns(way, values)
        frame = effects.nodes.assign(**columns)
        frame.attrs |= effects.attrs
        return frame

    def columns(self, way: str, values: np.ndarray) -> dict[str, np.ndarray]:
        """`EFFECTS` of one way, from effects [node example]."""
        raw, n = stats.mean(values), values.shape[1]
        share = np.full((3, len(values)), np.nan)
        if self.baseline.normal and len(values):
            told = stats.ratio_of_means(values if way == "denoise" else -values, self.baseline.gap)
            share = np.stack([told.value, told.low, told.high])
        spread = values.std(1, ddof=1) if n > 1 else np.full(len(values), np.nan)
        found = (raw.value, raw.stderr, spread, *share)
        return {f"{way}{what.rstrip('?')}": one for what, one in zip(MEASURES, found, strict=True)}

    def unrelated_words(
        self, nodes: pd.DataFrame, runs: Mapping[str, ActivationCache], seed: int = 0
    ) -> pd.DataFrame:
        """The control: denoising measured on words that the pair has nothing to do with
        (`unrelated`): site layer pos head effect stderr, in logits."""
        answer, wrong = unrelated(self.model, self.pairs, seed)
        frame = sweep(
            self.model,
            self.pairs.corrupted,
            nodes,
            edit=edits.patch(runs["denoise"]),
            metric=metrics.logit_diff(answer, wrong, pos="end"),
            reduce="none",
            allow_noop=True,
            journal=self._kept("control"),
        )
        effect = stats.mean(_by_node(frame, nodes, len(self.pairs)))
        keys = nodes[["site", "layer", "pos", "head"]]
        table = keys.assign(site=keys["site"].map(short), effect=effect.value, stderr=effect.stderr)
        table.attrs |= frame.attrs
        return table

    def itself(self, nodes: pd.DataFrame) -> pd.DataFrame:
        """The other control: the clean run patched into itself, which must change nothing: site
        layer pos head effect."""
        frame = sweep(
            self.model,
            self.pairs.clean,
            nodes,
            edit=edits.patch(self.pairs.clean),
            metric=metric_of(self.pairs),
            engine="naive",
            allow_noop=True,
            progress=False,
        )
        frame["site"] = frame["site"].map(short)
        return frame[["site", "layer", "pos", "head", "effect"]].drop_duplicates()

    def _kept(self, name: str) -> Path | None:
        if self.journal is None or not name:
            return None
        self.journal.mkdir(parents=True, exist_ok=True)
        return safe_join(self.journal, f"{name}.jsonl")


def short(site: str) -> str:
    """A site as reports name it: z, mlp_out."""
    return site.rpartition(".")[2].removeprefix("hook_")


def stacked(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Nodes of several frames, each still a node of its own."""
    parts, start = [], 0
    for frame in frames:
        parts.append(frame.assign(row=frame["row"] + start))
        start = int(parts[-1]["row"].max()) + 1
    return pd.concat(parts, ignore_index=True)


def unrelated(
    model: HookedTransformer, pairs: Pairs, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each pair two words of the other pairs that are none of its own; where the task has too
    few, two ids of the vocabulary."""
    rng = np.random.default_rng(seed)
    own = torch.cat([ids.reshape(len(pairs), -1) for ids in (pairs.answer, pairs.wrong)], 1).cpu()
    special = [] if model.tokenizer is None else list(model.tokenizer.special_ids)
    words, every = np.unique(own.numpy()), np.setdiff1d(np.arange(model.cfg.d_vocab), special)
    drawn = np.empty((len(pairs), 2), dtype=np.int64)
    for i, mine in enumerate(own.numpy()):
        others = np.setdiff1d(words, mine)
        others = others if len(others) > 1 else np.setdiff1d(every, mine)
        drawn[i] = rng.choice(others, 2, replace=False)
    first, second = torch.from_numpy(drawn).to(pairs.answer.device).T
    return first, second


def _by_node(frame: pd.DataFrame, nodes: pd.DataFrame, n: int) -> np.ndarray:
    """Effects [node example]; the lines of one node all have its effect."""
    first = ~nodes["row"].duplicated().to_numpy()
    return frame["effect"].to_numpy().reshape(len(nodes), n)[first]
