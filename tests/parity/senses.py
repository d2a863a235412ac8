"""The families whose inputs are not words: what they are given, and where they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interp import Tokens
from tests.parity.layout import Family, Layout

BATCH, IMAGE, PATCH = 3, (8, 12), (4, 3)
GRID = (2, 4)
STEPS, D_STATE, D_ACTION, N_TIMES = 6, 5, 3, 30


class Sense(NamedTuple):
    """One model, its inputs, and which of our rows are its output."""

    family: Family
    inputs: Callable[..., dict[str, Tensor]]
    """For the reference, by its own names; takes a seed."""
    ours: Callable[[Any, dict[str, Tensor]], Tokens]
    """The same for our model."""
    read: Callable[[Tensor], Tensor] = lambda output: output
    mask: Callable[[dict[str, Tensor]], Tensor] | None = None
    """Real rows of what is read."""


def pixels(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(BATCH, 3, *IMAGE, generator=generator, dtype=torch.float64)
    return {"pixel_values": made}


def trajectory(seed: int = 0) -> dict[str, Tensor]:
    """The last row begins with two steps of padding, and begins late in its episode."""
    generator = torch.Generator().manual_seed(seed)
    each = {"returns_to_go": 1, "states": D_STATE, "actions": D_ACTION}
    made = {
        name: torch.randn(BATCH, STEPS, width, generator=generator, dtype=torch.float64)
        for name, width in each.items()
    }
    mask = torch.ones(BATCH, STEPS)
    mask[-1, :2] = 0
    begins = torch.tensor([[0], [3], [N_TIMES - STEPS]])
    return {**made, "timesteps": begins + torch.arange(STEPS), "attention_mask": mask}


def _steps(model: Any, inputs: dict[str, Tensor]) -> Tokens:
    return model.to_tokens(
        returns=inputs["returns_to_go"],
        states=inputs["states"],
        actions=inputs["actions"],
        timesteps=inputs["timesteps"],
        mask=inputs["attention_mask"],
    )


def _vit_sites(prefix: str) -> dict[str, Any]:
    layer = f"{prefix}layers.{{}}"
    return {
        "hook_resid_pre": (layer, "in"),
        "attn.hook_z": (f"{layer}.attention.o_proj", "in"),
        "hook_attn_out": (f"{layer}.attention", "out"),
        "hook_resid_mid": (f"{layer}.layernorm_after", "in"),
        "mlp.hook_pre": (f"{layer}.mlp.fc1", "out"),
        "mlp.hook_post": (f"{layer}.mlp.fc2", "in"),
        "hook_mlp_out": (f"{layer}.mlp", "out"),
        "hook_resid_post": (layer, "out"),
    }


_GPT2_SITES: dict[str, Any] = {
    "hook_resid_pre": ("encoder.h.{}", "in"),
    "attn.hook_z": ("encoder.h.{}.attn.c_proj", "in"),
    "hook_attn_out": ("encoder.h.{}.attn", "out"),
    "hook_resid_mid": ("encoder.h.{}.ln_2", "in"),
    "mlp.hook_pre": ("encoder.h.{}.mlp.c_fc", "out"),
    "mlp.hook_post": ("encoder.h.{}.mlp.c_proj", "in"),
    "hook_mlp_out": ("encoder.h.{}.mlp", "out"),
    "hook_resid_post": ("encoder.h.{}", "out"),
}

_VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": list(IMAGE),
    "patch_size": list(PATCH),
    "layer_norm_eps": 1e-3,
    "id2label": {i: f"label {i}" for i in range(5)},
}
_DECISION = {
    "hidden_size": 24,
    "n_layer": 3,
    "n_head": 3,
    "state_dim": D_STATE,
    "act_dim": D_ACTION,
    "max_ep_len": N_TIMES,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def _vit(model: str, prefix: str, **values: Any) -> Family:
    layout = Layout(model, _vit_sites(prefix), position_offset=None)
    return Family(layout, "ViTConfig", {**_VIT, **values})


def _decision(**values: Any) -> Sense:
    layout = Layout("DecisionTransformerModel", _GPT2_SITES, position_offset=None)
    family = Family(layout, "DecisionTransformerConfig", {**_DECISION, **values})
    return Sense(
        family,
        trajectory,
        _steps,
        lambda output: output[:, 1::3],
        lambda inputs: inputs["attention_mask"],
    )


def _seen(model: Any, inputs: dict[str, Tensor]) -> Tokens:
    return model.to_tokens(inputs["pixel_values"])


SENSES = {
    "vit": Sense(
        _vit("ViTForImageClassification", "vit."), pixels, _seen, lambda output: output[:, 0]
    ),
    "vit-no-head-no-bias": Sense(_vit("ViTModel", "", qkv_bias=False), pixels, _seen),
    "decision_transformer": _decision(),
    "decision_transformer-no-tanh-scaled": _decision(
        action_tanh=False, scale_attn_by_inverse_layer_idx=True, activation_function="gelu_new"
    ),
}
