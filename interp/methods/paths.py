"""Path patching: what one head passes on to the logits, or to one later head, and to nothing else.

The sender's z is that of the other run, all other heads keep the z of the base run, MLPs and norms
are recomputed. What then arrives at the receiver's queries, keys or values is put into the base
run, in which everything behind the receiver is recomputed (Wang et al. 2022, §3.1;
Goldowsky-Dill et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.finite import finite_cache
from interp.core.indices import check_once, index, pair
from interp.core.progress import counting
from interp.core.tap import ActivationCache, Hook, Tap
from interp.core.tokens import Tokens
from interp.model import HookedTransformer
from interp.sweeps import edits, engine, metrics
from interp.sweeps.metrics import Bound, Metric

if TYPE_CHECKING:
    from interp.data.tasks import Pairs

Head: TypeAlias = tuple[int, int]
"""(layer, head)."""
LOGITS = "logits"
KINDS = ("q", "k", "v")
COLUMNS = ("row", "from_layer", "from_head", "to", "to_layer", "to_head", "metric", "direction",
           "norms")  # fmt: skip


class Receiver(NamedTuple):
    """What a head reads the sender by; of "k" and "v" `head` is the key-value head."""

    kind: str
    layer: int
    head: int


Receivers: TypeAlias = str | Sequence[Any]
""""logits", or several of: "logits", ("q" | "k" | "v", layer, head), a list of such triples that
receive together."""


@torch.no_grad()
def path_patch(
    model: HookedTransformer,
    pairs: Pairs,
    senders: Iterable[Head] | None = None,
    receivers: Receivers = LOGITS,
    *,
    direction: Literal["denoise", "noise"] = "denoise",
    metric: Metric | None = None,
    freeze_norms: bool = False,
    reduce: Literal["mean", "none"] = "mean",
    progress: bool = True,
) -> pd.DataFrame:
    """The effect of every sender by way of every receiver: row from_layer from_head to to_layer
    to_head metric direction norms | value baseline effect stderr n.

    senders: heads (layer, head), by default all that lie before a receiver; pairs whose receiver
    lies in the sender's layer or before have no row. to: "logits" (to_layer and to_head are blank)
    or "q", "k", "v"; receivers that were given as a list share `row` and are patched together.
    direction: "denoise" puts the sender's clean z into the corrupted run, as `interp.patch` does;
    "noise" its corrupted z into the clean run. metric: by default the logit difference of the
    pairs' answer and wrong ids at "end". effect = value − baseline in its units; stderr and
    reduce="none" as those of `interp.sweep`.

    freeze_norms: on the way from sender to receiver the norms of the residual stream divide by what
    they do in the base run ("held"), so that without MLPs the effect on the logits is the
    difference in direct logit attribution; else they are recomputed. Norms of queries and keys
    belong to the receiver, and behind a receiving head all is recomputed in both cases.

    `attrs`: forward_equivalents spent, naive_equivalents (whole forwards that the same would take
    one by one), and noop_paths, of which no number arrives. Raises ValueError on a sender or
    receiver that the model does not have or that has no partner, on senders whose z is the same in
    both runs, and on models where paths are not defined: encoder–decoders, models behind the
    bridge, and, for norms that are held on the way to the logits, a masked-LM head.
    """
    _check_options(model, direction, reduce)
    chosen = _receivers(model, receivers)
    _check_held(model, chosen, freeze_norms)
    paths = _paths(model, pairs, direction, metric, freeze_norms)
    heads = _senders(model, senders, chosen)
    _check_differs(paths, heads)
    found: dict[tuple[Head, int], Tensor] = {}
    with counting(len(heads), "paths", progress) as bar:
        for number in (i for i, one in enumerate(chosen) if one == LOGITS):
            for head, values in _to_logits(paths, heads):
                found[head, number] = values
        for head in heads:
            for number, values in _to_heads(paths, head, chosen):
                found[head, number] = values
            bar.update(1)
    frame = _tidy(paths, found, chosen, reduce, direction, freeze_norms)
    frame.attrs |= _cost(paths, found, chosen)
    return frame


@dataclass(frozen=True, eq=False)
class _Paths:
    """Both runs, and what is measured."""

    model: HookedTransformer
    tokens: Tokens
    """Of the base run."""
    base: ActivationCache
    """z of every layer, and the scales that are held."""
    other: ActivationCache
    """z of every layer."""
    metric: Metric
    final: Metric
    """The same, read with the last norm's scale held where norms are."""
    baseline: list[Tensor] = field(default_factory=list)
    spent: list[float] = field(default_factory=lambda: [2.0])
    """In whole forwards; both runs are the first two."""

    def behind(self, layer: int, layers: int) -> list[str]:
        """What is held behind a sender of a layer: later z, and scales, of so many layers."""
        names = [name for name in self.base if (self.model.sites[name].layer or 0) < layers]
        return names[names.index(self.z(layer)) + 1 :]

    def z(self, layer: int) -> str:
        return f"{self.model.blocks[layer].name}.attn.hook_z"

    def sweep(self, nodes: list[dict], values: Any, metric: Metric) -> Float[Tensor, "line batch"]:
        """The effect of each line of the nodes, with `values` put there."""
        cache = ActivationCache(values, self.model.sites, self.tokens, self.model.stacks)
        frame = engine.sweep(
            self.model, self.tokens, nodes, edit=edits.patch(cache), metric=metric,
            reduce="none", allow_noop=True, progress=False,
        )  # fmt: skip
        self.spent.append(frame.attrs["forward_equivalents"])
        n = len(self.tokens)
        if not self.baseline:
            self.baseline.append(torch.tensor(frame["baseline"].to_numpy()[:n]))
        return torch.tensor(frame["effect"].to_numpy()).view(len(nodes), n)


