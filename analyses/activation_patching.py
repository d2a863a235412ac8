"""Activation patching: which activations carry the answer — where, in which layers and heads?

Clean values go into the corrupted run (denoising) and corrupted ones into the clean run (noising):
residual stream and sublayer outputs by position, heads by q, k, v, pattern and z, neurons; then the
paths by which the strongest heads speak to the logits and to each other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from analyses import main
from analyses._patching.heads import HeadDress
from analyses._patching.opening import MAPS, Opening
from analyses._task import TABLES as TASK_TABLES
from analyses._task import TaskConfig, task_pairs, task_section
from interp.core.indices import indices
from interp.data.tasks import Pairs
from interp.loading.needs import Needs
from interp.methods.baseline import Baseline, measure_baseline
from interp.methods.patching import (
    EFFECTS,
    OF_HEADS,
    PATHS,
    Effects,
    Study,
    named_heads,
    stacked,
    strongest_heads,
    strongest_paths,
)
from interp.report import Report
from interp.report.provenance import provenance

Part = Literal["stream", "outputs", "heads", "positions", "paths", "control"]
PARTS: tuple[Part, ...] = (
    "stream", "outputs", "heads", "positions", "neurons", "paths", "control",
)  # fmt: skip
OUTPUTS = ("attn_out", "mlp_out")
DRAWN = ("layer", "pos", "share")
NEEDS = Needs(
    text=True, tokenizer=True, wordless=("task", "induction"), logits=True, one_stack=True
)
TABLES = {
    **TASK_TABLES,
    MAPS: ("map", "layer", "column", "share"),
    "residual-stream": ("layer", "pos", "position", *EFFECTS),
    "residual-stream-map": DRAWN,
    "sublayer-outputs": ("site", "layer", "pos", "position", *EFFECTS),
    "attention-output-map": DRAWN,
    "mlp-output-map": DRAWN,
    "heads": ("site", "layer", "head", *EFFECTS),
    "heads-map": ("layer", "head", "share"),
    "heads-by-input": ("head", "part", "share"),
    "ways": ("nodes", "denoise", "noise"),
    "examples": ("layer", "head", "example", "denoise", "noise"),
    "head-positions": ("layer", "head", "pos", "position", *EFFECTS),
    "head-positions-map": ("head", "pos", "share"),
    "neurons": ("layer", "neuron", *EFFECTS),
    "neurons-strongest": ("neuron", "way", "share", "low", "high"),
    "together": ("nodes", "count", *EFFECTS),
    "paths": PATHS,
    "paths-to-logits": ("layer", "head", "share"),
    "paths-to-heads": ("sender", "receiver", "share"),
    "control": ("site", "layer", "pos?", "head?", "effect", "stderr?"),
    "itself": ("site", "layer", "pos?", "head?", "effect"),
}


@dataclass(frozen=True)
class Config(TaskConfig):
    """What is patched, in which model."""

    parts: tuple[Part, ...] = PARTS
    """What is measured: the residual stream, the outputs of attention and MLPs (both by position),
    heads, the strongest heads by position, paths between the strongest heads, control."""
    layers: tuple[int, ...] | None = None
    """Layers that are patched; by default all."""
    heads: tuple[int, ...] | None = None
    """Heads that are patched in each of these layers; by default all."""
    neurons: tuple[int, ...] = ()
    """Layers whose neurons are patched one by one, which takes a node per neuron; by default none.
    """
    top: int = 6
    """Strongest heads that are looked at by position and as ends of paths."""
    least: float = 0.1
    """Share of the gap from which on a head is named."""
    out: Path = Path("reports/activation-patching")
    """Directory of the report; an older report there is replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ValueError(f"parts={self.parts}: expected some of {', '.join(PARTS)}")
        needing = [part for part in ("positions", "paths", "control") if part in self.parts]
        if needing and "heads" not in self.parts:
            raise ValueError(f"parts={self.parts}: {needing[0]} starts from the heads; add heads")
        if self.top < 1:
            raise ValueError(f"top={self.top}: expected at least 1 head")
        if not 0 < self.least < 1:
            raise ValueError(f"least={self.least}: expected a share between 0 and 1")


