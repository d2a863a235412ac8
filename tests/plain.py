"""A second route to the same numbers: the transformer written in numpy, one sequence at a time.

Loops over heads and positions, no padding, no fusion, nothing shared with `interp.model` but the
config and the parameters. Slow and obvious on purpose.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import erf

from interp.core.config import TransformerConfig


def run(cfg: TransformerConfig, weights: dict[str, np.ndarray], ids: list[int]) -> dict:
    """All residual streams, patterns, z, neurons and the output for one sequence of ids."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    n = len(ids)
    x = np.stack([w["embed.W_E"][i] for i in ids])
    if cfg.embed_scale is not None:
        x = x * cfg.embed_scale
    if cfg.positions == "learned":
        x = x + np.stack([w["embed.W_pos"][cfg.position_offset + p] for p in range(n)])
    if cfg.positions == "sinusoidal":
        x = x + np.array([sinusoid(cfg.position_offset + p, cfg.d_model) for p in range(n)])
    if cfg.n_token_types:
        x = x + w["embed.W_token_type"][0]
    if cfg.embed_norm:
        x = norm(cfg, w, "embed_ln", x)
    seen: dict = {}
    for layer in range(cfg.n_layers):
        x = block(cfg, w, layer, x, seen)
    if cfg.final_norm and cfg.norm != "none":
        x = norm(cfg, w, "ln_final", x)
    if cfg.head == "none":
        return seen | {"output": x}
    if cfg.head == "mlm":
        x = activation(cfg, x @ w["mlm_head.dense_weight"].T + w["mlm_head.dense_bias"])
        x = norm(cfg, w, "mlm_head.ln", x)
    W_U = w["embed.W_E"] if cfg.tied else w["unembed.weight"]
    logits = x @ W_U.T + w.get("unembed.bias", 0.0)
    if cfg.logit_scale is not None:
        logits = logits * cfg.logit_scale
    if cfg.final_softcap is not None:
        logits = cfg.final_softcap * np.tanh(logits / cfg.final_softcap)
    return seen | {"output": logits}


def block(cfg, w, layer, x, seen):
    name = f"blocks.{layer}"
    position = cfg.norm_position if cfg.norm != "none" else "nowhere"
    factor = 1.0 if cfg.residual_scale is None else cfg.residual_scale
    seen["resid_pre", layer] = x
    pre = position in ("pre", "both")
    read = norm(cfg, w, f"{name}.ln1", x) if pre else x
    attn_out = attention(cfg, w, layer, read, seen)
    if position in ("output", "both"):
        attn_out = norm(cfg, w, f"{name}.ln1_post", attn_out)
    attn_out = attn_out * factor
    seen["attn_out", layer] = attn_out
    if cfg.parallel:
        read2 = norm(cfg, w, f"{name}.ln2", x) if pre and not cfg.parallel_shared_norm else read
        out = x + attn_out + mlp(cfg, w, layer, read2, seen) * factor
        seen["resid_post", layer] = out
        return out
    mid = x + attn_out
    if position == "post":
        mid = norm(cfg, w, f"{name}.ln1", mid)
    if not cfg.d_mlp:
        seen["resid_post", layer] = mid
        return mid
    seen["resid_mid", layer] = mid
    mlp_out = mlp(cfg, w, layer, norm(cfg, w, f"{name}.ln2", mid) if pre else mid, seen)
    if position in ("output", "both"):
        mlp_out = norm(cfg, w, f"{name}.ln2_post", mlp_out)
    mlp_out = mlp_out * factor
    seen["mlp_out", layer] = mlp_out
    out = mid + mlp_out
    if position == "post":
        out = norm(cfg, w, f"{name}.ln2", out)
    seen["resid_post", layer] = out
    return out


def norm(cfg, w, name, x):
    gain, bias = w.get(f"{name}.w"), w.get(f"{name}.b", 0.0)
    out = np.empty_like(x)
    for where in np.ndindex(x.shape[:-1]):
        row = x[where]
        if cfg.norm == "layernorm":
            row = row - row.mean()
        out[where] = row / math.sqrt((row**2).mean() + cfg.norm_eps)
    if gain is None:
        return out
    return out * (1 + gain if cfg.norm == "rmsnorm_plus1" else gain) + bias


