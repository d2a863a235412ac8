"""Architectures that only TransformerLens knows, behind our verbs and site names.

`load` opens them with `TransformerBridge` (transformer-lens 4.3) around the Hugging Face model, and
offers each site whose meaning it can verify on the spot. Sweeps run naive.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from interp.core.devices import as_device
from interp.core.tokenizer import Tokenizer
from interp.core.visible import visible_errors

from .. import _dtype
from ..beside import end_ids
from ..files import config_values
from .config import BridgedConfig
from .model import BridgedTransformer
from .source import check_architecture, from_name
from .weights import QuantisedWeights

__all__ = ["BridgedConfig", "BridgedTransformer", "QuantisedWeights", "load"]


@visible_errors()
def load(
    model: str | os.PathLike | Any,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    quantization: str | None = None,
    tokenizer: Tokenizer | None = None,
) -> BridgedTransformer:
    """A language model of any architecture that TransformerLens bridges, ready to run.

    `model` is a local folder or a Hugging Face hub id (safetensors; code in it is refused), or a
    Hugging Face model that you made, which the bridge then takes apart; `tokenizer` goes with that.
    device, dtype: as in `interp.load`. quantization: "int8" or "nf4" (bitsandbytes, on CUDA).
    `left_out` of the result says which sites were not verified, and why.

    Raises ValueError on an architecture that TransformerLens does not know, on encoder–decoders and
    models that do not read words, and where quantised weights cannot be computed with.
    """
    source = None
    if isinstance(model, str | os.PathLike):
        if tokenizer is not None:
            raise ValueError("tokenizer= goes with a model that you made; a folder brings its own")
        where, wanted = as_device(device), _dtype(dtype)
        hf_model, tokenizer, source = from_name(model, where, wanted, quantization)
        name, made_of = source.name, {"kind": source.kind, "revision": source.revision}
    else:
        given = {"device": device, "dtype": dtype, "quantization": quantization}
        for option, value in given.items():
            if value is not None:
                raise ValueError(f"{option}={value!r}: a model that you made keeps its own")
        if not hasattr(model, "config"):
            raise ValueError(f"expected a name or a Hugging Face model, not {type(model).__name__}")
        hf_model, name, made_of = model.eval(), type(model).__name__, {"kind": "made"}
    bridged = _bridged(hf_model, tokenizer, name)
    bridged.source = {"name": name, **made_of}
    if source is not None:
        values = config_values(source)
        bridged.stored_end_ids = end_ids(values, source.folder, bridged.cfg.d_vocab)
    return bridged.eval()


def _bridged(hf_model: Any, tokenizer: Tokenizer | None, name: str) -> BridgedTransformer:
    architecture = type(hf_model).__name__
    if getattr(hf_model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{architecture} is an encoder–decoder; the bridge opens decoders and masked language "
            "models. interp.load opens T5 and BART"
        )
    check_architecture(architecture, name)
    from transformer_lens.model_bridge.sources._bridge_builder import (  # takes seconds
        build_bridge_from_module,
    )
    from transformer_lens.utilities.attn_implementation import force_eager_attention

    n_params = int(hf_model.num_parameters())  # the bridge splits fused maps, keeping both
    force_eager_attention(hf_model)
    bridge = build_bridge_from_module(
        hf_model, architecture, hf_config=hf_model.config, model_name=name
    )
    if not getattr(bridge, "_modules", {}).get("blocks"):
        raise ValueError(f"{architecture}: its bridge has no plain stack of blocks, so no sites")
    return BridgedTransformer(bridge, hf_model, tokenizer, name, n_params)
