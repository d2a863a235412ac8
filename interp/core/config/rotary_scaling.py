"""How the frequencies of rotary positions are stretched past the trained context."""

from __future__ import annotations

from dataclasses import dataclass

from .values import BOUNDS, ConfigError, RotaryKind, check_choice, is_int, is_number


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """How rotary frequencies are stretched past the trained context.

    linear: positions divided by `factor` (Chen et al. 2023). ntk: the base is raised so that the
    slowest frequency is divided by `factor` (static). yarn: Peng et al. 2023. llama3: low
    frequencies divided by `factor`, high ones kept, a linear ramp between. longrope: each frequency
    divided by a factor of its own (Ding et al. 2024), one set for sequences that fit into
    `original_n_ctx` and one for those that reach past it.
    """

    kind: RotaryKind
    factor: float
    """How many times longer the context becomes."""
    original_n_ctx: int | None = None
    """Context of pre-training, in tokens; required by yarn, llama3 and longrope."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above original_n_ctx / this are fully scaled."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below original_n_ctx / this are kept."""
    beta_fast: float = 32.0
    """yarn: rotations over the original context above which a frequency is kept."""
    beta_slow: float = 1.0
    """yarn: rotations over the original context below which a frequency is fully scaled."""
    attention_factor: float | None = None
    """Multiplies cosine and sine; by default yarn has 0.1 ln(factor) + 1, and longrope
    √(1 + ln(factor) / ln(original_n_ctx)); 1 where factor ≤ 1."""
    truncate: bool = True
    """yarn: round the ends of the ramp to whole frequencies."""
    short_factors: tuple[float, ...] | None = None
    """longrope: divides each frequency of a sequence of at most original_n_ctx tokens."""
    long_factors: tuple[float, ...] | None = None
    """longrope: divides each frequency of a longer sequence, at all of its positions."""

    def __post_init__(self) -> None:
        check_choice("rotary_scaling.kind", self.kind, RotaryKind)
        for name in ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
            value = getattr(self, name)
            if not (is_number(value) and 0 < value < 1e6):
                raise ConfigError(f"rotary_scaling.{name}={value!r}: expected a number in (0, 1e6)")
        factor, context = self.attention_factor, self.original_n_ctx
        if factor is not None and not (is_number(factor) and 0 < factor < 1e6):
            raise ConfigError(f"rotary_scaling.attention_factor={factor!r}: expected a number > 0")
        if context is not None and not (is_int(context) and 0 < context <= BOUNDS["n_ctx"][1]):
            raise ConfigError(
                f"rotary_scaling.original_n_ctx={context!r}: expected a size in tokens"
            )
        if not isinstance(self.truncate, bool):
            raise ConfigError(f"rotary_scaling.truncate={self.truncate!r}: expected true or false")
        if self.kind in ("yarn", "llama3", "longrope") and self.original_n_ctx is None:
            raise ConfigError(
                f"rotary_scaling.kind={self.kind!r} needs rotary_scaling.original_n_ctx"
            )
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ConfigError(
                f"rotary_scaling.low_freq_factor={self.low_freq_factor} must be below "
                f"rotary_scaling.high_freq_factor={self.high_freq_factor}"
            )
        for name in ("short_factors", "long_factors"):
            factors = getattr(self, name)
            if (factors is not None) != (self.kind == "longrope"):
                raise ConfigError(
                    f"rotary_scaling.{name} goes with kind='longrope', and only there"
                )
            if factors is not None and not (
                isinstance(factors, tuple) and all(is_number(f) and 0 < f < 1e6 for f in factors)
            ):
                raise ConfigError(
                    f"rotary_scaling.{name}={factors!r}: expected numbers in (0, 1e6)"
                )
        if self.kind == "longrope" and self.original_n_ctx == 1:
            raise ConfigError("rotary_scaling.original_n_ctx=1: longrope divides by its logarithm")
