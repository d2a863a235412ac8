"""What each family costs beside Hugging Face: a plain forward, and two sweeps as shares.

    python benchmarks/families.py [--families gpt2,bert] [--rounds 5] [--scale 1.0] [--threads 2]

Prints a Markdown table. Every family is a random model of about 100 M parameters with the published
architecture, float32, the same weights on both sides. `plain` is the ratio to Hugging Face's
forward under inference_mode with attn_implementation="sdpa" ("eager", and so marked, where its
class knows no other), the median of interleaved rounds. Sweeps (i) resid_pre by layer × position
and (ii) z by layer × head, of both stacks and with cross-attention where there are two, on 8 × 16,
are shares: time over (nodes × one such forward of the same batch). Their bound is what cannot be
left out: the multiply-adds that lie downstream of the edits, base run included, over those of whole
forwards, as `interp` counts them. An encoder sees both ways, so that every position behind an
edited layer must be computed again. `reached` is bound / share: 100 % where a sweep takes no longer
than its bound. A seeded sample of `--nodes` nodes is swept, and the bound is that of the sample.

A source of an encoder–decoder has as many positions as its target. Images and spectrograms have 65
and 64 positions whatever is asked for, in as many rows as come to as many positions in all.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
import tyro
from cases import sample
from inputs import Given, Inputs
from measure import Run, interleaved, machine, ratio
from sweep import repeated, write_row
from torch import Tensor

import interp
from interp import edits, metrics
from interp.loading import reference

FORWARDS = 4
"""In a row where a forward is the unit of a share: one of 128 tokens is too short to time well."""
WIDTH, LAYERS, HEADS, VOCAB, CONTEXT = 768, 12, 12, 20_000, 512
GATED_MLP, PLAIN_MLP, ONE_EXPERT = 2048, 3072, 256
DEPTH = ("n_layer", "num_hidden_layers", "num_layers", "n_layers")
STACKS = ("num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
# By the names that the families give them; a config takes those that it has.
SIZES: dict[tuple[str, ...], Any] = {
    ("n_embd", "hidden_size", "dim", "word_embed_proj_dim", "d_model"): WIDTH,
    ("n_head", "num_attention_heads", "num_heads", "n_heads"): HEADS,
    ("encoder_attention_heads", "decoder_attention_heads"): HEADS,
    ("head_dim", "d_kv"): WIDTH // HEADS,
    ("query_pre_attn_scalar",): WIDTH // HEADS,
    ("rotary_dim",): WIDTH // HEADS // 4,
    ("vocab_size",): VOCAB,
    ("n_positions", "max_position_embeddings", "seq_length"): CONTEXT,
    ("max_target_positions", "max_ep_len"): CONTEXT,
    ("max_source_positions",): 64,
    ("sliding_window", "window_size"): 256,
    ("ffn_dim", "hidden_dim", "ffn_hidden_size"): PLAIN_MLP,
    ("encoder_ffn_dim", "decoder_ffn_dim"): PLAIN_MLP,
    ("num_experts", "num_local_experts"): 8,
    ("num_mel_bins",): 80,
    ("state_dim",): 17,
    ("act_dim",): 6,
    ("image_size",): [128, 128],
    ("patch_size",): [16, 16],
}
"""Experts are 8, of which a token uses the reference's 2, and so small that they come to 100 M in
all; the others are base-sized."""
SWEEPS = {"i": ("resid_pre", ("layer", "pos")), "ii": ("z", ("layer", "head"))}
OUTPUTS = ("logits", "action_preds", "last_hidden_state")
"""What Hugging Face calls them, the first that there is."""


@dataclass(frozen=True)
class Config:
    """What to measure, and for how long."""

    families: str | None = None
    """By commas, their model_type; by default all that have a recorded reference."""
    rounds: int = 7
    """Rounds of one measurement."""
    threads: int = 2
    """Threads of torch."""
    scale: float = 1.0
    """Factor on the number of layers, to see that it works."""
    nodes: int = 48
    """At most so many nodes per sweep, a seeded sample."""
    batch: int = 8
    """Rows of the plain forward."""
    width: int = 64
    """Positions of the plain forward."""
    seconds: float = 12.0
    """A measurement ends after this time, once it has five rounds."""

    @property
    def chosen(self) -> list[str]:
        """The families asked for; SystemExit on an unknown one."""
        known = reference.families()
        names = known if self.families is None else self.families.split(",")
        for name in names:
            if name not in known:
                raise SystemExit(f"--families {name}: expected some of {', '.join(known)}")
        return names


def enlarged(name: str, layers: int) -> dict[str, Any]:
    """The config of a family's tiny reference with the sizes of a model of 100 M parameters.

    An encoder–decoder has half the layers in each stack.
    """
    given = reference.reference(name)
    tiny = given.config
    config = dict(tiny)
    for names, size in SIZES.items():
        for key in names:
            if config.get(key) is not None:
                config[key] = size
    for key in ("num_key_value_heads", "num_kv_heads"):
        if config.get(key) is not None:  # grouped where the reference is
            config[key] = HEADS if config[key] == tiny["num_attention_heads"] else HEADS // 3
    gated = any("gate" in key or "wi_0" in key for key in given.tensors)
    mlp = GATED_MLP if gated else PLAIN_MLP
    mlp = ONE_EXPERT if "num_experts_per_tok" in config else mlp
    for key in ("intermediate_size", "moe_intermediate_size", "d_ff"):
        if config.get(key) is not None:
            config[key] = mlp
    two = config.get("is_encoder_decoder")
    for key in STACKS if two else DEPTH:
        if key in config:
            config[key] = layers // 2 if two else layers
    kinds = config.get("layer_types")
    if kinds:  # in the order that the reference has
        config["layer_types"] = [kinds[i % len(kinds)] for i in range(layers)]
    if config.get("attention_types"):
        config["attention_types"] = [[["global", "local"], layers // 2]]
        config["attention_layers"] = ["global", "local"] * (layers // 2)
    if config.get("no_rope_layers"):
        config["no_rope_layers"] = [int((i + 1) % 4 != 0) for i in range(layers)]
    if "image_size" in config:
        config |= {"id2label": {i: f"label {i}" for i in range(1000)}, "label2id": None}
    return {**config, "use_cache": False}


def build(config: dict[str, Any]) -> transformers.PreTrainedModel:
    """The random model there, with fused attention where its class knows one."""
    kind = getattr(transformers, config["architectures"][0])
    fresh = partial(transformers.AutoConfig.for_model, **config)
    torch.manual_seed(0)
    try:
        return kind._from_config(fresh(), attn_implementation="sdpa").eval()
    except ValueError:
        return kind._from_config(fresh(), attn_implementation="eager").eval()


class Pair:
    """One random model there and here."""

    def __init__(self, name: str, config: Config, folder: Path) -> None:
        layers = max(2, 2 * round(config.scale * LAYERS / 2))
        self.config, self.name = config, name
        self.theirs = build(enlarged(name, layers))
        self.theirs.save_pretrained(folder)
        self.ours = interp.load(folder, device="cpu")
        self.inputs = Inputs(self.ours)

    @torch.inference_mode()
    def forward(self, given: Given) -> Tensor:
        """Of Hugging Face."""
        result = self.theirs(**given)
        return next(result[name] for name in OUTPUTS if name in result)

    def our_forward(self, given: Given) -> Tensor:
        """Of interp, its stem included."""
        return self.ours(self.inputs.ours(given))

    def checked(self, given: Given) -> Given:
        """Raises RuntimeError where the two disagree: before a clock starts."""
        theirs, ours = self.forward(given), self.inputs.kind.read(self.our_forward(given))
        off = (ours - theirs).abs().max() / theirs.abs().max()
        if not off < 1e-3:
            raise RuntimeError(f"{self.name}: ours is another model, off by {off:.1e}")
        return given

    def row(self) -> Iterator[object]:
        """One line of the table."""
        config = self.config
        given = self.checked(self.inputs.draw(config.batch, config.width))
        plain = {"hf": partial(self.forward, given), "interp": partial(self.our_forward, given)}
        times = interleaved(plain, runs=config.rounds, seconds=config.seconds)
        fused = self.theirs.config._attn_implementation == "sdpa"
        yield f"{self.ours.num_params() / 1e6:.0f} M"
        yield ratio(times["interp"], times["hf"])
        yield f"{1e3 * statistics.median(times['hf']):.0f} ms{'' if fused else ', eager'}"
        yield from self.sweeps()

    def sweeps(self) -> Iterator[str]:
        """Of each sweep the share, its bound, and how much of the bound is reached."""
        config, clean = self.config, self.inputs.draw(8, 16)
        corrupted = self.checked(self.inputs.kind.corrupted(clean))
        tokens = self.inputs.tokens(corrupted)
        given = {"edit": edits.patch(self.inputs.tokens(clean)), "metric": self.metric(len(tokens))}
        runs: dict[str, Run] = {"hf": partial(repeated, partial(self.forward, corrupted))}
        nodes: dict[str, pd.DataFrame] = {}
        for name, (site, by) in SWEEPS.items():
            one = nodes[name] = sample(self.nodes(site, by, tokens), config.nodes)
            quiet = {"allow_noop": True, "progress": False}
            runs[name] = partial(interp.sweep, self.ours, tokens, one, **given, **quiet)
        times = interleaved(runs, runs=config.rounds, seconds=config.seconds)
        for name, one in nodes.items():
            spent = interp.explain(self.ours, tokens, one, **given)["forward_equivalents"]
            rounds = zip(times[name], times["hf"], strict=True)
            share = statistics.median(t / len(one) / (f / FORWARDS) for t, f in rounds)
            bound = spent / len(one)
            yield from (f"{share:.3f}", f"{bound:.3f}", f"{bound / share:.0%}")

    def nodes(self, site: str, by: tuple[str, ...], tokens: interp.Tokens) -> pd.DataFrame:
        """Those of a site in every stack, self- and cross-attention."""
        sites = self.ours.sites
        names = dict.fromkeys(sites[name].local_name for name in sites.select(site))
        frames = [interp.nodes(self.ours, name, by=by, tokens=tokens) for name in names]
        every = pd.concat(frames, ignore_index=True)
        return every.assign(row=range(len(every)))

    def metric(self, batch: int) -> Any:
        """The logit difference of two outputs; a cosine where there are no logits."""
        cfg, pos = self.ours.cfg, self.inputs.kind.role
        if cfg.head == "none":
            return metrics.cosine(torch.ones(cfg.d_model), pos=pos)
        answer = torch.arange(batch) % (cfg.d_vocab - 1)
        return metrics.logit_diff(answer, answer + 1, pos=pos)


HEAD = (
    *("family", "parameters", "plain / HF", "HF forward"),
    *("(i) share", "(i) bound", "(i) reached", "(ii) share", "(ii) bound", "(ii) reached"),
)


def main(config: Config) -> None:
    """Prints the table as it comes."""
    chosen = config.chosen
    torch.set_num_threads(config.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"{machine()}, transformers {transformers.__version__}; ", end="")
    print(f"plain {config.batch} × {config.width}, sweeps 8 × 16 on {config.nodes} nodes\n")
    write_row(*HEAD)
    write_row(*["---"] * len(HEAD))
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            pair = Pair(name, config, Path(folder))
            write_row(name, *pair.row())
        del pair
        gc.collect()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
