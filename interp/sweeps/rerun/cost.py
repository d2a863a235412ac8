"""What passes take: bytes, and multiply-adds with weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interp.core.tokens import Tokens
from interp.model import HookedTransformer
from interp.model.attention import Attention
from interp.model.block import Block

from ..metrics import Bound
from . import plan
from .stages import PRE, Row, Z


def pass_bytes(model: Any, lines: int) -> int:
    """What a pass takes besides, at most: its widest layer, and the values looked at together."""
    stacks = [model.cfg] if model.cfg.encoder is None else [model.cfg, model.cfg.encoder]
    widest = 0
    for cfg in stacks:
        attention = 3 * (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.d_head
        neurons = (4 if cfg.mlp_gated else 2) * cfg.d_mlp
        widest = max(widest, attention, neurons)
    per_line = (2 + len(stacks)) * model.cfg.d_model + widest
    return (lines * per_line + 4 * plan.VALUES_AT_ONCE) * model.dtype.itemsize


def lines_that_fit(model: Any, width: int, free: int | None) -> int | None:
    """Lines per pass, halved until a pass fits into so many bytes; None: not even a row does."""
    lines = plan.TOKENS_PER_PASS * (4 if model.device.type == "cuda" else 1)
    while free is not None and pass_bytes(model, lines) > free:
        if lines <= width:
            return None
        lines //= 2
    return lines


def rows_at_once(attn: Attention, width: int, n_keys: int, stepwise: bool) -> int:
    """Rows of so many positions and keys whose keys, and whose scores where they are computed step
    by step, are made together."""
    per_key = attn.n_heads * (2 * attn.d_head + (2 * width if stepwise else 0))
    return max(1, plan.VALUES_AT_ONCE // (n_keys * per_key))


def rows_read_at_once(model: HookedTransformer, width: int, bound: Bound, late: bool) -> int:
    """Rows of so many positions of which what the metric reads is made together."""
    all_logits = bound.reads == "logits" and (late or bound.ids is None)
    per_position = model.cfg.d_vocab if all_logits else model.cfg.d_model
    return max(1, plan.VALUES_AT_ONCE // (width * per_position))


def multiplies(
    model: HookedTransformer, tokens: Tokens, rows: Sequence[Row], bound: Bound
) -> float:
    """Multiply-adds with weights that one pass takes (attention's own are not counted)."""
    width = tokens.shape[1]
    trimmed, late = plan.is_trimmed(model, rows, bound), plan.is_late(rows)
    read = None if bound.positions is None else bound.positions.tolist()
    total = 0.0
    for row in rows:
        full = width - row.start
        n = full if read is None or late else len(read[row.example])
        if trimmed:
            n_changed = len(set(row.changed).intersection(read[row.example]))
            total += _through(model, row, full, (n, n_changed))
        else:
            total += _through(model, row, full, (full, len(row.changed)))
        total += n * _reading(model, bound, late)
        if row.source is not None:
            source, wide = row.source, tokens.source.shape[1]
            total += _through(model.encoder, source, wide, (wide, len(source.changed)))
            total += wide * _source_size(model)
    return total


def _through(model: HookedTransformer, row: Row, full: int, last: tuple[int, int]) -> int:
    """Multiply-adds of a row's way through the blocks of a stack. `full`: the lines from its start
    on; `last`: those that the last block computes of them, and of those that are changed."""
    qkv, *behind = _sizes(model.blocks[0])
    total = 0
    for layer in range(max(row.entry.layer, 0), model.cfg.n_layers):
        is_last = layer == model.cfg.n_layers - 1
        if row.entry <= (layer, PRE):
            first = row.entry > (layer - 1, PRE) or layer == 0
            total += qkv * (len(row.changed) if first else full)
            total += sum(behind) * (last[0] if is_last else full)
        else:
            total += (last[1] if is_last else len(row.changed)) * sum(behind[row.entry.stage - Z :])
    return total


def forward_multiplies(model: HookedTransformer, tokens: Tokens, bound: Bound) -> float:
    """Multiply-adds with weights of one whole forward, as far as the metric needs one."""
    per_token = sum(_sizes(model.blocks[0])) * model.cfg.n_layers
    if bound.reads == "logits":
        per_token += (model.cfg.d_vocab + _transform(model)) * model.cfg.d_model
    total = per_token * tokens.shape.numel()
    if tokens.source is not None:
        encoder = model.encoder
        per_token = sum(_sizes(encoder.blocks[0])) * encoder.cfg.n_layers + _source_size(model)
        total += per_token * tokens.source.shape.numel()
    return float(total)


def _sizes(block: Block) -> tuple[int, ...]:
    """Of the weights of a block behind each of its stages."""
    mlp, cross = block.mlp, block.cross_attn
    rest = (0, 0) if mlp is None else mlp.multiplies
    between = (0, 0)
    if cross is not None:  # of which keys and values are not made of the stream
        between = (cross.qkv_weight[cross.rows(0, 1)].numel(), cross.out_weight.numel())
    return block.attn.qkv_weight.numel(), block.attn.out_weight.numel(), *between, *rest


def _source_size(model: HookedTransformer) -> int:
    """Of the weights that make keys and values of a position of the source, in all layers."""
    block: Block = model.blocks[0]
    cross = block.cross_attn
    return cross.qkv_weight[cross.rows(1, 3)].numel() * model.cfg.n_layers


def _reading(model: HookedTransformer, bound: Bound, late: bool) -> int:
    """Multiply-adds of reading one position of the last residual stream."""
    if bound.reads == "residual":
        return 0
    everything = late or bound.ids is None
    columns = model.cfg.d_vocab if everything else bound.ids.shape[2]
    if bound.log_probs and not everything:
        columns += model.cfg.d_vocab
    return (columns + _transform(model)) * model.cfg.d_model


def _transform(model: HookedTransformer) -> int:
    """Columns of the transform that a masked-LM head puts before its unembedding."""
    return 0 if model.mlm_head is None else model.cfg.d_model
