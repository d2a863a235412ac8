"""The families that load, by the `model_type` of their config.json."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from interp.core.config import ConfigError, TransformerConfig

from .encoders import ENCODER_FAMILIES
from .experts import EXPERT_FAMILIES
from .family import Family
from .fields import Fields
from .gpt import GPT_FAMILIES
from .pairs import PAIR_FAMILIES
from .rotary import ROTARY_FAMILIES
from .senses import SENSE_FAMILIES, labels

BRIDGE = "interp.loading.bridge.load(name)"


def read_config(values: dict[str, Any], where: str) -> tuple[Family, TransformerConfig]:
    """The family and architecture that a config.json describes. Raises ConfigError.

    Unknown fields are reported in one logged warning.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ConfigError(f"{where}: {_unsupported(kind)}")
    family, values = _quantized(FAMILIES[kind], values)
    if values.get("quantization_config") is not None:
        raise ConfigError(
            f"{where}: 'quantization_config' (quantised weights) is not supported by interp.load; "
            f"open it by {BRIDGE}"
        )
    fields = Fields(values, where)
    try:
        cfg = family.config(fields)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(where) else f"{where}: {text}") from None
    fields.finish()
    return family, cfg


def _quantized(family: Family, values: dict[str, Any]) -> tuple[Family, dict[str, Any]]:
    """The family as its quantized files have it, where these are of a kind that is read."""
    quantization = values.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if not isinstance(method, str) or method not in family.quantized:
        return family, values
    values = {name: value for name, value in values.items() if name != "quantization_config"}
    return dataclasses.replace(family, rename=family.quantized[method]), values


def _unsupported(kind: object) -> str:
    near = difflib.get_close_matches(str(kind), FAMILIES, n=3, cutoff=0.4)
    return (
        f"model_type={kind!r:.80} is not supported"
        + (f"; near it are {', '.join(near)}" if near else "")
        + f"; supported: {', '.join(FAMILIES)}. TransformerLens may know it: open it by {BRIDGE}"
    )


def read_labels(values: dict[str, Any], cfg: TransformerConfig, where: str) -> tuple[str, ...]:
    """The names of an image's labels; empty where the config does not say, or has no labels."""
    if cfg.inputs != "patches" or cfg.head == "none":
        return ()
    found = labels(Fields(values, where))
    if len(found) not in (0, cfg.d_vocab):
        raise ConfigError(f"{where}: id2label names {len(found)} of {cfg.d_vocab} labels")
    return found


def _interp_config(f: Fields) -> TransformerConfig:
    values = f.get("config")
    if not isinstance(values, dict):
        raise ConfigError(f"{f.where}: config is a {type(values).__name__}: expected an object")
    return TransformerConfig.from_dict(values)


_OWN = Family(name="interp", config=_interp_config, rename=None)
_ALL = (
    *GPT_FAMILIES, *ROTARY_FAMILIES, *EXPERT_FAMILIES, *ENCODER_FAMILIES, *PAIR_FAMILIES,
    *SENSE_FAMILIES, _OWN,
)  # fmt: skip
FAMILIES = {f.name: f for f in _ALL}
"""By the `model_type` of config.json."""
