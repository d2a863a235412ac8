"""Records `interp/loading/references.json`: what transformers computes for each tiny reference.

    python -m tests.parity.record

A family's reference is the model of the same name that parity is measured on. A new family is one
entry there, and this command; `test_references.py` compares the file with the installed version.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

from interp.loading import reference
from tests.parity import families, pairs, senses, test_whisper
from tests.parity.layout import Family, Layout
from tests.parity.reference import run

CHOSEN = {"bert": "bert-mlm", "distilbert": "distilbert-mlm", "gemma3_text": "gemma3"}
"""Where the model is not the one with the family's own name."""
LEFT_OUT = ("interp",)
"""Our own format, whose names and numbers are ours."""
IDS = [[3, 14, 15, 92, 65, 35, 89, 7, 9], [26, 53, 58, 9, 79, 32, 38, 46, 2]]
TARGET = [[3, 27, 18, 28, 18], [3, 14, 14, 21, 35]]
WORDS = {"input_ids": IDS}
PAIR = {"input_ids": IDS, "decoder_input_ids": TARGET}
INPUTS: dict[str, dict[str, Any]] = {
    "vit": {"pixel_values": {"shape": [2, 3, *senses.IMAGE]}},
    "whisper": {
        "input_features": {"shape": [2, test_whisper.N_MELS, 2 * test_whisper.N_FRAMES]},
        "decoder_input_ids": TARGET,
    },
    "decision_transformer": {
        "returns_to_go": {"shape": [2, 4, 1]},
        "states": {"shape": [2, 4, senses.D_STATE]},
        "actions": {"shape": [2, 4, senses.D_ACTION]},
        "timesteps": [[0, 1, 2, 3], [7, 8, 9, 10]],
    },
}
"""Of families whose inputs are not words, or not one text; numbers are given by their shape."""


def model_of(name: str) -> Family:
    """The tiny model that a family's reference is made of."""
    chosen = CHOSEN.get(name, name)
    if chosen in pairs.CASES:
        case = pairs.CASES[chosen]
        return Family(Layout(case.model, {}), case.config, case.values)
    if name == "whisper":
        return test_whisper.FAMILY
    return senses.SENSES[name].family if name in senses.SENSES else families.FAMILIES[chosen]


def recorded(name: str) -> dict[str, Any]:
    """The record of a family, made with the installed transformers."""
    family = model_of(name)
    given = INPUTS.get(name, PAIR if name in pairs.CASES else WORDS)
    with tempfile.TemporaryDirectory() as folder:
        model = _by_formula(family, Path(folder))
        config = json.loads((Path(folder) / "config.json").read_text())
        layers, tensors = _templates(_shapes(Path(folder)))
    for unused in ("transformers_version", "dtype"):
        config.pop(unused, None)
    output = run(model, family.layout, reference.tensors(given), lifted=False).output
    return {
        "config": config,
        "layers": layers,
        "tensors": tensors,
        "inputs": given,
        "output": [_short(x) for x in reference.sampled(output).tolist()],
        "norm": _short(float(output.norm())),
    }


def _by_formula(family: Family, folder: Path) -> transformers.PreTrainedModel:
    """A model whose published tensors have the numbers that follow from their names."""
    kind = getattr(transformers, family.layout.model)
    config = getattr(transformers, family.config)(**family.values)
    kind(config).double().save_pretrained(folder)
    shapes = _shapes(folder)
    weights = {key: reference.numbers(key, shape) for key, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model = kind.from_pretrained(folder, dtype=torch.float64).eval()
    model.config._experts_implementation = "eager"  # the default refuses float64
    return model


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def _templates(shapes: dict[str, tuple[int, ...]]) -> tuple[int, dict[str, list[int]]]:
    """Names with `{}` for the layer, where every layer has the tensor."""
    first = re.compile(r"(?<=\.)\d+(?=\.)")
    found: dict[str, dict[int, list[int]]] = {}
    for key, shape in shapes.items():
        number = first.search(key)
        if number:
            by_layer = found.setdefault(first.sub("{}", key, count=1), {})
            by_layer[int(number.group())] = list(shape)
    layers = 1 + max(layer for by_layer in found.values() for layer in by_layer)
    tensors: dict[str, list[int]] = {}
    for key, shape in shapes.items():
        template = first.sub("{}", key, count=1)
        same = [found.get(template, {}).get(layer) == list(shape) for layer in range(layers)]
        tensors[template if all(same) else key] = list(shape)
    return layers, tensors


def _short(x: float) -> float:
    return float(f"{x:.10g}")


def main() -> None:
    """Write the file, one family a line."""
    from interp.loading.families import FAMILIES

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    lines = []
    for name in FAMILIES:
        if name not in LEFT_OUT:
            with contextlib.redirect_stderr(io.StringIO()):
                record = recorded(name)
            lines.append(f"{json.dumps(name)}: {json.dumps(record, separators=(',', ':'))}")
    reference.FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    sys.stdout.write(f"{reference.FILE}: {len(lines)} families\n")


if __name__ == "__main__":
    main()