def attention(cfg, w, layer, x, seen):
    name, dh, n = f"blocks.{layer}.attn", cfg.d_head, len(x)
    flat = x @ w[f"{name}.qkv_weight"].T + w.get(f"{name}.qkv_bias", 0.0)
    n_q, n_kv = cfg.n_heads * dh, cfg.n_kv_heads * dh
    q = flat[:, :n_q].reshape(n, cfg.n_heads, dh)
    k = flat[:, n_q : n_q + n_kv].reshape(n, cfg.n_kv_heads, dh)
    v = flat[:, n_q + n_kv :].reshape(n, cfg.n_kv_heads, dh)
    if cfg.qk_norm in ("head", "each"):
        q, k = norm(cfg, w, f"{name}.q_norm", q), norm(cfg, w, f"{name}.k_norm", k)
    elif cfg.qk_norm == "all":
        q = norm(cfg, w, f"{name}.q_norm", q.reshape(n, -1)).reshape(q.shape)
        k = norm(cfg, w, f"{name}.k_norm", k.reshape(n, -1)).reshape(k.shape)
    if cfg.is_rotary(layer):
        q, k = rotary(cfg, layer, q), rotary(cfg, layer, k)
    pattern = np.zeros((cfg.n_heads, n, n))
    z = np.zeros((n, cfg.n_heads, dh))
    for h in range(cfg.n_heads):
        g = h // (cfg.n_heads // cfg.n_kv_heads)
        for i in range(n):
            scores = {}
            for j in range(n):
                window = cfg.window(layer)
                if (cfg.causal and j > i) or (window is not None and abs(i - j) >= window):
                    continue
                s = cfg.scale(layer) * float(q[i, h] @ k[j, g])
                if cfg.attn_softcap is not None:
                    s = cfg.attn_softcap * math.tanh(s / cfg.attn_softcap)
                if cfg.positions == "alibi":
                    s += alibi(cfg, h, i, j)
                if cfg.positions == "relative":
                    s += float(w["embed.W_rel"][bucket(cfg, j - i), h])
                scores[j] = s
            if cfg.attn_sinks:
                scores[None] = w[f"{name}.sinks"][h]
            top = max(scores.values())
            total = sum(math.exp(s - top) for s in scores.values())
            scores.pop(None, None)
            for j, s in scores.items():
                pattern[h, i, j] = math.exp(s - top) / total
            z[i, h] = pattern[h, i] @ v[:, g]
    seen["pattern", layer], seen["z", layer] = pattern, z
    return z.reshape(n, -1) @ w[f"{name}.out_weight"].T + w.get(f"{name}.out_bias", 0.0)


def bucket(cfg, distance):
    """T5's: small distances each have their own, larger ones share."""
    n, right = cfg.relative_buckets, 0
    if not cfg.causal:
        n //= 2
        right = n if distance > 0 else 0
    distance, exact = abs(distance), n // 2
    if distance < exact:
        return right + distance
    ratio = np.float32(np.log(np.float32(distance) / np.float32(exact)))
    ratio = ratio / np.float32(math.log(cfg.relative_max_distance / exact))
    return right + min(n - 1, exact + int(ratio * np.float32(n - exact)))


def alibi(cfg, h, i, j):
    """Up to a constant per query, which a softmax does not see but rounding does."""
    scale = 1.0 if cfg.alibi_scale is None else cfg.alibi_scale
    if cfg.alibi_bfloat16:
        return scale * bfloat16(bfloat16(slope(h, cfg.n_heads)) * bfloat16(j))
    return -scale * slope(h, cfg.n_heads) * (i - j)


def bfloat16(x):
    """The nearest of the numbers with eight significant bits, ties to even."""
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(mantissa * 256), exponent - 8)


def slope(h, n_heads):
    n = 1
    while n * 2 <= n_heads:
        n *= 2
    return 2.0 ** (-8 * (h + 1) / n) if h < n else 2.0 ** (-4 * (2 * (h - n) + 1) / n)


