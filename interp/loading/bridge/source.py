"""From a name to a Hugging Face model: safetensors only, and no code of a folder."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import torch
from torch import nn

from interp.core.config import ConfigError
from interp.core.files.untrusted import refuse_code
from interp.core.tokenizer import Tokenizer

from ..files import Source, config_values, locate, weight_entries
from ..theirs import described_quantization, their_config

QUANTIZATIONS = ("int8", "nf4")


def from_name(
    name: Any,
    device: torch.device,
    dtype: torch.dtype | None,
    quantization: str | None,
) -> tuple[nn.Module, Tokenizer | None, Source]:
    """The library's model of a folder or hub id, ready to be bridged.

    Everything that can refuse a model does so before its weights are read.
    """
    source = locate(name)
    where, values = f"{source.folder / 'config.json'}", config_values(source)
    refuse_code(values, where)
    if values.get("model_type") == "interp":
        raise ConfigError(f"{where}: this model is one of ours; open it by interp.load({name!r})")
    options = _options(values, where, device, quantization)
    architecture = known_architecture(values, where)
    config = their_config(values, where)
    stored = described_quantization(values, where)
    if stored is not None:
        config.quantization_config = stored
    weight_entries(source)  # safetensors, complete and sound
    import transformers  # takes seconds

    maker = getattr(transformers, architecture, None)
    if maker is None:
        raise ConfigError(f"{where}: the installed transformers has no class {architecture!r}")
    try:
        model = maker.from_pretrained(
            str(source.folder),
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            attn_implementation="eager",
            dtype="auto" if dtype is None else dtype,
            **options,
        )
    except (OSError, RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f"{source.folder}: transformers could not load it ({error})") from error
    if not options and "quantization_config" not in values:
        model = model.to(device)
    return model.eval(), Tokenizer.from_folder(source.folder, source.name), source


def known_architecture(values: dict[str, Any], where: str) -> str:
    """The class that a config names, if TransformerLens has an adapter for it."""
    named = values.get("architectures")
    named = named if isinstance(named, list) else []
    named = [one for one in named if isinstance(one, str)]
    if not named:
        raise ConfigError(
            f"{where}: 'architectures' names no class, so nobody can tell which head the weights "
            "have; pass the Hugging Face model itself in place of its name"
        )
    check_architecture(named[0], where)
    return named[0]


def check_architecture(architecture: str, where: str) -> None:
    """Raise ConfigError, with near names, on a class that TransformerLens does not bridge."""
    from transformer_lens.factories.architecture_adapter_factory import (  # takes seconds
        ArchitectureAdapterFactory as Factory,
    )

    if architecture not in Factory._adapters:
        near = difflib.get_close_matches(architecture, Factory._adapters, n=3, cutoff=0.5)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise ConfigError(
            f"{where}: architecture {architecture!r:.80} is known neither to interp nor to "
            f"TransformerLens{hint}"
        )


def _options(
    values: dict[str, Any], where: str, device: torch.device, quantization: str | None
) -> dict[str, Any]:
    """What from_pretrained needs for quantised weights; raises before anything is read."""
    stored = values.get("quantization_config")
    if quantization is None and stored is None:
        return {}
    if quantization is not None and quantization not in QUANTIZATIONS:
        allowed = ", ".join(map(repr, QUANTIZATIONS))
        raise ValueError(f"quantization={quantization!r}: expected {allowed} or None")
    if stored is not None and quantization is not None:
        raise ValueError(
            f"{where}: its weights are quantised already (quantization_config); leave out "
            f"quantization={quantization!r}"
        )
    if device.type != "cuda":
        raise ValueError(
            f"quantised weights need CUDA (bitsandbytes computes them there), and device is "
            f"{str(device)!r}; open the model without quantization="
        )
    if quantization is None:
        return {"device_map": {"": device}}
    try:
        importlib.import_module("bitsandbytes")  # an extra that few need
    except ImportError as error:
        raise ValueError(
            f"quantization={quantization!r} needs bitsandbytes, which cannot be imported "
            f'({error}); run: pip install "interp[quantised]"'
        ) from None
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    return {"quantization_config": config, "device_map": {"": device}}