def run(model: Any, config: Config) -> Report:
    """The report. Raises ValueError on an encoder–decoder, a model without logits, layers or heads
    that the model does not have, and prompts that are no pairs."""
    config = _checked(model, config)
    report = Report(
        f"Activation patching in {model.name}",
        "Which activations carry the answer: at which positions, in which layers, heads and paths?",
        analysis="activation_patching",
        provenance=provenance(config, model),
    )
    pairs = task_pairs(model, config)
    found = measure_baseline(model, pairs)
    task_section(report, model, pairs, found, config)
    examine(report, model, pairs, config, found)
    return report


def examine(
    report: Report, model: Any, pairs: Pairs, config: Config, found: Baseline | None = None
) -> None:
    """Patch these pairs and tell the report; `found` is `measure_baseline` of them."""
    config = _checked(model, config)
    found = measure_baseline(model, pairs) if found is None else found
    study = Study(model, pairs, found, config.journal)
    dress = HeadDress(report, study, config.seed)
    runs = study.runs(_sites(report, study, config))
    heads = _heads(study, config, runs) if "heads" in config.parts else None
    controls = level = None
    if "control" in config.parts and heads is not None:
        controls = _control(study, config, runs, heads)
        level = float(np.abs(controls[0]["effect"]).max())
    named = [] if heads is None else named_heads(study, heads, config.least, level)
    stream = outputs = positions = paths = None
    if "stream" in config.parts:
        stream = _by_position(study, config, runs, "stream", ("resid_pre",))
    if "outputs" in config.parts:
        sites = [site for site in OUTPUTS if site != "mlp_out" or study.has("mlp_out")]
        outputs = _by_position(study, config, runs, "outputs", sites)
    strongest = None if heads is None else strongest_heads(heads, config.top)
    if strongest is not None and "positions" in config.parts:
        positions = _positions(study, runs, strongest)
    if strongest is not None and "paths" in config.parts:
        paths = _paths(report, study, config, strongest)
    drawn = [one for one in (stream, outputs, heads, positions) if one is not None]
    dress.set_scale(drawn, paths, level)
    groups = None if heads is None else _together(study, config, named)
    Opening(dress, stream, heads, named, groups, config.least).write()
    if stream is not None:
        dress.stream(stream)
    if outputs is not None:
        dress.outputs(outputs)
    if heads is not None and strongest is not None:
        dress.heads(heads, named, strongest, config.least, level)
    if groups is not None:
        dress.together(groups)
    if positions is not None:
        dress.positions(positions, named)
    if config.neurons:
        nodes = study.nodes("mlp.hook_post", ("layer", "neuron"), layers=config.neurons)
        dress.neurons(study.both(nodes, name="neurons"))
    dress.paths(paths, config.least)
    if controls is not None:
        dress.control(*controls)
    dress.doubts()


def _checked(model: Any, config: Config) -> Config:
    if model.cfg.encoder is not None:
        raise ValueError(
            f"{model.name} is an encoder–decoder, of whose two stacks these pairs are not; use "
            "interp.patch on the sites of either"
        )
    cfg = model.cfg
    if config.neurons and (not cfg.d_mlp or cfg.n_experts):
        what = "experts, most of which are silent on most tokens" if cfg.d_mlp else "no MLP"
        raise ValueError(f"neurons={config.neurons}: this model has {what}; leave neurons out")
    sizes = {"layers": cfg.n_layers, "heads": cfg.n_heads, "neurons": cfg.n_layers}
    asked = {name: getattr(config, name) for name in sizes}
    chosen = {
        name: tuple(indices(given, sizes[name], name))
        for name, given in asked.items()
        if given is not None and (name != "neurons" or len(given))
    }
    return replace(config, **chosen)


