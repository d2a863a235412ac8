"""How fast activations are harvested, beside the plain forward of the same batches.

    python benchmarks/harvest.py [--model launch-bound] [--batches 16] [--device cuda] [--threads N]

Prints a Markdown table: tokens per second of a harvest over those of the forward, medians over
interleaved rounds, the middle half in brackets. "from one batch on" leaves out what a call costs
whatever the length of the text (the hash of the weights, the manifest, the last shard's flush).
`stopped` is the forward that ends where the last site lies, without logits: the stricter base.
Random weights and ids; the folder lies where temporary files do.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import torch
import tyro
from measure import Ratio, interleaved, machine, ratio
from peers import MODELS

import interp
from interp.data.harvest import harvest


@dataclass(frozen=True)
class Config:
    """What to measure."""

    model: str = "GPT-2 small"
    """Which random model of `peers.MODELS`."""
    batches: int = 16
    """Batches of one harvest."""
    batch_size: int = 8
    """Windows of a batch."""
    width: int = 64
    """Tokens of a window."""
    device: str = "cpu"
    """Where."""
    dtype: str = "float32"
    """In what the model runs; activations are stored in float16."""
    threads: int | None = None
    """Threads of torch; by default what torch takes."""
    runs: int = 7
    """Rounds."""
    seconds: float = 120.0
    """A measurement ends after this time, once it has five rounds."""


SITES = {"one layer": ("resid_post", 6), "all resid_post": "resid_post"}
GOAL = 0.9


class Bench:
    """One model, its batches, and the ways to run them."""

    def __init__(self, config: Config, folder: Path) -> None:
        MODELS[config.model]().save_pretrained(folder / "model")
        self.config, self.folder, self._number = config, folder, count()
        self.model = interp.load(folder / "model", device=config.device, dtype=config.dtype)
        shape = (config.batches * config.batch_size, config.width)
        self.ids = torch.randint(
            0, self.model.cfg.d_vocab, shape, generator=torch.Generator().manual_seed(0)
        )

    @torch.no_grad()
    def forward(self, batches: int, stop: int | None = None) -> None:
        size = self.config.batch_size
        for part in self.ids[: batches * size].split(size):
            self.model(part, stop_at_layer=stop)

    def harvest(self, batches: int, sites: object) -> None:
        folder = self.folder / f"harvest-{next(self._number)}"
        size = self.config.batch_size
        harvest(self.model, self.ids[: batches * size], sites, folder, batch_size=size,
                progress=False)  # fmt: skip
        shutil.rmtree(folder)

    def rows(self, sites: object) -> dict[str, tuple[Ratio, Ratio]]:
        """Base → the ratio of whole calls, and of what lies past the first batch."""
        layers = [site.layer for site in map(self.model.sites.__getitem__,
                                             self.model.sites.select(sites))]  # fmt: skip
        bases = {"forward": None, "stopped": max(layer or 0 for layer in layers) + 1}
        ways: dict[str, Callable[[int], None]] = {
            "harvest": partial(self.harvest, sites=sites),
            **{name: partial(self.forward, stop=stop) for name, stop in bases.items()},
        }
        times = interleaved(
            {f"{name} {n}": partial(way, n) for name, way in ways.items()
             for n in (1, self.config.batches)},
            runs=self.config.runs, seconds=self.config.seconds,
        )  # fmt: skip
        whole = {name: times[f"{name} {self.config.batches}"] for name in ways}
        past = {
            name: [a - b for a, b in zip(whole[name], times[f"{name} 1"], strict=True)]
            for name in ways
        }
        return {
            base: (ratio(whole[base], whole["harvest"]), ratio(past[base], past["harvest"]))
            for base in bases
        }


def main(config: Config) -> None:
    """Prints the table as it comes."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    print(f"{machine()}, {config.model}, {config.batches} × {config.batch_size} × {config.width}\n")
    print("| sites | base | whole call | from one batch on | goal ≥ |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(config, Path(folder))
        for name, sites in SITES.items():
            for base, (whole, past) in bench.rows(sites).items():
                print(f"| {name} | {base} | {whole} | {past} | {GOAL} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
