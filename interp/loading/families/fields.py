"""Reading a Hugging Face config.json as data: typed, bounded, through an allow-list of fields.

A family's config function asks for the fields that it understands. What nobody asked for is either
on the list of fields without effect on the forward pass, or neutral, or reported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NoReturn

from interp.core.config import BOUNDS, ConfigError, RotaryScaling
from interp.core.files.untrusted import refuse_code
from interp.core.visible import logger

log = logger(__name__)

REQUIRED: Any = object()
BITS = {"0", "1", "False", "True"}

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}

HARMLESS = (
    # about training, generation, other heads, or the file itself
    *("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype"),
    *("*_token_id", "*dropout*", "*_pdrop", "summary_*", "initializer_range", "initializer_factor"),
    *("use_cache", "gradient_checkpointing", "output_past", "output_attentions", "return_dict*"),
    *("output_hidden_states", "torchscript", "use_bfloat16", "chunk_size_feed_forward"),
    *("id2label", "label2id", "num_labels", "_num_labels", "problem_type", "finetuning_task"),
    *("task_specific_params", "prefix", "pooler_*", "directionality", "embedding_size"),
    *("pretraining_tp", "attn_implementation", "_attn_implementation*", "_commit_hash", "_flash*"),
    *("tie_encoder_decoder", "tie_last_hidden_states", "n_ctx", "reorder_and_upcast_attn"),
    *("cache_implementation",),
    *("tokenizer_class", "*layerdrop", "init_std", "n_special", "predict_special_tokens"),
    *("attention_softmax_in_fp32", "masked_softmax_fusion", "skip_bias_add*", "offset_alibi"),
    *("slow_but_exact",),
    # generation settings that older versions kept here
    *("do_sample", "max_length", "min_length", "temperature", "top_k", "top_p", "num_beams"),
    *("num_return_sequences", "repetition_penalty", "length_penalty", "no_repeat_ngram_size"),
    *("max_new_tokens", "max_sequence_length", "num_beam_groups", "diversity_penalty"),
    *("early_stopping", "typical_p", "encoder_no_repeat_ngram_size", "bad_words_ids"),
    *("output_scores", "return_dict_in_generate", "remove_invalid_values", "suppress_tokens"),
    *("forced_*", "begin_suppress_tokens", "exponential_decay_length_penalty"),
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    # a field that would change the forward pass, with the values at which it does not
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "is_decoder": (False, None),
    "pruned_heads": ({}, None),
    "per_layer_config": ({}, None),
    "partial_rotary_factor": (1.0, None),
    "position_embedding_type": ("absolute", None),
    "embd_layer_norm": (False, None),
}


class Fields:
    """One config.json, which remembers the fields that were asked for."""

    def __init__(self, values: dict[str, Any], where: str = "config.json") -> None:
        self._values = values
        self.where = where
        self._asked = {"model_type"}
        refuse_code(values, where)
        if values.get("quantization_config"):
            raise ConfigError(
                f"{where}: 'quantization_config' says that the weights are quantized, which is not "
                "supported; use the unquantized checkpoint (float16, bfloat16, float32, float64)"
            )

    def get(self, name: str, default: Any = REQUIRED) -> Any:
        """The raw value; null counts as absent."""
        self._asked.add(name)
        value = self._values.get(name)
        if value is not None:
            return value
        if default is REQUIRED:
            raise ConfigError(f"{self.where}: the field {name!r} is missing")
        return default

    def size(self, name: str, bound: str, default: Any = REQUIRED) -> int | Any:
        """A whole number within the bounds of our own field `bound`."""
        value = self.get(name, default)
        low, high = BOUNDS[bound]
        if value is not default and not (_is_int(value) and low <= value <= high):
            self.fail(name, f"a whole number in [{low}, {high}]")
        return value

    def optional_size(self, name: str, bound: str, absent: int | None = None) -> int | None:
        """The same where null is a value of its own, and differs from a field that is absent."""
        self._asked.add(name)
        return self.size(name, bound, None if name in self._values else absent)

    def number(self, name: str, default: Any = REQUIRED) -> float | Any:
        """A finite number of moderate size, not negative."""
        value = self.get(name, default)
        if value is default:
            return default
        if not _is_number(value):
            self.fail(name, "a number in [0, 1e15]")
        return float(value)

    def positive(self, name: str, default: Any = REQUIRED) -> float | Any:
        """A number above 0."""
        value = self.number(name, default)
        if value == 0:
            self.fail(name, "a number above 0")
        return value

    def optional_positive(self, name: str, absent: float | None = None) -> float | None:
        """The same where null is a value of its own, and differs from a field that is absent."""
        return self.positive(name, None if name in self._values else absent)

    def only(self, name: str, *allowed: Any) -> None:
        """Raise where a field has a value other than these; null and absence are allowed."""
        value = self.get(name, None)
        if value is not None and value not in allowed:
            self.fail(name, " or ".join(json.dumps(one) for one in (*allowed, None)))

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            self.fail(name, "true or false")
        return value

    def activation(self, name: str, default: str, names: Mapping[str, str] = ACTIVATIONS) -> Any:
        """The name of an activation function, in our words, which `names` has for theirs."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in names:
            self.fail(name, f"one of {', '.join(names)}")
        return names[value]

    def words(self, name: str) -> list[str]:
        """A list of words, empty where it is absent."""
        value = self.get(name, [])
        if not (isinstance(value, list) and all(isinstance(entry, str) for entry in value)):
            self.fail(name, "a list of words")
        return value

    def choices(self, name: str, allowed: Sequence[str], length: int) -> list[str] | None:
        """A list of so many words out of those allowed, or None."""
        value = self.get(name, None)
        if value is None:
            return None
        if not (isinstance(value, list) and len(value) == length):
            self.fail(name, f"a list of {length} entries")
        if any(entry not in allowed for entry in value):
            self.fail(name, f"entries out of {', '.join(allowed)}")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers of moderate size, none negative."""
        value = self.get(name)
        if not (isinstance(value, list) and all(map(_is_number, value))):
            self.fail(name, "a list of numbers in [0, 1e15]")
        return tuple(map(float, value))

    def switches(self, name: str, length: int) -> tuple[bool, ...] | None:
        """The first so many of a list of 0 and 1, or None."""
        value = self.get(name, None)
        if value is None:
            return None
        if not (isinstance(value, list) and len(value) >= length and set(map(repr, value)) <= BITS):
            self.fail(name, f"a list of {length} or more entries, each 0 or 1")
        return tuple(map(bool, value[:length]))

    def rotary(
        self,
        n_ctx: int,
        *,
        base: float = 10_000.0,
        base_name: str = "rope_theta",
        scalings: Sequence[str] | Mapping[str, str] = ("linear", "llama3", "yarn"),
        share: float | None = None,
        share_name: str = "partial_rotary_factor",
        d_head: int = 0,
        rope: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """rotary_base and rotary_scaling from either style; rotary_dim where `share` is given.

        transformers 5 writes `rope_parameters`; older versions `rope_theta` and `rope_scaling`.
        `base` and `share` (of a head's dimensions that are turned) are what an absent field means;
        `rope` is read in place of both objects; `scalings` are the kinds that a family knows, or
        its names for ours.
        """
        theta = self.number(base_name, base)
        original = self.size("original_max_position_embeddings", "n_ctx", None)
        old, new = self.get("rope_scaling", None), self.get("rope_parameters", None)
        name = "rope_scaling" if old else "rope_parameters"
        values = (old or new or {}) if rope is None else rope
        if not isinstance(values, dict) or any(isinstance(v, dict) for v in values.values()):
            self.fail(name, "an object of numbers (one set for all layers)")
        inner = Fields(dict(values), f"{self.where}: {name}")
        kind = inner.get("rope_type", inner.get("type", "default"))
        theta = inner.number("rope_theta", theta)
        if kind == "default":
            scaling = None
        elif isinstance(kind, str) and kind in scalings:
            original = original or inner.size("original_max_position_embeddings", "n_ctx", n_ctx)
            kind = scalings[kind] if isinstance(scalings, Mapping) else kind
            scaling = SCALINGS[kind](inner, original, n_ctx)
        else:
            known = ", ".join(map(repr, ("default", *scalings)))
            raise ConfigError(f"{inner.where}: rope_type {kind!r} is not known; known are {known}")
        inner.get("original_max_position_embeddings", None)
        fields = {"rotary_base": theta, "rotary_scaling": scaling}
        if share is not None:
            share = inner.number("partial_rotary_factor", self.number(share_name, share))
            fields["rotary_dim"] = int(d_head * share)
            if not 2 <= fields["rotary_dim"] <= d_head or fields["rotary_dim"] % 2:
                raise ConfigError(
                    f"{self.where}: {share_name}={share}: expected a share of the {d_head} "
                    "dimensions of a head that makes an even number of at least 2"
                )
        inner.finish()
        return fields

    def finish(self) -> None:
        """Raise on a field that is known to matter and has not been asked for; report the rest."""
        unknown = []
        for name in sorted(set(self._values) - self._asked, key=str):
            value = self._values[name]
            if name in NEUTRAL:
                if value not in NEUTRAL[name]:
                    raise ConfigError(f"{self.where}: {name}={value!r} is not supported")
            elif value is not None and not any(fnmatchcase(name, one) for one in HARMLESS):
                unknown.append(name)
        if unknown:
            log.warning(
                "%s: %d unknown field(s) are not read: %s",
                self.where,
                len(unknown),
                ", ".join(str(name)[:60] for name in unknown[:20]),
            )

    def fail(self, name: str, expected: str) -> NoReturn:
        """Raise ConfigError about the value of a field."""
        shown = repr(self._values.get(name))
        shown = shown if len(shown) <= 80 else shown[:80] + "…"
        raise ConfigError(f"{self.where}: {name}={shown}: expected {expected}")


def _linear(rope: Fields, original: int, n_ctx: int) -> RotaryScaling:
    return RotaryScaling(kind="linear", factor=rope.number("factor"))


def _llama3(rope: Fields, original: int, n_ctx: int) -> RotaryScaling:
    return RotaryScaling(
        kind="llama3",
        factor=rope.number("factor"),
        original_n_ctx=original,
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
    )


def _yarn(rope: Fields, original: int, n_ctx: int) -> RotaryScaling:
    """The attention factor is worked out here, as transformers does (`mscale` of DeepSeek)."""
    factor = rope.number("factor", n_ctx / original)
    mscale, mscale_all = rope.number("mscale", None), rope.number("mscale_all_dim", None)
    attention_factor = rope.number("attention_factor", None)
    if attention_factor is None and mscale and mscale_all:
        attention_factor = _yarn_mscale(factor, mscale) / _yarn_mscale(factor, mscale_all)
    elif attention_factor is None:
        attention_factor = _yarn_mscale(factor, 1.0)
    return RotaryScaling(
        kind="yarn",
        factor=factor,
        original_n_ctx=original,
        beta_fast=rope.number("beta_fast", None) or 32.0,
        beta_slow=rope.number("beta_slow", None) or 1.0,
        attention_factor=attention_factor,
        truncate=rope.flag("truncate", True),
    )


def _longrope(rope: Fields, original: int, n_ctx: int) -> RotaryScaling:
    return RotaryScaling(
        kind="longrope",
        factor=rope.number("factor", n_ctx / original),
        original_n_ctx=original,
        attention_factor=rope.number("attention_factor", None),
        short_factors=rope.numbers("short_factor"),
        long_factors=rope.numbers("long_factor"),
    )


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


SCALINGS = {"linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1e15
