"""Every public name of the library, found and not listed, so that a new one cannot be forgotten."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator

ROOMS = (
    *("ablation", "activations", "attribution", "baseline", "checkup", "concepts"),
    *("continuations", "directions", "edits"),
    *(
        "engine",
        "erasure",
        "geometry",
        "harvest",
        "heads",
        "lens",
        "loading",
        "metrics",
        "model",
        "moments",
    ),
    *("neurons", "nodes", "notebook", "patching", "paths", "probes", "shards", "steering"),
    *("tap", "tasks", "tokens"),
    *("tracing", "training", "windows"),
)
"""The modules and packages whose public names meet a model's tensors."""
ELSEWHERE = {
    "axes": "numpy",
    "basis": "run by project_out",
    "calls": "run by every hook and function of a user",
    "chance": "draws on the CPU by definition: tests/test_chance.py, and test_draws.py here",
    "cli": "the analyses run here by themselves; its options: tests/test_devices.py",
    "config": "no tensors",
    "console": "no tensors",
    "devices": "test_load.py here, and tests/test_devices.py",
    "files": "on the CPU",
    "finite": "run by every verb",
    "fingerprint": "run by journals and harvests",
    "hashing": "run by journals and harvests",
    "indices": "run by every entrance that takes an index",
    "journal": "run by the sweeps here that have one",
    "memory": "run by every sweep",
    "naive": "run by every sweep that asks for it",
    "occurrence": "no tensors",
    "options": "no tensors",
    "precision": "run by every factorisation",
    "progress": "no tensors",
    "prompt_file": "no tensors",
    "provenance": "run by every report",
    "rows": "run by probes.text_examples",
    "report": "tables and pictures: run by every analysis",
    "rerun": "run by every sweep",
    "sites": "no tensors",
    "stats": "numpy",
    "tokenizer": "no tensors",
    "trace_averages": "numpy",
    "unknown": "no tensors",
    "vectors": "run by every edit that is given a value",
    "version": "no tensors",
    "visible": "no tensors",
    "zoo": "models and their data, made on the CPU and moved",
    "__main__": "no tensors",
}
"""The other rooms, and why their names need no case of their own."""
SPECIAL = ("__call__", "__getitem__", "__matmul__", "__rmatmul__")


def homes() -> dict[str, str]:
    """The modules that hold public names, by the last word of their dotted names."""
    dotted = {name: f"interp.{name}" for name in ("cli", "loading", "model", "report", "training")}
    dotted |= {"zoo": "interp.zoo", "__main__": "interp.__main__"}
    dotted |= {name: f"interp.loading.{name}" for name in ("checkup", "fingerprint")}
    dotted |= {name: f"interp.report.{name}" for name in ("notebook", "provenance")}
    for room in ("core", "data", "methods", "sweeps"):
        path = importlib.import_module(f"interp.{room}").__path__
        dotted |= {m.name: f"interp.{room}.{m.name}" for m in pkgutil.iter_modules(path)}
    return dotted


def names(room: str) -> list[str]:
    """What a room offers: its `__all__`, or all that it defines without a leading underscore."""
    module = importlib.import_module(homes()[room])
    defined = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return list(getattr(module, "__all__", defined))


def members(kind: type) -> Iterator[tuple[str, Callable]]:
    """The methods of a class as functions whose first argument is the object, of properties too."""
    for owner in reversed(kind.__mro__):
        if not owner.__module__.startswith("interp"):
            continue
        for name, value in vars(owner).items():
            if name.startswith("_") and name not in SPECIAL:
                continue
            if isinstance(value, property):
                yield name, value.fget
            elif hasattr(value, "func") and type(value).__name__ == "cached_property":
                yield name, value.func
            elif hasattr(value, "fn"):  # scikit-learn's "there if"
                yield name, value.fn
            elif isinstance(value, (classmethod, staticmethod)) or inspect.isfunction(value):
                yield name, getattr(kind, name)


def public() -> dict[str, Callable]:
    """Functions by "room.name", methods by "room.Class.name"."""
    every: dict[str, Callable] = {}
    for room in ROOMS:
        module = importlib.import_module(homes()[room])
        for name in names(room):
            value = getattr(module, name)
            if inspect.isfunction(value):
                every[f"{room}.{name}"] = value
            elif inspect.isclass(value) and not getattr(value, "_is_protocol", False):
                every |= {f"{room}.{name}.{own}": act for own, act in members(value)}
    return every
