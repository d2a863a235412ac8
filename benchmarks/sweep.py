"""What a sweep costs, as a share of the loop of whole forwards that it stands for.

    python benchmarks/sweep.py [--model gpt2|llama] [--shape 8x16|4x128] [--threads N] [--only i]

Prints a Markdown table. A share is a time over (nodes × one Hugging Face fused forward of the same
batch), the median over interleaved rounds; interp runs the whole sweep, base and clean runs
included, and so does the bound written by hand in plain torch (`by_hand.py`). TransformerLens and
nnsight, to which every node costs a forward, are timed on a seeded sample of the nodes, without
their clean run; nnsight runs several nodes per trace. Before the clock starts all must give the
same values. Peaks are those of a second call in a process of its own, over that of one full
run_with_cache. Random weights. nnsight is no dependency of the project:

    pip install --no-deps --target DIR 'nnsight==0.8.*'    # and PYTHONPATH=DIR
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
import transformers
import tyro
from cases import SHAPES, SWEEPS, Job, sample
from measure import interleaved, machine
from memory import AS_HELD, in_a_process
from peers import MODELS, HuggingFace, Interp
from sweep_peers import PEERS, SweepPeer

NAMES = {"gpt2": "GPT-2 small", "llama": "Llama, grouped-query", "launch-bound": "launch-bound"}
GOALS = {("i", "gpt2", "8x16"): "≤ .050", ("ii", "gpt2", "8x16"): "≤ .145"}
TOLERANCE = {"float32": ("effect", 0.02), "bfloat16": ("value", 0.1)}
"""How far peers may be apart, as a part of the largest: in bfloat16 effects drown in rounding."""
FORWARDS = 4
"""In a row, of which one round takes the mean: one alone is too short to time well."""
ABSENT = "not installed"


@dataclass(frozen=True)
class Config:
    """What to measure, and beside whom."""

    model: Literal["gpt2", "llama", "launch-bound"] = "gpt2"
    """Which random model."""
    shape: Literal["8x16", "4x128"] = "8x16"
    """Batch and positions; sweep v has 8 × 64 and is left out at 4x128 unless it is named."""
    peers: str = "by_hand,transformer_lens,nnsight"
    """Beside whom, by commas."""
    threads: int | None = None
    """Threads of torch; by default what torch takes."""
    runs: int = 3
    """Rounds of one measurement."""
    seconds: float = 900.0
    """A measurement ends after this time, once it has five rounds."""
    only: str | None = None
    """Some sweeps, by commas: i, ii, iii, iv, v or vi."""
    nodes: int | None = None
    """At most so many nodes per sweep, a sample of them; by default all."""
    subset: int = 32
    """Nodes on which TransformerLens and nnsight are timed."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In what."""

    @property
    def sweeps(self) -> list[str]:
        """Those asked for."""
        if self.only is not None:
            return self.only.split(",")
        return [name for name in SWEEPS if SWEEPS[name].shape is None or self.shape == "8x16"]


