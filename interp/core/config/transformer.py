"""The architecture of a transformer, one documented field per choice, never per model name.

A config is a value: frozen, validated when made, equal to another by its fields. It can be written
to JSON and read back; reading refuses fields that it does not know.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from .checks import check_contradictions, check_values
from .fields import Architecture
from .rotary_scaling import RotaryScaling
from .values import ConfigError, is_int


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Architecture):
    """Every architectural choice of `HookedTransformer`. Sizes count elements."""

    encoder: TransformerConfig | None = None
    """The encoder of an encoder–decoder (Vaswani et al. 2017). All other fields are then the
    decoder's, whose blocks attend to the encoder's output after attending to themselves."""

    def __post_init__(self) -> None:
        self._resolve_defaults()
        check_values(self)
        check_contradictions(self)

    def _resolve_defaults(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        sizes = (self.d_model, self.n_heads)
        if self.d_head is None and all(is_int(size) and size > 0 for size in sizes):
            if self.d_model % self.n_heads:
                raise ConfigError(
                    f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}; "
                    "give d_head"
                )
            put("d_head", self.d_model // self.n_heads)
        if self.n_kv_heads is None:
            put("n_kv_heads", self.n_heads)
        if self.rotary_dim is None:
            put("rotary_dim", self.d_head)

    def of_parameter(self, name: str) -> TransformerConfig:
        """The config of the stack that a parameter of the model belongs to."""
        own = self.encoder is None or not name.startswith("encoder.")
        return self if own else self.encoder  # type: ignore[return-value]

    def replace(self, **changes: Any) -> TransformerConfig:
        """A copy with some fields changed, validated anew."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back to an equal config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TransformerConfig:
        """The config of these fields. Raises ConfigError on a field that does not exist."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"unknown config field {name!r}{hint}")
        # JSON knows only lists and dicts.
        values = _tuples(values)
        try:
            scaling = values.get("rotary_scaling")
            if isinstance(scaling, dict):
                values["rotary_scaling"] = RotaryScaling(**_tuples(scaling))
            elif isinstance(scaling, tuple):
                made = (RotaryScaling(**_tuples(s)) if isinstance(s, dict) else s for s in scaling)
                values["rotary_scaling"] = tuple(made)
            if isinstance(values.get("encoder"), dict):
                values["encoder"] = cls.from_dict(values["encoder"])
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"config: {error}") from None


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
