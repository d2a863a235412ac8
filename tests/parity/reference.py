"""What a Hugging Face model computes: its output and the tensors at the sites that we share.

The library rounds some steps to float32 whatever the dtype of the weights: RMSNorm, rotary angles,
and the softmax of eager attention. `lifted=True` runs it with those islands in float64. Otherwise
attention is the fused one, its default; the eager one returns NaN in float64 for a query that sees
nothing, because the mask's value is not one of float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from tests.parity.families import Layout, Side


class Reference(NamedTuple):
    """`output` is the logits, or the last hidden state of a model without a head."""

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


def run(
    model: PreTrainedModel, layout: Layout, inputs: dict[str, Tensor], *, lifted: bool
) -> Reference:
    """One forward pass of the reference on keyword inputs."""
    model.set_attn_implementation("eager" if lifted else "sdpa")
    with contextlib.ExitStack() as stack:
        sites = stack.enter_context(_recorded(model, layout))
        stack.enter_context(torch.no_grad())
        if lifted:
            stack.enter_context(Float64Islands())
            stack.enter_context(_exact_rotary(model))
        result = model(**inputs, use_cache=False)
    output = result.logits if "logits" in result else result.last_hidden_state
    return Reference(output, sites)


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
        sites[name] = output[0] if isinstance(output, tuple) else output

    if side == "in":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


@contextlib.contextmanager
def _exact_rotary(model: PreTrainedModel) -> Iterator[None]:
    """Rotary frequencies computed in float64; the module's own were rounded when it was made."""
    body = getattr(model, "model", None)
    rounded = getattr(body, "rotary_emb", None)
    if rounded is None:
        yield
        return
    torch.set_default_dtype(torch.float64)
    try:
        body.rotary_emb = type(rounded)(model.config)
        yield
    finally:
        body.rotary_emb = rounded
        torch.set_default_dtype(torch.float32)


def relative_error(ours: Tensor, reference: Tensor, mask: Tensor | None = None) -> float:
    """max|ours − reference| / max|reference| over the real positions."""
    ours = ours.reshape(reference.shape)  # heads are one axis there
    if mask is not None:
        ours, reference = ours[mask.bool()], reference[mask.bool()]
    return float((ours - reference).abs().max() / reference.abs().max())
