"""The contestants: Hugging Face, interp and TransformerLens over the same random weights.

Each is used as its own users would: Hugging Face with fused attention under `inference_mode`,
interp and TransformerLens by their verbs.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import interp

NEW_TOKENS = 64


class Peer(Protocol):
    """What every contestant does with token ids [batch pos]."""

    def plain(self, ids: Tensor) -> Tensor: ...
    def generate(self, ids: Tensor) -> Tensor: ...


class HookedPeer(Peer, Protocol):
    """What those that are about activations do besides."""

    def one_hook(self, ids: Tensor) -> Tensor: ...
    def cached(self, ids: Tensor, names_filter: Any = None) -> Any: ...
    def generate_hooked(self, ids: Tensor) -> Tensor: ...


def gpt2_small(**changes: Any) -> PreTrainedModel:
    """GPT-2 small with random weights: 124 M parameters."""
    config = transformers.GPT2Config(
        bos_token_id=0, eos_token_id=None, attn_implementation="sdpa", **changes
    )
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).eval()


def llama_gqa() -> PreTrainedModel:
    """A Llama of 125 M parameters: twelve query heads on four key-value heads."""
    config = transformers.LlamaConfig(
        num_hidden_layers=12,
        hidden_size=768,
        num_attention_heads=12,
        num_key_value_heads=4,
        intermediate_size=2048,
        vocab_size=32_000,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def launch_bound() -> PreTrainedModel:
    """A GPT-2 so narrow that calling the kernels costs more than what they compute."""
    return gpt2_small(n_embd=64, n_head=4, vocab_size=512)


MODELS = {
    "GPT-2 small": gpt2_small,
    "Llama, grouped-query": llama_gqa,
    "launch-bound": launch_bound,
}


class HuggingFace:
    """The base of every ratio."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @torch.inference_mode()
    def plain(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits

    @torch.inference_mode()
    def generate(self, ids: Tensor) -> Tensor:
        return self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
        )


def same_copy(z: Tensor, hook: Any) -> Tensor:
    """An edit that changes nothing."""
    return z.clone()


class Interp:
    """This library. An edit function gets a copy of its own, so `same_copy` need not make one."""

    def __init__(self, folder: Path, **load: Any) -> None:
        self.model = interp.load(folder, **load)
        self.hooks = [
            (f"blocks.{n}.attn.hook_z", _returned) for n in range(self.model.cfg.n_layers)
        ]

    def plain(self, ids: Tensor) -> Tensor:
        return self.model(ids)

    def one_hook(self, ids: Tensor) -> Tensor:
        return self.model.run_with_hooks(ids, fwd_hooks=[self.hooks[len(self.hooks) // 2]])

    def cached(self, ids: Tensor, names_filter: Any = None) -> Any:
        return self.model.run_with_cache(ids, names_filter=names_filter)

    def generate(self, ids: Tensor) -> Tensor:
        return self._generated(self.model, ids)

    def generate_hooked(self, ids: Tensor) -> Tensor:
        return self._generated(self.model.with_hooks(self.hooks), ids)

    def _generated(self, model: Any, ids: Tensor) -> Tensor:
        return model.generate(ids, max_new_tokens=NEW_TOKENS, temperature=0).tokens.ids


def _returned(z: Tensor, hook: Any) -> Tensor:
    return z


class TransformerLens:
    """`TransformerBridge` around a Hugging Face model, which it takes apart."""

    def __init__(self, model: PreTrainedModel) -> None:
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        build = partial(build_bridge_from_module, model, type(model).__name__)
        self.bridge = build(hf_config=model.config)
        layers = range(model.config.num_hidden_layers)
        self.hooks = [(f"blocks.{n}.attn.hook_z", same_copy) for n in layers]

    @torch.inference_mode()
    def plain(self, ids: Tensor) -> Tensor:
        return self.bridge(ids)

    @torch.inference_mode()
    def one_hook(self, ids: Tensor) -> Tensor:
        return self.bridge.run_with_hooks(ids, fwd_hooks=[self.hooks[len(self.hooks) // 2]])

    @torch.inference_mode()
    def cached(self, ids: Tensor, names_filter: Any = None) -> Any:
        if isinstance(names_filter, str):
            names_filter = partial(_ends_with, names_filter)
        return self.bridge.run_with_cache(ids, names_filter=names_filter)

    @torch.inference_mode()
    def generate(self, ids: Tensor) -> Tensor:
        return self.bridge.generate(
            ids,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            stop_at_eos=False,
            verbose=False,
            return_type="tokens",
        )

    def generate_hooked(self, ids: Tensor) -> Tensor:
        with self.bridge.hooks(fwd_hooks=self.hooks):
            return self.generate(ids)


def _ends_with(ending: str, name: str) -> bool:
    return name.endswith(ending)