def _paths(
    model: HookedTransformer, pairs: Pairs, direction: str, metric: Metric | None, held: bool
) -> _Paths:
    runs = [model.accept(pairs.corrupted), model.accept(pairs.clean)]
    if direction == "noise":
        runs.reverse()
    zs = [f"{block.name}.attn.hook_z" for block in model.blocks]
    scales = [
        site.name
        for site in model.sites
        if site.layer is not None and site.inner_name.startswith("ln")
        and site.inner_name.endswith("hook_scale")
    ]  # fmt: skip
    last = [] if model.ln_final is None or not held else [model.ln_final.hook_scale]
    base = finite_cache(model, runs[0], [*zs, *(scales if held else ()), *last])
    other = finite_cache(model, runs[1], zs)
    if metric is None:
        metric = metrics.logit_diff(pairs.answer, pairs.wrong, pos="end")
    final = metric if not last else _with_scale(metric, base[last[0]])
    within = {name: base[name] for name in base if name not in last}
    kept = ActivationCache(within, model.sites, runs[0], model.stacks)
    return _Paths(model, runs[0], kept, other, metric, final)


def _with_scale(metric: Metric, scale: Float[Tensor, "batch pos one"]) -> Metric:
    """The metric, with the last norm dividing by this scale."""

    def bind(model: HookedTransformer, tokens: Tokens, base: Any) -> Bound:
        bound = metric.bind(model, tokens, base)
        if bound.reads != "logits":
            return bound

        def measure(x: Tensor, examples: Tensor) -> Tensor:
            own = scale[examples]
            if bound.positions is not None:
                own = own.gather(1, bound.positions[examples][..., None])
            tap = Tap(model.sites, fwd_hooks=[(model.ln_final.hook_scale, lambda _, hook: own)])
            read = model.ln_final(x, tap)
            tap.check_fired()
            return bound.measure(_logits(model, read, bound, examples), examples)

        return replace(bound, measure=measure, reads="residual", ids=None, log_probs=False)

    return replace(metric, bind=bind)


def _logits(model: HookedTransformer, read: Tensor, bound: Bound, examples: Tensor) -> Tensor:
    """Those logits, or log-probabilities, of what the unembedding reads that a metric reads."""
    if bound.ids is None:
        return model.unembed(read, model.embed.W_E)
    logits = model.unembed.columns(read, model.embed.W_E, bound.ids[examples])
    if not bound.log_probs:
        return logits
    norm = model.unembed.log_sum_exp(read.flatten(0, 1), model.embed.W_E)
    return logits.to(norm) - norm.view(*read.shape[:2], 1)


