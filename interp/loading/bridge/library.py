"""The forward pass of TransformerLens's bridge, with a tap on its hook points."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from interp.core.tap import Silent, Tap
from interp.core.tokens import Tokens

from .attach import Stopped, attached


class BridgedPrefix:
    """The library's own key-value cache, and the mask of what is in it."""

    past: Any = None
    mask: Tensor | None = None
    encoded = None
    """Of a source: the bridge opens no encoder–decoders."""


class Library:
    """The bridge around a Hugging Face model, as something that runs."""

    def __init__(self, bridge: Any, hf_model: nn.Module) -> None:
        self.bridge, self.architecture = bridge, type(hf_model).__name__
        self.takes = frozenset(inspect.signature(hf_model.forward).parameters)
        """Arguments of the library's forward."""

    def run(
        self,
        tokens: Tokens,
        tap: Silent | Tap,
        points: Mapping[str, Any],
        stop_at: str | None = None,
        prefix: BridgedPrefix | None = None,
    ) -> Tensor:
        """One forward, its hook points passing through the tap.

        With `stop_at`, the residual stream at that hook point.
        """
        inputs: dict[str, Any] = (
            {"use_cache": prefix is not None} if "use_cache" in self.takes else {}
        )
        mask = tokens.mask
        if prefix is not None:
            real = tokens.real if prefix.mask is None else torch.cat([prefix.mask, tokens.real], 1)
            prefix.mask, mask = real, None if bool(real.all()) else real
            inputs["past_key_values"] = prefix.past
        if mask is not None:
            inputs["attention_mask"] = mask.long()
        if tokens.token_types is not None:
            inputs["token_type_ids"] = tokens.token_types
        positions = tokens.positions
        if positions is None and mask is not None:
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        if positions is not None and "position_ids" in self.takes:
            inputs["position_ids"] = positions
        kind = "logits" if prefix is None else "logits_and_cache"
        try:
            with attached(self.bridge, points, tap, stop_at):
                out = self.bridge.forward(tokens.ids, return_type=kind, **inputs)
        except Stopped as stopped:
            return stopped.residual
        if prefix is not None:
            out, prefix.past = out
            if prefix.past is None:
                raise ValueError(f"{self.architecture} returns no key-value cache")
        return tap("hook_logits", out)
