"""Writes docs/families.md: which families load, what they are made of, what was verified of them.

    python -m tests.parity.table

Everything is read from the configs and the tests; `test_table.py` compares the page with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from interp.core.config import TransformerConfig
from interp.loading import check_family, reference
from interp.loading.families import read_config
from tests.parity import (
    families,
    pairs,
    senses,
    test_mutants,
    test_mutants_experts,
    test_mutants_newer,
    test_pairs,
    test_senses,
    test_whisper,
)
from tests.parity.record import model_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"

EXAMPLES = {
    "gpt2": "openai-community/gpt2, distilgpt2",
    "openai-gpt": "openai-community/openai-gpt",
    "gpt_neo": "EleutherAI/gpt-neo-125m, roneneldan/TinyStories-33M",
    "gptj": "EleutherAI/gpt-j-6b",
    "opt": "facebook/opt-125m",
    "bloom": "bigscience/bloom-560m",
    "falcon": "tiiuae/falcon-7b",
    "llama": "meta-llama/Llama-3.2-1B, HuggingFaceTB/SmolLM2-135M",
    "mistral": "mistralai/Mistral-7B-v0.1",
    "qwen2": "Qwen/Qwen2.5-0.5B",
    "qwen3": "Qwen/Qwen3-0.6B",
    "gemma": "google/gemma-2b",
    "gemma2": "google/gemma-2-2b",
    "gemma3_text": "google/gemma-3-1b-it",
    "olmo": "allenai/OLMo-1B-hf",
    "olmo2": "allenai/OLMo-2-0425-1B",
    "phi3": "microsoft/Phi-3-mini-4k-instruct",
    "granite": "ibm-granite/granite-3.1-2b-base",
    "smollm3": "HuggingFaceTB/SmolLM3-3B",
    "stablelm": "stabilityai/stablelm-2-1_6b",
    "phi": "microsoft/phi-2",
    "gpt_neox": "EleutherAI/pythia-70m",
    "mixtral": "mistralai/Mixtral-8x7B-v0.1",
    "gpt_oss": "openai/gpt-oss-20b",
    "qwen3_moe": "Qwen/Qwen3-30B-A3B",
    "olmoe": "allenai/OLMoE-1B-7B-0924",
    "bert": "google-bert/bert-base-uncased, minilm",
    "roberta": "FacebookAI/roberta-base",
    "distilbert": "distilbert/distilbert-base-uncased",
    "t5": "google-t5/t5-small, google/flan-t5-base",
    "mt5": "google/mt5-small",
    "bart": "facebook/bart-base",
    "mbart": "facebook/mbart-large-cc25",
    "vit": "google/vit-base-patch16-224",
    "decision_transformer": "edbeeching/decision-transformer-gym-hopper-medium",
    "whisper": "openai/whisper-tiny",
}
"""Published models of a family; none of them was at hand when this was written, but minilm."""

INTRO = """# Families

Written by `python -m tests.parity.table` from the code and its tests; do not edit by hand.

- **norm, positions, attention, MLP**: of the tiny model that stands for the family in the tests,
  whose published configs may choose otherwise where the family lets them.
- **parity**: tiny random models (their number) of the installed transformers, float64: logits,
  every residual stream, z and neurons, unpadded and padded on either side, ≤ 1e-5 as the library
  is and ≤ 1e-9 with its float32 islands lifted (`tests/parity/test_huggingface.py`). On the same
  models the **identities** hold in every layer, and the **rerun** gives the naive engine's numbers
  to 1e-10 (`tests/parity/test_families_sweep.py`; on drawn nodes, edits and metrics
  `tests/test_rerun.py`). Encoder–decoders (whose row describes the decoder) and families that do
  not read words have all of this in files of their own: `test_pairs.py`, `test_senses.py`,
  `test_whisper.py`.
- **mutants**: wrong architectures and weights that the parity test must see and does.
- **reference**: the relative error against the recorded output of Hugging Face, which `interp.load`
  and `interp doctor` check on the user's own machine (allowed: 1e-5).
- **examples**: published models with this `model_type`. They were not run here: the hub was out of
  reach; `interp doctor NAME` examines one.

"""
HEAD = ("family", "norm", "positions", "attention", "MLP", "parity", "mutants", "reference")


def page() -> str:
    """The whole text."""
    head = (*HEAD, "examples")
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    for name in reference.families():
        _, cfg = read_config(reference.reference(name).config, name)
        models = models_of(name)
        cells = (
            *(f"`{name}`", norm(cfg), positions(cfg), attention(cfg), mlp(cfg), f"{len(models)} ✓"),
            *(f"{mutants(models)} ✓", f"≤ {magnitude(check_family(name).error)}"),
            EXAMPLES.get(name, "–"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return INTRO + "\n".join(lines) + "\n"


def models_of(name: str) -> list[str]:
    """The models that parity is measured on, by their names there."""
    kind = model_of(name).config
    every = {name: family.config for name, family in families.FAMILIES.items()}
    every |= {name: case.config for name, case in pairs.CASES.items()}
    every |= {name: sense.family.config for name, sense in senses.SENSES.items()}
    every |= {"whisper": test_whisper.FAMILY.config}
    return [model for model, config in every.items() if config == kind]


def mutants(models: list[str]) -> int:
    """Cases of the mutation tests that are about one of these models."""
    tables = (test_mutants, test_mutants_newer, test_mutants_experts, test_pairs, test_senses)
    every = [model for table in tables for model, _ in table.MUTANTS]
    every += ["whisper"] * len(test_whisper.MUTANTS)
    return sum(model in models for model in every)


def magnitude(error: float) -> str:
    """The next power of ten, so that rounding on another machine gives the same page."""
    for power in range(-9, 0):
        if error <= 10.0**power / 3:
            return f"{10.0**power:.0e}"
    return "1"


def norm(cfg: TransformerConfig) -> str:
    words = [cfg.norm, cfg.norm_position]
    words += ["parallel blocks"] if cfg.parallel else []
    words += ["embedding too"] if cfg.embed_norm else []
    return ", ".join(words)


def positions(cfg: TransformerConfig) -> str:
    if cfg.positions != "rotary":
        return cfg.positions
    part = "" if cfg.rotary_dim == cfg.d_head else f", {cfg.rotary_dim} of {cfg.d_head}"
    pairs = ", neighbours" if cfg.rotary_interleaved else ""
    layers = "" if cfg.rotary_layers is None else ", some layers"
    return f"rotary{part}{pairs}{layers}"


def attention(cfg: TransformerConfig) -> str:
    words = ["causal" if cfg.causal else "both ways"]
    words += ["reads an encoder"] if cfg.encoder is not None else []
    words += ["sinks"] if cfg.attn_sinks else []
    words += ["grouped"] if cfg.n_kv_heads < cfg.n_heads else []
    words += ["windows"] if cfg.sliding_window and any(cfg.sliding_window) else []
    words += ["soft-cap"] if cfg.attn_softcap else []
    words += ["q/k norm"] if cfg.qk_norm != "none" else []
    return ", ".join(words)


def mlp(cfg: TransformerConfig) -> str:
    experts = f", {cfg.experts_per_token} of {cfg.n_experts} experts" if cfg.n_experts else ""
    return f"{'gated ' if cfg.mlp_gated else ''}{cfg.activation}{experts}"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
