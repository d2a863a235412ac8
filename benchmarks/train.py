"""Tokens per second of a training step, beside nanoGPT's layout of the same model in plain torch.

    python benchmarks/train.py [--threads N] [--only NAME]

One step is a batch, forward, loss, backward, clipping and AdamW (fused), in float32. The peer is
written out below: nn.Modules, one fused qkv map, SDPA, a tied head, and nothing else. Both have the
same weights and must give the same loss and the same updated weights before the clock starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from measure import interleaved, machine, ratio
from torch import Tensor, nn

from interp import HookedTransformer, TransformerConfig
from interp.training import SampledData, TrainConfig
from interp.training.loop import Run

GOAL = 0.97
MODELS = {
    "character GPT, 4 × 128": (4, 4, 128, 65, 128, 16),
    "tinyworld, 4 × 192": (4, 8, 192, 2000, 128, 16),
    "GPT-2 small's width, 2 × 768": (2, 12, 768, 5000, 128, 8),
}
"""Layers, heads, d_model, d_vocab, n_ctx, batch."""


@dataclass(frozen=True)
class Config:
    """How long to measure, and what."""

    threads: int | None = None
    """Threads of torch; by default what torch takes."""
    runs: int = 41
    """Rounds of one measurement."""
    seconds: float = 60.0
    """A measurement ends after this time, once it has five rounds."""
    only: str | None = None
    """One model, by the beginning of its name."""


class PeerBlock(nn.Module):
    def __init__(self, n_heads: int, d_model: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.ln_1, self.ln_2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.c_attn, self.c_proj = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.c_fc, self.c_out = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for part in self.c_attn(self.ln_1(x)).chunk(3, dim=-1)
        )
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(z.transpose(1, 2).flatten(-2))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x))))


class Peer(nn.Module):
    """nanoGPT's layout."""

    def __init__(self, ours: HookedTransformer) -> None:
        super().__init__()
        cfg = ours.cfg
        self.wte = nn.Embedding(cfg.d_vocab, cfg.d_model)
        self.wpe = nn.Embedding(cfg.n_ctx, cfg.d_model)
        self.blocks = nn.ModuleList(
            PeerBlock(cfg.n_heads, cfg.d_model) for _ in range(cfg.n_layers)
        )
        self.ln_f = nn.LayerNorm(cfg.d_model)
        self.lm_head = nn.Linear(cfg.d_model, cfg.d_vocab, bias=False)
        self.lm_head.weight = self.wte.weight
        with torch.no_grad():
            for mine, theirs in self.same_as(ours):
                mine.copy_(theirs)

    def same_as(self, ours: HookedTransformer) -> list[tuple[Tensor, Tensor]]:
        """Its parameters beside ours."""
        pairs = [(self.wte.weight, ours.W_E), (self.wpe.weight, ours.embed.W_pos)]
        for mine, block in zip(self.blocks, ours.blocks, strict=True):
            maps = (
                (mine.c_attn, block.attn.qkv_weight, block.attn.qkv_bias),
                (mine.c_proj, block.attn.out_weight, block.attn.out_bias),
                (mine.c_fc, block.mlp.in_weight, block.mlp.in_bias),
                (mine.c_out, block.mlp.out_weight, block.mlp.out_bias),
                (mine.ln_1, block.ln1.w, block.ln1.b),
                (mine.ln_2, block.ln2.w, block.ln2.b),
            )
            for module, w, b in maps:
                pairs += [(module.weight, w), (module.bias, b)]
        return [*pairs, (self.ln_f.weight, ours.ln_final.w), (self.ln_f.bias, ours.ln_final.b)]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class PeerRun:
    """nanoGPT's loop: the step of the peer."""

    def __init__(self, model: Peer, data: SampledData, config: TrainConfig) -> None:
        self.model, self.data, self.config, self.step = model, data, config, 0
        named = list(model.named_parameters())
        groups = [
            {"params": [p for _, p in named if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)

    def update(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        ids, targets = self.data.batch("train", self.step, self.config.batch_size)
        logits = self.model(ids)
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item()


def measure(name: str, config: Config) -> str:
    """One line of the table."""
    n_layers, n_heads, d_model, d_vocab, n_ctx, batch = MODELS[name]
    cfg = TransformerConfig(
        n_layers=n_layers, n_heads=n_heads, d_model=d_model, d_mlp=4 * d_model, d_vocab=d_vocab,
        n_ctx=n_ctx, tied=True,
    )  # fmt: skip
    training = TrainConfig(batch_size=batch, steps=10_000)
    data = SampledData(
        lambda rng, split, size: rng.integers(d_vocab, size=(size, n_ctx + 1)), None, name
    )
    ours = HookedTransformer(cfg).requires_grad_(True)
    ours_run = Run(ours, data, Path(), training, {})
    peer = Peer(ours)
    peer_run = PeerRun(peer, data, training)

    def step() -> float:
        loss, _ = ours_run.update()
        ours_run.step += 1
        return loss

    for _ in range(3):
        pair = step(), peer_run.update()
        if not math.isclose(*pair, rel_tol=1e-5):
            raise RuntimeError(f"{name}: the losses differ, {pair}")
    for mine, theirs in peer.same_as(ours):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    times = interleaved(
        {"ours": step, "peer": peer_run.update}, runs=config.runs, seconds=config.seconds
    )
    speed = ratio(times["peer"], times["ours"])
    tokens = batch * n_ctx / (sum(times["ours"]) / len(times["ours"]))
    return f"| {name} | {batch} × {n_ctx} | {speed} | {GOAL} | {tokens:,.0f} |"


def main(config: Config) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    chosen = [name for name in MODELS if name.startswith(config.only or "")]
    if not chosen:
        raise SystemExit(f"--only {config.only}: expected the beginning of {', '.join(MODELS)}")
    print(f"{machine()}\n")
    print("| model | batch | tokens/s, of nanoGPT's | goal ≥ | tokens/s |")
    print("| --- | --- | --- | --- | --- |")
    for name in chosen:
        print(measure(name, config), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
