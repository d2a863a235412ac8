"""Which hook points of a bridge are our sites: run a few tokens through, and see.

A site is offered when an identity that it causes holds in a plain run and still holds, at every
layer, in a run where the site is overwritten with noise; when what the identity ends in is itself
such a site, down to the residual stream; and when the residual stream of one run, put into another,
brings the first one's output with it. All else is left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from interp.core import chance
from interp.core.sites import ALONE, RESIDUAL, Site, SiteTable
from interp.core.tap import Tap
from interp.core.tokens import Tokens
from interp.model.identities import TOLERANCE

from .candidates import GATED, LOGITS
from .config import BridgedConfig
from .identities import Identity, Run, identities
from .library import Library

LEAST = 1e-5
"""The library rounds some steps to float32 whatever the dtype."""
STREAM = ("hook_resid_pre", "hook_resid_post")
NORMS = ("embed_ln", "ln1", "ln2", "ln1_post", "ln2_post", "ln_final")

Held = set[tuple[int | None, str]]
"""Identities by layer and text."""


def tolerance(dtype: torch.dtype) -> float:
    """The largest error, as a share of the largest value, that rounding explains."""
    return max(LEAST, TOLERANCE[dtype])


@torch.no_grad()
def verified(
    library: Library, cfg: BridgedConfig, W_E: Tensor, found: list[Site], points: Mapping[str, Any]
) -> tuple[SiteTable, dict[str, str], Held]:
    """The sites that mean what their names say, why each other one is left out, and the identities
    that hold, from the candidates that were found and their hook points. W_E [d_vocab d_model] is
    the library's word embedding."""
    return _Check(library, cfg, W_E, found, points).result()


