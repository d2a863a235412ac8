"""Direct logit attribution: how much each part of the model writes towards an answer.

With the final norm's scale held at what it was, a logit is a sum over what was added to the
residual stream (Elhage et al. 2021). A part may act through later layers as well; this counts what
it says to the unembedding itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.finite import finite, finite_cache
from interp.core.indices import Indices, indices
from interp.core.precision import to_numpy, wide
from interp.model import HookedTransformer
from interp.sweeps.metrics import Where, answer_ids, one_position

Part = tuple[str, int, int | None, int | None, Tensor]
"""Component, layer, head, neuron (None: the value has one per head, or per neuron), value."""
NONE = -1
"""In the columns layer, head, neuron: the part has none."""


@torch.no_grad()
def logit_attribution(
    model: HookedTransformer,
    tokens: Any,
    answer: Tensor,
    wrong: Tensor | None = None,
    *,
    pos: Where = None,
    by: Literal["component", "head", "neuron"] = "head",
    layers: Indices | None = None,
) -> pd.DataFrame:
    """What each part adds to the logit of `answer`, less that of `wrong` where one is given:
    example component layer head neuron value.

    Components: embed, pos_embed, attn, cross_attn, mlp, bias (of the final norm and unembedding)
    and total, the model's own logit; by "head" attn is split into heads and its bias (head −1), by
    "neuron" mlp into neurons and its bias (neuron −1), in `layers` alone (default: all). Values are
    in logits, before any soft-cap, and add up to `total`. `pos` is read at one position per row:
    default the last real one, else an index or the name of a role. Layers count from the end where
    negative.

    Raises ValueError where the sum does not exist: no unembedding, a masked-LM head, norms that
    stand on the residual stream (post-norm), or an output norm between a head and the stream.
    """
    _check(model, by)
    tokens = model.accept(tokens)
    at = one_position(pos, tokens)[:, 0]
    n = model.cfg.n_layers
    own = list(range(n)) if layers is None else indices(layers, n, "layers")
    cache = _cached(model, tokens, by, own)
    rows = torch.arange(len(tokens), device=at.device)

    def here(site: Any) -> Tensor:
        return wide(cache[site][rows, at])

    direction, bias, total = _direction(model, here, tokens, answer, wrong)
    frames = []
    for component, layer, head, neuron, value in [
        *_parts(model, here, direction, by, own),
        ("bias", NONE, NONE, NONE, bias),
        ("total", NONE, NONE, NONE, total),
    ]:
        values = to_numpy(finite(value, model, f"what {component} adds", tokens))
        values = values.reshape(len(tokens), -1)
        n = values.shape[1]
        frame = pd.DataFrame({"example": torch.arange(len(tokens)).repeat_interleave(n).numpy()})
        count = torch.arange(n).repeat(len(tokens)).numpy()
        frame["component"], frame["layer"] = component, layer
        frame["head"] = count if head is None else head
        frame["neuron"] = count if neuron is None else neuron
        frames.append(frame.assign(value=values.flatten()))
    return pd.concat(frames, ignore_index=True).sort_values(
        "example", kind="stable", ignore_index=True
    )


def _check(model: HookedTransformer, by: str) -> None:
    cfg = model.cfg
    if by not in ("component", "head", "neuron"):
        raise ValueError(f"by={by!r}: expected 'component', 'head' or 'neuron'")
    if cfg.head != "unembed":
        raise ValueError(f"head={cfg.head!r}: the output is no sum over the residual stream")
    if cfg.norm != "none" and cfg.norm_position == "post":
        raise ValueError(
            "norm_position='post': every norm rescales what was written before, so that a logit is "
            "no sum over parts; ablate the parts instead"
        )
    if by != "component" and cfg.norm != "none" and cfg.norm_position != "pre":
        raise ValueError(
            f"norm_position={cfg.norm_position!r}: a norm stands between heads or neurons and the "
            "residual stream; use by='component'"
        )
    if by == "neuron" and (cfg.n_experts or not cfg.d_mlp):
        raise ValueError("by='neuron' needs an MLP without experts; use by='component'")


def _cached(model: HookedTransformer, tokens: Any, by: str, own: list[int]) -> Any:
    names = [model.blocks[0].hook_resid_pre, model.blocks[-1].hook_resid_post]
    names += [block.hook_attn_out for block in model.blocks]
    names += [b.hook_cross_attn_out for b in model.blocks if b.cross_attn is not None]
    names += [block.hook_mlp_out for block in model.blocks if block.mlp is not None]
    names += ["hook_embed"] if model.embed_ln is None and model.encoder is None else []
    if model.ln_final is not None:
        names.append(model.ln_final.hook_scale)
    if by == "head":
        names += [f"{model.blocks[layer].name}.attn.hook_z" for layer in own]
    if by == "neuron":
        names += [model.blocks[layer].mlp.hook_post for layer in own]
    return finite_cache(model, tokens, names)


def _direction(
    model: HookedTransformer,
    here: Callable[[Any], Tensor],
    tokens: Any,
    answer: Tensor,
    wrong: Tensor | None,
) -> tuple[Float[Tensor, "batch d_model"], Tensor, Tensor]:
    """What a vector of the residual stream is multiplied by, the constant, and the whole."""
    ids = answer_ids(answer, tokens, model)
    read, bias = wide(model.W_U.T[ids]).mean(1), wide(model.b_U[ids]).mean(1)
    if wrong is not None:
        other = answer_ids(wrong, tokens, model)
        read = read - wide(model.W_U.T[other]).mean(1)
        bias = bias - wide(model.b_U[other]).mean(1)
    scale = 1.0 if model.cfg.logit_scale is None else model.cfg.logit_scale
    read, bias = read * scale, bias * scale
    norm, resid = model.ln_final, here(model.blocks[-1].hook_resid_post)
    if norm is None:
        return read, bias, (resid * read).sum(-1) + bias
    whole = (wide(norm(resid.to(model.dtype))) * read).sum(-1) + bias
    if norm.b is not None:
        bias = bias + read @ wide(norm.b)
    if norm.gain is not None:
        read = read * norm.gain
    if norm.kind == "layernorm":
        read = read - read.mean(-1, keepdim=True)
    return read / here(norm.hook_scale).to(read), bias, whole


def _parts(
    model: HookedTransformer,
    here: Callable[[Any], Tensor],
    direction: Tensor,
    by: str,
    own: list[int],
) -> Iterator[Part]:
    start = here(model.blocks[0].hook_resid_pre)
    embedded = start
    if model.embed_ln is None and model.encoder is None:
        embedded = here("hook_embed")
    yield "embed", NONE, NONE, NONE, _along(embedded, direction)
    if embedded is not start:  # positions, and token types
        yield "pos_embed", NONE, NONE, NONE, _along(start - embedded, direction)
    for layer, block in enumerate(model.blocks):
        size = 1.0 if block.scale is None else block.scale
        if by == "head" and layer in own:
            read = torch.einsum("hed,bd->bhe", wide(block.attn.W_O), direction)
            heads = (here(f"{block.name}.attn.hook_z") * read).sum(-1) * size
            yield "attn", layer, None, NONE, heads
            yield "attn", layer, NONE, NONE, _along(block.attn.b_O, direction) * size
        else:
            yield "attn", layer, NONE, NONE, _along(here(block.hook_attn_out), direction)
        if block.cross_attn is not None:
            yield (
                "cross_attn",
                layer,
                NONE,
                NONE,
                _along(here(block.hook_cross_attn_out), direction),
            )
        if block.mlp is None:
            continue
        if by == "neuron" and layer in own:
            read = direction @ wide(block.mlp.W_out).T
            yield "mlp", layer, NONE, None, here(block.mlp.hook_post) * read * size
            yield "mlp", layer, NONE, NONE, _along(block.mlp.b_out, direction) * size
        else:
            yield "mlp", layer, NONE, NONE, _along(here(block.hook_mlp_out), direction)


def _along(vectors: Tensor, direction: Tensor) -> Tensor:
    return (vectors * direction).sum(-1)