def rotary(cfg, layer, x):
    out, width = x.copy(), cfg.rotary_dim
    for p in range(len(x)):
        for i in range(width // 2):
            a, b = (2 * i, 2 * i + 1) if cfg.rotary_interleaved else (i, i + width // 2)
            angle = p * frequency(cfg, layer, i, len(x))
            factor = longrope_factor(cfg.rotary_scalings[layer])
            c, s = factor * math.cos(angle), factor * math.sin(angle)
            out[p, :, a] = x[p, :, a] * c - x[p, :, b] * s
            out[p, :, b] = x[p, :, b] * c + x[p, :, a] * s
    return out


def frequency(cfg, layer, i, length):
    """Those scalings that no family of the parity tests has."""
    scaling, base, width = cfg.rotary_scalings[layer], cfg.rotary_bases[layer], cfg.rotary_dim
    if scaling is None:
        return base ** (-2 * i / width)
    if scaling.kind == "ntk":  # the last frequency is divided by the factor, and the first kept
        return base ** (-2 * i / width) / scaling.factor ** (2 * i / (width - 2))
    assert scaling.kind == "longrope"
    is_long = length > scaling.original_n_ctx
    factors = scaling.long_factors if is_long else scaling.short_factors
    return base ** (-2 * i / width) / factors[i]


def longrope_factor(scaling):
    if scaling is None or scaling.kind != "longrope":
        return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_n_ctx))


def sinusoid(p, width):
    angles = [p / 10_000 ** ((j - j % 2) / width) for j in range(width)]
    return [math.cos(a) if j % 2 else math.sin(a) for j, a in enumerate(angles)]


def router(cfg, w, name, x):
    """The weight of each expert, one token after the other."""
    logits = x @ w[f"{name}.router_weight"].T + w.get(f"{name}.router_bias", 0.0)
    weights = np.zeros_like(logits)
    for row, own in zip(weights, logits, strict=True):
        chosen = sorted(range(cfg.n_experts), key=lambda e: -own[e])[: cfg.experts_per_token]
        over = chosen if cfg.expert_weights == "chosen" else range(cfg.n_experts)
        for e in chosen:
            row[e] = math.exp(own[e]) / sum(math.exp(own[other]) for other in over)
    return weights


def mlp(cfg, w, layer, x, seen):
    name = f"blocks.{layer}.mlp"
    pre = x @ w[f"{name}.in_weight"].T + w.get(f"{name}.in_bias", 0.0)
    if cfg.mlp_gated:
        gate, linear = pre[:, : cfg.d_mlp], pre[:, cfg.d_mlp :]
        if cfg.mlp_clamp is not None:
            gate = np.minimum(gate, cfg.mlp_clamp)
            linear = np.maximum(np.minimum(linear, cfg.mlp_clamp), -cfg.mlp_clamp)
        post = activation(cfg, gate) * (linear + cfg.mlp_linear_offset)
    else:
        post = activation(cfg, pre)
    if cfg.n_experts:
        return experts(cfg, w, layer, x, post, seen)
    seen["post", layer] = post
    return post @ w[f"{name}.out_weight"].T + w.get(f"{name}.out_bias", 0.0)


def experts(cfg, w, layer, x, post, seen):
    name = f"blocks.{layer}.mlp"
    weights = seen["expert_weights", layer] = router(cfg, w, name, x)
    seen["post", layer] = np.zeros_like(post)
    size, out = cfg.d_mlp // cfg.n_experts, np.zeros_like(x)
    for e in range(cfg.n_experts):
        own = slice(e * size, (e + 1) * size)
        written = post[:, own] @ w[f"{name}.out_weight"][:, own].T
        if cfg.mlp_bias:
            written = written + w[f"{name}.out_bias"][e]
        out += weights[:, e : e + 1] * written
        seen["post", layer][:, own] = weights[:, e : e + 1] * post[:, own]
    return out


def activation(cfg, x):
    return {
        "gelu": lambda: x * 0.5 * (1 + erf(x / math.sqrt(2))),
        "gelu_tanh": lambda: (
            0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        ),
        "quick_gelu": lambda: x / (1 + np.exp(-1.702 * x)),
        "relu": lambda: np.maximum(x, 0),
        "relu2": lambda: np.maximum(x, 0) ** 2,
        "silu": lambda: x / (1 + np.exp(-x)),
    }[cfg.activation]()
