"""What lies in a model's folder beside config.json and the weights.

What would change what the model computes is read, or the model is refused; all else is listed, so
that nobody takes it for read.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from interp.core.config import ConfigError
from interp.core.files.untrusted import read_json
from interp.core.tokenizer import TOKENIZER_FILES

GENERATION = "generation_config.json"
ADAPTERS = ("adapter_config.json", "adapter_model.*")
QUANTIZED = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""GPTQ, AWQ and NVIDIA's ModelOpt say here, and not always in config.json, what they did."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
READ = ("config.json", GENERATION, SINGLE, INDEX)
SHARDS = "model-*-of-*.safetensors"
WITHOUT_EFFECT = (
    *("*.md", "*.txt", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.pdf", "*.csv", "*.html"),
    *("LICENSE*", "NOTICE*", "USE_POLICY*", ".*", "card.json", "*.log"),
)
"""Words and pictures about a model."""


def refuse_changing(folder: Path) -> None:
    """Raise ConfigError where the folder holds what would make another model of its weights."""
    for name in _names(folder):
        if _is_any(name, ADAPTERS):
            raise ConfigError(
                f"{folder / name}: a PEFT adapter lies beside the weights and would change what "
                "they compute; merge it into them (peft: merge_and_unload, then save_pretrained), "
                "or take its files out of the folder to open the model without it"
            )
        if _is_any(name, QUANTIZED):
            raise ConfigError(
                f"{folder / name}: says that the weights are quantized, which is not supported; "
                "use the unquantized checkpoint (float16, bfloat16, float32, float64)"
            )


def refuse_two_sets(folder: Path, indexed: set[str] | None) -> None:
    """Raise ConfigError where the folder holds two sets of weights.

    `indexed`: the files that an index names, where the folder has one.
    """
    sets = {name for name in _names(folder) if name == SINGLE or fnmatchcase(name, SHARDS)}
    if indexed is not None and not sets <= indexed:
        known, other = f"those that {INDEX} names", sets - indexed
    elif indexed is None and SINGLE in sets and len(sets) > 1:
        known, other = SINGLE, sets - {SINGLE}
    else:
        return
    names = ", ".join(sorted(other)[:3])
    raise ConfigError(
        f"{folder}: two sets of weights, {known} and {names}; take one of them out of the folder"
    )


def unread(folder: Path) -> list[str]:
    """Files of the folder that are not read, and are no words or pictures about the model."""
    read = (*READ, SHARDS, *TOKENIZER_FILES, *WITHOUT_EFFECT)
    return [name for name in _names(folder) if not _is_any(name, read)]


def end_ids(values: Mapping[str, Any], folder: Path, d_vocab: int) -> tuple[int, ...]:
    """Every end token that config.json (`values`) and generation_config.json name.

    An id past the vocabulary is left out: no model predicts it. Raises ConfigError on anything but
    an id or a list of ids.
    """
    nested = values.get("text_config")
    stated = {str(folder / "config.json"): [values.get("eos_token_id")]}
    if isinstance(nested, dict):
        stated[str(folder / "config.json")].append(nested.get("eos_token_id"))
    file = folder / GENERATION
    if file.is_file():
        stated[str(file)] = [read_json(file).get("eos_token_id")]
    ids = {i for where, fields in stated.items() for field in fields for i in _ids(field, where)}
    return tuple(sorted(i for i in ids if 0 <= i < d_vocab))


def _ids(value: Any, where: str) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ConfigError(f"{where}: eos_token_id={value!r:.80}: expected an id, or a list of ids")
    return ids


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def _is_any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)
