"""From a model's name to a `HookedTransformer` with weights and tokenizer, and back to a folder.

Weights come from safetensors alone, and every tensor of them is accounted for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from pathlib import Path
from typing import Any

import torch

from interp.core.devices import as_device
from interp.core.files.untrusted import parse_json, safe_join
from interp.core.files.writing import write_file
from interp.core.hashing import weights_hash
from interp.core.precision import AUTO, analysis_dtype, dtype_name
from interp.core.tokenizer import Tokenizer
from interp.core.visible import visible_errors
from interp.model import HookedTransformer

from .assemble import WeightsError, assembled, stored_dtype, with_stored_head
from .beside import end_ids
from .check import CheckFailed, check_loaded, check_tokenizer
from .families import read_config, read_labels
from .files import SINGLE, UnknownModel, bundled, config_values, locate, weight_entries
from .reference import FamilyCheck, check_family
from .stored import check_tensors, write_tensors
from .tensors import CorruptFile

__all__ = [
    "CheckFailed",
    "CorruptFile",
    "FamilyCheck",
    "UnknownModel",
    "WeightsError",
    "bundled",
    "check_family",
    "check_saved",
    "load",
    "save",
    "weights_hash",
]

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
FILES = "files"
"""Under which name a saved model's weights keep the checksums of the files beside them."""


@visible_errors()
def load(
    name: str | os.PathLike,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    check: bool | None = None,
) -> HookedTransformer:
    """A published model, ready to run.

    `name` is a bundled model ("minilm"), else a local folder, else a Hugging Face hub id.
    device: any that torch knows and that is here; by default CUDA where there is one, else the CPU
    (Apple's "mps" only when it is named). dtype: by default as stored, or as the
    model was when `save` stored it in another one (the small bundled models: float32).
    dtype="auto" is what analyses take: float32 for half-precision weights on a CPU, as stored
    elsewhere. Peak memory is that of the weights. `model.source` says where they came from.

    check: by default every weight must be finite, the tokenizer not larger than the embedding, and
    the family must give its recorded reference (once per process, about 10 ms). True: the
    identities must hold on this model as well, for some two forward passes. False: nothing is
    checked.

    Raises ValueError on an unknown name, anything but safetensors, a corrupt file, an architecture
    that is not supported, weights that do not fit it (all faults listed), or a check that fails.
    """
    where, wanted = as_device(device), None if dtype == AUTO else _dtype(dtype)
    source = locate(name)
    config_file = f"{source.folder / 'config.json'}"
    values = config_values(source)
    family, cfg = read_config(values, config_file)
    kept = _dtype(values.get("dtype"), config_file) if family.name == "interp" else None
    wanted = wanted or kept
    entries = weight_entries(source)
    if check is not False and family.name == "interp":
        check_saved(source.folder)
    cfg = with_stored_head(family, cfg, entries)
    tokenizer = Tokenizer.from_folder(source.folder, source.name)
    if tokenizer is not None and check is not False:
        check_tokenizer(tokenizer, cfg, f"{source.folder}")
    try:
        model = assembled(family, cfg, entries, wanted, where, source.name)
    except WeightsError as error:
        raise WeightsError(f"{source.folder}: {error}") from None
    own = kept or (stored_dtype(entries.values()) if wanted else model.dtype)
    if dtype == AUTO:
        model.to(analysis_dtype(model.dtype, where))
    model.tokenizer, model.labels = tokenizer, read_labels(values, cfg, config_file)
    model.stored_end_ids = end_ids(values, source.folder, cfg.d_vocab)
    if model.encoder is not None:
        model.encoder.tokenizer = tokenizer
    files = {entry.file for entry in entries.values()}
    model.source = {
        "name": source.name,
        "kind": source.kind,
        "revision": source.revision,
        "family": family.name,
        "dtype": dtype_name(own),
        "files": {file.name: file.stat().st_size for file in sorted(files)},
    }
    if check is not False:
        check_loaded(model, family.name, check)
    return model.eval()


def save(
    model: HookedTransformer, folder: str | os.PathLike, dtype: str | torch.dtype | None = None
) -> Path:
    """Write a model as a folder that `load` reads: config.json, model.safetensors, tokenizer.json.

    dtype: that of the stored weights, by default the model's; `load` gives back the model's own.
    Each file is complete or absent, whatever happens meanwhile; the weights come last and hold
    checksums of all, so that files which do not belong together, or are damaged, do not load.
    Raises ValueError on weights that overflow the dtype, WriteError (an OSError) on a full disk.
    """
    stored = _dtype(dtype) or model.dtype
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.to(stored).contiguous() for key, value in model.state_dict().items()}
    for key, value in weights.items():
        if stored != model.dtype and not value.isfinite().all():
            raise ValueError(f"{key} does not fit into {stored}; store the model as {model.dtype}")
    config: dict[str, Any] = {"model_type": "interp", "config": model.cfg.to_dict()}
    if stored != model.dtype:
        config["dtype"] = str(model.dtype).removeprefix("torch.")
    if model.stored_end_ids:
        config["eos_token_id"] = list(model.stored_end_ids)
    if model.labels:
        config["id2label"] = dict(enumerate(model.labels))
    files = {} if model.tokenizer is None else model.tokenizer.files()
    files["config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    for name, data in files.items():
        write_file(safe_join(folder, name), data)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    write_tensors(folder / SINGLE, weights, {"format": "pt", FILES: json.dumps(sums)})
    return folder


def check_saved(folder: Path) -> None:
    """Raise CorruptFile, naming the file, unless all that `save` wrote into a folder is as it was
    written, together. Models that an earlier version saved have no checksums, and pass."""
    if not (folder / SINGLE).is_file():  # several shards, which `save` does not write
        return
    sums = check_tensors(folder / SINGLE, required=False).get(FILES)
    again = (
        f"Bring it back; if the change is wanted, `interp convert {shlex.quote(str(folder))} NEW` "
        "writes the model with it into the folder NEW (in Python, check=False opens it as it is)"
    )
    for name, expected in ({} if sums is None else parse_json(sums.encode(), SINGLE)).items():
        file = safe_join(folder, name)
        if not file.is_file():
            raise CorruptFile(f"{file}: {SINGLE} was saved with it, and it is not there. {again}")
        if hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise CorruptFile(
                f"{file} is not as it was saved with {SINGLE}: it is damaged, was edited, or "
                f"belongs to another model. {again}"
            )


def _dtype(dtype: str | torch.dtype | None, where: str | None = None) -> torch.dtype | None:
    if dtype is None:
        return None
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        allowed, file = ", ".join(DTYPES), f"{where}: " if where else ""
        raise ValueError(
            f"{file}dtype {dtype!r}: expected one of {allowed}, auto, or None (as stored)"
        )
    return found
