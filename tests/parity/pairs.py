"""Tiny random encoder–decoders of Hugging Face, and what they compute on both stacks."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import interp
from tests.parity.inputs import Batch, Padding, batch
from tests.parity.layout import D_VOCAB, N_CTX
from tests.parity.reference import FiniteMasks, Float64Islands, relative_error

START = 3


class Case(NamedTuple):
    """A config class, the model class, what differs from the defaults."""

    config: str
    model: str
    values: dict[str, Any]
    exact: bool = False
    """The library rounds nothing to float32."""
    untied: bool = False
    """The unembedding is made another one than the embedding."""


_T5 = {
    "vocab_size": D_VOCAB,
    "d_model": 24,
    "d_kv": 10,
    "d_ff": 40,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 14,
    "layer_norm_epsilon": 1e-3,
    "n_positions": N_CTX,
    "decoder_start_token_id": START,
    "eos_token_id": 1,
}
_BART = {
    "vocab_size": D_VOCAB,
    "max_position_embeddings": N_CTX,
    "d_model": 24,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 32,
    "decoder_start_token_id": START,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "pad_token_id": 0,
    "forced_eos_token_id": None,
}

CASES = {
    "t5": Case("T5Config", "T5ForConditionalGeneration", _T5),
    "t5-gated-untied": Case(
        "T5Config",
        "T5ForConditionalGeneration",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        untied=True,
    ),
    "mt5": Case(
        "MT5Config", "MT5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu"}
    ),
    "bart": Case("BartConfig", "BartForConditionalGeneration", _BART, exact=True),
    "bart-scaled": Case(
        "BartConfig",
        "BartForConditionalGeneration",
        {**_BART, "scale_embedding": True, "activation_function": "relu"},
        exact=True,
    ),
    "mbart": Case("MBartConfig", "MBartForConditionalGeneration", _BART, exact=True),
}


class Pair(NamedTuple):
    """The same weights, there and here, both float64."""

    reference: PreTrainedModel
    ours: Any
    folder: Path
    exact: bool


def make(name: str, folder: Path) -> Pair:
    """The random model in float64, and ours, loaded from its folder."""
    case = CASES[name]
    model = getattr(transformers, case.model)(getattr(transformers, case.config)(**case.values))
    model = model.double().eval()
    if case.untied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    generator = torch.Generator().manual_seed(0)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.requires_grad_(False)
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        is_gain = tensor.ndim == 1 and bool((tensor == 1).all())
        tensor.copy_(1 + 0.3 * noise if is_gain else 0.2 * noise)
    model.save_pretrained(folder, safe_serialization=True)
    if case.untied:  # as a file of version 1.1 says it; the library now says that all are tied
        config = json.loads((folder / "config.json").read_text())
        config["tie_word_embeddings"] = False
        (folder / "config.json").write_text(json.dumps(config))
    return Pair(model, interp.load(folder, dtype="float64"), folder, case.exact)


class Inputs(NamedTuple):
    """A source and what the decoder reads, with their masks."""

    source: Batch
    target: Batch

    def tokens(self) -> interp.Tokens:
        source = interp.Tokens(self.source.ids, mask=self.source.mask)
        return interp.Tokens(self.target.ids, mask=self.target.mask, source=source)

    def for_reference(self) -> dict[str, Tensor]:
        return {
            "input_ids": self.source.ids,
            "attention_mask": self.source.mask.long(),
            "decoder_input_ids": self.target.ids,
            "decoder_attention_mask": self.target.mask.long(),
        }


def inputs(source: Padding = "none", target: Padding = "none") -> Inputs:
    """A source of 20 positions and a target of 9, padded on either side."""
    behind = batch(target, seed=1)
    kept = slice(-9, None) if target == "left" else slice(9)
    return Inputs(batch(source), Batch(*(t[:, kept] for t in behind)))


def reference(model: PreTrainedModel, given: Inputs, *, lifted: bool) -> dict[str, Tensor]:
    """Logits, and every residual stream of both stacks, under our names."""
    attention = "eager" if lifted else "sdpa"
    model.set_attn_implementation(attention)
    with torch.no_grad(), contextlib.ExitStack() as stack:
        stack.enter_context(Float64Islands() if lifted else FiniteMasks())
        out = model(**given.for_reference(), use_cache=False, output_hidden_states=True)
    found = {"hook_logits": out.logits}
    for name, states in (
        ("encoder_blocks", out.encoder_hidden_states),
        ("decoder_blocks", out.decoder_hidden_states),
    ):
        # The last one is behind the final norm, where there is one; it is compared as logits.
        for layer, state in enumerate(states[:-1]):
            found[f"{name}.{layer}.hook_resid_pre"] = state
    return found


def errors(ours: Any, given: Inputs, expected: dict[str, Tensor]) -> dict[str, float]:
    """The largest error at each site over real positions, relative."""
    _, cache = ours.run_with_cache(given.tokens(), list(expected))
    found = {}
    for site, value in expected.items():
        real = (given.source if site.startswith("encoder") else given.target).mask
        found[site] = relative_error(cache[site], value, real)
    return found
