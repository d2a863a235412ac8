"""Peak memory of caching everything or of a sweep, in a process of its own.

    python benchmarks/memory.py FOLDER interp|transformer_lens 8x64 [--sweep i --nodes 100]

Prints JSON: `peak`, what the call adds to resident memory at its highest, and `kept`, the bytes of
the logits and of every cached tensor, storages counted once (none after a sweep).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import transformers
import tyro
from cases import Job
from measure import PEAK, stored_bytes
from peers import Interp, TransformerLens
from tyro.conf import Positional

# Told to map every tensor on its own, glibc gives freed memory back at once; by default it keeps
# the holes that freed temporaries leave, and its aligned allocations seldom fit into them.
AS_HELD = {"MALLOC_MMAP_THRESHOLD_": "65536"}
WITH_HOLES: dict[str, str] = {}


@dataclass(frozen=True)
class Config:
    """Whose memory, and of what."""

    folder: Positional[Path]
    """A saved model."""
    name: Positional[Literal["interp", "transformer_lens"]]
    """Who runs it."""
    shape: Positional[str]
    """Batch and positions, as 8x64."""
    sweep: str | None = None
    """The sweep; by default everything is cached. Only interp sweeps."""
    nodes: int | None = None
    """At most so many nodes."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In what."""


def in_a_process(
    folder: Path, name: str, shape: tuple[int, int], environment: dict[str, str], *options: str
) -> dict[str, int]:
    """What this script prints in a process of its own, under malloc's settings."""
    done = subprocess.run(
        [sys.executable, __file__, folder, name, "x".join(map(str, shape)), *options],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    return json.loads(done.stdout.splitlines()[-1])


def cached(config: Config, peer: Interp | TransformerLens) -> dict[str, int]:
    """Everything kept of one run."""
    shape = [int(n) for n in config.shape.split("x")]
    ids = torch.randint(0, 500, shape, generator=torch.Generator().manual_seed(0))
    ids = ids.to(config.device)
    peer.cached(ids)  # what the first call sets up is not what a call takes
    with PEAK[config.device]() as peak:
        logits, cache = peer.cached(ids)
    return {"peak": peak.bytes, "kept": stored_bytes([logits, *cache.values()])}


def swept(config: Config, peer: Interp) -> dict[str, int]:
    """One sweep."""
    batch, width = (int(n) for n in config.shape.split("x"))
    job = Job.of(config.sweep, (batch, width), peer.model.cfg.d_vocab, config.device)
    nodes = job.nodes(peer.model, config.nodes)
    job.run(peer.model, nodes)
    with PEAK[config.device]() as peak:
        job.run(peer.model, nodes)
    return {"peak": peak.bytes, "kept": 0}


def main(config: Config) -> None:
    dtype = getattr(torch, config.dtype)
    if config.name == "interp":
        peer = Interp(config.folder, device=config.device, dtype=dtype)
    else:
        load = transformers.AutoModelForCausalLM.from_pretrained
        peer = TransformerLens(load(config.folder, dtype=dtype).to(config.device).eval())
    print(json.dumps(cached(config, peer) if config.sweep is None else swept(config, peer)))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
