"""What a Hugging Face model computes: its output and the tensors at the sites that we share.

The library rounds some steps to float32 whatever the dtype of the weights: RMSNorm, rotary angles,
and the softmax of eager attention. `lifted=True` runs it with those islands in float64. Otherwise
attention is the fused one, its default; the eager one returns NaN in float64 for a query that sees
nothing, because the mask's value is not one of float32 (so that it is clamped where a class knows
no other attention).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions

from tests.parity.layout import Layout, Side

OUTPUTS = ("logits", "action_preds", "last_hidden_state")


class Reference(NamedTuple):
    """`output` is the logits or actions, or the last hidden state of a model without a head."""

    output: Tensor
    sites: dict[str, Tensor]


class Float64Islands(TorchFunctionMode):
    """Turns every request for float32 into one for float64."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        lift = lambda value: torch.float64 if value is torch.float32 else value  # noqa: E731
        named = {key: lift(value) for key, value in (kwargs or {}).items()}
        return func(*map(lift, args), **named)


class FiniteMasks(TorchFunctionMode):
    """Scores of float64 stay finite where a softmax casts them to float32."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.softmax and kwargs.get("dtype") is torch.float32:
            args = (args[0].clamp(min=torch.finfo(torch.float32).min), *args[1:])
        return func(*args, **kwargs)


def run(
    model: PreTrainedModel, layout: Layout, inputs: dict[str, Tensor], *, lifted: bool
) -> Reference:
    """One forward pass of the reference on keyword inputs."""
    inputs = _placed(inputs, layout)
    attention = layout.attention[lifted]
    model.set_attn_implementation(attention)
    with contextlib.ExitStack() as stack:
        sites = stack.enter_context(_recorded(model, layout))
        stack.enter_context(torch.no_grad())
        if lifted:
            stack.enter_context(Float64Islands())
            stack.enter_context(_exact_rotary(model))
            stack.enter_context(_exact_scale(model))
        elif attention == "eager":
            stack.enter_context(FiniteMasks())
        result = model(**inputs, use_cache=False)
    output = next(result[name] for name in OUTPUTS if name in result)
    return Reference(output, sites)


def _placed(inputs: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The inputs with position ids as this model counts them, if it takes any."""
    inputs = dict(inputs)
    positions = inputs.pop("position_ids", None)
    if positions is None or layout.position_offset is None:
        return inputs
    return {**inputs, "position_ids": positions + layout.position_offset}


@contextlib.contextmanager
def _recorded(model: PreTrainedModel, layout: Layout) -> Iterator[dict[str, Tensor]]:
    sites: dict[str, Tensor] = {}
    handles = [
        _record(model.get_submodule(path.format(layer)), side, sites, f"blocks.{layer}.{site}")
        for layer in range(model.config.num_hidden_layers)
        for site, (path, side) in layout.sites.items()
    ]
    try:
        yield sites
    finally:
        for handle in handles:
            handle.remove()


def _record(module: torch.nn.Module, side: Side, sites: dict[str, Tensor], name: str) -> Any:
    def before(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        sites[name] = args[0] if args else kwargs["hidden_states"]

    def after(_: Any, __: Any, output: Any) -> None:
        whole = output[0] if isinstance(output, tuple | list) else output
        sites[name] = whole.clone()  # some add to it in place

    if side == "in":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


@contextlib.contextmanager
def _exact_rotary(model: PreTrainedModel) -> Iterator[None]:
    """Rotary tables computed in float64; the module's own were rounded when it was made."""
    rotary = [m for m in model.modules() if hasattr(m, "rotary_emb")]
    tabled = [m for m in model.modules() if hasattr(m, "pos_embd_dim")]
    rounded = [module.rotary_emb for module in rotary], [m.embed_positions for m in tabled]
    if not rotary and not tabled:
        yield
        return
    torch.set_default_dtype(torch.float64)
    try:
        for module in rotary:
            module.rotary_emb = type(module.rotary_emb)(model.config)
        for module in tabled:
            module.embed_positions = create_sinusoidal_positions(
                module.max_positions, module.pos_embd_dim
            )
        yield
    finally:
        for module, old in zip(rotary, rounded[0], strict=True):
            module.rotary_emb = old
        for module, old in zip(tabled, rounded[1], strict=True):
            module.embed_positions = old
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def _exact_scale(model: PreTrainedModel) -> Iterator[None]:
    """The factor on embeddings in float64; the module's own was rounded when it was made."""
    scaled = [m for m in model.modules() if hasattr(m, "scalar_embed_scale")]
    rounded = [module.embed_scale for module in scaled]
    for module in scaled:
        module.embed_scale = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)
    try:
        yield
    finally:
        for module, old in zip(scaled, rounded, strict=True):
            module.embed_scale = old


def relative_error(ours: Tensor, reference: Tensor, mask: Tensor | None = None) -> float:
    """max|ours − reference| / max|reference| over the real positions."""
    if mask is not None:  # some flatten batch and positions
        reference = reference.reshape(*mask.shape, -1)
    ours = ours.reshape(reference.shape)  # heads are one axis there
    if mask is not None:
        ours, reference = ours[mask.bool()], reference[mask.bool()]
    return float((ours - reference).abs().max() / reference.abs().max())
