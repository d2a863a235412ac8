"""The architecture of a transformer, as a value."""

from .rotary_scaling import RotaryScaling
from .transformer import TransformerConfig
from .values import BOUNDS, ConfigError

__all__ = ["BOUNDS", "ConfigError", "RotaryScaling", "TransformerConfig"]
