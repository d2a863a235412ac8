"""What a sweep costs, as a share of the loop of whole forwards that it stands for.

    python benchmarks/sweep.py [--model gpt2|llama] [--threads N] [--only i]

Prints a Markdown table: share = time of the sweep / (nodes × one Hugging Face fused forward of the
same batch), forward-equivalents per node, and the largest difference to the naive engine on a few
nodes. Random weights.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
import torch
import transformers
import tyro
from measure import HostPeak, interleaved, machine
from peers import MODELS, HuggingFace, Interp

import interp
from interp import Tokens, edits, metrics

NAMES = {"gpt2": "GPT-2 small", "llama": "Llama, grouped-query"}
GOALS = {("i", "gpt2"): "≤ .050", ("ii", "gpt2"): "≤ .145"}


@dataclass(frozen=True)
class Config:
    """What to measure."""

    model: Literal["gpt2", "llama"] = "gpt2"
    """Which random model."""
    threads: int | None = None
    """Threads of torch; by default what torch takes."""
    runs: int = 3
    """Rounds of one measurement."""
    only: str | None = None
    """One sweep: i, ii, iii, iv, v or vi."""


class Sweep(NamedTuple):
    """Nodes at a site, on a batch, under an edit, for a metric."""

    what: str
    shape: tuple[int, int]
    nodes: Callable[[interp.HookedTransformer, Tokens], pd.DataFrame]
    edit: Callable[[Tokens], edits.Edit]
    loss: bool = False


def by(
    site: str, *axes: str, **picked
) -> Callable[[interp.HookedTransformer, Tokens], pd.DataFrame]:
    return lambda model, tokens: interp.nodes(model, site, by=axes, tokens=tokens, **picked)


def outputs(model: interp.HookedTransformer, tokens: Tokens) -> pd.DataFrame:
    frames = [by(site, "layer", "pos")(model, tokens) for site in ("hook_attn_out", "hook_mlp_out")]
    both = pd.concat(frames, ignore_index=True)
    return both.assign(row=range(len(both)))


def zero(clean: Tokens) -> edits.Edit:
    return edits.zero()


SWEEPS = {
    "i": Sweep("resid_pre, layer × pos", (8, 16), by("resid_pre", "layer", "pos"), edits.patch),
    "ii": Sweep("z of all heads", (8, 16), by("z", "layer", "head"), edits.patch),
    "iii": Sweep("z, heads × position", (8, 16), by("z", "layer", "head", "pos"), edits.patch),
    "iv": Sweep("attn_out and mlp_out, layer × position", (8, 16), outputs, edits.patch),
    "v": Sweep("zero z of all heads, loss", (8, 64), by("z", "layer", "head"), zero, loss=True),
    "vi": Sweep("3,072 or fewer neurons of layer 5", (8, 16),
                by("mlp.hook_post", "layer", "neuron", layers=[5]), edits.patch),
}  # fmt: skip


def measure(name: str, config: Config, hf: HuggingFace, model: interp.HookedTransformer) -> str:
    """One row of the table."""
    sweep = SWEEPS[name]
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, model.cfg.d_vocab, sweep.shape, generator=generator)
    corrupted = clean.clone()
    where = sweep.shape[1] * 9 // 16  # the first position that differs
    corrupted[:, where] = (clean[:, where] + 1) % model.cfg.d_vocab
    tokens = Tokens.of(corrupted)
    answer = torch.arange(sweep.shape[0])
    metric = metrics.loss() if sweep.loss else metrics.logit_diff(answer, answer + 1)
    nodes, edit = sweep.nodes(model, tokens), sweep.edit(Tokens.of(clean))
    options = {"edit": edit, "metric": metric, "progress": False}
    times = interleaved(
        {
            "forward": lambda: hf.plain(corrupted),
            "sweep": lambda: interp.sweep(model, tokens, nodes, **options),
        },
        runs=config.runs,
        seconds=300,
    )
    with HostPeak() as peak:
        frame = interp.sweep(model, tokens, nodes, **options)
    with HostPeak() as cached:
        model.run_with_cache(tokens)
    few = nodes[nodes["row"] % max(1, len(nodes) // 7) == 0]
    naive = interp.sweep(model, tokens, few, engine="naive", **(options | {"allow_noop": True}))
    off = (frame.set_index("row")["value"].loc[few["row"]].to_numpy() - naive["value"]).abs().max()
    per_node = [s / f / len(nodes) for s, f in zip(times["sweep"], times["forward"], strict=True)]
    cells = (
        f"({name}) {sweep.what}", len(nodes), f"{statistics.median(per_node):.3f}",
        GOALS.get((name, config.model), "–"),
        f"{frame.attrs['forward_equivalents'] / len(nodes):.3f}", frame.attrs["noop_nodes"],
        f"{peak.bytes / max(1, cached.bytes):.1f}", f"{off:.0e}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main(config: Config) -> None:
    """Prints the table as it comes."""
    if config.only is not None and config.only not in SWEEPS:
        raise SystemExit(f"--only {config.only}: expected one of {', '.join(SWEEPS)}")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"{machine()}; {NAMES[config.model]}\n")
    print(
        "| sweep | nodes | share | goal | forwards / node | no-op nodes | peak / cache | off by |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        model = MODELS[NAMES[config.model]]()
        model.save_pretrained(folder)
        hf, ours = HuggingFace(model), Interp(Path(folder), device="cpu").model
        for name in SWEEPS if config.only is None else [config.only]:
            print(measure(name, config, hf, ours), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
