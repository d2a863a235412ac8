"""What a model can be asked besides running: text in and out, pooling, generation, weight views."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.core.config import TransformerConfig
from interp.core.finite import check_model, finite
from interp.core.indices import whole_numbers
from interp.core.precision import wide_dtype
from interp.core.sites import SiteFilter
from interp.core.tokens import Tokens
from interp.core.unknown import warn_of_unknown

from . import generate as generation
from .factored import FactoredMatrix
from .identities import check_identities
from .weights import count_params, folded

if TYPE_CHECKING:
    from interp.core.tokenizer import Tokenizer

    from .embed import Embed, Unembed
    from .transformer import HookedTransformer, Input


def _stacked(part: str, name: str) -> property:
    def stack(self: Verbs) -> Tensor:
        return torch.stack([getattr(getattr(block, part), name) for block in self.blocks])

    return property(stack, doc=f"`blocks[l].{part}.{name}` of all layers, stacked on demand.")


class Verbs(nn.Module):
    """The part of `HookedTransformer` that does not compute the forward pass."""

    cfg: TransformerConfig
    tokenizer: Tokenizer | None
    name: str
    embed: Embed
    inputs: nn.Module | None
    unembed: Unembed | None
    blocks: nn.ModuleList
    encoder: HookedTransformer | None
    _words: tuple[Embed]
    stored_end_ids: tuple[int, ...] = ()
    """The end tokens that the model's files name."""

    W_Q, W_K, W_V, W_O = (_stacked("attn", name) for name in ("W_Q", "W_K", "W_V", "W_O"))
    b_Q, b_K, b_V, b_O = (_stacked("attn", name) for name in ("b_Q", "b_K", "b_V", "b_O"))
    W_in, W_gate, W_out = (_stacked("mlp", name) for name in ("W_in", "W_gate", "W_out"))
    b_in, b_gate, b_out = (_stacked("mlp", name) for name in ("b_in", "b_gate", "b_out"))

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        if self.cfg.inputs != "tokens":
            raise ValueError(f"inputs={self.cfg.inputs!r}: this model has no word embedding W_E")
        return self._words[0].W_E

    @property
    def W_rel(self) -> Float[Tensor, "bucket head"]:
        """What T5's relative position bias adds to scores, per bucket of distances and head."""
        if self.embed.W_rel is None:
            raise ValueError(f"positions={self.cfg.positions!r}: this model has no W_rel")
        return self.embed.W_rel

    @property
    def stacks(self) -> tuple[nn.ModuleList, ...]:
        """The blocks of the encoder, where there is one, and of this model."""
        return (self.blocks,) if self.encoder is None else (self.encoder.blocks, self.blocks)

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """Row p belongs to position p."""
        if self.embed.W_pos is None:
            raise ValueError(f"positions={self.cfg.positions!r}: this model has no W_pos")
        return self.embed.W_pos[self.cfg.position_offset :]

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        if self.unembed is None:
            raise ValueError("head='none': this model has no unembedding")
        return (self.W_E if self.cfg.tied else self.unembed.weight).T

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        bias = None if self.unembed is None else self.unembed.bias
        return self.W_U.new_zeros(self.cfg.d_vocab) if bias is None else bias

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_Kᵀ of every head [layer head d_model d_model]: query side × key side."""
        return FactoredMatrix(self.W_Q, self._per_query_head(self.W_K).mT)

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head [layer head d_model d_model]: what is read × what is written."""
        return FactoredMatrix(self._per_query_head(self.W_V), self.W_O)

    def _per_query_head(self, kv: Tensor) -> Tensor:
        return kv.repeat_interleave(self.cfg.n_heads // self.cfg.n_kv_heads, dim=1)

    @property
    def device(self) -> torch.device:
        return self.like.device

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def like(self) -> Tensor:
        """A weight that every model has, for its device and dtype."""
        return self.blocks[0].attn.qkv_weight

    def accept(self, value: Input) -> Tokens:
        """Tokens on this model's device: ids inside the vocabulary, vectors d_model wide.

        To an encoder–decoder, what has no `source` of its own (text, ids, vectors, sound) is the
        source, and the decoder reads its start token; so does `generate`. `to_tokens(…, target=…)`
        or Tokens(ids, source=…) give both. Text, images, spectrograms and trajectories (a dict) go
        through `to_tokens`.
        """
        if self._reader.inputs is not None and not isinstance(value, Tokens):
            named = isinstance(value, Mapping)
            value = self.to_tokens(**value) if named else self.to_tokens(value)
        tokens = self.checked(value)
        if self.encoder is None:
            if tokens.source is not None:
                raise ValueError("these tokens have a source, but this model has no encoder")
            return tokens
        if tokens.source is None:
            tokens = dataclasses.replace(self._start(len(tokens)), source=tokens)
        source = self.encoder.accept(tokens.source)
        if len(source) != len(tokens):
            raise ValueError(f"a source of {len(source)} rows for {len(tokens)} rows of tokens")
        return dataclasses.replace(tokens, source=source)

    @property
    def _reader(self) -> Verbs:
        """The stack that reads what the model is given."""
        return self if self.encoder is None else self.encoder

    def _start(self, batch: int) -> Tokens:
        """What the decoder of an encoder–decoder reads before anything is written."""
        start = self.cfg.decoder_start_token_id
        if start is None:
            raise ValueError(
                "decoder_start_token_id=None: this model does not say how its decoder begins; give "
                "Tokens(ids of the decoder, source=…)"
            )
        ids = torch.tensor([start, *self.cfg.decoder_forced_ids], device=self.device)
        return Tokens(ids.repeat(batch, 1))

    def checked(self, value: Input) -> Tokens:
        """Tokens as they are given, checked as `accept` says."""
        if isinstance(value, str) or (
            isinstance(value, (list, tuple)) and len(value) > 0 and isinstance(value[0], str)
        ):
            value = self.to_tokens(value)
        tokens = Tokens.of(value)
        if tokens.mask is not None and not torch.compiler.is_compiling():
            empty = ~tokens.mask.any(1)
            if bool(empty.any()):
                raise ValueError(f"row {int(empty.nonzero()[0])} holds nothing but pads")
        if tokens.vectors is not None:
            if tokens.vectors.shape[-1] != self.cfg.d_model:
                raise ValueError(
                    f"vectors are {tokens.vectors.shape[-1]} wide; d_model={self.cfg.d_model}"
                )
            vectors = tokens.vectors.to(self.device, self.dtype)
            return dataclasses.replace(tokens, vectors=vectors).to(self.device)
        if self.inputs is not None:
            raise ValueError(f"this model reads {self.cfg.inputs}, and these tokens are ids")
        if not torch.compiler.is_compiling() and not tokens.ids.is_meta:
            low, high = (int(v) for v in tokens.ids.aminmax())
            if low < 0 or high >= self.cfg.d_vocab:
                raise ValueError(
                    f"token id {low if low < 0 else high} is outside the vocabulary: "
                    f"expected 0 to {self.cfg.d_vocab - 1}"
                )
        return tokens.to(self.device)

    def to_tokens(
        self,
        value: Any = None,
        *,
        target: str | Sequence[str] | None = None,
        bos: bool | None = None,
        side: Literal["left", "right"] = "right",
        roles: Mapping[str, Tensor] | None = None,
        **named: Any,
    ) -> Tokens:
        """What this model reads, as Tokens, one row per example. cfg.inputs says what that is:

        tokens: a text or several, padded on `side`. bos=None follows the tokenizer's own template
        ([CLS] … [SEP] for BERT, BOS for Llama, nothing for GPT-2); True puts exactly one BOS first;
        False adds no special token.
        patches: pixels [batch channel height width], rescaled and normalised.
        frames: a log-mel spectrogram [batch mel column], or audio= [sample] or [batch sample] with
        rate= in samples per second.
        trajectory: returns= [batch step], states= [batch step d_state], actions= [batch step
        d_action] and, where wanted, timesteps= and mask= [batch step].

        Of an encoder–decoder that is the source, and `roles` are its. The decoder reads its start
        tokens and, where `target` is given (one text per source), what the tokenizer makes of it
        without the end token: the ids that a model is trained to continue.

        `roles` are named positions, beside those that images ("class") and trajectories ("return",
        "state", "action": the last step's) have. Raises ValueError on anything else.
        """
        if self.encoder is None and target is not None:
            raise ValueError("target= is what a decoder reads; this model has no encoder")
        reads = self._reader
        if reads.inputs is None:
            if named:
                raise ValueError(f"this model reads text, not {'= and '.join(named)}=")
            tokens = self._text_to_tokens(value, bos, side)
        else:
            if self.encoder is None and (bos is not None or side != "right"):
                raise ValueError(f"bos= and side= go with text; this model reads {self.cfg.inputs}")
            tokens = reads.inputs(*(() if value is None else (value,)), **named)
        tokens = dataclasses.replace(tokens, roles={**tokens.roles, **(roles or {})})
        if self.encoder is None:
            return tokens
        return dataclasses.replace(self._target(target, len(tokens), bos, side), source=tokens)

    def _text_to_tokens(
        self, texts: Any, bos: bool | None, side: Literal["left", "right"]
    ) -> Tokens:
        if texts is None:
            raise ValueError("empty prompt: no text was given")
        tokenizer = self._tokenizer()
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("empty prompt: no text was given")
        rows = [tokenizer.encode(text, bos=bos) for text in texts]
        warn_of_unknown(tokenizer, texts)
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise ValueError(f"empty prompt: {text!r} has no tokens (bos=True would add one)")
        return self._of_rows(rows, side)

    def _of_rows(self, rows: list[list[int]], side: Literal["left", "right"]) -> Tokens:
        tokenizer = self._tokenizer()
        pad_id = next((i for i in (tokenizer.pad_id, tokenizer.eos_id) if i is not None), 0)
        tokens = Tokens.from_rows(rows, pad_id=pad_id, side=side)
        begins = tokenizer.bos_id is not None and all(row[0] == tokenizer.bos_id for row in rows)
        strings = [tokenizer.str_tokens(ids) for ids in tokens.ids.tolist()]
        return dataclasses.replace(tokens, strings=strings, bos=begins).to(self.device)

    def _target(
        self,
        target: str | Sequence[str] | None,
        batch: int,
        bos: bool | None,
        side: Literal["left", "right"],
    ) -> Tokens:
        """What the decoder of an encoder–decoder reads: its start tokens, and text."""
        if target is None and self.tokenizer is None:
            return self._start(batch)
        tokenizer = self._tokenizer()
        texts = [target] if isinstance(target, str) else [""] * batch if target is None else target
        if len(texts) != batch:
            raise ValueError(f"{len(texts)} targets for {batch} sources: expected one per source")
        rows = self._start(batch).ids.tolist()
        for row, text in zip(rows, texts, strict=True):
            ids = tokenizer.encode(text, bos=bos) if text else []
            if bos is None and ids[:1] == row[:1]:  # a template that begins as the decoder does
                ids = tokenizer.encode(text, bos=False)
            row += ids[:-1] if bos is None and ids[-1:] == [tokenizer.eos_id] else ids
        return self._of_rows(rows, side)

    def to_str_tokens(self, text: str, *, bos: bool | None = None) -> list[str]:
        """The readable pieces of a text, one per token."""
        return self._tokenizer().str_tokens(self._tokenizer().encode(text, bos=bos))

    def to_string(self, ids: Tensor | Sequence[int]) -> str:
        """The text of some ids. One that the model can predict and no token has stands in it by its
        name, "<unused 1995>"."""
        tokenizer, flat = self._tokenizer(), whole_numbers(ids, "ids").flatten().tolist()
        for id in flat:
            if id >= self.cfg.d_vocab:
                tokenizer.token(id)  # raises where the tokenizer does not have it either
        return tokenizer.decode(flat)

    def to_single_token(self, word: str) -> int:
        """The one id of a word. Raises ValueError naming the pieces when it is several."""
        return self._tokenizer().single(word)

    @property
    def end_ids(self) -> frozenset[int]:
        """Every token that ends a text: the tokenizer's, and those that config.json and
        generation_config.json name."""
        eos = None if self.tokenizer is None else self.tokenizer.eos_id
        return frozenset(self.stored_end_ids).union([] if eos is None else [eos])

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(f"model {self.name!r} has no tokenizer: give token ids, not text")
        return self.tokenizer

    @torch.no_grad()
    def pool(
        self, tokens: Input, how: Literal["mean", "first", "last"] = "mean"
    ) -> Float[Tensor, "batch d_model"]:
        """One vector per row from the last residual stream (behind the last block).

        mean: over real tokens (sentence-transformers, not normalised); first: BERT's [CLS]; last:
        the last real token. Of an encoder–decoder the vectors are the encoder's, of the source.
        Raises NotFinite where they hold NaN or infinity.
        """
        tokens = self.accept(tokens)
        generation.check_rows(tokens)
        if self.encoder is not None:
            return self.encoder.with_hooks(self.fwd_hooks).pool(tokens.source, how)
        check_model(self, tokens)
        resid = finite(self(tokens, stop_at_layer=self.cfg.n_layers), self, "the vectors", tokens)
        real = tokens.real
        if how == "mean":
            weights = real.to(wide_dtype(resid.dtype))[..., None]
            return ((resid * weights).sum(1) / weights.sum(1)).to(resid.dtype)
        index = torch.arange(real.shape[1], device=real.device)
        if how == "first":
            at = torch.where(real, index, real.shape[1]).amin(1)
        elif how == "last":
            at = torch.where(real, index, -1).amax(1)
        else:
            raise ValueError(f"how={how!r}: expected 'mean', 'first' or 'last'")
        return resid[torch.arange(len(tokens), device=at.device), at]

    def generate(
        self,
        prompt: Input,
        max_new_tokens: int = 50,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        stop_at_eos: bool = True,
        names_filter: SiteFilter = None,
    ) -> generation.Generation:
        """Continue a prompt, or several of unequal length; temperature 0 is greedy.

        A row ends at a stop string (cut off), which is looked for in the decoded text behind the
        prompt, or at one of `end_ids`. The draws of a row depend on `seed` and its index alone.
        With `names_filter`, the activations of every step are in `.caches`.
        Raises ValueError where prompt and continuation pass n_ctx.
        """
        return generation.generate(
            self,
            prompt,
            max_new_tokens,
            generation.Sampling(temperature, top_k, top_p, seed),
            [stop] if isinstance(stop, str) else list(stop),
            names_filter,
            stop_at_eos,
        )

    def stream(
        self,
        prompt: Input,
        max_new_tokens: int = 50,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        names_filter: SiteFilter = None,
    ) -> Iterator[generation.Step]:
        """`generate`, one step at a time and without stopping early; may be abandoned."""
        tokens = generation.prepare(self, prompt, max_new_tokens)
        sampling = generation.Sampling(temperature, top_k, top_p, seed)
        keep = names_filter is not None
        return generation.stream(self, tokens, max_new_tokens, sampling, names_filter, keep)

    def folded(self) -> HookedTransformer:
        """A copy whose norms only normalise; see `interp.model.weights.folded`."""
        return folded(self)

    def check_identities(self, tokens: Input) -> pd.DataFrame:
        """Whether the sites of this model mean what they say; see `interp.model.identities`."""
        return check_identities(self, tokens)

    def num_params(self, by: Literal["component", "layer"] | None = None) -> pd.Series | int:
        """Parameters: in all, by component or by layer; see `interp.num_params`."""
        return count_params(self, by)
