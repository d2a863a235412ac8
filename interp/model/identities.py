"""The identities that give the sites their meaning, measured on the user's own model and tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from ..tap import ActivationCache

if TYPE_CHECKING:
    from .transformer import HookedTransformer, Input

# Largest error that rounding explains, as a share of the largest value compared.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


@torch.no_grad()
def check_identities(model: HookedTransformer, tokens: Input) -> pd.DataFrame:
    """Each identity at each layer: layer, identity, error (max |left − right| as a share of the
    largest value), tolerance, holds. Only real tokens are compared.
    """
    wanted = [name for name in model.sites.names if not name.endswith("_input")]
    logits, cache = model.run_with_cache(tokens, wanted)
    real = cache.tokens.real
    rows = []
    for layer, identity, left, right in _identities(model, cache, logits):
        if left.shape[:2] == real.shape:
            left, right = left[real], right[real]
        scale = torch.maximum(left.abs().max(), right.abs().max()).clamp(min=1e-30)
        rows.append((layer, identity, float((left - right).abs().max() / scale)))
    frame = pd.DataFrame(rows, columns=["layer", "identity", "error"])
    frame["tolerance"] = TOLERANCE[model.dtype]
    frame["holds"] = frame["error"] <= frame["tolerance"]
    return frame


def _identities(
    model: HookedTransformer, cache: ActivationCache, logits: Tensor
) -> Iterator[tuple[int, str, Tensor, Tensor]]:
    for layer, block in enumerate(model.blocks):

        def site(name: str, layer: int = layer) -> Tensor:
            return cache[name, layer]

        pattern = site("pattern")
        yield layer, "Σ_k pattern = 1", pattern.sum(-1), torch.ones_like(pattern[..., 0])
        written = "ln1_post(Σ result + b_O)" if block.output_norm else "Σ result + b_O"
        if block.scale is not None:
            written = f"residual_scale · ({written})"
        added = block.added(site("result").sum(2) + block.attn.b_O, block.ln1_post)
        yield layer, f"{written} = attn_out", added, site("attn_out")
        yield from ((layer, *rest) for rest in _residual(block, site))
        if layer + 1 < model.cfg.n_layers:
            yield (
                layer,
                "resid_post = next resid_pre",
                site("resid_post"),
                cache["resid_pre", layer + 1],
            )
    last = cache["resid_post", model.cfg.n_layers - 1]
    yield layer, "to_logits(resid_post) = output", model.to_logits(last), logits


def _residual(block, site) -> Iterator[tuple[str, Tensor, Tensor]]:
    pre, attn_out, post = site("resid_pre"), site("attn_out"), site("resid_post")
    if block.parallel:
        yield "resid_pre + attn_out + mlp_out = resid_post", pre + attn_out + site("mlp_out"), post
    elif block.mlp is None:
        after = pre + attn_out
        yield (
            ("ln1(resid_pre + attn_out) = resid_post", block.ln1(after), post)
            if block.post_norm
            else ("resid_pre + attn_out = resid_post", after, post)
        )
    elif block.post_norm:
        mid = site("resid_mid")
        yield "ln1(resid_pre + attn_out) = resid_mid", block.ln1(pre + attn_out), mid
        yield "ln2(resid_mid + mlp_out) = resid_post", block.ln2(mid + site("mlp_out")), post
    else:
        mid = site("resid_mid")
        yield "resid_pre + attn_out = resid_mid", pre + attn_out, mid
        yield "resid_mid + mlp_out = resid_post", mid + site("mlp_out"), post
