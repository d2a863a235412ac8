"""The identities that give the sites their meaning, measured on the user's own model and tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import pandas as pd
import torch
from torch import Tensor

from interp.core.tap import ActivationCache
from interp.core.tokens import Tokens

from .block import Block
from .layout import Layout
from .transformer import Transformer

Site: TypeAlias = Callable[[str], Tensor]
"""What the run has at a site of one block."""

# Largest error that rounding explains, as a share of the largest value compared.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


def wanted(model: Transformer) -> list[str]:
    """The sites that the identities speak of."""
    return [name for name in model.sites.names if not name.endswith("_input")]


def errors(model: Transformer, cache: ActivationCache, logits: Tensor) -> pd.DataFrame:
    """Each identity at each layer of a run, as `model.check_identities` returns them."""
    rows = []
    for layer, identity, left, right, read in _of_both(model, cache, logits):
        if left.ndim == 3:  # [batch pos …]
            left, right = left[read.real], right[read.real]
        scale = torch.maximum(left.abs().max(), right.abs().max()).clamp(min=1e-30)
        rows.append((layer, identity, float((left - right).abs().max() / scale)))
    frame = pd.DataFrame(rows, columns=["layer", "identity", "error"])
    frame["tolerance"] = TOLERANCE[model.dtype]
    frame["holds"] = frame["error"] <= frame["tolerance"]
    return frame


def _of_both(
    model: Transformer, cache: ActivationCache, logits: Tensor
) -> Iterator[tuple[int, str, Tensor, Tensor, Tokens]]:
    """The identities of a model and, if it has one, of its encoder; and the tokens they count."""
    encoder, tokens = model.encoder, cache.tokens
    if encoder is not None:
        output = encoder.to_logits(cache[f"{encoder.blocks[-1].name}.hook_resid_post"])
        for layer, identity, *sides in _identities(encoder, cache, output, tokens.source):
            yield layer, f"encoder: {identity}", *sides, tokens.source
        for layer, block in enumerate(model.blocks):
            attn = block.cross_attn
            keys = torch.einsum("bpm,hmd->bphd", output, attn.W_K) + attn.b_K
            found = cache[attn.hook_k]
            identity = "encoder output W_K + b_K = cross_attn k"
            yield layer, identity, keys.flatten(2), found.flatten(2), tokens.source
    for layer, identity, *sides in _identities(model, cache, logits, tokens):
        yield layer, identity, *sides, tokens


def _identities(
    model: Transformer, cache: ActivationCache, logits: Tensor, tokens: Tokens
) -> Iterator[tuple[int, str, Tensor, Tensor]]:
    """The identities of one stack, which read these tokens."""
    layout = model.layout(tokens)
    for layer, block in enumerate(model.blocks):

        def site(name: str, block: Block = block) -> Tensor:
            return cache[f"{block.name}.{name}"]

        yield from ((layer, *rest) for rest in _attention(block, site, layout))
        if model.cfg.n_experts:
            biases = site("mlp.hook_expert_weights") @ block.mlp.b_out
            written = block.added(site("mlp.hook_post") @ block.mlp.W_out + biases, block.ln2_post)
            yield layer, "post W_out + Σ weight b_out = mlp_out", written, site("hook_mlp_out")
        yield from ((layer, *rest) for rest in _residual(block, site))
        if layer + 1 < model.cfg.n_layers:
            following = cache[model.blocks[layer + 1].hook_resid_pre]
            yield layer, "resid_post = next resid_pre", site("hook_resid_post"), following
    last = site("hook_resid_post")
    yield layer, "to_logits(resid_post) = output", model.to_logits(last), logits


def _attention(block: Block, site: Site, layout: Layout) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of each attention: its rows sum to one, its heads to what it adds."""
    parts = [("", block.attn, block.ln1_post, "ln1_post")]
    if block.cross_attn is not None:
        parts.append(("cross_", block.cross_attn, block.ln_cross_post, "ln_cross_post"))
    for which, attn, norm, name in parts:
        pattern = site(f"{which}attn.hook_pattern")
        total, text = pattern.sum(-1), f"Σ_k {which and 'cross_attn '}pattern"
        if attn.sinks is not None:
            total = total + attn.sink_share(site(f"{which}attn.hook_attn_scores"), layout)
            text += " + share of the sink"
        total = total.mT  # [batch pos head], as all others
        yield f"{text} = 1", total, torch.ones_like(total)
        written = f"Σ {which and 'cross_attn '}result + b_O"
        written = written if norm is None else f"{name}({written})"
        if block.scale is not None:
            written = f"residual_scale · ({written})"
        added = block.added(site(f"{which}attn.hook_result").sum(2) + attn.b_O, norm)
        yield f"{written} = {which}attn_out", added, site(f"hook_{which}attn_out")


def _residual(block: Block, site: Site) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The residual stream before and after each sublayer."""
    post = site("hook_resid_post")
    if block.parallel:
        left = site("hook_resid_pre") + site("hook_attn_out") + site("hook_mlp_out")
        yield "resid_pre + attn_out + mlp_out = resid_post", left, post
        return
    steps = [("resid_pre", "attn_out", "ln1")]
    if block.cross_attn is not None:
        steps.append(("resid_mid", "cross_attn_out", "ln_cross"))
    if block.mlp is not None:
        mid = "resid_mid" if block.cross_attn is None else "resid_mid_cross"
        steps.append((mid, "mlp_out", "ln2"))
    names = [*(before for before, *_ in steps[1:]), "resid_post"]
    for (before, added, norm), after in zip(steps, names, strict=True):
        total, text = site(f"hook_{before}") + site(f"hook_{added}"), f"{before} + {added}"
        if block.post_norm:
            total, text = getattr(block, norm)(total), f"{norm}({text})"
        yield f"{text} = {after}", total, site(f"hook_{after}")
