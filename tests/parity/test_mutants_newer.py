"""What is particular to the newer families: without it, ours misses the reference by far."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from tests.parity.inputs import batch
from tests.parity.reference import relative_error, run
from tests.parity.test_mutants import (
    MISS,
    Mutation,
    Weights,
    config,
    rebuilt,
    scaling,
    swap_gate,
    swap_keys_and_values,
    swap_norms,
    weights,
    zeroed,
)

NO_QK_NORM = config(qk_norm="none")
WHOLE_HEAD = config(rotary_dim=8)


def sort_heads_wrongly(cfg: Any, copies: Weights) -> None:
    """As if the file had all queries, then all keys, then all values."""

    def stored(x: Tensor) -> Tensor:
        return x.unflatten(0, (3, cfg.n_heads, cfg.d_head)).transpose(0, 1).flatten(0, 2)

    for name in copies:
        if ".qkv_" in name:
            copies[name] = stored(copies[name])


def one_norm(_: Any, copies: Weights) -> None:
    for name in copies:
        if ".ln1." in name:
            copies[name.replace(".ln1.", ".ln2.")].copy_(copies[name])


def norms_before(model: Any) -> Any:
    """Norms on the inputs of the sublayers in place of their outputs."""
    renamed = {name.replace("_post.", "."): value for name, value in model.state_dict().items()}
    return rebuilt(model, model.cfg.replace(norm_position="pre"), renamed)


MUTANTS: dict[tuple[str, str], Mutation] = {
    ("qwen3", "queries and keys not normed"): NO_QK_NORM,
    ("qwen3", "1/√(d_model / n_heads)"): config(attn_scale=8**-0.5),
    ("qwen3", "gains of queries and keys stored from one"): config(norm="rmsnorm_plus1"),
    ("qwen3-windows-biases-tied", "no window"): config(sliding_window=None),
    ("qwen3-windows-biases-tied", "window in every layer"): config(sliding_window=(4,) * 3),
    ("qwen3-windows-biases-tied", "no bias of q, k, v"): zeroed("qkv_bias"),
    ("gemma", "no factor on embeddings"): config(embed_scale=None),
    ("gemma", "gains as they are stored"): config(norm="rmsnorm"),
    ("gemma", "silu"): config(activation="silu"),
    ("gemma2", "windows in the other layers"): config(sliding_window=(None, 4, None)),
    ("gemma2", "scores not capped"): config(attn_softcap=None),
    ("gemma2", "logits not capped"): config(final_softcap=None),
    ("gemma2", "1/√d_head"): config(attn_scale=None),
    ("gemma2", "no norms of outputs"): config(norm_position="pre"),
    ("gemma2", "no factor on embeddings"): config(embed_scale=None),
    ("gemma2", "gains as they are stored"): config(norm="rmsnorm"),
    ("gemma2-uncapped-untied", "no window"): config(sliding_window=None),
    ("gemma3", "one rotary base"): config(rotary_base=20.0),
    ("gemma3", "rotary bases of the other layers"): config(rotary_base=(500.0, 20.0, 500.0)),
    ("gemma3", "a window in the wrong layer"): config(sliding_window=(4, 4, None)),
    ("gemma3", "queries and keys not normed"): NO_QK_NORM,
    ("gemma3", "norms swapped"): weights(swap_norms),
    ("olmo", "RMSNorm"): config(norm="rmsnorm"),
    ("olmo2", "queries and keys not normed"): NO_QK_NORM,
    ("olmo2", "norms of inputs"): norms_before,
    ("phi3", "gate and input swapped"): weights(swap_gate),
    ("phi3", "keys for values"): weights(swap_keys_and_values),
    ("phi3-partial-windows-tied", "the whole head turned"): WHOLE_HEAD,
    ("phi3-partial-windows-tied", "no window"): config(sliding_window=None),
    ("granite", "no factor on embeddings"): config(embed_scale=None),
    ("granite", "1/√d_head"): config(attn_scale=None),
    ("granite", "no factor on what is added"): config(residual_scale=None),
    ("granite", "no factor on logits"): config(logit_scale=None),
    ("smollm3", "every layer turned"): config(rotary_layers=None),
    ("smollm3", "another layer not turned"): config(rotary_layers=(True, True, False)),
    ("smollm3-windows-biases-untied", "windows in the other layers"): config(
        sliding_window=(4, None, 4)
    ),
    ("smollm3-windows-biases-untied", "no biases of the MLP"): zeroed("mlp.in_bias"),
    ("stablelm", "the whole head turned"): WHOLE_HEAD,
    ("stablelm", "RMSNorm"): config(norm="rmsnorm"),
    ("stablelm", "no bias of q, k, v"): zeroed("qkv_bias"),
    ("stablelm-parallel-tied", "the whole head turned"): WHOLE_HEAD,
    ("gpt_neox", "heads sorted wrongly"): weights(sort_heads_wrongly),
    ("gpt_neox", "attention before the MLP"): config(parallel=False),
    ("gpt_neox", "one norm for both"): weights(one_norm),
    ("gpt_neox", "the whole head turned"): WHOLE_HEAD,
    ("gpt_neox-serial-scaled-tied", "attention beside the MLP"): config(parallel=True),
    ("gpt_neox-serial-scaled-tied", "not stretched"): config(rotary_scaling=None),
    ("gpt_neox-serial-scaled-tied", "stretched twice as far"): scaling(factor=8.0),
    ("phi", "no bias of logits"): zeroed("unembed.bias"),
    ("phi", "the whole head turned"): WHOLE_HEAD,
    ("phi", "no bias of norms"): zeroed("ln1.b"),
    ("phi-qk-norm-grouped", "queries and keys not normed"): NO_QK_NORM,
    ("phi-qk-norm-grouped", "no bias of their norms"): zeroed("_norm.b"),
}


@pytest.mark.parametrize(
    ("name", "broken"), MUTANTS, ids=[f"{name}: {broken}" for name, broken in MUTANTS]
)
def test_mutant_misses(pair, name: str, broken: str) -> None:
    this, inputs = pair(name), batch()
    reference = run(this.reference, this.family.layout, inputs.for_reference(), lifted=False)
    mutant = MUTANTS[name, broken](this.ours)
    assert relative_error(mutant(inputs.ids), reference.output) >= MISS
