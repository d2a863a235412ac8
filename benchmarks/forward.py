"""What a run costs beside Hugging Face's fused forward and TransformerLens, in one process.

    python benchmarks/forward.py --peers hf,transformer_lens [--threads N] [--only SECTION]

Prints a Markdown table: medians over interleaved rounds of the ratio, the middle half of the rounds
in brackets, and the goal of the project beside each number. Random weights, the same for all.
"""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
import tyro
from measure import DevicePeak, Ratio, interleaved, machine, ratio, stored_bytes
from memory import AS_HELD, WITH_HOLES, in_a_process
from peers import MODELS, HuggingFace, Interp, TransformerLens
from torch import Tensor

import interp

SHAPES = {"8 × 64": (8, 64), "1 × 256": (1, 256)}
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}


@dataclass(frozen=True)
class Config:
    """How long to measure, and what."""

    peers: str = "hf,transformer_lens"
    """Beside whom, by commas; hf is the base of every ratio and always runs."""
    threads: int | None = None
    """Threads of torch; by default what torch takes."""
    runs: int = 15
    """Rounds of one measurement."""
    seconds: float = 45.0
    """A measurement ends after this time, once it has five rounds."""
    only: str | None = None
    """One section: forward-gpt2, forward-llama, launch-bound, generation-gpt2, generation-llama,
    memory, start or cuda."""


class Row(NamedTuple):
    """One line of the table; numbers are ratios to the base where no unit stands beside them."""

    model: str
    batch: str
    what: str
    ours: Ratio | str
    goal: float
    lens: Ratio | str
    base: str


class Bench:
    """One random model in the hands of every contestant."""

    def __init__(self, name: str, config: Config, folder: Path, device: str = "cpu") -> None:
        self.name, self.config, self.device = name, config, device
        model = MODELS[name]().to(DTYPE[device])
        self.folder = folder / name
        model.save_pretrained(self.folder)
        self._model = model.to(device)
        self.hf = HuggingFace(self._model)
        self.ours = Interp(self.folder, device=device, dtype=DTYPE[device])

    @cached_property
    def lens(self) -> TransformerLens | None:
        """The bridge, around a copy; None where nobody asked for it."""
        if "transformer_lens" not in self.config.peers.split(","):
            return None
        return TransformerLens(copy.deepcopy(self._model))

    def ids(self, shape: tuple[int, int]) -> Tensor:
        """Random ids, on which all are first made to agree."""
        n_vocab = self._model.config.vocab_size
        ids = torch.randint(0, n_vocab, shape, generator=torch.Generator().manual_seed(0))
        ids = ids.to(self.device)
        reference, tolerance = self.hf.plain(ids), 1e-3 if self.device == "cpu" else 0.1
        for contestant in filter(None, (self.ours, self.lens)):
            off = (contestant.plain(ids) - reference).abs().max() / reference.abs().max()
            if not off < tolerance:
                raise RuntimeError(f"{contestant} computes another model: off by {off:.1e}")
        return ids

    def rows(self, batch: str, base: Callable[[], object], verbs: dict[str, Verb]) -> Iterator[Row]:
        """One row per verb, all measured in the same rounds."""
        contestants: dict[str, Callable[[], object]] = {"base": base}
        for what, verb in verbs.items():
            contestants[f"ours {what}"] = partial(verb.run, self.ours)
            if self.lens is not None:
                contestants[f"lens {what}"] = partial(verb.run, self.lens)
        times = interleaved(contestants, runs=self.config.runs, seconds=self.config.seconds)
        ratios = {name: ratio(spent, times["base"]) for name, spent in times.items()}
        took = f"{1e3 * sorted(times['base'])[len(times['base']) // 2]:.1f} ms"
        for what, verb in verbs.items():
            lens = ratios.get(f"lens {what}", "–")
            yield Row(self.name, batch, what, ratios[f"ours {what}"], verb.goal, lens, took)


class Verb(NamedTuple):
    """What a contestant is asked to do, and what the ratio should be."""

    run: Callable[[Any], object]
    goal: float


def forward_verbs(ids: Tensor, goals: tuple[float, float, float, float]) -> dict[str, Verb]:
    """The four ways to run forward once."""
    plain, hook, residual, everything = goals
    return {
        "plain": Verb(lambda peer: peer.plain(ids), plain),
        "one hook": Verb(lambda peer: peer.one_hook(ids), hook),
        "resid_post cached": Verb(lambda peer: peer.cached(ids, "resid_post"), residual),
        "everything cached": Verb(lambda peer: peer.cached(ids), everything),
    }


def forward(config: Config, folder: Path, model: str) -> Iterator[Row]:
    """Plain, one hook, some and all activations kept."""
    bench = Bench(model, config, folder)
    for batch, shape in SHAPES.items():
        ids = bench.ids(shape)
        base = partial(bench.hf.plain, ids)
        yield from bench.rows(batch, base, forward_verbs(ids, (1.00, 1.01, 1.02, 1.10)))


def launch_bound(config: Config, folder: Path) -> Iterator[Row]:
    """A model so narrow that the calls cost more than the arithmetic."""
    config = Config(**{**vars(config), "runs": 20 * config.runs})
    bench = Bench("launch-bound", config, folder)
    ids = bench.ids((1, 8))
    verbs = forward_verbs(ids, (0.6, 0.6, 0.6, 1.5))
    chosen = {what: verbs[what] for what in ("plain", "everything cached")}
    yield from bench.rows("1 × 8", partial(bench.hf.plain, ids), chosen)


