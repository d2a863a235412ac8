"""Checkpoints as old tools wrote them, and their forward passes in the terms of those tools.

Nothing here is shared with `interp`: TransformerLens 1–3 per head with einsums, nanoGPT with its
own modules, both in float64.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LENS: dict[str, Any] = {
    "n_layers": 2, "d_model": 16, "n_ctx": 12, "d_head": 6, "n_heads": 4, "d_mlp": 20,
    "d_vocab": 11, "d_vocab_out": -1, "act_fn": "gelu_new", "normalization_type": "LN",
    "eps": 1e-5, "attention_dir": "causal", "attn_only": False, "device": "cuda",
    "positional_embedding_type": "standard", "use_attn_scale": True, "attn_scale": -1.0,
    "parallel_attn_mlp": False, "n_key_value_heads": None, "rotary_dim": None, "seed": None,
    "attn_scores_soft_cap": -1.0, "output_logits_soft_cap": -1.0, "trust_remote_code": True,
}  # fmt: skip
ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 6}
LOCAL = {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local"]}
NTK = {"use_NTK_by_parts_rope": True, "NTK_original_ctx_len": 8, "NTK_by_parts_factor": 3.0}
CASES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt2 folded": {"normalization_type": "LNPre"},
    "attention only": {"attn_only": True, "normalization_type": None, "act_fn": None},
    "bidirectional": {"attention_dir": "bidirectional", "act_fn": "relu"},
    "neo": {**LOCAL, "use_attn_scale": False},
    "mistral of Stanford": {"scale_attn_by_inverse_layer_idx": True},
    "gptj": {**ROTARY, "rotary_dim": 4, "rotary_adjacent_pairs": True, "parallel_attn_mlp": True},
    "bloom folded": {
        "positional_embedding_type": "alibi",
        "post_embedding_ln": True,
        "normalization_type": "LNPre",
    },
    "llama": {
        **ROTARY,
        "n_key_value_heads": 2,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "act_fn": "silu",
        "rotary_base": 50.0,
    },
    "llama folded, stretched": {**ROTARY, **NTK, "normalization_type": "RMSPre"},
    "gemma2 folded": {
        **ROTARY,
        **LOCAL,
        "normalization_type": "RMSPre",
        "use_normalization_before_and_after": True,
        "attn_scale": 3.0,
        "attn_scores_soft_cap": 2.0,
        "output_logits_soft_cap": 3.0,
        "gated_mlp": True,
    },
    "gemma3": {
        **ROTARY,
        **LOCAL,
        "normalization_type": "RMS",
        "use_qk_norm": True,
        "rotary_base_local": 20.0,
        "n_key_value_heads": 1,
    },
}


def lens_config(case: str) -> dict[str, Any]:
    return LENS | CASES[case]


def lens_state(c: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """A random state dict of this config, buffers included."""
    m, h, d, f, n = (c[name] for name in ("d_model", "n_heads", "d_head", "d_mlp", "n_ctx"))
    kv, grouped = c["n_key_value_heads"] or h, "_" if c["n_key_value_heads"] else ""
    shapes: dict[str, tuple[int, ...]] = {"embed.W_E": (c["d_vocab"], m)}
    gains = {"LN": "wb", "RMS": "w"}.get(c["normalization_type"] or "", "")
    if c["positional_embedding_type"] == "standard":
        shapes["pos_embed.W_pos"] = (n, m)
    if c.get("post_embedding_ln"):
        shapes |= {"embed.ln.w": (m,), "embed.ln.b": (m,)}
    for at in (f"blocks.{layer}" for layer in range(c["n_layers"])):
        shapes |= {f"{at}.attn.W_Q": (h, m, d), f"{at}.attn.b_Q": (h, d)}
        shapes |= {f"{at}.attn.{grouped}W_{x}": (kv, m, d) for x in "KV"}
        shapes |= {f"{at}.attn.{grouped}b_{x}": (kv, d) for x in "KV"}
        shapes |= {f"{at}.attn.W_O": (h, d, m), f"{at}.attn.b_O": (m,)}
        norms = ["ln1"] if c["attn_only"] else ["ln1", "ln2"]
        shapes |= {f"{at}.{norm}.{part}": (m,) for norm in norms for part in gains}
        if c.get("use_normalization_before_and_after"):
            shapes |= {f"{at}.{norm}_post.w": (m,) for norm in norms}
        if c.get("use_qk_norm"):
            shapes |= {f"{at}.attn.{x}_norm.w": (d,) for x in "qk"}
        if not c["attn_only"]:
            shapes |= {f"{at}.mlp.W_in": (m, f), f"{at}.mlp.b_in": (f,)}
            shapes |= {f"{at}.mlp.W_out": (f, m), f"{at}.mlp.b_out": (m,)}
        if c.get("gated_mlp"):
            shapes[f"{at}.mlp.W_gate"] = (m, f)
    shapes |= {f"ln_final.{part}": (m,) for part in gains}
    shapes |= {"unembed.W_U": (m, c["d_vocab"]), "unembed.b_U": (c["d_vocab"],)}
    generator = torch.Generator().manual_seed(seed)
    state = {
        key: 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)
        for key, shape in shapes.items()
    }
    for key in state:
        if ".ln" in key or "_norm.w" in key or key.startswith("ln_"):
            state[key] += key.endswith(".w")
    return state | lens_buffers(c)


def lens_buffers(c: dict[str, Any]) -> dict[str, Tensor]:
    buffers, n = {}, c["n_ctx"]
    for layer in range(c["n_layers"]):
        local = c.get("use_local_attn") and c["attn_types"][layer] == "local"
        seen = torch.ones(n, n, dtype=torch.bool).tril()
        buffers[f"blocks.{layer}.attn.mask"] = seen.triu(1 - c["window_size"]) if local else seen
        buffers[f"blocks.{layer}.attn.IGNORE"] = torch.tensor(-torch.inf)
        if c["positional_embedding_type"] == "rotary":
            base = c.get("rotary_base_local") if local else None
            angle = rotary_angles(c, base or c.get("rotary_base", 10_000))
            buffers[f"blocks.{layer}.attn.rotary_sin"] = angle.sin()
            buffers[f"blocks.{layer}.attn.rotary_cos"] = angle.cos()
    return buffers


def rotary_angles(c: dict[str, Any], base: float) -> Tensor:
    half = c["rotary_dim"] // 2
    rows = []
    for position in range(c["n_ctx"]):
        angles = []
        for i in range(half):
            frequency = base ** (-i / half)
            if c.get("use_NTK_by_parts_rope"):
                factor, turns = 3.0, 8 * frequency / (2 * math.pi)
                smooth = min(max((turns - 1) / (4 - 1), 0), 1)
                frequency = (1 - smooth) * frequency / factor + smooth * frequency
            angles.append(position * frequency)
        adjacent = c.get("rotary_adjacent_pairs")
        rows.append([a for a in angles for _ in (0, 1)] if adjacent else angles + angles)
    return torch.tensor(rows, dtype=torch.float64)


def lens_forward(w: dict[str, Tensor], c: dict[str, Any], ids: Tensor) -> Tensor:
    """Logits, as the HookedTransformer of this config and state dict computes them."""
    x = w["embed.W_E"][ids]
    if c.get("post_embedding_ln"):
        x = F.layer_norm(x, x.shape[-1:], w["embed.ln.w"], w["embed.ln.b"], c["eps"])
    if "pos_embed.W_pos" in w:
        x = x + w["pos_embed.W_pos"][: ids.shape[1]]
    both = c.get("use_normalization_before_and_after")
    for layer in range(c["n_layers"]):
        at = f"blocks.{layer}"
        attn_out = lens_attention(w, c, layer, lens_norm(w, c, f"{at}.ln1", x))
        if both:
            attn_out = lens_norm(w, c, f"{at}.ln1_post", attn_out)
        mid = x + attn_out
        if c["attn_only"]:
            x = mid
            continue
        read = x if c["parallel_attn_mlp"] else mid
        mlp_out = lens_mlp(w, c, at, lens_norm(w, c, f"{at}.ln2", read))
        x = mid + (lens_norm(w, c, f"{at}.ln2_post", mlp_out) if both else mlp_out)
    logits = lens_norm(w, c, "ln_final", x) @ w["unembed.W_U"] + w["unembed.b_U"]
    cap = c["output_logits_soft_cap"]
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def lens_norm(w, c, name, x, eps=None):
    kind = c["normalization_type"]
    if kind is None:
        return x
    if kind.startswith("LN"):
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + c["eps"]).sqrt()
    return x * w.get(f"{name}.w", 1.0) + w.get(f"{name}.b", 0.0)


def lens_attention(w, c, layer, x):
    at, n, groups = f"blocks.{layer}.attn", x.shape[1], 1
    q = torch.einsum("bpm,hmd->bphd", x, w[f"{at}.W_Q"]) + w[f"{at}.b_Q"]
    kept = "_" if c["n_key_value_heads"] else ""
    k, v = (
        torch.einsum("bpm,hmd->bphd", x, w[f"{at}.{kept}W_{one}"]) + w[f"{at}.{kept}b_{one}"]
        for one in "KV"
    )
    if c.get("use_qk_norm"):
        q, k = lens_norm(w, c, f"{at}.q_norm", q), lens_norm(w, c, f"{at}.k_norm", k)
    groups = c["n_heads"] // k.shape[2]
    k, v = (t.repeat_interleave(groups, dim=2) for t in (k, v))
    if f"{at}.rotary_sin" in w:
        q, k = lens_rotated(w, c, at, q), lens_rotated(w, c, at, k)
    divisor = math.sqrt(c["d_head"]) if c["attn_scale"] == -1 else c["attn_scale"]
    divisor = divisor if c["use_attn_scale"] else 1.0
    divisor *= layer + 1 if c.get("scale_attn_by_inverse_layer_idx") else 1
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / divisor
    if c["attn_scores_soft_cap"] > 0:
        scores = c["attn_scores_soft_cap"] * torch.tanh(scores / c["attn_scores_soft_cap"])
    if c["positional_embedding_type"] == "alibi":
        back = (torch.arange(n) - torch.arange(n)[:, None]).clamp(max=0)
        slopes = torch.tensor([2 ** (-8 * (i + 1) / c["n_heads"]) for i in range(c["n_heads"])])
        scores = scores + slopes.double()[:, None, None] * back
    if c["attention_dir"] == "causal":
        scores = scores.masked_fill(~w[f"{at}.mask"][-n:, -n:], -torch.inf)
    z = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
    return torch.einsum("bqhd,hdm->bqm", z, w[f"{at}.W_O"]) + w[f"{at}.b_O"]


def lens_rotated(w, c, at, x):
    width, n = c["rotary_dim"], x.shape[1]
    turned, flipped = x[..., :width], x[..., :width].clone()
    if c.get("rotary_adjacent_pairs"):
        flipped[..., ::2], flipped[..., 1::2] = -turned[..., 1::2], turned[..., ::2]
    else:
        half = width // 2
        flipped = torch.cat([-turned[..., half:], turned[..., :half]], -1)
    sin, cos = (w[f"{at}.rotary_{name}"][:n, None] for name in ("sin", "cos"))
    return torch.cat([turned * cos + flipped * sin, x[..., width:]], -1)


def lens_mlp(w, c, at, x):
    act = {"gelu_new": lambda t: F.gelu(t, approximate="tanh"), "relu": F.relu, "silu": F.silu}
    pre, b_in = x @ w[f"{at}.mlp.W_in"], w[f"{at}.mlp.b_in"]
    if c.get("gated_mlp"):
        post = act[c["act_fn"]](x @ w[f"{at}.mlp.W_gate"]) * pre + b_in
    else:
        post = act[c["act_fn"]](pre + b_in)
    return post @ w[f"{at}.mlp.W_out"] + w[f"{at}.mlp.b_out"]


class NanoGPT(nn.Module):
    """Names and arithmetic of nanoGPT's model.py, no dropout."""

    def __init__(self, n_layer, n_head, n_embd, block_size, vocab_size, bias, dropout=0.0):
        super().__init__()
        self.n_head = n_head
        linear = lambda i, o: nn.Linear(i, o, bias=bias)  # noqa: E731
        norm = lambda: nn.LayerNorm(n_embd, bias=bias)  # noqa: E731
        blocks = [
            nn.ModuleDict({
                "ln_1": norm(),
                "attn": nn.ModuleDict({
                    "c_attn": linear(n_embd, 3 * n_embd), "c_proj": linear(n_embd, n_embd)
                }),
                "ln_2": norm(),
                "mlp": nn.ModuleDict({
                    "c_fc": linear(n_embd, 4 * n_embd), "c_proj": linear(4 * n_embd, n_embd)
                }),
            })
            for _ in range(n_layer)
        ]  # fmt: skip
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(vocab_size, n_embd),
            "wpe": nn.Embedding(block_size, n_embd),
            "h": nn.ModuleList(blocks),
            "ln_f": norm(),
        })  # fmt: skip
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight
        self.double()
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0, 0.4)

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        (batch, n), t = ids.shape, self.transformer
        x = t.wte(ids) + t.wpe(torch.arange(n))
        for block in t.h:
            heads = block.attn.c_attn(block.ln_1(x)).view(batch, n, 3, self.n_head, -1)
            q, k, v = heads.permute(2, 0, 3, 1, 4)
            scores = q @ k.mT / math.sqrt(q.shape[-1])
            scores = scores.masked_fill(~torch.ones(n, n).tril().bool(), -torch.inf)
            z = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, n, -1)
            x = x + block.attn.c_proj(z)
            x = x + block.mlp.c_proj(F.gelu(block.mlp.c_fc(block.ln_2(x))))
        return self.lm_head(t.ln_f(x))
