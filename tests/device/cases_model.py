"""What is asked of a model: every verb, and the objects that they give. `b` is a `Bench`."""

from __future__ import annotations

import torch

import interp
from interp.core.tokens import Tokens
from interp.model import HookedTransformer
from tests.strategies import random_model, small_config

MODEL = "model.HookedTransformer"
PLAIN = "W_Q W_K W_V W_O b_Q b_K b_V b_O W_in W_out b_in b_out W_E W_pos W_U b_U dtype like"


def other(b, **changes) -> HookedTransformer:
    """Another architecture than that of the bench."""
    return random_model(small_config(**changes)).to(b.device)


def double(x, hook):
    x *= 2  # in place, on the hook's own copy


def cached(b, names=None, **options):
    return b.model.run_with_cache(b.tokens, names, **options)[1]


def source(b) -> HookedTransformer:
    """An encoder–decoder."""
    encoder = small_config(causal=False, head="none")
    return other(b, encoder=encoder, decoder_start_token_id=1)


def generated(f, b):
    texts = ["the king and", "a woman"]
    sampled = f(b.model, texts, 6, temperature=1.0, top_k=20, top_p=0.9, seed=1)
    kept = f(b.model, texts, 3, names_filter="resid_post")
    assert kept.caches[0]["resid_post", 0].device.type == b.device
    caches = [dict(cache) for cache in kept.caches]
    return sampled.tokens, sampled.texts, sampled.completions, sampled.new_ids, caches


def trained_gradient(b):
    """The gradient of a loss by a cached activation."""
    model = b.model
    out, cache = model.run_with_cache(b.tokens, "resid_mid", grad=True)
    return torch.autograd.grad(out.square().mean(), list(cache.values()))