def _to_logits(
    paths: _Paths, heads: Sequence[Head]
) -> Iterable[tuple[Head, Float[Tensor, " batch"]]]:
    """All heads of a layer in one sweep: the rerun enters at their z."""
    model = paths.model
    for layer in dict.fromkeys(layer for layer, _ in heads):
        own = [head for at, head in heads if at == layer]
        held = paths.behind(layer, model.cfg.n_layers)
        lines = [{"row": i, "site": paths.z(layer), "head": head} for i, head in enumerate(own)]
        lines += [{"row": i, "site": name} for i in range(len(own)) for name in held]
        values = {name: paths.base[name] for name in held}
        values[paths.z(layer)] = paths.other[paths.z(layer)]
        found = paths.sweep(lines, values, paths.final)
        for head, one in zip(own, found, strict=False):
            yield (layer, head), one


def _to_heads(
    paths: _Paths, sender: Head, chosen: Sequence[Any]
) -> Iterable[tuple[int, Float[Tensor, " batch"]]]:
    """One run with all other heads held gives every receiver's input; a sweep puts them in."""
    model = paths.model
    later = [(i, one) for i, one in enumerate(chosen) if _follows(one, sender) and one != LOGITS]
    if not later:
        return
    own = sorted({part for _, one in later for part in one})
    last = max(part.layer for part in own)
    names = [_site(model, part) for part in own]
    hooks = [
        (name, lambda x, hook: paths.base[hook.name]) for name in paths.behind(sender[0], last)
    ]
    hooks += [(name, lambda x, hook: paths.base[hook.name])
              for name in paths.base if model.sites[name].layer == last
              and model.sites[name].inner_name.startswith("ln1.")]  # fmt: skip

    def speak(z: Tensor, hook: Hook) -> None:
        z[:, :, sender[1]] = paths.other[hook.name][:, :, sender[1]]

    view = model.with_hooks([(paths.z(sender[0]), speak), *hooks])
    arrived = finite_cache(view, paths.tokens, names, stop_at_layer=last + 1)
    paths.spent.append((last + 1) / model.cfg.n_layers)
    lines, first = [], []
    for row, (_, one) in enumerate(later):
        first.append(len(lines))
        lines += [{"row": row, "site": _site(model, p), "head": p.head} for p in one]
    found = paths.sweep(lines, dict(arrived), paths.metric)
    for (number, _), line in zip(later, first, strict=True):
        yield number, found[line]


def _site(model: HookedTransformer, part: Receiver) -> str:
    return f"{model.blocks[part.layer].name}.attn.hook_{part.kind}"


def _follows(receiver: Any, sender: Head) -> bool:
    """Whether all of a receiver lies behind the sender."""
    return receiver == LOGITS or all(part.layer > sender[0] for part in receiver)


def _check_options(model: HookedTransformer, direction: str, reduce: str) -> None:
    if direction not in ("denoise", "noise"):
        raise ValueError(f"direction={direction!r}: expected 'denoise' or 'noise'")
    if reduce not in ("mean", "none"):
        raise ValueError(f"reduce={reduce!r}: expected 'mean' or 'none'")
    if model.opaque:
        raise ValueError(
            f"path patching holds z and norms of a native model, and {model.opaque}; use "
            "interp.patch on the sites that this model has"
        )
    if model.encoder is not None:
        raise ValueError(
            "path patching is of one stack, and this model is an encoder–decoder; use "
            "interp.patch on the sites of either stack"
        )


def _check_held(model: HookedTransformer, chosen: Sequence[Any], held: bool) -> None:
    if held and LOGITS in chosen and model.cfg.head == "mlm":
        raise ValueError(
            "freeze_norms=True: the transform of a masked-LM head has a norm and a nonlinearity of "
            "its own before the logits; use freeze_norms=False, or receivers 'q', 'k', 'v'"
        )


def _receivers(model: HookedTransformer, given: Receivers) -> list[Any]:
    """LOGITS, or lists of receivers that are patched together."""
    many = [given] if isinstance(given, str) or _is_triple(given) else list(given)
    if not many:
        raise ValueError("receivers is empty: give 'logits' or ('q' | 'k' | 'v', layer, head)")
    return [
        LOGITS if one == LOGITS else _together(model, one)
        for one in many
    ]  # fmt: skip


def _together(model: HookedTransformer, one: Any) -> list[Receiver]:
    receivers = [_receiver(model, part) for part in _parts(one)]
    check_once(receivers, "receivers")
    return receivers


def _parts(one: Any) -> list[Any]:
    parts = [one] if isinstance(one, str) or _is_triple(one) else list(one)
    if not parts:
        raise ValueError("a list of receivers is empty")
    return parts


