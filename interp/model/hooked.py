"""The model as its users hold it: the transformer, and what it can be asked besides running."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.devices import as_device
from interp.core.finite import check_cache, check_model, finite
from interp.core.precision import wide_dtype
from interp.core.sites import SiteFilter
from interp.core.tap import ActivationCache, FwdHooks, Positions, Tap

from . import generate as generation
from . import identities
from .factored import FactoredMatrix
from .text import Input
from .transformer import Transformer
from .weights import count_params, folded


def _stacked(part: str, name: str) -> property:
    def stack(self: HookedTransformer) -> Tensor:
        return torch.stack([getattr(getattr(block, part), name) for block in self.blocks])

    return property(stack, doc=f"`blocks[l].{part}.{name}` of all layers, stacked on demand.")


class HookedTransformer(Transformer):
    """A transformer of the given config. Its weights are set by `init_weights` or by loading.

    Parameters never require a gradient unless somebody asks them to (`model.requires_grad_()`).
    Made under `torch.device("meta")`, it allocates nothing. `model(tokens)` runs it; with
    `cfg.encoder`, `blocks` are the decoder's and `encoder` is a HookedTransformer of its own.
    """

    encoder: HookedTransformer | None

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

    def run_with_hooks(
        self, tokens: Input, fwd_hooks: FwdHooks, *, stop_at_layer: int | None = None
    ) -> Tensor:
        """The output of one run with `fwd_hooks` [(filter, fn)], fn(tensor, hook) → a tensor
        or None."""
        return self.with_hooks(fwd_hooks)(tokens, stop_at_layer=stop_at_layer)

    def run_with_cache(
        self,
        tokens: Input,
        names_filter: SiteFilter = None,
        *,
        pos: Positions = None,
        stop_at_layer: int | None = None,
        device: torch.device | str | None = None,
        grad: bool = False,
    ) -> tuple[Tensor, ActivationCache]:
        """The output of one run, and the sites that `names_filter` selects (None: all but the
        per-head expansions).

        `pos` keeps some positions (an index, slice or several; negative ones count from the end;
        the axis stays), of the source where a site counts it; `cache.positions(site)` says which.
        `device` is where the cache goes; the model stays. With grad=True the cached tensors are in
        the autograd graph, so that `torch.autograd.grad(metric, cache.values())` works; it refuses
        pos= and device=, whose copies would be off the graph.
        """
        if grad and (pos is not None or device is not None):
            raise ValueError("grad=True refuses pos= and device=: their copies are off the graph")
        tokens = self.accept(tokens)
        tap = self.make_tap(
            names_filter,
            reading=True,
            stop_at_layer=stop_at_layer,
            pos=pos,
            device=None if device is None else as_device(device),
            grad=grad,
        )
        with torch.set_grad_enabled(grad):
            out = self._run(tokens, tap, None, self._stop(stop_at_layer))
        tap.check_fired()
        return out, ActivationCache(tap.values, self.sites, tokens, self.stacks, tap.kept)

    def with_hooks(self, fwd_hooks: FwdHooks) -> HookedTransformer:
        """A view of this model on which the hooks are active in every verb.

        The view shares the weights and cannot be changed; this model stays as it is. Views of
        views apply the older hooks first. Raises UnknownSite at once where a name matches nothing.
        """
        hooks = (*self.fwd_hooks, *fwd_hooks)
        Tap(self.sites, fwd_hooks=hooks)  # names and functions are checked here
        view = copy.copy(self)
        view.__dict__["fwd_hooks"] = hooks
        return view

    def hooks(self, *_: object, **__: object) -> None:
        """Not here: hooks in a context would need state in the model."""
        raise TypeError("the model holds no hooks; use `model.with_hooks([(site, fn)])(tokens)`")

    def __setattr__(self, name: str, value: object) -> None:
        if self.__dict__.get("fwd_hooks"):
            raise AttributeError(f"cannot set {name!r}: a view made by with_hooks is immutable")
        super().__setattr__(name, value)

    def _apply(self, fn, recurse: bool = True):
        if self.fwd_hooks:
            raise AttributeError("a view made by with_hooks is immutable: move or cast the model")
        return super()._apply(fn, recurse)

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

    @torch.no_grad()
    def check_identities(self, tokens: Input) -> pd.DataFrame:
        """Whether the sites of this model mean what they say, on these tokens: each identity at
        each layer, as layer, identity, error (max |left − right| as a share of the largest value),
        tolerance, holds. Only real tokens are compared.

        Raises NotFinite where a site holds NaN or infinity.
        """
        tokens = self.accept(tokens)
        check_model(self, tokens)
        logits, cache = self.run_with_cache(tokens, identities.wanted(self))
        check_cache(self, cache)
        return identities.errors(self, cache, logits)

    def num_params(self, by: Literal["component", "layer"] | None = None) -> pd.Series | int:
        """Parameters: in all, by component or by layer; see `interp.num_params`."""
        return count_params(self, by)
