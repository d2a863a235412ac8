"""Weights as a researcher reads them: how many there are, and folded norms."""

from __future__ import annotations

import copy
from typing import Literal, TypeVar

import pandas as pd
import torch
from torch import Tensor

from interp.core.config import TransformerConfig

from .attention import Attention
from .transformer import Transformer

Model = TypeVar("Model", bound=Transformer)

COMPONENTS = (
    "embed", "pos_embed", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out", "router",
    "norms", "unembed",
)  # fmt: skip


def count_params(
    model: Transformer, by: Literal["component", "layer"] | None = None
) -> pd.Series | int:
    """Parameters of a model, counted without reading them.

    by="component": Series over embed (with token types; of images, audio and trajectories the maps
    that make their vectors), pos_embed, W_Q … W_out, router (of experts), norms, unembed (0 when
    tied; with the transform of a masked-LM head); a bias counts with its matrix, attention sinks
    with W_Q, T5's relative biases as pos_embed, cross-attention with attention, an encoder with its
    decoder.
    by="layer": Series over layers, with -1 for what lies outside the blocks. None: the total.
    """
    if by not in (None, "component", "layer"):
        raise ValueError(f"by={by!r}: expected 'component', 'layer' or None")
    counts = [
        (component, _layer_of(name), size)
        for name, parameter in model.named_parameters()
        for component, size in _components(name, parameter, model.cfg.of_parameter(name))
    ]
    if by is None:
        return sum(size for *_, size in counts)
    frame = pd.DataFrame(counts, columns=["component", "layer", "n_params"])
    totals = frame.groupby(by)["n_params"].sum()
    return totals.reindex(COMPONENTS, fill_value=0) if by == "component" else totals


def _layer_of(name: str) -> int:
    own = name.removeprefix("encoder.")
    return int(own.split(".")[1]) if own.startswith("blocks.") else -1


