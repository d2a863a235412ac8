"""Activations of a large text, computed once and kept in a folder of shards.

Text is read, the model runs and shards are written at the same time; memory does not grow with the
text. A shard is whole or absent (temp, fsync, rename) and says in its header where the text stood
behind it, so that the same call goes on after a kill, and ends in the same bytes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from interp.core import chance
from interp.core.finite import finite_cache
from interp.core.progress import counting
from interp.core.sites import Site, SiteFilter
from interp.core.tokens import Tokens
from interp.core.visible import logger
from interp.loading import DTYPES, weights_hash
from interp.loading.fingerprint import SIZE, digest, machine_facts
from interp.model import HookedTransformer
from interp.sweeps.metrics import one_position
from interp.sweeps.nodes import stable_hash

from .shards import Harvest, HarvestError, Piece, Sink, finish, opened
from .windows import Batch, Place, Windows

AHEAD = 2
"""Batches that are read, and that wait to be written, beside the one that runs."""
T = TypeVar("T")
log = logger(__name__)


@torch.no_grad()
def harvest(
    model: HookedTransformer,
    source: Any,
    sites: SiteFilter,
    folder: str | os.PathLike,
    *,
    positions: str | Sequence[str] = "all",
    sample: int | None = None,
    dtype: str | torch.dtype = "float16",
    batch_size: int = 32,
    shard_size: int = 1 << 28,
    width: int | None = None,
    bos: bool | None = None,
    seed: int = 0,
    progress: bool = True,
    resume: bool = True,
) -> Harvest:
    """Run `source` and keep what stands at `sites`: one row per position, in the order of the text.

    source: a file (a Path; one text per line), texts, lists of ids, or Tokens. A text longer than
    `width` tokens (default: the context) is cut into windows, each of which the model reads alone;
    how many were cut is logged and in `.cut`. positions: "all" real ones, the "last" of each
    window, or the names of roles that Tokens carry. sample: at most so many positions of each
    window, drawn from (seed, text, window). dtype: how activations are stored. shard_size: bytes
    after which a file is closed (one batch more at most); some three of them are in memory.

    Nothing past the last of the sites is computed. A folder with an unfinished harvest is taken up
    where it stopped; a finished one is returned (with resume=False both are refused). Raises
    HarvestError on a folder that is something else, or the harvest of another model, text or
    settings (each difference is named), on numbers that do not fit the dtype, and on a disk that is
    full, where whole shards stay; ValueError on an empty text, UnknownSite on a site.
    """
    wanted = _dtype(dtype)
    chosen = _sites(model, sites)
    roles = _roles(positions)
    if sample is not None and (sample < 1 or roles):
        raise ValueError(f"sample={sample}: expected 1 or more, and positions='all'")
    windows = Windows(model, source, width=width, bos=bos, batch_size=batch_size)
    made_of = {
        **_model_facts(model),
        "source": windows.fingerprint(),
        "sites": ", ".join(site.name for site in chosen),
        "positions": positions if isinstance(positions, str) else ", ".join(positions),
        "sample": sample,
        "stored": str(wanted).removeprefix("torch."),
        "batch_size": batch_size,
        "shard_size": shard_size,
        "width": windows.width,
        "bos": bos,
        "seed": seed,
    }
    pick = _picker(positions, roles, sample, seed)
    folder = Path(folder)
    with opened(folder, made_of, chosen, roles, resume) as done:
        if done is not None:
            return done
        sink = Sink(folder, wanted, shard_size)
        stop = _stop(model, chosen)
        _run(model, windows, chosen, pick, sink, stop, progress)
        windows.check_unchanged()
        finish(folder, sink.shards)
    found = Harvest.load(folder)
    if found.cut:
        log.warning(
            "%d texts are longer than %d tokens and were cut into windows", found.cut, windows.width
        )
    return found


class Picked(NamedTuple):
    """The positions of a batch that are kept, in order of window."""

    row: Int[Tensor, " n"]
    pos: Int[Tensor, " n"]
    role: Int[Tensor, " n"] | None


Pick = Callable[[Batch], Picked]


def _run(
    model: HookedTransformer,
    windows: Windows,
    sites: Sequence[Site],
    pick: Pick,
    sink: Sink,
    stop: int | None,
    progress: bool,
) -> None:
    """Three at once: the next batches are read, one runs, the last ones are written."""
    names = [site.name for site in sites]
    place = Place(*sink.shards[-1].after) if sink.shards else Place()
    with ExitStack() as stack:
        bar = stack.enter_context(counting(windows.size, "harvest", progress))
        writer = stack.enter_context(_in_background())
        bar.update(place.offset)
        waiting: deque[Future] = deque()
        for batch in _ahead(windows.batches(place)):
            waiting.append(writer.submit(sink.take, _piece(model, batch, names, pick, stop)))
            if len(waiting) > AHEAD:
                waiting.popleft().result()
            bar.update(max(0, batch.after.offset - int(bar.n)))
        waiting.append(writer.submit(sink.close))
        for one in waiting:
            one.result()


def _piece(
    model: HookedTransformer, batch: Batch, names: Sequence[str], pick: Pick, stop: int | None
) -> Piece:
    tokens = model.accept(batch.tokens)
    cache = finite_cache(model, tokens, names, stop_at_layer=stop)
    row, pos, role = pick(batch)
    at = row.to(model.device), pos.to(model.device)
    everything = role is None and len(row) == tokens.shape.numel()
    values = {name: cache[name].flatten(0, 1) if everything else cache[name][at] for name in names}
    ids = batch.tokens.ids
    token = torch.full_like(row, -1) if ids is None else ids.cpu()[row, pos]
    values |= {"text": batch.text[row], "window": batch.window[row], "pos": pos, "token": token}
    if role is not None:
        values["role"] = role
    counts = {
        "rows": len(row),
        "windows": len(tokens),
        "tokens": int(batch.tokens.real.sum()),
        "cut": int((batch.window == 1).sum()),
    }
    return Piece(values, counts, batch.after)


def _picker(
    positions: str | Sequence[str], roles: Sequence[str], sample: int | None, seed: int
) -> Pick:
    def pick(batch: Batch) -> Picked:
        real = batch.tokens.real.cpu()
        if positions == "last":
            pos = one_position(None, batch.tokens).cpu()[:, 0]
            return Picked(torch.arange(len(pos)), pos, None)
        if roles:
            pos = torch.stack([_role(batch.tokens, role) for role in roles], dim=1)
            row, role = torch.ones_like(pos).nonzero().T
            return Picked(row, pos.flatten(), role)
        if sample is not None:
            real = _sampled(real, batch, sample, seed)
        row, pos = real.nonzero().T
        return Picked(row, pos, None)

    return pick


def _role(tokens: Tokens, role: str) -> Int[Tensor, " batch"]:
    return one_position(role, tokens).cpu()[:, 0] % tokens.shape[1]


def _sampled(real: Tensor, batch: Batch, sample: int, seed: int) -> Tensor:
    kept = torch.zeros_like(real)
    for i in range(len(real)):
        at = real[i].nonzero().flatten()
        drawn = stable_hash(seed, int(batch.text[i]), int(batch.window[i]))
        generator = chance.seeded(drawn)
        kept[i, at[chance.permutation(len(at), generator)[:sample]]] = True
    return kept


def _roles(positions: str | Sequence[str]) -> list[str]:
    if isinstance(positions, str):
        return [] if positions in ("all", "last") else [positions]
    if not positions:
        raise ValueError("positions is empty: expected 'all', 'last' or names of roles")
    return list(positions)


def _sites(model: HookedTransformer, sites: SiteFilter) -> list[Site]:
    """The sites in forward order. Raises ValueError where one has no row per position."""
    if getattr(model, "encoder", None) is not None:
        raise ValueError("an encoder–decoder reads two texts: harvest model.encoder")
    if model.fwd_hooks:
        raise HarvestError(
            "a harvest needs a model without hooks: after a restart nobody can tell whether they "
            "are the same"
        )
    chosen = [model.sites[name] for name in model.sites.select(sites)]
    for site in chosen:
        if site.axes[:2] != ("batch", "pos") or "k_pos" in site.axes:
            raise ValueError(
                f"{site.name!r} is {' '.join(site.axes)}: only sites of one vector per position "
                "(batch pos …) can be harvested"
            )
    return chosen


def _stop(model: HookedTransformer, sites: Sequence[Site]) -> int | None:
    """Behind which layer nothing is needed; None: all is."""
    names = model.sites.names
    last = max(names.index(site.name) for site in sites)
    layers = [site.layer for site in list(model.sites)[: last + 1] if site.layer is not None]
    outside_the_blocks = model.sites[names[last]].layer is None and layers
    return None if outside_the_blocks or model.opaque else max(layers, default=0) + 1


def _model_facts(model: HookedTransformer) -> dict[str, Any]:
    """All of the model and machine that a number depends on."""
    return {
        **machine_facts(model.device, model.dtype),
        "model": model.name,
        "config": digest(model.cfg.to_dict()),
        "n_layers": model.sites.n_layers,
        "weights": weights_hash(model)[:SIZE],
        "tokenizer": None if model.tokenizer is None else model.tokenizer.hash[:SIZE],
    }


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
    return found


@contextmanager
def _in_background() -> Iterator[ThreadPoolExecutor]:
    """A thread beside; what has not begun when something goes wrong is not begun."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, made in a thread beside while earlier ones are used."""
    iterator, end = iter(items), object()
    with _in_background() as pool:
        waiting = deque(pool.submit(next, iterator, end) for _ in range(AHEAD))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, iterator, end))
            yield item