class Bench:
    """One random model in the hands of every contestant."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        dtype = getattr(torch, config.dtype)
        model = MODELS[NAMES[config.model]]().to(config.device, dtype)
        model.save_pretrained(folder)
        self.n_vocab = model.config.vocab_size
        self.hf = HuggingFace(model)
        self.ours = Interp(folder, device=config.device, dtype=dtype).model
        self._cached: dict[tuple[int, ...], int] = {}
        self.peers: dict[str, SweepPeer | None] = {}
        for name in filter(None, config.peers.split(",")):
            try:
                # The bound reads the weights; the others take the modules apart.
                self.peers[name] = PEERS[name](model if name == "by_hand" else copy.deepcopy(model))
            except ModuleNotFoundError as error:
                if error.name != name:
                    raise
                self.peers[name] = None

    def row(self, name: str) -> list[object]:
        """One line of the table."""
        config = self.config
        job = Job.of(name, SHAPES[config.shape], self.n_vocab, config.device)
        nodes = job.nodes(self.ours, config.nodes)
        frame = job.run(self.ours, nodes)
        subset, apart = sample(nodes, config.subset), [0.0]
        contestants: dict[str, tuple[Callable[[], object], int]] = {
            "forward": (partial(repeated, partial(self.hf.plain, job.corrupted)), FORWARDS),
            "interp": (partial(job.run, self.ours, nodes), len(nodes)),
        }
        for who, peer in self.peers.items():
            if peer is not None and peer.runs(job):
                given = job.nodes(self.ours) if peer.whole else subset
                values = peer.values(job, given).double().tolist()
                apart.append(self.apart(who, frame, given["row"], values))
                contestants[who] = partial(peer.values, job, given), len(given)
        runs = {who: run for who, (run, _) in contestants.items()}
        times = interleaved(runs, runs=config.runs, seconds=config.seconds)
        counts = {who: n for who, (_, n) in contestants.items()}
        shares = {who: share(times[who], n, times["forward"]) for who, n in counts.items()}
        cells = [shares.get(who, ABSENT if peer is None else "–")
                 for who, peer in self.peers.items()]  # fmt: skip
        return [
            f"({name}) {SWEEPS[name].what}", " × ".join(map(str, job.clean.shape)), len(nodes),
            shares["interp"], GOALS.get((name, config.model, config.shape), "–"), *cells,
            f"{frame.attrs['forward_equivalents'] / len(nodes):.3f}", frame.attrs["noop_nodes"],
            self.peak(job), f"{self.off(job, frame, nodes):.0e}", f"{max(apart):.0e}",
            f"{1e3 * statistics.median(times['forward']) / FORWARDS:.1f} ms",
        ]  # fmt: skip

    def apart(self, who: str, frame: pd.DataFrame, row: pd.Series, values: list) -> float:
        """The largest difference of a peer's values; RuntimeError where that is not rounding."""
        both = frame.merge(pd.DataFrame({"row": row, "theirs": values}), on="row")
        column, tolerance = TOLERANCE[self.config.dtype]
        off, most = (both["value"] - both["theirs"]).abs().max(), frame[column].abs().max()
        if not off <= tolerance * most:
            raise RuntimeError(f"{who} is off by {off:.1e}; the largest {column} is {most:.1e}")
        return off

    def off(self, job: Job, frame: pd.DataFrame, nodes: pd.DataFrame) -> float:
        """The largest difference to the naive engine, on eight nodes that have an effect."""
        few = sample(nodes[(frame["effect"] != 0).to_numpy()], 8)
        naive = job.run(self.ours, few, engine="naive", allow_noop=True)
        both = frame.merge(naive[["row", "value"]], on="row", suffixes=("", "_naive"))
        return (both["value"] - both["value_naive"]).abs().max()

    def peak(self, job: Job) -> str:
        """Of the sweep, over that of keeping everything of one run."""
        config, shape = self.config, tuple(job.clean.shape)
        options = ["--device", config.device, "--dtype", config.dtype]
        measured = partial(in_a_process, self.folder, "interp", shape, AS_HELD, *options)
        if shape not in self._cached:
            self._cached[shape] = measured()["peak"]
        most = [] if config.nodes is None else ["--nodes", str(config.nodes)]
        swept, cached = measured("--sweep", job.name, *most)["peak"], self._cached[shape]
        return f"{swept / cached:.1f} ({swept / 1e6:.0f} / {cached / 1e6:.0f} MB)"


def repeated(run: Callable[[], object]) -> None:
    for _ in range(FORWARDS):
        run()


def share(times: list[float], nodes: int, forwards: list[float]) -> str:
    """Time per node in forwards, the median over the rounds."""
    rounds = zip(times, forwards, strict=True)
    return f"{statistics.median(t / nodes / (f / FORWARDS) for t, f in rounds):.3f}"


def write_row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def check_known(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            raise SystemExit(f"{option} {name}: expected one of {', '.join(known)}")


def main(config: Config) -> None:
    """Prints the table as it comes."""
    check_known("--only", config.sweeps, SWEEPS)
    check_known("--peers", filter(None, config.peers.split(",")), PEERS)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("sweep --device cuda: there is no CUDA device; left out")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"{machine()}; {NAMES[config.model]}, {config.device} {config.dtype}\n")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(config, Path(folder))
        head = ["sweep", "batch", "nodes", "interp", "goal", *bench.peers, "forwards / node",
                "no-op nodes", "peak / cache", "off naive by", "peers by",
                "one forward"]  # fmt: skip
        write_row(*head)
        write_row(*["---"] * len(head))
        for name in config.sweeps:
            write_row(*bench.row(name))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
