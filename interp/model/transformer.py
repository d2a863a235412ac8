"""The transformer: embed → blocks → unembed, read top to bottom.

Every tensor that a site names passes through the tap. With no tap this is the plain fast model:
attention and norms stay fused, and nothing is kept. What can be asked of it besides running is in
`hooked`, whose `HookedTransformer` is this with its verbs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.core import chance
from interp.core.config import TransformerConfig
from interp.core.indices import index
from interp.core.memory import free_bytes
from interp.core.sites import ALONE, DECODER, ENCODER, SiteFilter, SiteTable
from interp.core.tap import SILENT, Positions, Silent, Tap
from interp.core.tokens import Tokens

from .block import Block
from .embed import Embed, MLMHead, Unembed
from .inputs import SENSES
from .layout import Layout, Places
from .norm import Norm
from .prefix import Encoded, GrowingPrefix, Prefix
from .text import Input, Reader

if TYPE_CHECKING:
    from interp.core.tokenizer import Tokenizer

MANY = 1 << 30
"""Bytes from which on the free memory is asked for."""


def check_memory(cfg: TransformerConfig, device: torch.device) -> None:
    """Raise ValueError where the weights of this config, in float32, cannot fit on the device."""
    needed = 4 * cfg.least_params
    free = free_bytes(device) if needed > MANY and device.type != "meta" else None
    if free is not None and needed > free:
        raise ValueError(
            f"a model of n_layers={cfg.n_layers}, d_model={cfg.d_model}, d_mlp={cfg.d_mlp}, "
            f"d_vocab={cfg.d_vocab} and n_ctx={cfg.n_ctx} needs at least {needed / 1e9:,.1f} GB, "
            f"and {free / 1e9:,.1f} GB are free on {device}; interp.num_params(cfg) tells its "
            "size without making it"
        )


class Transformer(Reader):
    """The weights of a config, and the forward pass through them.

    With `cfg.encoder`, `blocks` are the decoder's and `encoder` is a transformer of its own that
    shares the word embedding. `decoder` makes this such an encoder: the embedding that it shares.
    """

    encoder: Transformer | None
    opaque: str | None = None
    """Why no engine can enter the middle of a run; None: one can."""

    def __init__(
        self,
        cfg: TransformerConfig,
        tokenizer: Tokenizer | None = None,
        *,
        name: str = "custom",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        decoder: Embed | None = None,
    ) -> None:
        super().__init__()
        check_memory(cfg, torch.empty(0).device if device is None else torch.device(device))
        self.cfg, self.tokenizer, self.name = cfg, tokenizer, name
        stack = ENCODER if decoder is not None else ALONE if cfg.encoder is None else DECODER
        self.sites = SiteTable(cfg, stack)
        self.labels: tuple[str, ...] = ()
        """What each logit stands for, where those are no words: an image's classes."""
        self.fwd_hooks: tuple = ()
        self.source: dict = {}
        normed = cfg.norm != "none"
        with torch.device(torch.empty(0).device if device is None else device):
            self.inputs = None if cfg.inputs == "tokens" else SENSES[cfg.inputs](cfg)
            self.embed = Embed(cfg, stack)
            self.embed_ln = Norm(cfg, f"{stack.outside}embed_ln") if cfg.embed_norm else None
            self.blocks = nn.ModuleList(Block(cfg, layer, stack) for layer in range(cfg.n_layers))
            has_final = cfg.final_norm and normed
            self.ln_final = Norm(cfg, f"{stack.outside}ln_final") if has_final else None
            self.mlm_head = MLMHead(cfg) if cfg.head == "mlm" else None
            self.unembed = None if cfg.head == "none" else Unembed(cfg)
            # In a tuple: as a module it would be registered, and saved, twice.
            self._words = (self.embed if decoder is None else decoder,)
            self.encoder = None
            if cfg.encoder is not None:
                self.encoder = type(self)(
                    cfg.encoder, tokenizer, name=f"{name} (encoder)", decoder=self.embed
                )
        self.to(dtype)
        if decoder is None and not self.like.is_meta:
            self.init_weights(seed)

    def forward(
        self,
        tokens: Input,
        tap: Tap | None = None,
        *,
        prefix: Prefix | None = None,
        stop_at_layer: int | None = None,
    ) -> Tensor:
        """Logits [batch pos d_vocab]; with cfg.head "none" the final residual [batch pos d_model].

        With stop_at_layer=l, the residual stream that layer l would read (n_layers: the last one;
        −1: what the last layer would read).
        `prefix` lies to the left of the tokens. Of an encoder–decoder the logits are the decoder's:
        see `accept` for what it is given. Raises ValueError on ids outside the vocabulary, an empty
        prompt, or positions past n_ctx.
        """
        goes_on = prefix is not None and prefix.encoded is not None
        tokens = self.checked(tokens) if goes_on else self.accept(tokens)
        stop = self._stop(stop_at_layer)
        if tap is not None or not self.fwd_hooks:
            return self._run(tokens, SILENT if tap is None else tap, prefix, stop)
        tap = self.make_tap(stop_at_layer=stop_at_layer, goes_on=goes_on)
        out = self._run(tokens, tap, prefix, stop)
        tap.check_fired()
        return out

    def _run(
        self,
        tokens: Tokens,
        tap: Silent | Tap,
        prefix: Prefix | None,
        stop: int | None,
        layout: Layout | None = None,
    ) -> Tensor:
        encoded = self._encoded(tokens, prefix, tap)
        layout = layout or self.layout(tokens, prefix)
        layout.check_context()
        x = self.embedded(tokens, layout, tap)
        for layer, block in enumerate(self.blocks):
            if layer == stop:
                return x
            x = block(x, layout, tap, prefix, encoded)
        if isinstance(prefix, GrowingPrefix):
            prefix.advance(tokens)
        return x if stop is not None else self.to_logits(x, tap)

    def layout(self, tokens: Tokens, prefix: Prefix | None = None) -> Layout:
        """Where the tokens of a run stand."""
        return Layout(self.cfg, tokens, prefix, self.like, self.embed.W_rel)

    def _encoded(self, tokens: Tokens, prefix: Prefix | None, tap: Silent | Tap) -> Encoded | None:
        """What cross-attention reads: the encoder runs on the source of the tokens, unless the
        prefix remembers what became of it."""
        if self.encoder is None:
            return None
        if prefix is not None and prefix.encoded is not None:
            return prefix.encoded
        source = tokens.source
        encoded = Encoded(self.encoder._run(source, tap, None, None), source.mask)
        if prefix is not None:
            prefix.encoded = encoded
        return encoded

    def embedded(
        self, tokens: Tokens, places: Places, tap: Silent | Tap = SILENT
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the first block reads."""
        x = self.embed(tokens, places, tap, self._words[0].W_E)
        return x if self.embed_ln is None else self.embed_ln(x, tap)

    def to_logits(
        self, resid: Float[Tensor, "batch pos d_model"], tap: Silent | Tap = SILENT
    ) -> Tensor:
        """From the last residual stream to the model's output: final norm, the transform of a
        masked-LM head, unembedding."""
        x = self._read_out(resid, tap)
        if self.unembed is None:
            return x
        return tap("hook_logits", self.unembed(x, self.embed.W_E))

    def _read_out(self, resid: Tensor, tap: Silent | Tap = SILENT) -> Tensor:
        """What the unembedding reads of the last residual stream."""
        x = resid if self.ln_final is None else self.ln_final(resid, tap)
        return x if self.mlm_head is None else self.mlm_head(x)

    def logits_of(
        self,
        resid: Float[Tensor, "rows pos d_model"],
        ids: Int[Tensor, "rows pos k"],
        log_probs: bool = False,
    ) -> Float[Tensor, "rows pos k"]:
        """The logits of some ids, or their log-probabilities (nats), from the last residual stream.

        Computes no other logits, and none of those that a log-probability is normed by is kept.
        """
        x = self._read_out(resid)
        logits = self.unembed.columns(x, self.embed.W_E, ids)
        if not log_probs:
            return logits
        norm = self.unembed.log_sum_exp(x.flatten(0, 1), self.embed.W_E).view(*x.shape[:2], 1)
        return logits.to(norm) - norm

    def logits_at(
        self, tokens: Input, asked: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "asked d_vocab"]:
        """The logits of some positions, row after row: past the last attention no other position
        is computed. In the autograd graph; a training step on few of many positions needs no more.

        Raises ValueError on a view with hooks, which would miss positions, and on cross-attention.
        """
        if self.fwd_hooks or self.encoder is not None:
            raise ValueError("logits_at takes no hooks and no encoder: call the model instead")
        tokens = self.accept(tokens)
        layout, last = self.layout(tokens), self.blocks[-1]
        resid_pre = self._run(tokens, SILENT, None, self.cfg.n_layers - 1, layout)
        parts = (part[asked][None] for part in last.to_z(resid_pre, layout))
        return self.to_logits(last.from_z(*parts))[0]

    @property
    def like(self) -> Tensor:
        """A weight that every model has, for its device and dtype."""
        return self.blocks[0].attn.qkv_weight

    @property
    def stacks(self) -> tuple[nn.ModuleList, ...]:
        """The blocks of the encoder, where there is one, and of this model."""
        return (self.blocks,) if self.encoder is None else (self.encoder.blocks, self.blocks)

    def new_prefix(self, batch: int, capacity: int) -> GrowingPrefix:
        """What generation keeps of the tokens so far: nothing yet."""
        return GrowingPrefix(self.cfg, batch, capacity, like=self.like)

    def last_logits(
        self, tokens: Tokens, tap: Silent | Tap, prefix: GrowingPrefix
    ) -> Float[Tensor, "batch d_vocab"]:
        """The logits behind the last position, whose tokens join the prefix."""
        resid = self._run(tokens, tap, prefix, stop=self.cfg.n_layers)
        return self.to_logits(resid[:, -1:], tap)[:, -1]

    def make_tap(
        self,
        names_filter: SiteFilter = None,
        *,
        reading: bool = False,
        stop_at_layer: int | None = None,
        pos: Positions = None,
        device: torch.device | str | None = None,
        grad: bool = False,
        goes_on: bool = False,
    ) -> Tap:
        """A tap for one run: this view's hooks and, when `reading`, the sites of `names_filter`.

        `goes_on`: the run's prefix remembers its source, so that the sites of the encoder, and the
        keys and values of cross-attention, are not met again.
        """
        stop = self._stop(stop_at_layer)
        sites = self.sites if stop is None else self.sites.before_layer(stop)
        reads = sites.select(names_filter) if reading else ()
        met = [s.name for s in sites if "pos" in s.source] if goes_on else ()
        return Tap(
            sites,
            reads=reads,
            fwd_hooks=self.fwd_hooks,
            pos=pos,
            device=device,
            grad=grad,
            met_before=met,
        )

    def _stop(self, stop_at_layer: int | None) -> int | None:
        if stop_at_layer is None:
            return None
        return index(stop_at_layer, self.cfg.n_layers, "stop_at_layer", end=True)

    @torch.no_grad()
    def init_weights(self, seed: int = 0, std: float = 0.02) -> None:
        """Random weights as GPT-2's: N(0, std), writers divided by √(2 n_layers), biases 0."""
        generator = chance.seeded(seed)
        shrink = (2 * self.cfg.n_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if name.endswith(".w"):
                parameter.fill_(0.0 if self.cfg.norm == "rmsnorm_plus1" else 1.0)
            elif name.endswith((".b", "bias")):
                parameter.zero_()
            else:
                own = std * (shrink if name.endswith("out_weight") else 1)
                size, dtype = parameter.shape, parameter.dtype
                parameter.copy_(chance.normal(*size, generator=generator, std=own, dtype=dtype))