def _is_triple(one: Any) -> bool:
    return isinstance(one, tuple) and len(one) == 3 and isinstance(one[0], str)


def _receiver(model: HookedTransformer, part: Any) -> Receiver:
    if not _is_triple(part) or part[0] not in KINDS:
        raise ValueError(
            f"receiver {part!r}: expected 'logits' or (kind, layer, head) with the kind "
            f"{', '.join(map(repr, KINDS))}"
        )
    cfg = model.cfg
    heads = cfg.n_heads if part[0] == "q" else cfg.n_kv_heads
    what = "head" if part[0] == "q" else "key-value head"
    layer = index(part[1], cfg.n_layers, f"layer of receiver {part}")
    return Receiver(part[0], layer, index(part[2], heads, f"{what} of receiver {part}"))


def _senders(
    model: HookedTransformer, given: Iterable[Head] | None, chosen: Sequence[Any]
) -> list[Head]:
    cfg = model.cfg
    if given is None:
        every = [(layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
        heads = [one for one in every if any(_follows(to, one) for to in chosen)]
    else:
        heads = [
            (index(layer, cfg.n_layers, f"layer of sender {(layer, head)}"),
             index(head, cfg.n_heads, f"head of sender {(layer, head)}"))
            for layer, head in (pair(one, "senders", "(layer, head)") for one in given)
        ]  # fmt: skip
        if not heads:
            raise ValueError("senders is empty; leave it out for all heads before a receiver")
        check_once(heads, "senders")
    told = ", ".join(map(str, chosen))
    for one in heads:
        if not any(_follows(to, one) for to in chosen):
            raise ValueError(
                f"sender {one} has no receiver behind it ({told}): a head reads what earlier "
                "layers wrote"
            )
    for to in chosen:
        if not any(_follows(to, one) for one in heads):
            raise ValueError(
                f"receiver {to} has no sender before it: a head reads what earlier layers wrote"
            )
    return heads


def _check_differs(paths: _Paths, heads: Sequence[Head]) -> None:
    same = [
        torch.equal(*(run[paths.z(layer)][:, :, head] for run in (paths.base, paths.other)))
        for layer, head in heads
    ]
    if all(same):
        raise ValueError(f"z of the senders {heads} is the same in both runs: nothing is sent")


def _tidy(
    paths: _Paths, found: dict, chosen: Sequence[Any], reduce: str, direction: str, held: bool
) -> pd.DataFrame:
    """A line per part of a receiver, ordered by receiver and sender."""
    pairs = sorted(found, key=lambda pair: (pair[1], pair[0]))
    baseline, lines, effects = paths.baseline[0].numpy(), [], []
    for row, (sender, number) in enumerate(pairs):
        for part in [(LOGITS, pd.NA, pd.NA)] if chosen[number] == LOGITS else chosen[number]:
            lines.append((row, *sender, *part))
            effects.append(found[sender, number].numpy())
    frame = pd.DataFrame(lines, columns=list(COLUMNS[:6]))
    frame = frame.astype({"to_layer": "Int64", "to_head": "Int64"})
    named = (paths.metric.name, direction, "held" if held else "recomputed")
    frame = frame.assign(**dict(zip(COLUMNS[6:], named, strict=True)))
    effect, n = np.stack(effects), len(baseline)
    if reduce == "none":
        long = frame.loc[frame.index.repeat(n)].reset_index(drop=True)
        long["example"] = np.tile(np.arange(n), len(frame))
        long["value"] = (baseline + effect).ravel()
        long["baseline"] = np.tile(baseline, len(frame))
        return long.assign(effect=effect.ravel())
    spread = effect.std(1, ddof=1) if n > 1 else np.full(len(effect), np.nan)
    return frame.assign(
        value=(baseline + effect).mean(1), baseline=baseline.mean(), effect=effect.mean(1),
        stderr=spread / n**0.5, n=n,
    )  # fmt: skip


def _cost(paths: _Paths, found: dict, chosen: Sequence[Any]) -> dict[str, Any]:
    """Both runs, a held run per sender, and per head that receives one more."""
    receiving = sum(chosen[number] != LOGITS for _, number in found)
    return {
        "forward_equivalents": sum(paths.spent),
        "naive_equivalents": 2.0 + len({sender for sender, _ in found}) + receiving,
        "noop_paths": sum(not bool(effect.any()) for effect in found.values()),
    }
