"""What analyses cost beside the model: wall time, time inside sweeps and forwards, the rest.

    python benchmarks/analyses.py [--names activation-patching …] [--n 50] [--threads 2]

Each analysis runs at its default settings (but for `n`) on the bundled tinyworld, and with
`n_large` pairs on random weights of the shape of GPT-2 small, which has tinyworld's tokenizer, so
that it reads the same prompts. "Inside" counts preparing and running sweeps, and every forward
outside of them; "outside" is tables, statistics, figures and the report's files.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import tyro
from measure import machine

import interp
from interp.model import HookedTransformer
from interp.sweeps import engine

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Config:
    """What is timed."""

    names: tuple[str, ...] = ("activation-patching",)
    """Analyses of a task, as `interp list` names them."""
    n: int = 50
    """Pairs on tinyworld."""
    n_large: int = 4
    """Pairs on the shape of GPT-2 small; 0: it is left out."""
    threads: int = 2
    """Threads of torch."""


class Clock:
    """Seconds spent inside the model; what is called inside something counted counts once."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def timed(self, fn: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            started = time.perf_counter()
            try:
                return fn(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.perf_counter() - started

        return run

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for owner, name in ((engine, "_prepared"), (engine, "_run"),
                                (HookedTransformer, "_run")):  # fmt: skip
                timed = self.timed(getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, timed))
            yield


def gpt2_shape(tokenizer: Any) -> HookedTransformer:
    """Random weights of the shape of GPT-2 small."""
    cfg = interp.TransformerConfig(
        n_layers=12, d_model=768, n_heads=12, d_mlp=3072, d_vocab=50257, n_ctx=1024,
        activation="gelu_tanh", tied=True,
    )  # fmt: skip
    return HookedTransformer(cfg, tokenizer, name="random GPT-2 small", device="cpu")


def measured(name: str, model: Any, n: int) -> str:
    """One line of the table."""
    module, clock = importlib.import_module("analyses").load(name), Clock()
    config = dataclasses.replace(module.Config(), n=n)
    with tempfile.TemporaryDirectory() as folder, clock.watching():
        started = time.perf_counter()
        report = module.run(model, config)
        ran = time.perf_counter() - started
        report.write(Path(folder) / "report")
        whole = time.perf_counter() - started
    outside = whole - clock.seconds
    return (
        f"| {name} | {model.name} | {n} | {whole:.1f} | {clock.seconds:.1f} | "
        f"{outside:.1f} ({outside / whole:.0%}) | {ran / clock.seconds:.2f} | "
        f"{whole / clock.seconds:.2f} |"
    )


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    print(machine())
    print(
        "| analysis | model | pairs | wall s | inside s | outside s | run ÷ inside | all ÷ inside |"
    )
    print("|---|---|---|---|---|---|---|---|")
    small = interp.load("tinyworld", device="cpu")
    models = [(small, config.n)]
    if config.n_large:
        models.append((gpt2_shape(small.tokenizer), config.n_large))
    for name in config.names:
        for model, n in models:
            print(measured(name, model, n), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # this file bears the name of the package of analyses
    main(tyro.cli(Config, description=__doc__))
