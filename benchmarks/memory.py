"""Peak memory of caching everything, in a process of its own; `forward.py` calls it.

    python benchmarks/memory.py FOLDER interp|transformer_lens BATCH POS

Prints JSON: `peak`, what the call adds to resident memory at its highest, and `kept`, the bytes of
the logits and of every cached tensor, storages counted once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from measure import HostPeak, stored_bytes
from peers import Interp, TransformerLens


def main(folder: Path, name: str, batch: int, pos: int) -> None:
    if name == "interp":
        peer = Interp(folder, device="cpu")
    else:
        peer = TransformerLens(transformers.AutoModelForCausalLM.from_pretrained(folder).eval())
    ids = torch.randint(0, 1000, (batch, pos), generator=torch.Generator().manual_seed(0))
    peer.cached(ids)  # what the first call sets up is not what a call takes
    with HostPeak() as peak:
        logits, cache = peer.cached(ids)
    kept = stored_bytes([logits, *cache.values()])
    print(json.dumps({"peak": peak.bytes, "kept": kept}))


if __name__ == "__main__":
    folder, name, batch, pos = sys.argv[1:]
    main(Path(folder), name, int(batch), int(pos))
