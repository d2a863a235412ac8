"""The families that load, by the `model_type` of their config.json."""

from __future__ import annotations

from typing import Any

from ...config import ConfigError, TransformerConfig
from .encoders import ENCODER_FAMILIES
from .family import Family
from .fields import Fields
from .gpt import GPT_FAMILIES
from .pairs import PAIR_FAMILIES
from .rotary import ROTARY_FAMILIES
from .senses import SENSE_FAMILIES, labels


def read_config(values: dict[str, Any], where: str) -> tuple[Family, TransformerConfig]:
    """The family and architecture that a config.json describes. Raises ConfigError.

    Unknown fields are reported in one logged warning.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigError(f"{where}: model_type={kind!r:.80} is not supported; supported: {known}")
    family, fields = FAMILIES[kind], Fields(values, where)
    try:
        cfg = family.config(fields)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(where) else f"{where}: {text}") from None
    fields.finish()
    return family, cfg


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
_ALL = (*GPT_FAMILIES, *ROTARY_FAMILIES, *ENCODER_FAMILIES, *PAIR_FAMILIES, *SENSE_FAMILIES, _OWN)
FAMILIES = {f.name: f for f in _ALL}
"""By the `model_type` of config.json."""