def _components(name: str, parameter: Tensor, cfg: TransformerConfig) -> list[tuple[str, int]]:
    """Which components a parameter holds: fused matrices hold several."""
    module, _, leaf = name.removeprefix("encoder.").rpartition(".")
    total = parameter.numel()
    if leaf.startswith("qkv_"):
        per_head = total // (cfg.n_heads + 2 * cfg.n_kv_heads)
        kv = per_head * cfg.n_kv_heads
        return [("W_Q", per_head * cfg.n_heads), ("W_K", kv), ("W_V", kv)]
    if leaf == "sinks":
        return [("W_Q", total)]
    if module.endswith("attn"):
        return [("W_O", total)]
    if leaf.startswith("router_"):
        return [("router", total)]
    if leaf.startswith("in_"):
        halves = [("W_gate", total // 2), ("W_in", total // 2)]
        return halves if cfg.mlp_gated else [("W_in", total)]
    if module.endswith("mlp"):
        return [("W_out", total)]
    if module in ("inputs", "embed", "mlm_head", "unembed"):
        outside = "embed" if module in ("inputs", "embed") else "unembed"
        return [("pos_embed" if leaf in ("W_pos", "W_rel") else outside, total)]
    return [("norms", total)]


@torch.no_grad()
def folded(model: Model) -> Model:
    """A copy with the same predictions in which norms only normalise.

    Gains and biases of the norms before each sublayer and before the unembedding go into the
    matrices that read them. Under LayerNorm what is written to the residual stream is centred
    (LayerNorm removes the mean anyway), and W_U is centred over the vocabulary unless the logits
    are soft-capped or are an action: logits then differ by a constant per position, probabilities
    not at all.
    Raises ValueError on post-norm models, whose norms stand on the residual stream itself.
    """
    cfg = model.cfg
    for one in (cfg, cfg.encoder or cfg):
        if one.norm_position in ("post", "output"):
            raise ValueError(
                f"cannot fold norms with norm_position={one.norm_position!r}: no linear map reads "
                "them alone; folding needs 'pre' or 'both'"
            )
    if model.fwd_hooks:
        raise ValueError("fold the model before with_hooks: its sites mean something else after")
    has_head = cfg.head != "none"
    new_cfg = _folded_config(cfg).replace(
        tied=False, unembed_bias=has_head and (cfg.unembed_bias or _has_bias(cfg))
    )
    if cfg.encoder is not None:
        # Keys and values of cross-attention read the encoder's last norm.
        bias = new_cfg.qkv_bias or (cfg.encoder.final_norm and _has_bias(cfg.encoder))
        new_cfg = new_cfg.replace(encoder=_folded_config(cfg.encoder), qkv_bias=bias)
    with torch.device("meta"):
        new = type(model)(new_cfg, model.tokenizer, name=f"{model.name} (folded)")
    state = {name: p.clone() for name, p in model.state_dict().items()}
    if has_head and cfg.tied:
        state["unembed.weight"] = model.embed.W_E.clone()
    for name, empty in new.state_dict().items():  # biases that folding brings
        if name not in state:
            state[name] = torch.zeros(empty.shape, dtype=model.dtype, device=model.device)
    new.load_state_dict(state, assign=True)
    new.requires_grad_(False)
    new.source, new.labels = copy.deepcopy(model.source), model.labels
    new.stored_end_ids = model.stored_end_ids
    for stack in (new, *filter(None, [new.encoder])):
        _fold_norms(stack)
        own = stack.cfg
        if own.norm == "layernorm" and own.norm_position == "pre" and own.final_norm:
            _centre_writers(stack)
    if has_head and cfg.final_softcap is None and cfg.inputs != "trajectory":
        new.unembed.weight -= new.unembed.weight.mean(0)
        if new.unembed.bias is not None:
            new.unembed.bias -= new.unembed.bias.mean()
    return new


def _has_bias(cfg: TransformerConfig) -> bool:
    """Whether the norms have biases, which folding moves into maps."""
    return cfg.norm == "layernorm" and cfg.norm_affine and cfg.norm_bias


def _folded_config(cfg: TransformerConfig) -> TransformerConfig:
    """With the biases that folding the norms of its blocks brings."""
    return cfg.replace(
        qkv_bias=cfg.qkv_bias or _has_bias(cfg),
        mlp_bias=cfg.mlp_bias or (_has_bias(cfg) and cfg.d_mlp > 0),
        router_bias=cfg.router_bias or (_has_bias(cfg) and cfg.n_experts > 0),
    )


def _fold_norms(model: Transformer) -> None:
    for block in model.blocks:
        readers = [_rows(block.attn, 0, 3)]
        if block.mlp is not None:
            if model.cfg.parallel_shared_norm:
                readers += block.mlp.readers
            elif block.pre_norm:
                _fold(block.ln2, block.mlp.readers)
        if block.pre_norm:
            _fold(block.ln1, readers)
        if block.pre_norm and block.cross_attn is not None:
            _fold(block.ln_cross, [_rows(block.cross_attn, 0, 1)])
    if model.encoder is not None and model.encoder.ln_final is not None:
        _fold(model.encoder.ln_final, [_rows(block.cross_attn, 1, 3) for block in model.blocks])
    if model.unembed is None:
        return
    unembed, head = (model.unembed.weight, model.unembed.bias), model.mlm_head
    if head is not None:
        _fold(head.ln, [unembed])
    if model.ln_final is not None:
        _fold(model.ln_final, [unembed if head is None else (head.dense_weight, head.dense_bias)])


def _rows(attn: Attention, first: int, last: int) -> tuple[Tensor, Tensor | None]:
    """The map, as views, that makes some of queries, keys and values."""
    rows = attn.rows(first, last)
    return attn.qkv_weight[rows], None if attn.qkv_bias is None else attn.qkv_bias[rows]


def _fold(norm, readers: list[tuple[Tensor, Tensor | None]]) -> None:
    """Move a norm's gain and bias into the maps [out, in] that read it."""
    if norm.w is None:
        return
    for weight, bias in readers:
        if norm.b is not None:
            bias += weight @ norm.b
        weight *= norm.gain
    norm.w.fill_(0.0 if norm.kind == "rmsnorm_plus1" else 1.0)
    if norm.b is not None:
        norm.b.zero_()


def _centre_writers(model: Transformer) -> None:
    """Remove the mean over d_model from everything that is added to the residual stream."""
    if model.embed_ln is None:  # behind an embedding norm the embedding is no longer a sum
        for table in (model.embed.W_E, model.embed.W_pos, model.embed.W_token_type):
            if table is not None:
                table -= table.mean(-1, keepdim=True)
        if model.cfg.inputs in ("patches", "trajectory"):  # frames lie behind a gelu
            for table in model.inputs.parameters():
                table -= table.mean(0)
    for block in model.blocks:
        for part in (block.attn, block.cross_attn, block.mlp):
            if part is not None:
                part.out_weight -= part.out_weight.mean(0)
                if part.out_bias is not None:
                    part.out_bias -= part.out_bias.mean(-1, keepdim=True)
