"""The first screen of activation_patching: one sentence, two maps side by side, three findings."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pandas as pd

from analyses._patching.heads import HeadDress
from analyses._task import example_names
from interp.methods.patching import Effects
from interp.methods.paths import Head
from interp.report import figures
from interp.report.spine import head_name, percent, strongest

STREAM, HEADS = "Residual stream at one token", "One head"
MAPS = "answer-maps"
FIRST = 3
"""Findings of the first screen."""


class Stay(NamedTuple):
    """Layers in a row before which one position restores most, and the largest share it does."""

    place: str
    first: int
    last: int
    share: float


class Said(NamedTuple):
    """A sentence, the exhibit behind it, and the heads that it names."""

    text: str
    at: str
    names: list[str]


class Opening:
    """What the first screen says, from the tables of the residual stream, of the heads, and of what
    was patched together; None for what was not measured."""

    def __init__(
        self,
        dress: HeadDress,
        stream: Effects | None,
        heads: Effects | None,
        named: list[Head],
        together: pd.DataFrame | None,
        least: float,
    ) -> None:
        self.dress, self.named, self.together, self.least = dress, named, together, least
        self.places = example_names(dress.study.pairs)
        self.stream = None if stream is None else dress.study.table(stream)
        self.heads = None if heads is None else dress.study.table(heads)
        self.z = None if self.heads is None else self.heads[self.heads["site"] == "z"]

    def write(self) -> None:
        """The answer, its maps, and the findings."""
        if self.stream is None and self.z is None:
            return  # the first finding and the first picture stand in
        text, _, names = self._answer()
        report = self.dress.report
        opening = report.answer(text, links=dict.fromkeys(names, "heads-map"))
        opening.figure(
            self._maps(),
            "What a clean value brings back of the answer when it is put into the corrupted run, "
            "one place at a time" + ("" if self.stream is None else "; tokens of the first prompt"),
            name=MAPS,
        )
        sentences = (self._held(), self._alone(), self._at_once(), self._input())
        for text, at, names in [said for said in sentences if said is not None][:FIRST]:
            report.finding(text, at=at, links=dict.fromkeys(names, "heads-map"))

    def _maps(self) -> figures.Figure:
        maps = [(STREAM, "pos", self.stream), (HEADS, "head", self.z)]
        frames = [
            pd.DataFrame(
                {
                    "map": title,
                    "layer": table["layer"],
                    "column": table[column].astype(int),
                    "share": self.dress.drawn(table, "denoise"),
                }
            )
            for title, column, table in maps
            if table is not None
        ]
        return figures.heatmaps(
            pd.concat(frames, ignore_index=True),
            panel="map",
            rows="layer",
            columns="column",
            value="share",
            names={} if self.stream is None else {STREAM: self.places},
            titles={STREAM: "token", HEADS: "head"},
            axis=f"Brought back by denoising: {self.dress.axis}",
            **self.dress.shading,
        )

    def _answer(self) -> Said:
        if not self.dress.told:
            why = (
                "corrupting the prompts does not change the answer"
                if self.dress.study.baseline.able
                else "the model cannot do this task"
            )
            return Said(f"No place can be named, since {why}.", MAPS, [])
        where, best = self._where(), self._strongest()
        what = "it" if where else "the answer"
        which = "" if self.z is None else f"no single one of {len(self.z)} heads carries {what}"
        if best is not None:
            which = f"head {best} alone brings back {self._share(best)} of {what}"
        text = "; ".join(clause for clause in (where, which) if clause)
        return Said(f"{text[:1].upper()}{text[1:]}.", MAPS, [best] if best else [])

    def _where(self) -> str:
        """From which token to which the answer moves through the layers."""
        if self.stream is None:
            return ""
        if self.dress.real(self.stream).empty:
            return "No single token's residual stream changes the answer"
        path = self._stays()
        first, last = path[0], path[-1]
        if len(path) == 1:
            return f"What decides the answer stays at “{first.place}” up to the last layer"
        return (
            f"What decides the answer starts at “{first.place}” and ends at “{last.place}”, where "
            f"it is from layer {last.first} on"
        )

    def _stays(self) -> list[Stay]:
        """By which tokens the residual stream restores most, from layer to layer."""
        assert self.stream is not None
        best = self.stream.loc[self.stream.groupby("layer")["denoise_share"].idxmax()]
        path = []
        for pos, group in itertools.groupby(best.to_dict("records"), key=lambda row: row["pos"]):
            rows = list(group)
            share = max(row["denoise_share"] for row in rows)
            path.append(Stay(self.places[pos], rows[0]["layer"], rows[-1]["layer"], share))
        return path

    def _strongest(self) -> str | None:
        return head_name(*self.named[0]) if self.named else None

    def _share(self, name: str, part: str = "z", way: str = "denoise") -> str:
        """What one head restores, or loses, when something of it is patched."""
        assert self.heads is not None
        layer, head = next(one for one in self.named if head_name(*one) == name)
        own = self.dress.study.group(head) if part in ("k", "v") else head
        rows = self.heads.set_index(["site", "layer", "head"])
        return percent(float(rows.loc[(part, layer, own), f"{way}_share"]))

    def _held(self) -> Said | None:
        if self.stream is None or not self.dress.told or self.dress.real(self.stream).empty:
            return None
        stay = self._stays()[-1]
        one = stay.first == stay.last
        when = f"Before layer {stay.first}" if one else f"From layer {stay.first} on"
        text = (
            f"{when} the clean value at “{stay.place}” alone brings back {percent(stay.share)} of "
            "what the corruption takes."
        )
        return Said(text, "residual-stream-map", [])

    def _alone(self) -> Said | None:
        if self.z is None or not self.dress.told or self.dress.real(self.z).empty:
            return None
        best = self._strongest()
        if best is None:
            row = strongest(self.z, 1, by="denoise").iloc[0]
            name = head_name(row["layer"], row["head"])
            text = (
                f"No single head surely brings back {percent(self.least)} of it; {name} comes "
                f"first with {percent(row['denoise_share'])}."
            )
            return Said(text, "heads-map", [])
        gains, costs = self._share(best), self._share(best, way="noise")
        count, n = len(self.named), len(self.z)
        start = f"{count} of {n} heads matter by themselves, {best} most"
        if count == 1:
            start = f"One head matters by itself, {best}"
        text = f"{start}: clean, it brings back {gains}; corrupted, it costs {costs}."
        return Said(text, "heads-map", [best])

    def _at_once(self) -> Said | None:
        """What the named heads bring back together."""
        if self.together is None or len(self.named) < 2:
            return None
        rows = self.together.set_index("nodes")["denoise_share"]
        others = [
            f"all {what} {percent(rows[f'all {what}'])}"
            for what in ("heads", "MLPs")
            if f"all {what}" in rows
        ]
        text = (
            f"These {len(self.named)} heads together bring back {percent(rows['named heads'])}; "
            f"{', '.join(others)}."
        )
        return Said(text, "together", [])

    def _input(self) -> Said | None:
        """By which input the strongest head is reached."""
        best = self._strongest()
        if best is None or self.heads is None:
            return None
        words = {"q": "queries", "k": "keys", "v": "values"}
        rows = self.heads.set_index(["site", "layer", "head"])["denoise_share"]
        layer, head = self.named[0]
        group = self.dress.study.group(head)
        at = {"q": head, "k": group, "v": group}
        shares = {part: float(rows[part, layer, number]) for part, number in at.items()}
        part = max(shares, key=lambda one: abs(shares[one]))
        text = (
            f"{best} is reached most through its {words[part]} ({percent(shares[part])}); its "
            f"attention pattern alone brings back {self._share(best, 'pattern')}."
        )
        return Said(text, "heads-by-input", [best])