def _sites(report: Report, study: Study, config: Config) -> list[str]:
    """What both runs are read at; says what the model lacks."""
    wanted = {"stream": ("resid_pre",), "outputs": OUTPUTS, "heads": OF_HEADS}
    sites = [site for part, some in wanted.items() if part in config.parts for site in some]
    if "outputs" in config.parts and not study.has("mlp_out"):
        report.skip("This model has no MLP: there are no MLP outputs to patch.")
    if study.has("mlp_out") and not config.neurons and not study.model.cfg.n_experts:
        report.skip("Neurons were not patched one by one; --neurons 0 does those of layer 0.")
    lacking = [site for site in sites if not study.has(site) and site != "mlp_out"]
    if lacking:
        raise ValueError(
            f"{study.model.name} has no site {lacking[0]!r}; leave out the part that needs it "
            f"(parts={config.parts})"
        )
    return [site for site in sites if study.has(site)]


def _by_position(
    study: Study, config: Config, runs: Any, name: str, sites: Iterable[str]
) -> Effects:
    frames = [study.nodes(site, ("layer", "pos"), layers=config.layers) for site in sites]
    return study.both(stacked(frames), runs, name)


def _heads(study: Study, config: Config, runs: Any) -> Effects:
    frames = [
        study.nodes(site, ("layer", "head"), config.heads, layers=config.layers)
        for site in OF_HEADS
    ]
    return study.both(stacked(frames), runs, "heads")


def _positions(study: Study, runs: Any, strongest: pd.DataFrame) -> Effects:
    frames = [
        study.nodes("z", ("layer", "head", "pos"), [int(one.head)], layers=[int(one.layer)])
        for one in strongest.itertuples()
    ]
    return study.both(stacked(frames), runs, "positions")


def _together(study: Study, config: Config, named: list[tuple[int, int]]) -> pd.DataFrame:
    """The named heads, all heads and all MLPs, each patched as one: nodes count and `EFFECTS`."""
    every = study.nodes("z", ("layer", "head"), config.heads, layers=config.layers)
    which = pd.MultiIndex.from_frame(every[["layer", "head"]].astype(int)).isin(named)
    groups = {"named heads": every[which]} if named else {}
    groups["all heads"] = every
    if study.has("mlp_out"):
        groups["all MLPs"] = study.nodes("mlp_out", ("layer",), layers=config.layers)
    return study.together(groups)


def _paths(
    report: Report, study: Study, config: Config, strongest: pd.DataFrame
) -> pd.DataFrame | None:
    """The paths of the strongest heads; says which there are none of."""
    model = study.model
    if model.opaque:
        report.skip(f"Paths are left out: they hold z of a native model ({model.opaque}).")
        return None
    layers = range(model.cfg.n_layers) if config.layers is None else config.layers
    heads = range(model.cfg.n_heads) if config.heads is None else config.heads
    every = [(layer, head) for layer in layers for head in heads]
    chosen = [(int(row.layer), int(row.head)) for row in strongest.itertuples()]
    table = strongest_paths(study, every, chosen)
    if model.cfg.head == "mlm":
        report.skip("Norms are not held before a masked-LM head, which has a norm of its own.")
    if bool((table["to"] == "logits").all()):
        report.skip("The strongest heads lie in one layer, so that none reads another.")
    return table


def _control(
    study: Study, config: Config, runs: Any, heads: Effects
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Effects on words that have nothing to do with the pair, and those of a run on itself."""
    chosen = [study.nodes("z", ("layer", "head"), config.heads, layers=config.layers)]
    if "stream" in config.parts:
        chosen.append(study.nodes("resid_pre", ("layer", "pos"), layers=config.layers))
    chance = study.unrelated_words(stacked(chosen), runs, config.seed)
    best = strongest_heads(heads, 2)
    itself = stacked(
        study.nodes("z", ("layer", "head"), [int(one.head)], layers=[int(one.layer)])
        for one in best.itertuples()
    )
    if "stream" in config.parts:
        first = min(config.layers or (0,))
        itself = stacked([itself, study.nodes("resid_pre", ("layer",), layers=[first])])
    return chance, study.itself(itself)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
