"""What ties the sites of one bridged run together.

Each identity says which sites cause it and what they act on. It must hold in a plain run, which
pins the value, and again in a run where one of its causes is edited, which shows that the edit acts
as it must: a hook point that TransformerLens fires on a copy breaks its identity there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
}


class Identity(NamedTuple):
    """left = right, where `causes` act on `effect`."""

    layer: int | None
    text: str
    causes: tuple[str, ...]
    """Sites whose edits the identity must survive."""
    effect: str | None
    """The site that they act on, itself to be verified; None: an output of the library."""
    left: Tensor
    right: Tensor

    @property
    def error(self) -> float:
        """max |left − right| as a share of the largest value."""
        if self.left.shape != self.right.shape:
            return float("inf")
        scale = torch.maximum(self.left.abs().max(), self.right.abs().max()).clamp(min=1e-30)
        error = float((self.left - self.right).abs().max() / scale)
        return error if error == error else float("inf")


class Run(NamedTuple):
    """What one run read, under full names, and the parts of the bridge to compare it with."""

    values: Mapping[str, Tensor]
    ids: Tensor
    bridge: Any
    causal: bool
    W_E: Tensor


def identities(run: Run, n_layers: int) -> Iterator[Identity]:
    """Every identity whose sites the run has read, alternatives included: of those that say the
    same of differently built blocks, at most one holds."""
    yield from _embedding(run)
    yield from _norm(run, None, "embed_ln", getattr(run.bridge, "embed_ln", None))
    for layer in range(n_layers):
        block = _Block(run, layer)
        yield from block.residual()
        yield from block.inputs()
        yield from block.attention()
        yield from block.neurons()
        for name in ("ln1", "ln2", "ln1_post", "ln2_post"):
            yield from _norm(run, layer, f"blocks.{layer}.{name}", block.part(name))
    yield from _norm(run, None, "ln_final", getattr(run.bridge, "ln_final", None))


def _embedding(run: Run) -> Iterator[Identity]:
    v, first = run.values, "blocks.0.hook_resid_pre"
    terms = ("hook_embed", "hook_pos_embed", "hook_token_type_embed")
    present = tuple(name for name in terms if name in v)
    if "hook_embed" not in present or first not in v:
        return
    rows = run.W_E[run.ids].to(v["hook_embed"])
    yield Identity(None, "embed ∝ W_E[ids]", (), "hook_embed", *_fitted(rows, v["hook_embed"]))
    for name in present[1:]:
        same = v[name][:1].expand_as(v[name]) if name == terms[1] else v[name][:1, :1]
        yield Identity(
            None, f"{name} does not depend on the ids", (), name, v[name], same.expand_as(v[name])
        )
    total = sum(v[name].expand_as(v["hook_embed"]) for name in present)
    said = " + ".join(name.removeprefix("hook_") for name in present)
    yield Identity(0, f"{said} = resid_pre", present, first, total, v[first])
    norm = getattr(run.bridge, "embed_ln", None)
    if norm is not None:
        yield Identity(0, f"embed_ln({said}) = resid_pre", present, first, norm(total), v[first])


def _norm(run: Run, layer: int | None, name: str, module: Any) -> Iterator[Identity]:
    """normalized · scale is what was read (less its mean), and the gain is applied behind it."""
    scale, normalized = f"{name}.hook_scale", f"{name}.hook_normalized"
    v = run.values
    needed = (scale, normalized, f"{name}.hook_in", f"{name}.hook_out")
    if module is None or not all(site in v for site in needed):
        return
    short, x, y = name.rpartition(".")[2], v[needed[2]], v[needed[3]]
    undone = v[normalized].to(v[scale]) * v[scale]
    centred = x - x.mean(-1, keepdim=True)
    for text, read in (("x", x), ("x − mean", centred)):
        said = f"{short}: normalized · scale = {text}"
        yield Identity(layer, said, (scale,), normalized, undone, read.to(undone))
    bias = module(torch.zeros_like(x[:1, :1]))
    gained, out = _fitted(v[normalized].to(y), y - bias, dim=(0, 1))
    said = f"{short}: gain · normalized + bias = output"
    yield Identity(layer, said, (normalized,), None, gained, out)


def _fitted(x: Tensor, y: Tensor, dim: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
    """c·x and y, with the c that fits best: one number, or one for each index outside `dim`."""
    dim = tuple(range(x.ndim)) if dim is None else dim
    square = x.square().sum(dim, keepdim=True).clamp(min=1e-30)
    return x * ((x * y).sum(dim, keepdim=True) / square), y


class _Block:
    """The identities of one layer."""

    def __init__(self, run: Run, layer: int) -> None:
        self.run, self.layer, self.prefix = run, layer, f"blocks.{layer}."
        self.module = run.bridge.blocks[layer]

    def part(self, path: str) -> Any:
        """A module of the block by the bridge's name, or None."""
        found = self.module
        for name in path.split("."):
            found = getattr(found, "_modules", {}).get(name)
            if found is None or getattr(found, "original_component", found) is None:
                return None
        return found

    def has(self, *names: str) -> bool:
        return all(self.prefix + name in self.run.values for name in names)

    def __getitem__(self, name: str) -> Tensor:
        return self.run.values[self.prefix + name]

    def say(
        self, text: str, causes: tuple[str, ...], effect: str | None, left: Tensor, right: Tensor
    ) -> Identity:
        full = tuple(self.prefix + name for name in causes)
        effect = None if effect is None else self.prefix + effect
        return Identity(self.layer, text, full, effect, left, right)

    def residual(self) -> Iterator[Identity]:
        """attn_out and mlp_out are what is added to the residual stream."""
        if not self.has("hook_resid_pre", "hook_resid_post"):
            return
        pre, post, end = self["hook_resid_pre"], self["hook_resid_post"], "hook_resid_post"
        following = f"blocks.{self.layer + 1}.hook_resid_pre"
        if following in self.run.values:
            yield self.say("resid_post = next resid_pre", (), end, post, self.run.values[following])
        attn, mlp = list(self._attention_writes()), list(self._mlp_writes())
        ln1, ln2 = self.part("ln1"), self.part("ln2")
        for (a_text, a_site, a), (m_text, m_site, m) in itertools.product(attn, mlp):
            said, sites = f"{a_text} + {m_text}", ("hook_resid_pre", a_site, m_site)
            yield self.say(f"resid_pre + {said} = resid_post", sites, end, pre + a + m, post)
            if ln1 is not None and ln2 is not None:
                said = f"ln2(ln1(resid_pre + {a_text}) + {m_text}) = resid_post"
                yield self.say(said, sites, end, ln2(ln1(pre + a) + m), post)
        if not mlp:
            for a_text, a_site, a in attn:
                sites = ("hook_resid_pre", a_site)
                yield self.say(f"resid_pre + {a_text} = resid_post", sites, end, pre + a, post)
        if self.has("hook_resid_mid"):
            mid = self["hook_resid_mid"]
            for m_text, m_site, m in mlp:
                sites = ("hook_resid_mid", m_site)
                yield self.say(f"resid_mid + {m_text} = resid_post", sites, end, mid + m, post)
                if ln2 is not None:
                    said = f"ln2(resid_mid + {m_text}) = resid_post"
                    yield self.say(said, sites, end, ln2(mid + m), post)

    def _attention_writes(self) -> Iterator[tuple[str, str, Tensor]]:
        """What attention adds, as a site says it or as one makes it."""
        if self.has("hook_attn_out"):
            yield "attn_out", "hook_attn_out", self["hook_attn_out"]
        o = self.part("attn.o")
        if o is not None and self.has("attn.hook_z"):
            yield from self._normed("z W_O + b_O", "attn.hook_z", o(self["attn.hook_z"].flatten(2)))
        if o is not None and self.has("attn.hook_result"):
            summed = self["attn.hook_result"].sum(2)
            bias = o(torch.zeros_like(self["attn.hook_z"][:1, :1].flatten(2)))
            yield from self._normed("Σ result + b_O", "attn.hook_result", summed + bias)

    def _mlp_writes(self) -> Iterator[tuple[str, str, Tensor]]:
        if self.has("hook_mlp_out"):
            yield "mlp_out", "hook_mlp_out", self["hook_mlp_out"]
        out = self.part("mlp.out")
        if out is not None and self.has("mlp.hook_post"):
            written = out(self["mlp.hook_post"])
            yield from self._normed("post W_out + b_out", "mlp.hook_post", written, "ln2_post")

    def _normed(
        self, text: str, site: str, written: Tensor, norm: str = "ln1_post"
    ) -> Iterator[tuple[str, str, Tensor]]:
        module = self.part(norm)
        if module is None:
            yield text, site, written
        else:
            yield f"{norm}({text})", site, module(written)

    def inputs(self) -> Iterator[Identity]:
        """A head's input, normed and multiplied alone, gives what that head has."""
        ln1 = self.part("ln1") or (lambda x: x)
        for part in "qkv":
            name, made, module = (
                f"hook_{part}_input",
                f"attn.hook_{part}",
                self.part(f"attn.{part}"),
            )
            if module is None or not self.has(name, made, "hook_resid_pre"):
                continue
            x, made_of = self[name], self[made]
            pre = self["hook_resid_pre"][:, :, None].expand_as(x)
            yield self.say(f"{part}_input = resid_pre", (), name, x, pre)
            if x.shape[2] == made_of.shape[2]:
                own = [
                    module(ln1(x[:, :, head])).view(made_of.shape)[:, :, head]
                    for head in range(x.shape[2])
                ]
                said = f"ln1({part}_input) W + b = {part}"
                yield self.say(said, (name,), made, torch.stack(own, 2), made_of)

    def attention(self) -> Iterator[Identity]:
        if not self.has("attn.hook_pattern"):
            return
        pattern = self["attn.hook_pattern"]
        ones = torch.ones_like(pattern[..., 0])
        yield self.say("Σ_k pattern = 1", (), "attn.hook_pattern", pattern.sum(-1), ones)
        if self.has("attn.hook_v", "attn.hook_z"):
            z = torch.einsum("bhqk,bkhd->bqhd", pattern, self._per_head("attn.hook_v").to(pattern))
            sites = ("attn.hook_pattern", "attn.hook_v")
            yield self.say("pattern · v = z", sites, "attn.hook_z", z, self["attn.hook_z"].to(z))
        if self.has("attn.hook_attn_scores"):
            yield from self._scores(pattern)

    def _scores(self, pattern: Tensor) -> Iterator[Identity]:
        scores, name = self["attn.hook_attn_scores"], "attn.hook_attn_scores"
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        past = past.tril() if self.run.causal else past
        seen = scores.masked_fill(~past, 0)
        hidden = torch.where(past, seen, scores).clamp(-1e9, 1e9)
        low = hidden.clamp(-1e4 * (1 + seen.abs().max()))
        yield self.say("no mask is in the scores", (), name, low, hidden)
        for text, given in (
            ("masked scores", scores.masked_fill(~past, -torch.inf)),
            ("scores", scores),
        ):
            weights = given.softmax(-1).to(pattern)
            yield self.say(
                f"softmax({text}) = pattern", (name,), "attn.hook_pattern", weights, pattern
            )
        turned = self.has("attn.hook_rot_q", "attn.hook_rot_k")
        q_name, k_name = (f"attn.hook_{'rot_' if turned else ''}{part}" for part in "qk")
        if self.has(q_name, k_name):
            k = self._per_head(k_name)
            products = torch.einsum("bqhd,bkhd->bhqk", self[q_name], k).masked_fill(~past, 0)
            said = f"c · {q_name.removeprefix('attn.hook_')} · {k_name.removeprefix('attn.hook_')}"
            left, right = _fitted(products.to(seen), seen)
            yield self.say(f"{said} = scores", (q_name, k_name), name, left, right)
        for part in "qk" if turned else "":
            if self.has(f"attn.hook_{part}"):
                yield from self._rotated(part)

    def _rotated(self, part: str) -> Iterator[Identity]:
        """Rotation leaves position 0 as it is, and every length."""
        x, turned = self[f"attn.hook_{part}"], self[f"attn.hook_rot_{part}"]
        sites, effect = (f"attn.hook_{part}",), f"attn.hook_rot_{part}"
        norm = self.part(f"attn.{part}_norm")
        if norm is None:
            inputs = {part: x}
        else:
            gain = getattr(getattr(norm, "original_component", None), "weight", None)
            wide = gain is not None and gain.numel() == x[0, 0].numel() != x.shape[-1]
            inputs = {f"{part}_norm({part})": norm(x.flatten(2)).view_as(x) if wide else norm(x)}
        for text, given in inputs.items():
            parts = [
                torch.cat([one[:, 0].flatten(), one.norm(dim=-1).flatten()])
                for one in (given, turned)
            ]
            yield self.say(f"rotated {text} = rot_{part}", sites, effect, *parts)

    def _per_head(self, name: str) -> Tensor:
        """Keys or values, each head's own: key-value heads are shared by neighbours."""
        x, heads = self[name], self["attn.hook_pattern"].shape[1]
        return x.repeat_interleave(heads // x.shape[2], 2) if heads % x.shape[2] == 0 else x

    def neurons(self) -> Iterator[Identity]:
        """Neurons are a known function of their pre-activations."""
        if not self.has("mlp.hook_pre", "mlp.hook_post"):
            return
        pre, post = self["mlp.hook_pre"], self["mlp.hook_post"]
        linear = self["mlp.hook_pre_linear"] if self.has("mlp.hook_pre_linear") else None
        for name, activation in ACTIVATIONS.items():
            sites, said, value = ("mlp.hook_pre",), f"{name}(pre)", activation(pre)
            if linear is not None:
                sites, said = (*sites, "mlp.hook_pre_linear"), f"{said} · pre_linear"
                value = value * linear
            yield self.say(f"{said} = post", sites, "mlp.hook_post", value, post)
