"""Old checkpoints, written once as a folder that `load` opens.

What a file is shows in its contents: a state dict of TransformerLens 1–3 or nanoGPT's `ckpt.pt`. A
folder of our own is written again, with what was edited in it since.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from interp.core.config import TransformerConfig
from interp.core.files.untrusted import read_json
from interp.core.visible import visible_errors

from .. import load, save
from ..check import check_loaded, check_tokenizer
from ..files import PICKLES, SINGLE
from ..stored import check_tensors
from ..tensors import read_entries
from .lay import Recipe, lay
from .lens import lens
from .lens_config import FIELDS
from .nanogpt import nanogpt
from .pickles import read_pickle, state_dict

CONFIGS = ("config.json", "original_config.json")
NO_TOKENIZER = "it has no tokenizer; a tokenizer.json can be put beside the weights"
WRAPPERS = ("model", "state_dict", "model_state_dict")
"""Under which of its keys a training script keeps a state dict."""


@dataclass(frozen=True)
class Conversion:
    """What was written where. `str()` is what `interp convert` prints."""

    folder: Path
    """The new model: `interp.load(folder)`."""
    source: Path
    """The file that was read."""
    kind: str
    """What it was."""
    cfg: TransformerConfig
    """Its architecture."""
    n_params: int
    """Parameters written."""
    dtype: str
    """Of all of them."""
    dropped: tuple[str, ...]
    """Keys, or templates of keys, that were not needed."""
    notes: tuple[str, ...]
    """What was assumed or changed."""

    def __str__(self) -> str:
        cfg = self.cfg
        return "\n".join(
            [
                f"{self.folder}: {self.kind}, {cfg.n_layers} layers × {cfg.n_heads} heads, "
                f"{self.n_params:,} parameters, {self.dtype}",
                *([f"dropped: {', '.join(self.dropped)}"] if self.dropped else []),
                *(f"note: {note}" for note in self.notes),
                f"look at it: interp info {self.folder}",
            ]
        )


@visible_errors()
def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    config: str | os.PathLike | None = None,
    force: bool = False,
    **flags: Any,
) -> Conversion:
    """Write an old checkpoint as a folder of config.json and model.safetensors.

    `source` is a `.pt` of any name, a `.safetensors`, or a folder with one of them (and its config
    as config.json or original_config.json). `config` is a JSON of TransformerLens config fields,
    `flags` are single ones, which go first; sizes are read off the tensors. Of nanoGPT only act_fn
    can be given. Takes the memory of the weights twice. A folder that `save` wrote, and in which
    config.json or the tokenizer was edited since, is written as it is now; it takes no flags.

    No code in the file is run. Raises ValueError on a file that asks for code, is damaged, is of
    another kind, or contradicts its config; with nothing written. A target that is not empty
    needs force, and then keeps its other files.
    """
    target = Path(target).expanduser()
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; give a folder")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise ValueError(f"{target} is not empty; its files are replaced only with --force")
    file, config = _files(Path(source).expanduser(), None if config is None else Path(config))
    if file.resolve() == (target / SINGLE).resolve():
        raise ValueError(f"{file}: would be overwritten by what is made of it; give another folder")
    flags = {name: value for name, value in flags.items() if value is not None}
    if config is not None and read_json(config).get("model_type") == "interp":
        return _again(file, config, target, flags)
    tensors, recipe, left_out = _recipe(file, config, flags)
    model, dropped = lay(recipe, tensors)
    save(model, target)
    tokenizer = (target / "tokenizer.json").is_file()
    return Conversion(
        folder=target,
        source=file,
        kind=recipe.kind,
        cfg=recipe.cfg,
        n_params=int(sum(parameter.numel() for parameter in model.parameters())),
        dtype=str(model.W_E.dtype).removeprefix("torch."),
        dropped=(*dropped, *left_out),
        notes=(*recipe.notes, *(() if tokenizer else (NO_TOKENIZER,))),
    )


def _again(file: Path, config: Path, target: Path, flags: Mapping[str, Any]) -> Conversion:
    """A folder of our own, as it is now; its weights are still those that were saved."""
    if flags:
        raise ValueError(
            f"{', '.join(flags)}: {config} is a config of interp, which states all; edit it there"
        )
    if file.resolve() != (config.parent / SINGLE).resolve():
        raise ValueError(f"{config} is a config of interp; it goes with {SINGLE} beside it")
    check_tensors(file, required=False)
    model = load(config.parent, "cpu", check=False)
    if model.tokenizer is not None:
        check_tokenizer(model.tokenizer, model.cfg, f"{config.parent}")
    check_loaded(model, "interp", None)
    save(model, target)
    return Conversion(
        folder=target,
        source=file,
        kind="a model of interp as its folder is now",
        cfg=model.cfg,
        n_params=int(sum(parameter.numel() for parameter in model.parameters())),
        dtype=str(model.dtype).removeprefix("torch."),
        dropped=(),
        notes=() if model.tokenizer is not None else (NO_TOKENIZER,),
    )


def _files(source: Path, config: Path | None) -> tuple[Path, Path | None]:
    """The file of tensors, and the JSON that describes it."""
    if source.is_dir():
        kinds = {".safetensors", *PICKLES}
        found = sorted(file for file in source.iterdir() if file.suffix.lower() in kinds)
        if len(found) != 1:
            names = ", ".join(file.name for file in found[:10]) or "none"
            raise ValueError(f"{source}: expected one file of weights in it, found {names}")
        beside = [source / name for name in CONFIGS if (source / name).is_file()]
        source, config = found[0], config or next(iter(beside), None)
    if not source.is_file():
        raise ValueError(f"{source}: there is no such file or folder")
    if config is not None and not config.is_file():
        raise ValueError(f"{config}: there is no such file")
    return source, config


def _recipe(
    file: Path, config: Path | None, flags: Mapping[str, Any]
) -> tuple[dict[str, Tensor], Recipe, list[str]]:
    """The tensors of a file, what they are, and the names of what else lies in it."""
    content = _content(file)
    for name in set(flags) - set(FIELDS):
        near = difflib.get_close_matches(name, FIELDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"unknown flag {name!r}: expected a field of HookedTransformerConfig{hint}"
        )
    inner = next((n for n in WRAPPERS if isinstance(content.get(n), Mapping)), None)
    left_out = [] if inner is None else sorted(str(key)[:60] for key in content if key != inner)
    values = content if inner is None else content[inner]
    args = content.get("model_args") if inner == "model" else None
    keys = [key.removeprefix("_orig_mod.") for key in values if isinstance(key, str)]
    if "transformer.wte.weight" in keys and isinstance(args, dict):
        if config is not None:
            raise ValueError(f"{file}: nanoGPT's own model_args say what it is; leave out --config")
        tensors = state_dict(values, file)
        recipe = nanogpt(tensors, args, flags, f"{file}: model_args")
        return tensors, recipe, [name for name in left_out if name != "model_args"]
    if "embed.W_E" in keys:
        tensors, given = state_dict(values, file), {} if config is None else read_json(config)
        return tensors, lens(tensors, {**given, **flags}, str(config or file)), left_out
    raise ValueError(
        f"{file}: neither a state dict of TransformerLens' HookedTransformer (embed.W_E, …) nor "
        f"nanoGPT's ckpt.pt (model, model_args); it begins with {', '.join(keys[:3]) or 'nothing'}."
        " What transformers wrote, it writes as safetensors: model.save_pretrained(folder)"
    )


def _content(file: Path) -> Mapping[Any, Any]:
    if file.suffix.lower() == ".safetensors":
        read_entries(file)  # the header is checked against the file
        return safetensors.torch.load_file(file)
    content = read_pickle(file)
    if not isinstance(content, Mapping):
        raise ValueError(f"{file}: holds a {type(content).__name__}, expected a state dict")
    return content