class _Check:
    def __init__(
        self,
        library: Library,
        cfg: BridgedConfig,
        W_E: Tensor,
        found: list[Site],
        points: Mapping[str, Any],
    ) -> None:
        self.library, self.cfg, self.W_E, self.points = library, cfg, W_E, points
        self.limit = tolerance(W_E.dtype)
        self.why: dict[str, str] = {}
        self.sites = {site.name: site for site in found}
        self.lens = dict(self.sites)
        for site in found:  # what a norm reads and gives is no site of ours, but says what it does
            path, _, last = site.name.rpartition(".")
            if last == "hook_scale" and path.rpartition(".")[2] in NORMS:
                for end in ("in", "out"):
                    name = f"{path}.hook_{end}"
                    if name in points:
                        self.lens[name] = Site(name, site.layer, RESIDUAL)
        self.tokens = some_tokens(cfg, W_E.device)

    def result(self) -> tuple[SiteTable, dict[str, str], Held]:
        plain, output = self.plain()
        self.check_shapes(plain)
        run = self.run_of({n: x for n, x in plain.items() if n not in self.why})
        every = list(identities(run, self.cfg.n_layers))
        held = [one for one in every if one.error <= self.limit]
        required = [one for one in every if not one.causes]
        acting = [one for one in held if one.causes]
        survived = {name: set() for name in run.values}
        for local in self.locals_of(run.values):
            for name, texts in self.edited(local, run.values, acting, output).items():
                survived[name] |= texts
        cut = self.cuts(run.values, output)
        proven = self.proven(acting, survived, cut)
        for name in run.values:
            if name in self.sites and name not in self.why:
                reason = self.reason(name, every, proven, survived, cut, required)
                if reason:
                    self.why[name] = reason
        good = [self.sites[n] for n in self.sites if n in plain and n not in self.why]
        kept = {one.name for one in good} | {None}
        helpers = {name for name in self.lens if name not in self.sites}
        keys = {
            (one.layer, one.text) for one in held if {*one.causes, one.effect} <= kept | helpers
        }
        left = {n: self.why[n] for n in self.sites if n in self.why}
        return SiteTable.of([*good, LOGITS], {ALONE.blocks: self.cfg.n_layers}, left), left, keys

    def plain(self) -> tuple[dict[str, Tensor], Tensor]:
        """What every candidate holds in one run; those that need a flag in a run of their own."""
        names = [n for n in self.lens if self.local(n) not in GATED]
        output, values = self.probe(names)
        for flag in sorted(set(GATED.values())):
            gated = [n for n in self.sites if GATED.get(self.local(n)) == flag]
            try:
                more = self.probe(gated)[1] if gated else {}
            except NotImplementedError:
                more = {}
            values |= more
            for name in gated:
                if name not in more:
                    self.why[name] = (
                        f"TransformerLens computes it under {flag}, which this one lacks"
                    )
        for name in self.sites:
            if name not in values:
                self.why.setdefault(name, "its hook point never fires")
        ordered = {name: values[name] for name in self.lens if name in values}
        return ordered, output

    def probe(
        self, reads: list[str], edits: list | None = None, tokens: Tokens | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A run on candidates, through the very hooks that sites will have."""
        table = SiteTable.of(self.lens.values(), {ALONE.blocks: self.cfg.n_layers})
        tap = Tap(table, reads=reads, fwd_hooks=edits or ())
        output = self.library.run(self.tokens if tokens is None else tokens, tap, self.points)
        return output, {name: x for name, x in tap.values.items() if isinstance(x, Tensor)}

    def run_of(self, values: Mapping[str, Tensor]) -> Run:
        return Run(values, self.tokens.ids, self.library.bridge, self.cfg.causal, self.W_E)

    def check_shapes(self, values: Mapping[str, Tensor]) -> None:
        cfg, (batch, pos) = self.cfg, self.tokens.shape
        sizes = {
            **dict.fromkeys(("pos", "q_pos", "k_pos"), pos),
            "batch": batch,
            "one": 1,
            "head": cfg.n_heads,
            "kv_head": cfg.n_kv_heads,
            **{name: getattr(cfg, name) for name in ("d_head", "d_model", "d_mlp")},
        }
        for name, x in values.items():
            axes = self.lens[name].axes
            shape = tuple(x.shape)
            if shape != tuple(sizes[axis] for axis in axes):
                self.why[name] = f"its shape is {list(shape)}, not [{' '.join(axes)}]"
            elif not x.is_floating_point():
                self.why[name] = f"it holds {x.dtype}"

    def locals_of(self, names: Mapping[str, Tensor]) -> list[str]:
        return list(dict.fromkeys(self.local(name) for name in names if name in self.sites))

    def local(self, name: str) -> str:
        return self.lens[name].local_name

    def edited(
        self, local: str, plain: Mapping[str, Tensor], acting: list[Identity], output: Tensor
    ) -> dict[str, set[str]]:
        """Which identities of each site survive a run in which it is noise, at all layers."""
        names = [name for name in plain if self.local(name) == local and name in self.sites]
        own = [one for one in acting if set(one.causes) & set(names)]
        if not own:
            return {}
        generator = chance.seeded(0)

        def noise(x: Tensor, hook: Any) -> Tensor:
            size = self.size(x, hook, plain)
            drawn = chance.uniform(*x.shape, generator=generator)
            if local.endswith("hook_scale"):
                return x * (1 + drawn).to(x)
            return x + size * (2 * drawn - 1).to(x)

        reads = [n for n in plain if self.local(n) not in GATED or n in names]
        changed, values = self.probe(reads, [(names, noise)])
        if torch.equal(changed, output):
            for name in names:
                self.why[name] = "an edit of it changes nothing"
            return {}
        again = {
            (one.layer, one.text): one.error
            for one in identities(self.run_of(values), self.cfg.n_layers)
        }
        survived: dict[str, set[str]] = {name: set() for name in names}
        for one in own:
            if again.get((one.layer, one.text), 1.0) <= self.limit:
                for name in set(one.causes) & set(names):
                    survived[name].add(one.text)
        return survived

    def size(self, x: Tensor, hook: Any, plain: Mapping[str, Tensor]) -> Tensor:
        """Noise as large as what it must be seen in."""
        largest = x.abs()[x.abs() < 1e6].max()
        stream = plain.get(f"blocks.{hook.layer}.hook_resid_post")
        if stream is None or self.lens[hook.name].axes != RESIDUAL:
            return largest
        return torch.maximum(largest, stream.abs().max().to(largest))

    def cuts(self, plain: Mapping[str, Tensor], output: Tensor) -> dict[str, float]:
        """Error of the output when a layer's residual stream comes from another run.

        Row l of a batch gets it at layer l, and must end as that other run does.
        """
        found: dict[str, float] = {}
        other = self.tokens.ids[1:2]
        for local in STREAM:
            names = [n for n in plain if self.local(n) == local]
            if not names:
                continue
            rows = {name: i for i, name in enumerate(names)}

            def put(x: Tensor, hook: Any, rows: Mapping[str, int] = rows) -> Tensor:
                x[rows[hook.name]] = plain[hook.name][0]
                return x

            tokens = Tokens(other.expand(len(names), -1).contiguous())
            changed, _ = self.probe([], [(names, put)], tokens)
            for name, i in rows.items():
                miss = (changed[i] - output[0]).abs().max() / output[0].abs().max()
                found[name] = float(miss)
        return found

    def proven(
        self, acting: list[Identity], survived: Mapping[str, set[str]], cut: Mapping[str, float]
    ) -> set[str | None]:
        """Sites whose chain of surviving identities ends in the residual stream or the output."""
        proven: set[str | None] = {None}
        proven |= {name for name, error in cut.items() if error <= self.limit}
        while True:
            more = {
                name
                for one in acting
                if one.effect in proven
                for name in one.causes
                if name not in proven and one.text in survived.get(name, ())
            }
            if not more:
                return proven
            proven |= more

    def reason(
        self,
        name: str,
        every: list[Identity],
        proven: set[str | None],
        survived: Mapping[str, set[str]],
        cut: Mapping[str, float],
        required: list[Identity],
    ) -> str | None:
        """Why a site is left out; None: it is not."""
        for one in required:
            if one.effect == name and not one.error <= self.limit:
                return f"{one.text!r} does not hold (error {one.error:.1g})"
        own = [one for one in every if name in one.causes]
        if self.local(name).endswith("hook_normalized") and not any(
            one.effect == name and one.error <= self.limit for one in every
        ):
            return "normalized · scale is not what the norm reads"
        if name in proven:
            return None
        if name in cut:
            return f"in another run it does not bring its output along (error {cut[name]:.1g})"
        if not own:
            return "no identity tells what it is"
        best = min(own, key=lambda one: one.error)
        if not best.error <= self.limit:
            return f"{best.text!r} does not hold (error {best.error:.1g})"
        if not survived.get(name):
            return f"an edit of it does not act: {best.text!r} fails after one"
        return f"{best.text!r} holds, but {best.effect!r} is not verified itself"


def some_tokens(cfg: BridgedConfig, device: torch.device) -> Tokens:
    """Two rows of random ids, of a length that no size of the model equals."""
    sizes = (cfg.n_heads, cfg.n_kv_heads, cfg.d_head, cfg.d_model, cfg.d_mlp)
    pos = next(n for n in range(6, 100) if n not in sizes)
    generator = chance.seeded(0)
    ids = chance.integers(cfg.d_vocab // 4, cfg.d_vocab, 2, pos, generator=generator)
    return Tokens(ids.to(device))


def is_causal(output: Callable[[Tensor], Tensor], ids: Tensor) -> bool:
    """Whether what comes later leaves the earlier outputs alone."""
    other = ids.clone()
    other[:, -1] = ids[:, 0]
    a, b = output(ids)[:, :-1], output(other)[:, :-1]
    return float((a - b).abs().max() / a.abs().max()) <= 1e-3
