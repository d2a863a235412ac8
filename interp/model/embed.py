"""The two ends: from tokens to the residual stream, and from it to logits over the vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.core.config import TransformerConfig
from interp.core.sites import ALONE, ENCODER, Stack
from interp.core.tap import Silent, Tap
from interp.core.tokens import Tokens

from .layout import Places
from .mlp import ACTIVATIONS
from .norm import Norm

# The tile of logits that a log-sum-exp looks at: it stays in the cache of a core.
ROWS_OF_LOGITS, COLUMNS_OF_LOGITS = 256, 4096


class Embed(nn.Module):
    """Token embedding where the inputs are words, plus positions and token types where the
    architecture adds them.


    An encoder beside a decoder has no W_E of its own, it is given the decoder's. W_rel are T5's
    biases of scores, [bucket head].
    """

    def __init__(self, cfg: TransformerConfig, stack: Stack = ALONE) -> None:
        super().__init__()
        self.scale, self.offset = cfg.embed_scale, cfg.position_offset
        has_words = cfg.inputs == "tokens" and stack is not ENCODER
        self.W_E = _frozen(cfg.d_vocab, cfg.d_model) if has_words else None
        self.hook_embed = f"{stack.outside}hook_embed"
        self.hook_pos_embed = f"{stack.outside}hook_pos_embed"
        self.hook_token_type_embed = f"{stack.outside}hook_token_type_embed"
        self.sinusoidal = cfg.positions == "sinusoidal"
        self.W_rel = self.W_pos = self.W_token_type = None
        if cfg.positions == "relative":
            self.W_rel = _frozen(cfg.relative_buckets, cfg.n_heads)
        if cfg.positions == "learned":
            self.W_pos = _frozen(cfg.position_offset + cfg.n_ctx, cfg.d_model)
        if cfg.n_token_types:
            self.W_token_type = _frozen(cfg.n_token_types, cfg.d_model)

    def forward(
        self,
        tokens: Tokens,
        places: Places,
        tap: Silent | Tap,
        W_E: Float[Tensor, "d_vocab d_model"] | None,
    ) -> Float[Tensor, "batch pos d_model"]:
        x = F.embedding(tokens.ids, W_E) if tokens.vectors is None else tokens.vectors
        if self.scale is not None and tokens.vectors is None:
            x = x * torch.tensor(self.scale, dtype=x.dtype)
        x = tap(self.hook_embed, x)
        if self.sinusoidal:
            rows = sinusoids(places.positions + self.offset, x.shape[-1], x.dtype)
            x = x + tap(self.hook_pos_embed, rows.expand(len(tokens), -1, -1))
        if self.W_pos is not None:
            rows = F.embedding(places.positions + self.offset, self.W_pos)
            x = x + tap(self.hook_pos_embed, rows.expand(len(tokens), -1, -1))
        if self.W_token_type is not None:
            types = tokens.token_types
            types = (
                tokens.real.new_zeros(tokens.shape, dtype=torch.long) if types is None else types
            )
            x = x + tap(self.hook_token_type_embed, F.embedding(types, self.W_token_type))
        return x


def sinusoids(
    positions: Int[Tensor, "batch pos"], width: int, dtype: torch.dtype
) -> Float[Tensor, "batch pos width"]:
    """sin(p / 10000^(2i / width)) at dimension 2i, its cosine at 2i + 1 (Vaswani et al. 2017)."""
    wide = torch.promote_types(dtype, torch.float32)
    pair = torch.arange(width, device=positions.device) // 2
    angle = positions[..., None].to(wide) * 10_000.0 ** (-2 * pair.to(wide) / width)
    odd = torch.arange(width, device=positions.device) % 2 == 1
    return torch.where(odd, angle.cos(), angle.sin()).to(dtype)


class MLMHead(nn.Module):
    """What a masked-LM head reads of the residual stream: norm(act(x W + b)) (Devlin et al. 2019).

    The unembedding follows.
    """

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[cfg.activation]
        self.dense_weight = _frozen(cfg.d_model, cfg.d_model)
        self.dense_bias = _frozen(cfg.d_model)
        self.ln = Norm(cfg, "mlm_head.ln")

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return self.ln(self.act(F.linear(x, self.dense_weight, self.dense_bias)))


class Unembed(nn.Module):
    """Logits over the vocabulary; the matrix is the embedding's where the two are tied."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.scale, self.softcap = cfg.logit_scale, cfg.final_softcap
        self.weight = None if cfg.tied else _frozen(cfg.d_vocab, cfg.d_model)
        self.bias = _frozen(cfg.d_vocab) if cfg.unembed_bias else None

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], W_E: Float[Tensor, "d_vocab d_model"] | None
    ) -> Float[Tensor, "batch pos d_vocab"]:
        return self._scaled(F.linear(x, W_E if self.weight is None else self.weight, self.bias))

    def columns(
        self,
        x: Float[Tensor, "*rows d_model"],
        W_E: Float[Tensor, "d_vocab d_model"] | None,
        ids: Int[Tensor, "*rows k"],
    ) -> Float[Tensor, "*rows k"]:
        """Some logits, each one dot product."""
        weight = W_E if self.weight is None else self.weight
        logits = (weight[ids] @ x[..., None])[..., 0]
        return self._scaled(logits if self.bias is None else logits + self.bias[ids])

    def log_sum_exp(
        self, x: Float[Tensor, "rows d_model"], W_E: Float[Tensor, "d_vocab d_model"] | None
    ) -> Float[Tensor, " rows"]:
        """ln Σ exp(logits), without all logits of a row at one time; float32 at least."""
        weight = W_E if self.weight is None else self.weight
        wide = torch.promote_types(x.dtype, torch.float32)
        parts = []
        for rows in x.split(ROWS_OF_LOGITS):
            sums = []
            for start in range(0, len(weight), COLUMNS_OF_LOGITS):
                some = slice(start, start + COLUMNS_OF_LOGITS)
                bias = None if self.bias is None else self.bias[some]
                sums.append(self._scaled(F.linear(rows, weight[some], bias)).to(wide).logsumexp(-1))
            parts.append(torch.stack(sums).logsumexp(0))
        return torch.cat(parts)

    def _scaled(self, logits: Tensor) -> Tensor:
        logits = logits if self.scale is None else logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def _frozen(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape), requires_grad=False)
