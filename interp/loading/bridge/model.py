"""A Hugging Face model behind TransformerLens's bridge, with the verbs of `HookedTransformer`.

The forward pass is the library's own. What is ours: the tap and its ledger, the cache, tokens, and
a table of sites that holds only those whose meaning was verified when the model was opened.
"""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from interp.core.finite import finite_cache
from interp.core.sites import ALONE, SiteTable
from interp.core.tap import SILENT, Silent, Tap
from interp.core.tokenizer import Tokenizer
from interp.core.tokens import Tokens
from interp.model import HookedTransformer
from interp.model.text import Input

from .candidates import candidates
from .checks import is_causal, some_tokens, tolerance, verified
from .config import BridgedConfig
from .identities import Run, identities
from .library import BridgedPrefix, Library
from .weights import BlockWeights, outer_weight


class BridgedTransformer(HookedTransformer):
    """Any decoder or masked language model that TransformerLens's bridge opens.

    `sites` are those whose tensors mean what they mean here; `left_out` names each other one with
    the reason. Sweeps run in the naive engine. Attention is the library's eager one throughout,
    since its fused one has no patterns.
    """

    opaque = "the model runs behind the bridge"
    encoder = inputs = None
    labels = ()

    def __init__(
        self,
        bridge: Any,
        hf_model: nn.Module,
        tokenizer: Tokenizer | None,
        name: str,
        n_params: int,
    ) -> None:
        nn.Module.__init__(self)
        self.fwd_hooks: tuple = ()
        self.library = Library(bridge, hf_model)
        self.hf_model = hf_model.requires_grad_(False)
        self.tokenizer, self.name, self.source = tokenizer, name, {}
        self.n_params = n_params
        self.blocks = nn.ModuleList(
            BlockWeights(block, int(bridge.cfg.d_head)) for block in bridge.blocks
        )
        points = bridge.hook_dict
        n_layers = len(self.blocks)
        found = list(candidates(points, n_layers))
        self.points = {site.name: points[site.name] for site in found}
        self.sites = SiteTable.of(found, {ALONE.blocks: n_layers})
        self.left_out: dict[str, str] = {}
        self.cfg = self._measured_config(points)
        self.sites, self.left_out, self.identities = verified(
            self.library, self.cfg, self.W_E, found, points
        )
        self.points = {name: points[name] for name in self.sites.names if name in points}
        self.padding = {side: self._pads_rightly(side) for side in ("left", "right")}
        """Whether padding on a side leaves the numbers of the real tokens alone."""
        self.grows = self.cfg.causal and self._grows_rightly()
        """Whether the library's key-value cache gives the numbers of the whole run."""

    @property
    def bridge(self) -> Any:
        """The `TransformerBridge`: a module too, of which hf_model holds every part."""
        return self.library.bridge

    def _measured_config(self, points: Any) -> BridgedConfig:
        known, hf_config = self.bridge.cfg, self.hf_model.config
        d_vocab, d_model = self.W_E.shape
        ids = torch.arange(5, device=self.W_E.device).expand(2, 5) % d_vocab
        reads = [name for name in self.points if name.endswith(("hook_k", "hook_post"))]
        tap = Tap(self.sites, reads=reads)
        with torch.no_grad():
            out = self.library.run(Tokens(ids), tap, points)
        shapes = {n.rpartition(".")[2]: x.shape for n, x in reversed(list(tap.values.items()))}
        keys, neurons = shapes.get("hook_k", ()), shapes.get("hook_post", ())
        if tuple(out.shape) != (2, 5, d_vocab):
            raise ValueError(
                f"{type(self.hf_model).__name__} returns {list(out.shape)} for ids [2 5]; the "
                f"bridge here opens language models, with logits [batch pos {d_vocab}]"
            )
        return BridgedConfig(
            architecture=type(self.hf_model).__name__,
            n_layers=len(self.blocks),
            d_model=d_model,
            n_heads=int(known.n_heads),
            n_kv_heads=keys[2] if len(keys) == 4 else int(known.n_heads),
            d_head=int(known.d_head),
            d_mlp=neurons[-1] if len(neurons) == 3 else 0,
            d_vocab=d_vocab,
            n_ctx=int(getattr(known, "n_ctx", None) or hf_config.max_position_embeddings),
            head="mlm" if "MaskedLM" in type(self.hf_model).__name__ else "unembed",
            causal=is_causal(lambda x: self.library.run(Tokens(x), SILENT, points), ids),
        )

    # What HookedTransformer computes, done by the library.

    def _run(self, tokens, tap, prefix=None, stop=None, layout=None) -> Tensor:
        if stop is None:
            return self.library.run(tokens, tap, self.points)
        n = self.cfg.n_layers
        stop_at = f"blocks.{min(stop, n - 1)}.hook_resid_{'pre' if stop < n else 'post'}"
        if stop_at not in self.sites:
            raise ValueError(
                f"{stop_at!r}, where the run would stop, is left out: {self.left_out.get(stop_at)}"
            )
        return self.library.run(tokens, tap, self.points, stop_at)

    def new_prefix(self, batch: int, capacity: int) -> BridgedPrefix:  # type: ignore[override]
        if not self.grows:
            raise ValueError(
                f"generation: the key-value cache of {self.cfg.architecture} does not give the "
                "numbers of a whole run behind the bridge; call the model on the growing ids"
            )
        return BridgedPrefix()

    def last_logits(self, tokens, tap, prefix) -> Tensor:  # type: ignore[override]
        return self.library.run(tokens, tap, self.points, prefix=prefix)[:, -1]

    def accept(self, value: Input) -> Tokens:
        """Tokens for this model. Raises ValueError on what the library would misread: vectors,
        positions or token types that its forward does not take, padding that it does not mask."""
        tokens = super().accept(value)
        if tokens.vectors is not None:
            raise ValueError("a bridged model reads ids, not vectors; edit hook_embed instead")
        for field, argument in (("positions", "position_ids"), ("token_types", "token_type_ids")):
            if getattr(tokens, field) is not None and argument not in self.library.takes:
                raise ValueError(f"{self.cfg.architecture} takes no {argument}: leave out {field}=")
        if tokens.shape[1] > self.cfg.n_ctx:
            raise ValueError(
                f"{tokens.shape[1]} tokens pass the context of this model, n_ctx={self.cfg.n_ctx}"
            )
        if tokens.mask is not None:
            first, last = tokens.mask[:, 0].all(), tokens.mask[:, -1].all()
            sides = [side for side, real in (("left", first), ("right", last)) if not real]
            for side in sides or ["left"]:
                if not self.padding[side]:
                    raise ValueError(
                        f"padding on the {side} changes what {self.cfg.architecture} computes for "
                        "the real tokens; run the rows one by one"
                    )
        return tokens

    @torch.no_grad()
    def _pads_rightly(self, side: str) -> bool:
        ids = some_tokens(self.cfg, self.device).ids[:1]
        pads, real = ids[:, :2], torch.ones_like(ids, dtype=torch.bool)
        left = side == "left"
        wide = torch.cat([pads, ids] if left else [ids, pads], 1)
        mask = torch.cat([~real[:, :2], real] if left else [real, ~real[:, :2]], 1)
        out = self._run(Tokens(wide, mask=mask), SILENT)
        return self._agree(out[mask], self._run(Tokens(ids), SILENT)[0])

    @torch.no_grad()
    def _grows_rightly(self) -> bool:
        ids, prefix = some_tokens(self.cfg, self.device).ids, BridgedPrefix()
        if "past_key_values" not in self.library.takes:
            return False
        try:
            parts = [
                self.library.run(Tokens(part), SILENT, self.points, prefix=prefix)
                for part in (ids[:, :-2], ids[:, -2:-1], ids[:, -1:])
            ]
        except (ValueError, TypeError, RuntimeError, AttributeError):
            return False
        return self._agree(torch.cat(parts, 1), self._run(Tokens(ids), SILENT))

    def _agree(self, a: Tensor, b: Tensor) -> bool:
        return float((a - b).abs().max() / b.abs().max()) <= tolerance(self.dtype)

    @torch.no_grad()
    def check_identities(self, tokens: Input) -> pd.DataFrame:
        """The identities that held when the model was opened, on these tokens: layer, identity,
        error (max |left − right| as a share of the largest value), tolerance, holds."""
        tokens = self.accept(tokens)
        if tokens.mask is not None:
            raise ValueError("identities are measured on rows without padding")
        rows: dict[tuple, float] = {}
        plain = [name for name in self.sites.names if not name.endswith("_input")]
        cache = finite_cache(self, tokens, plain)
        run = Run(dict(cache), tokens.ids, self.bridge, self.cfg.causal, self.W_E)
        for one in identities(run, self.cfg.n_layers):
            if (one.layer, one.text) in self.identities:
                key = (-1 if one.layer is None else one.layer, one.text)
                rows[key] = one.error
        frame = pd.DataFrame(
            [(*key, e) for key, e in rows.items()], columns=["layer", "identity", "error"]
        )
        frame["tolerance"] = tolerance(self.dtype)
        frame["holds"] = frame["error"] <= frame["tolerance"]
        return frame

    # Weights, as far as the library's are ours in another layout.

    @property
    def W_E(self) -> Tensor:
        """[d_vocab d_model], as the library stores it."""
        return outer_weight(self.hf_model.get_input_embeddings(), "W_E")

    @property
    def W_U(self) -> Tensor:
        """[d_model d_vocab]."""
        head = self.hf_model.get_output_embeddings()
        if head is None:
            raise ValueError(f"W_U: {self.cfg.architecture} names no output embedding")
        return outer_weight(head, "W_U").T

    @property
    def b_U(self) -> Tensor:
        bias = getattr(self.hf_model.get_output_embeddings(), "bias", None)
        return self.W_E.new_zeros(self.cfg.d_vocab) if bias is None else bias

    @property
    def W_pos(self) -> Tensor:
        raise ValueError("W_pos: behind the bridge nobody can tell its rows; read hook_pos_embed")

    @property
    def like(self) -> Tensor:
        return self.W_E

    def num_params(self, by: Literal["component", "layer"] | None = None) -> int:
        """Parameters in all; by component or layer they are known of native models only."""
        if by is not None:
            raise ValueError(f"by={by!r}: a bridged model knows only the total, by=None")
        return self.n_params

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The library's own; the blocks' views of it are not counted twice."""
        return self.hf_model.state_dict(*args, **kwargs)

    def to_logits(self, resid: Tensor, tap: Silent | Tap = SILENT) -> Tensor:
        raise ValueError(f"to_logits: {self.opaque}, whose last stages are the library's")

    def logits_of(self, resid: Tensor, ids: Tensor, log_probs: bool = False) -> Tensor:
        raise ValueError(f"logits_of: {self.opaque}, whose last stages are the library's")

    def folded(self) -> HookedTransformer:
        raise ValueError(f"folded: {self.opaque}, which cannot rewrite its weights")

    def init_weights(self, seed: int = 0, std: float = 0.02) -> None:
        raise ValueError(f"init_weights: {self.opaque}; the library sets its weights")

    def __repr__(self) -> str:
        offered, out = len(self.sites), len(self.left_out)
        return f"BridgedTransformer({self.cfg.architecture}, {offered} sites, {out} left out)"