def generation(config: Config, folder: Path, model: str) -> Iterator[Row]:
    """64 tokens from 16, greedy, with the key-value cache."""
    bench = Bench(model, config, folder)
    ids = bench.ids((1, 16))
    for contestant in filter(None, (bench.ours, bench.lens)):
        if contestant.generate(ids).tolist() != bench.hf.generate(ids).tolist():
            raise RuntimeError(f"{contestant} generates other tokens than Hugging Face")
    verbs = {
        "generate 64": Verb(lambda peer: peer.generate(ids), 0.92),
        "generate 64, twelve z hooks": Verb(lambda peer: peer.generate_hooked(ids), 0.97),
    }
    yield from bench.rows("1 × 16", partial(bench.hf.generate, ids), verbs)


ALLOCATORS = {
    "peak / kept, all cached": AS_HELD,
    "the same, with the holes that glibc keeps": WITH_HOLES,
}


def memory(config: Config, folder: Path) -> Iterator[Row]:
    """The peak of caching everything over what is kept, as held and as glibc leaves it resident."""
    shape = (8, 64)
    peers = ["interp", *({"transformer_lens"} & set(config.peers.split(",")))]
    for name in ("GPT-2 small", "Llama, grouped-query"):
        MODELS[name]().save_pretrained(folder / name)
        for what, environment in ALLOCATORS.items():
            cells = {
                peer: memory_cell(**in_a_process(folder / name, peer, shape, environment))
                for peer in peers
            }
            lens = cells.get("transformer_lens", "–")
            yield Row(name, "8 × 64", what, cells["interp"], 1.1, lens, "–")


def memory_cell(peak: int, kept: int) -> str:
    return f"{peak / kept:.2f} ({peak / 1e6:.0f} / {kept / 1e6:.0f} MB)"


def start(config: Config, folder: Path) -> Iterator[Row]:
    """`import interp` in fresh processes, and loading 500 MB beside reading them."""
    run = partial(subprocess.run, check=True)
    times = interleaved(
        {
            "python": partial(run, [sys.executable, "-c", "pass"]),
            "ours": partial(run, [sys.executable, "-c", "import interp"]),
        },
        runs=config.runs,
        seconds=config.seconds,
    )
    pairs = zip(times["ours"], times["python"], strict=True)
    extra = sorted(ours - python for ours, python in pairs)
    took = f"{extra[len(extra) // 2]:.3f} s"
    yield Row("–", "–", "import interp, on top of Python", took, 0.15, "–", "–")

    name = "GPT-2 small"
    MODELS[name]().save_pretrained(folder / name)
    weights = folder / name / "model.safetensors"
    times = interleaved(
        {
            "base": weights.read_bytes,
            "ours": partial(interp.load, folder / name, device="cpu"),
        },
        runs=config.runs,
        seconds=config.seconds,
    )
    size = f"{weights.stat().st_size / 1e6:.0f} MB"
    what = "interp.load / reading the file"
    yield Row(name, size, what, ratio(times["ours"], times["base"]), 1.3, "–", "–")


def cuda(config: Config, folder: Path) -> Iterator[Row]:
    """bfloat16 on a GPU: time, and the peak of caching everything over what is kept."""
    if not torch.cuda.is_available():
        logging.warning("cuda: there is no CUDA device; section left out")
        return
    bench = Bench("GPT-2 small", config, folder, device="cuda")
    for batch, shape, plain in (("8 × 64", (8, 64), 1.05), ("8 × 1024", (8, 1024), 1.02)):
        ids = bench.ids(shape)
        verbs = forward_verbs(ids, (plain, plain, plain, 1.5))
        chosen = {what: verbs[what] for what in ("plain", "everything cached")}
        rows = bench.rows(f"{batch}, cuda bf16", partial(bench.hf.plain, ids), chosen)
        yield from rows
        yield cuda_memory(bench, f"{batch}, cuda bf16", ids)


def cuda_memory(bench: Bench, batch: str, ids: Tensor) -> Row:
    """The allocator's peak over the tensors kept."""
    cells = []
    for peer in (bench.ours, bench.lens):
        if peer is None:
            cells.append("–")
            continue
        with DevicePeak() as peak:
            logits, cache = peer.cached(ids)
        kept = stored_bytes([logits, *cache.values()])
        cells.append(memory_cell(peak.bytes, kept))
        del logits, cache
    ours, lens = cells
    return Row(bench.name, batch, "peak / kept, all cached", ours, 1.1, lens, "–")


SECTIONS: dict[str, Callable[[Config, Path], Iterator[Row]]] = {
    "forward-gpt2": partial(forward, model="GPT-2 small"),
    "forward-llama": partial(forward, model="Llama, grouped-query"),
    "launch-bound": launch_bound,
    "generation-gpt2": partial(generation, model="GPT-2 small"),
    "generation-llama": partial(generation, model="Llama, grouped-query"),
    "memory": memory,
    "start": start,
    "cuda": cuda,
}


def write_row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def main(config: Config) -> None:
    """Runs the sections and prints the table as it comes."""
    if config.only is not None and config.only not in SECTIONS:
        raise SystemExit(f"--only {config.only}: expected one of {', '.join(SECTIONS)}")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"{machine()}, transformers {transformers.__version__}\n")
    write_row("model", "batch", "what", "interp", "goal ≤", "transformer_lens", "hf")
    write_row(*["---"] * 7)
    chosen = SECTIONS if config.only is None else {config.only: SECTIONS[config.only]}
    for section in chosen.values():
        with tempfile.TemporaryDirectory() as folder:
            for row in section(config, Path(folder)):
                write_row(*row)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
