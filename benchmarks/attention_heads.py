"""What the attention-head report costs beside its sweeps, in forward passes of the same model.

    python -m benchmarks.attention_heads [--threads 1] [--no-sweeps]

Random weights in the shape of GPT-2 small. Seconds are those of the processor, so that a busy
machine counts for less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import interp
from analyses import attention_heads
from interp import Tokens
from interp.data.tasks import Pairs
from interp.model import HookedTransformer
from interp.report import Report

GPT2 = {"n_layers": 12, "d_model": 768, "n_heads": 12, "d_mlp": 3072, "d_vocab": 50257,
        "n_ctx": 1024, "norm": "layernorm", "positions": "learned", "tied": True}  # fmt: skip
BATCH, POS = 8, 64


class Clock:
    """Processor seconds spent inside some calls; a call within a call counts once."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def around(self, call: Callable) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            started = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.process_time() - started

        return timed


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def copying_pairs(model: HookedTransformer) -> Pairs:
    """Random prompts in which the answer stands once."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 50_000, (BATCH, POS), generator=generator)
    other = ids.clone()
    other[:, 20] = torch.randint(0, 1000, (BATCH,), generator=generator)
    roles = {"name": torch.full((BATCH,), 20), "end": torch.full((BATCH,), POS - 1)}
    clean, corrupted = (Tokens(one, roles=roles, bos=False) for one in (ids, other))
    return Pairs("copying", clean, corrupted, ids[:, 20], other[:, 20])


def heads_report(sweeps: bool) -> None:
    """Prints wall and processor seconds, and the cost beside the sweeps in whole forwards."""
    model = HookedTransformer(interp.TransformerConfig(**GPT2), name="gpt2-shape")
    pairs = copying_pairs(model)
    forward = _seconds_of_a_forward(model, pairs)
    swept, runs = Clock(), Clock()
    ablate = swept.around(attention_heads.ablate if sweeps else _nothing_removed)
    run = runs.around(HookedTransformer._run)
    wall, started = time.perf_counter(), time.process_time()
    with replaced(attention_heads, "ablate", ablate), replaced(HookedTransformer, "_run", run):
        config = attention_heads.Config()
        report = attention_heads.examine(Report("Heads", "What?"), model, pairs, config)
        measured = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            home = report.write(Path(folder) / "r").parent
            files = [path for path in home.rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files)
    spent = time.process_time() - started
    beside = spent - swept.seconds
    print(f"one forward of {BATCH} × {POS}: {forward:.2f} s of the processor")
    print(f"in all: {spent:.1f} s of the processor, {time.perf_counter() - wall:.1f} s by the wall")
    print(f"sweeps: {swept.seconds:.1f} s, {swept.seconds / forward:.1f} forwards' worth")
    print(f"beside the sweeps: {beside:.1f} s, {beside / forward:.1f} forwards' worth (goal ≤ 25)")
    outside = 1 - runs.seconds / spent if not sweeps else 1 - (runs.seconds + swept.seconds) / spent
    print(f"outside the model and the sweeps: {outside:.0%}")
    written = started + spent - measured
    print(f"of it writing {len(files)} files of {size / 1e6:.1f} MB: {written:.1f} s")


def _nothing_removed(model: HookedTransformer, *_: Any, **__: Any) -> pd.DataFrame:
    shape = range(model.cfg.n_layers), range(model.cfg.n_heads)
    index = pd.MultiIndex.from_product(shape, names=["layer", "head"])
    return pd.DataFrame({"effect": 0.0, "stderr": 0.0}, index=index).reset_index()


def _seconds_of_a_forward(model: HookedTransformer, pairs: Pairs) -> float:
    model(pairs.clean)
    times = []
    for _ in range(3):
        started = time.process_time()
        model(pairs.clean)
        times.append(time.process_time() - started)
    return statistics.median(times)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-sweeps", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    heads_report(sweeps=not options.no_sweeps)
