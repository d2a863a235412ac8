"""Where a result comes from: command, config, code, packages, machine and model."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from interp.core.precision import dtype_name, in_words
from interp.core.version import __version__
from interp.loading import weights_hash

PACKAGES = (
    *("torch", "numpy", "pandas", "scipy", "scikit-learn", "matplotlib", "seaborn", "tokenizers"),
    *("transformers", "transformer-lens", "safetensors", "jinja2", "tyro"),
)
"""Those that can move a number or a page."""
CODE = Path(__file__).resolve().parents[1]


def provenance(config: Any = None, model: Any = None) -> dict[str, Any]:
    """What made this run, as plain data. Facts that cannot be had are None."""
    device, dtype = (getattr(model, name, None) for name in ("device", "dtype"))
    return {
        "command": command(sys.argv),
        "config": plain(config),
        "seed": getattr(config, "seed", None),
        "model": model_facts(model),
        "device": None if device is None else str(device),
        "dtype": None if dtype is None else dtype_name(dtype),
        "precision": _precision(model, device, dtype),
        "threads": torch.get_num_threads(),
        "git": git_state(CODE),
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _precision(model: Any, device: Any, dtype: torch.dtype | None) -> str | None:
    source = getattr(model, "source", None) or {}
    computed = None if dtype is None else dtype_name(dtype)
    return in_words(computed, source.get("dtype"), None if device is None else str(device))


def model_facts(model: Any) -> dict[str, Any] | None:
    """Name, source and hashes of a model and its tokenizer."""
    if model is None:
        return None
    tokenizer = getattr(model, "tokenizer", None)
    return {
        "name": getattr(model, "name", None),
        "source": plain(getattr(model, "source", None)),
        "weights_hash": weights_hash(model) if hasattr(model, "state_dict") else None,
        "tokenizer": getattr(tokenizer, "name", None),
        "tokenizer_hash": getattr(tokenizer, "hash", None),
    }


def plain(value: Any) -> Any:
    """A config as JSON holds it: dataclasses become objects, paths and the like their text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, Path):
        return value.as_posix()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def command(argv: list[str]) -> str:
    """The command line without the folders in front of its program."""
    program = Path(argv[0])
    name = program.name
    if (program.parent / "__init__.py").is_file():
        module = program.parent.name
        name = f"python -m {module}" + f".{program.stem}" * (program.stem != "__main__")
    return " ".join([name, shlex.join(argv[1:])]).strip()


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, and whether files differ from it; None where git does not track the code."""
    # An installed copy can lie inside somebody else's repository, whose commit says nothing.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", ".")
    return None if commit is None else {"commit": commit, "changed": bool(changes)}


def package_versions() -> dict[str, str]:
    """The versions of this package and of those it stands on."""
    versions = {"interp": __version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
