"""interp: a hooked transformer and the analyses that run on it.

Names and modules are imported when first used; `import interp` computes nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from .core.version import __version__

# Fresh memory is most of what it costs to keep all activations of a run. torch asks Linux for it in
# large pages if it is told so before its first large tensor; 0 leaves that as it was.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_HOMES = {
    "ActivationCache": "interp.core.tap",
    "Direction": "interp.methods.directions",
    "FactoredMatrix": "interp.model",
    "HookedTransformer": "interp.model",
    "LinearProbe": "interp.methods.probes",
    "LinearProbeRegressor": "interp.methods.probes",
    "Tokens": "interp.core.tokens",
    "TransformerConfig": "interp.core.config",
    "TunedLens": "interp.methods.lens",
    "ablate": "interp.sweeps.engine",
    "attention": "interp.report.notebook",
    "causal_check": "interp.methods.steering",
    "causal_trace": "interp.methods.tracing",
    "convert": "interp.loading.convert.checkpoint",
    "doctor": "interp.loading.checkup",
    "embedding": "interp.methods.geometry",
    "explain": "interp.sweeps.engine",
    "fit_eraser": "interp.methods.erasure",
    "fit_tuned_lens": "interp.methods.lens",
    "harvest": "interp.data.harvest",
    "head_roles": "interp.methods.heads",
    "head_scores": "interp.methods.heads",
    "info": "interp.loading.info",
    "load": "interp.loading",
    "logit_attribution": "interp.methods.attribution",
    "logit_lens": "interp.methods.lens",
    "nodes": "interp.sweeps.nodes",
    "num_params": "interp.model",
    "patch": "interp.sweeps.engine",
    "path_patch": "interp.methods.paths",
    "probe_sweep": "interp.methods.probes",
    "save": "interp.loading",
    "sweep": "interp.sweeps.engine",
    "train": "interp.training",
    "unknown_tokens": "interp.core.unknown",
}
"""Public names, and the modules that they live in."""
_MODULES = {
    "ablation": "interp.methods.ablation",
    "attribution": "interp.methods.attribution",
    "basis": "interp.core.basis",
    "chance": "interp.core.chance",
    "concepts": "interp.methods.concepts",
    "config": "interp.core.config",
    "continuations": "interp.methods.continuations",
    "devices": "interp.core.devices",
    "directions": "interp.methods.directions",
    "edits": "interp.sweeps.edits",
    "erasure": "interp.methods.erasure",
    "files": "interp.core.files",
    "finite": "interp.core.finite",
    "geometry": "interp.methods.geometry",
    "heads": "interp.methods.heads",
    "indices": "interp.core.indices",
    "lens": "interp.methods.lens",
    "metrics": "interp.sweeps.metrics",
    "moments": "interp.data.moments",
    "neurons": "interp.methods.neurons",
    "patching": "interp.methods.patching",
    "paths": "interp.methods.paths",
    "precision": "interp.core.precision",
    "probes": "interp.methods.probes",
    "shards": "interp.data.shards",
    "sites": "interp.core.sites",
    "stats": "interp.methods.stats",
    "steering": "interp.methods.steering",
    "tap": "interp.core.tap",
    "tasks": "interp.data.tasks",
    "tokens": "interp.core.tokens",
    "tokenizer": "interp.core.tokenizer",
    "tracing": "interp.methods.tracing",
    "windows": "interp.data.windows",
    "visible": "interp.core.visible",
}
"""Public modules, and where they live; those of `_ROOMS` are rooms of the house themselves."""
_GONE = {
    "analogies": "interp.embedding(model).analogy",
    "axes": "interp.embedding(model).direction",
    "checkup": "interp.doctor",
    "console": "the command `interp`",
    "engine": "interp.sweep, interp.ablate, interp.patch, interp.explain",
    "fingerprint": "from interp.loading import fingerprint",
    "harvesting": "interp.harvest",
    "journal": "interp.sweep(…, journal=path)",
    "naive": 'interp.sweep(…, engine="naive")',
    "provenance": "from interp.report import provenance",
    "removal": "interp.ablation",
    "rerun": 'interp.sweep(…, engine="rerun")',
    "reading": "from interp.data import activations",
    "selection": "interp.nodes",
    "unknown": "interp.unknown_tokens",
    "untrusted": "from interp.core.files import untrusted",
    "vectors": "from interp.core import vectors",
    "writing": "from interp.core.files import writing",
}
"""Modules of earlier versions, and what to write today."""
_ROOMS = ("loading", "model", "report", "training", "zoo")
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from .core import (
        basis,
        chance,
        config,
        devices,
        files,
        finite,
        indices,
        precision,
        sites,
        tap,
        tokenizer,
        tokens,
        visible,
    )
    from .core.config import TransformerConfig
    from .core.tap import ActivationCache
    from .core.tokens import Tokens
    from .core.unknown import unknown_tokens
    from .data import moments, shards, tasks, windows
    from .data.harvest import harvest
    from .loading import load, save
    from .loading.checkup import doctor
    from .loading.convert.checkpoint import convert
    from .loading.info import info
    from .methods import (
        ablation,
        attribution,
        concepts,
        continuations,
        directions,
        erasure,
        geometry,
        heads,
        lens,
        neurons,
        patching,
        paths,
        probes,
        stats,
        steering,
        tracing,
    )
    from .methods.attribution import logit_attribution
    from .methods.directions import Direction
    from .methods.erasure import fit_eraser
    from .methods.geometry import embedding
    from .methods.heads import head_roles, head_scores
    from .methods.lens import TunedLens, fit_tuned_lens, logit_lens
    from .methods.paths import path_patch
    from .methods.probes import LinearProbe, LinearProbeRegressor, probe_sweep
    from .methods.steering import causal_check
    from .methods.tracing import causal_trace
    from .model import FactoredMatrix, HookedTransformer, num_params
    from .report.notebook import attention
    from .sweeps import edits, metrics
    from .sweeps.engine import ablate, explain, patch, sweep
    from .sweeps.nodes import nodes
    from .training import train


def __getattr__(name: str):
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    elif name in _ROOMS:
        value = importlib.import_module(f"interp.{name}")
    else:
        instead = f"; write {_GONE[name]}" if name in _GONE else f"; it has {', '.join(__dir__())}"
        raise AttributeError(f"module 'interp' has no attribute {name!r}{instead}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    public = {*__all__, *_MODULES, *_ROOMS}
    return sorted(public)