MODEL_CASES = {
    **{f"{MODEL}.{name}": lambda f, b: f(b.model) for name in PLAIN.split()},
    f"{MODEL}.W_gate": lambda f, b: f(other(b, mlp_gated=True)),
    f"{MODEL}.b_gate": lambda f, b: f(other(b, mlp_gated=True)),
    f"{MODEL}.W_rel": lambda f, b: f(other(b, positions="relative")),
    f"{MODEL}.QK": lambda f, b: (f(b.model).AB, f(other(b, n_kv_heads=2)).AB),
    f"{MODEL}.OV": lambda f, b: (f(b.model).AB, f(other(b, n_kv_heads=2)).AB),
    f"{MODEL}.accept": lambda f, b: (
        f(b.model, [[1, 2, 3]]), f(b.model, torch.tensor([4, 5])), f(b.model, "the king"),
        f(b.model, Tokens.of(b.direction[None, None])), f(source(b), [[1, 2]]),
    ),
    f"{MODEL}.checked": lambda f, b: f(b.model, [[1, 2], [3, 4, 5]]),
    f"{MODEL}.to_tokens": lambda f, b: f(
        b.model, ["the king", "a man and a woman"], side="left", roles={"end": torch.tensor([4, 4])}
    ),
    f"{MODEL}.to_str_tokens": lambda f, b: f(b.model, "the king"),
    f"{MODEL}.to_string": lambda f, b: f(b.model, b.model.to_tokens("the king").ids),
    f"{MODEL}.to_single_token": lambda f, b: f(b.model, "king"),
    f"{MODEL}.pool": lambda f, b: [f(b.model, b.tokens, how) for how in ("mean", "first", "last")],
    f"{MODEL}.generate": generated,
    f"{MODEL}.stream": lambda f, b: [
        step.ids for step in f(b.model, "the king", 4, temperature=0.7)
    ],
    f"{MODEL}.folded": lambda f, b: f(b.model),
    f"{MODEL}.check_identities": lambda f, b: f(b.model, b.tokens),
    f"{MODEL}.end_ids": lambda f, b: sorted(f(b.world)),
    f"{MODEL}.num_params": lambda f, b: (f(b.model), f(b.model, "component"), f(b.model, "layer")),
    f"{MODEL}.forward": lambda f, b: (
        f(b.model, b.tokens), f(b.model, "the king"), f(b.model, [[1, 2, 3]], stop_at_layer=1),
        trained_gradient(b),
    ),
    f"{MODEL}.embedded": lambda f, b: f(b.model, b.tokens, b.model.layout(b.tokens)),
    f"{MODEL}.to_logits": lambda f, b: f(b.model, b.model(b.tokens, stop_at_layer=2)),
    f"{MODEL}.logits_of": lambda f, b: f(
        b.model, b.model(b.tokens, stop_at_layer=2)[:, -1:], b.there(torch.ones(3, 1, 2).long()),
        log_probs=True,
    ),
    f"{MODEL}.logits_at": lambda f, b: f(b.model, b.tokens, b.tokens.real),
    f"{MODEL}.run_with_hooks": lambda f, b: (
        f(b.model, b.tokens, [("z", double), (("resid_pre", 1), lambda x, hook: x + 1)]),
        f(b.model, b.tokens, [("pattern", double)], stop_at_layer=1),
    ),
    f"{MODEL}.run_with_cache": lambda f, b: (
        [(out, dict(cache)) for out, cache in (
            f(b.model, b.tokens),
            f(b.model, b.tokens, ["pattern", "attn_scores", "result", "q_input"]),
            f(b.model, b.tokens, "resid_post", pos=[0, -1]),
            f(b.model, b.tokens, "resid_post", device="cpu"),
        )]
    ),
    f"{MODEL}.with_hooks": lambda f, b: (
        f(b.model, [("z", double)])(b.tokens),
        f(b.model, [("z", double)]).generate("the king", 3).tokens,
        dict(f(b.model, [("z", double)]).run_with_cache(b.tokens, "resid_post")[1]),
    ),
    f"{MODEL}.init_weights": lambda f, b: [
        (f(model, seed=7), model)[1] for model in (other(b), other(b, norm="rmsnorm_plus1"))
    ],
    "model.num_params": lambda f, b: f(b.model.cfg, "component"),
    "model.Generation.new_ids": lambda f, b: f(b.model.generate("the king", 3)),
    "model.FactoredMatrix.shape": lambda f, b: tuple(f(b.model.QK)),
    "model.FactoredMatrix.AB": lambda f, b: f(b.model.OV),
    "model.FactoredMatrix.T": lambda f, b: f(b.model.OV).AB,
    "model.FactoredMatrix.__getitem__": lambda f, b: f(b.model.OV, (1, 2)).AB,
    "model.FactoredMatrix.__matmul__": lambda f, b: (
        f(b.model.OV, b.model.QK).AB, f(b.model.OV, b.model.W_E.T).AB
    ),
    "model.FactoredMatrix.__rmatmul__": lambda f, b: f(b.model.OV, b.model.W_E).AB,
    "model.FactoredMatrix.svd": lambda f, b: f(b.model.OV)[1],
    "model.FactoredMatrix.eigenvalues": lambda f, b: f(b.model.OV).abs().sort(-1).values,
    "model.FactoredMatrix.S": lambda f, b: f(b.model.OV),
    "model.FactoredMatrix.U": lambda f, b: f(b.model.OV).shape[-1],
    "model.FactoredMatrix.V": lambda f, b: f(b.model.OV).shape[-1],
    "model.FactoredMatrix.Vh": lambda f, b: f(b.model.OV).shape[-1],
    "model.FactoredMatrix.diagonal": lambda f, b: f(b.model.OV),
    "model.FactoredMatrix.norm": lambda f, b: f(b.model.QK),
    "tap.ActivationCache.is_of": lambda f, b: f(cached(b), b.model.stacks),
    "tap.ActivationCache.__getitem__": lambda f, b: f(cached(b), ("resid_post", 1)),
    "tap.ActivationCache.positions": lambda f, b: f(cached(b, pos=[0, -1]), "hook_embed"),
    "tap.ActivationCache.width": lambda f, b: f(cached(b, pos=[0, -1]), "hook_embed"),
    "tap.ActivationCache.select": lambda f, b: f(cached(b), "z"),
    "tap.ActivationCache.stack": lambda f, b: f(cached(b), "z"),
    "tokens.Tokens.of": lambda f, b: (f(b.there(torch.tensor([[1, 2]]))), f([[1], [2, 3]])),
    "tokens.Tokens.from_rows": lambda f, b: f([[1], [2, 3]], side="left"),
    "tokens.Tokens.shape": lambda f, b: tuple(f(b.tokens)),
    "tokens.Tokens.real": lambda f, b: (f(b.tokens), f(b.model.to_tokens("the king"))),
    "tokens.Tokens.__getitem__": lambda f, b: [
        f(b.pairs.clean, rows)
        for rows in (
            1, slice(0, 3), [2, 0], torch.tensor([1, 2]), b.there(torch.tensor([1, 2])),
            b.there(torch.arange(8) < 3),
        )
    ],
    "tokens.Tokens.to": lambda f, b: (
        f(b.tokens, "cpu"), f(f(b.tokens, "cpu"), b.device),
        f(Tokens(b.there(torch.tensor([[1, 2]])), mask=torch.tensor([[True, False]])), b.device)
        .mask.device.type == b.device,
    ),
    "loading.weights_hash": lambda f, b: f(b.model),
    "loading.save": lambda f, b: (
        f(b.model, b.folder / "saved"), interp.load(b.folder / "saved", device=b.device),
    )[1],
    "loading.load": lambda f, b: [
        f(name, b.device, "float64")(torch.tensor([[1, 2, 3]])) for name in ("modadd", "tinyworld")
    ],
    "checkup.doctor": lambda f, b: [
        (one.part, one.what, one.holds) for one in f("modadd", b.device).findings
    ],
    "checkup.relative_error": lambda f, b: f(b.model.W_E, b.model.W_E + 1),
}  # fmt: skip

MODEL_EXEMPT = {
    **dict.fromkeys(
        (f"{MODEL}.{name}" for name in ("layout", "new_prefix", "last_logits", "make_tap")),
        "run by forward and generate",
    ),
    f"{MODEL}.stacks": "modules",
    f"{MODEL}.device": "differs, as it should",
    f"{MODEL}.hooks": "raises",
    "tokens.Tokens.device": "differs, as it should",
    "model.GrowingPrefix": "run by generate",
    "model.Layout": "run by forward",
    "model.Places": "run by forward and by every sweep",
    "model.Prefix": "run by every sweep",
    "model.SourceLayout": "run by encoder–decoders",
    "model.FactoredMatrix.ndim": "no tensors",
    "tap.Silent": "run by forward",
    "tap.Tap": "run by run_with_cache and run_with_hooks",
    "checkup.Checkup": "no tensors",
    "loading.bundled": "no tensors",
    "loading.check_saved": "reads files and makes no tensor on a device",
    "loading.check_family": "runs on the CPU, whatever the model lies on",
    "loading.FamilyCheck": "no tensors",
}
