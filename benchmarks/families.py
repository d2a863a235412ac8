"""What each family costs beside Hugging Face: a plain forward, and two sweeps as shares.

    python benchmarks/families.py [--families gpt2,bert] [--rounds 5] [--scale 1.0] [--threads 2]

Prints a Markdown table. Every family is a random model of about 100 M parameters with the published
architecture, float32, the same weights on both sides. `plain` is the ratio to Hugging Face's
forward under inference_mode with attn_implementation="sdpa" ("eager" where its class knows no
other), the median of interleaved rounds. Sweeps (i) and (ii) of `cases.py`, on 8 × 16, are shares:
time over (nodes × one such forward of the same batch). Their bound is what cannot be left out: the
multiply-adds that lie downstream of the edits, base run included, over those of whole forwards, as
`interp` counts them. An encoder sees both ways, so that every position behind an edited layer must
be computed again. `reached` is bound / share: 100 % where a sweep takes no longer than its bound.
A seeded sample of `--nodes` nodes is swept, and the bound is that of the sample.
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

import torch
import transformers
import tyro
from cases import Job, sample
from measure import interleaved, machine, ratio
from sweep import repeated, write_row
from torch import Tensor

import interp
from interp import edits, metrics
from interp.loading import reference

FORWARDS = 4
"""In a row where a forward is the unit of a share: one of 128 tokens is too short to time well."""
WIDTH, LAYERS, VOCAB, CONTEXT = 768, 12, 20_000, 512
GATED_MLP, PLAIN_MLP = 2048, 3072
# By the names that the families give them; a config takes those that it has.
SIZES: dict[tuple[str, ...], Any] = {
    ("n_embd", "hidden_size", "dim", "word_embed_proj_dim"): WIDTH,
    ("n_layer", "num_hidden_layers", "num_layers", "n_layers"): LAYERS,
    ("n_head", "num_attention_heads", "num_heads", "n_heads"): 12,
    ("num_key_value_heads", "num_kv_heads"): 4,
    ("head_dim",): 64,
    ("vocab_size",): VOCAB,
    ("n_positions", "max_position_embeddings", "seq_length"): CONTEXT,
    ("sliding_window", "window_size"): 256,
    ("rotary_dim",): 64,
    ("query_pre_attn_scalar",): 64,
    ("ffn_dim", "hidden_dim", "ffn_hidden_size"): PLAIN_MLP,
}


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
    """The config of a family's tiny reference with the sizes of a model of 100 M parameters."""
    config = dict(reference.reference(name).config)
    for names, size in SIZES.items():
        for key in names:
            if config.get(key) is not None:
                config[key] = size
    gated = any("gate" in key for key in reference.reference(name).tensors)
    if config.get("intermediate_size") is not None:
        config["intermediate_size"] = GATED_MLP if gated else PLAIN_MLP
    for key in ("n_layer", "num_hidden_layers", "num_layers", "n_layers"):
        if key in config:
            config[key] = layers
    kinds = config.get("layer_types")
    if kinds:  # in the order that the reference has
        config["layer_types"] = [kinds[i % len(kinds)] for i in range(layers)]
    if config.get("attention_types"):
        config["attention_types"] = [[["global", "local"], layers // 2]]
        config["attention_layers"] = ["global", "local"] * (layers // 2)
    if config.get("no_rope_layers"):
        config["no_rope_layers"] = [int((i + 1) % 4 != 0) for i in range(layers)]
    return config


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

    @torch.inference_mode()
    def forward(self, ids: Tensor) -> Tensor:
        """Of Hugging Face."""
        cached = {"use_cache": False} if self.ours.cfg.causal else {}
        result = self.theirs(input_ids=ids, **cached)
        return result.logits if "logits" in result else result.last_hidden_state

    def ids(self, batch: int, width: int) -> Tensor:
        """Random ids, on which both must agree before a clock starts."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, self.ours.cfg.d_vocab, (batch, width), generator=generator)
        theirs = self.forward(ids)
        off = (self.ours(ids) - theirs).abs().max() / theirs.abs().max()
        if not off < 1e-3:
            raise RuntimeError(f"{self.name}: ours is another model, off by {off:.1e}")
        return ids

    def row(self) -> Iterator[object]:
        """One line of the table."""
        config = self.config
        ids = self.ids(config.batch, config.width)
        plain = {"hf": partial(self.forward, ids), "interp": partial(self.ours, ids)}
        times = interleaved(plain, runs=config.rounds, seconds=config.seconds)
        yield f"{self.ours.num_params() / 1e6:.0f} M"
        yield ratio(times["interp"], times["hf"])
        yield f"{1e3 * statistics.median(times['hf']):.0f} ms"
        for name in ("i", "ii"):
            yield from self.sweep(name)

    def sweep(self, name: str) -> Iterator[str]:
        """The share of a sweep, its bound, and how much of the bound is reached."""
        config, model = self.config, self.ours
        job = Job.of(name, (8, 16), model.cfg.d_vocab, "cpu")
        nodes = sample(job.nodes(model), config.nodes)
        options: dict[str, Any] = {"edit": edits.patch(interp.Tokens.of(job.clean))}
        options |= {"metric": self.metric(job), "allow_noop": True, "progress": False}
        run = partial(interp.sweep, model, interp.Tokens.of(job.corrupted), nodes, **options)
        frame = run()
        contestants = {
            "hf": partial(repeated, partial(self.forward, job.corrupted)),
            "interp": run,
        }
        times = interleaved(contestants, runs=config.rounds, seconds=config.seconds)
        rounds = zip(times["interp"], times["hf"], strict=True)
        share = statistics.median(t / len(nodes) / (f / FORWARDS) for t, f in rounds)
        bound = frame.attrs["forward_equivalents"] / len(nodes)
        yield from (f"{share:.3f}", f"{bound:.3f}", f"{bound / share:.0%}")

    def metric(self, job: Job) -> Any:
        """The logit difference of two ids; a cosine where there are no logits."""
        if self.ours.cfg.head == "none":
            return metrics.cosine(torch.ones(self.ours.cfg.d_model), pos=-1)
        return metrics.logit_diff(job.answer, job.wrong)


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
