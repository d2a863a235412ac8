"""A config that transformers can be handed: what an architecture is, and nothing that chooses code.

A config.json may ask for kernels of some repository, another file of weights, a dtype by any name
of torch, or how modules are fused or distributed. What goes over is what the library's own config
class declares, by name, and only as numbers, switches and plain words.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

from interp.core.config import ConfigError
from interp.core.files.untrusted import refuse_code

NEVER = {
    *("dtype", "torch_dtype", "quantization_config", "architectures", "transformers_version"),
    *("id2label", "label2id", "num_labels", "problem_type", "name_or_path", "_name_or_path"),
    *("finetuning_task", "task_specific_params", "output_attentions", "output_hidden_states"),
    *("return_dict", "torchscript", "gradient_checkpointing", "model_type"),
}
"""Left out although a config class knows them: they say nothing about the forward pass, or whoever
opens the model gives them."""
OLDER = {
    *("rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq", "rope_type"),
    *("partial_rotary_factor", "rotary_pct", "rotary_emb_base", "sliding_window_pattern"),
    *("tie_word_embeddings", "is_decoder", "add_cross_attention", "layer_types", "rotary_dim"),
}
"""Read by a class although it does not declare them."""
WORD = re.compile(r"[A-Za-z0-9_.+\- ]{0,80}")
"""What may be said in letters: "gelu_new", "sliding_attention", "swish-1.0"."""
QUANTIZED_BY = "bitsandbytes"


def their_config(values: Mapping[str, Any], where: str) -> Any:
    """The library's config of a config.json. Raises ConfigError on a family that it does not have
    and on a field that describes its architecture in other than numbers and plain words."""
    refuse_code(values, where)
    from transformers import CONFIG_MAPPING  # takes seconds

    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ConfigError(f"{where}: transformers has no family {kind!r:.80}")
    maker = CONFIG_MAPPING[kind]
    try:
        return maker(**_chosen(values, maker, where))
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(f"{where}: transformers refuses it ({error})") from error


def described_quantization(values: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """How the weights say they are quantised, where that is by the one library that is read."""
    stated = values.get("quantization_config")
    if stated is None:
        return None
    if not isinstance(stated, dict) or stated.get("quant_method") != QUANTIZED_BY:
        raise ConfigError(
            f"{where}: quantization_config={stated!r:.120}: expected weights quantised by "
            f"{QUANTIZED_BY}; use the unquantized checkpoint"
        )
    return {name: _plain(value, f"{where}: quantization_config: {name}") for name, value in
            stated.items()}  # fmt: skip


def _chosen(values: Mapping[str, Any], maker: Any, where: str) -> dict[str, Any]:
    declared = _declared(maker)
    parts = getattr(maker, "sub_configs", None) or {}
    chosen: dict[str, Any] = {}
    for name, value in values.items():
        if name in NEVER or name.startswith("_") or name not in declared | OLDER | set(parts):
            if _is_number(value) and name not in NEVER and not name.startswith("_"):
                chosen[name] = value  # of a version that wrote it; a number chooses no code
        elif name in parts and isinstance(value, dict):
            chosen[name] = _part(value, parts[name], f"{where}: {name}")
        else:
            chosen[name] = _plain(value, f"{where}: {name}")
    return chosen


def _part(values: dict[str, Any], maker: Any, where: str) -> dict[str, Any]:
    """A config inside a config; which class it has its own model_type may say."""
    from transformers import CONFIG_MAPPING

    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        if not dataclasses.is_dataclass(maker):
            raise ConfigError(f"{where}: transformers has no family {kind!r:.80}")
        return _chosen(values, maker, where)
    return {**_chosen(values, CONFIG_MAPPING[kind], where), "model_type": kind}


def _declared(maker: Any) -> set[str]:
    fields = dataclasses.fields(maker) if dataclasses.is_dataclass(maker) else ()
    parameters = inspect.signature(maker.__init__).parameters
    names = {field.name for field in fields} | set(parameters) - {"self", "kwargs", "args"}
    return names | set(getattr(maker, "attribute_map", {}))


def _plain(value: Any, where: str) -> Any:
    """Numbers, switches and plain words, in lists and objects; all else raises ConfigError."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        if WORD.fullmatch(value):
            return value
    elif isinstance(value, list):
        return [_plain(one, where) for one in value]
    elif isinstance(value, dict):
        return {_plain(name, where): _plain(one, where) for name, one in value.items()}
    raise ConfigError(
        f"{where}={value!r:.80}: expected numbers and plain words; nothing else is handed to "
        "transformers"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
