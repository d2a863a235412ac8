"""What a model is, from its config.json alone: sizes, parameters, sites, memory. Nothing is loaded.

It also describes a published model that no machine here could hold.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from interp.core.config import RotaryScaling, TransformerConfig
from interp.core.files.untrusted import read_json
from interp.core.sites import Site, SiteTable, stack_config
from interp.core.visible import visible, visible_errors
from interp.model import num_params

from .beside import unread
from .families import read_config
from .files import config_values, locate

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True, eq=False)
class ModelInfo:
    """A model as its config describes it. `str()` is the page that `interp info` shows."""

    name: str
    """A bundled name, a hub id, or that of the folder or file."""
    family: str
    """`model_type` of the config."""
    cfg: TransformerConfig
    """Its architecture."""
    params: pd.Series
    """Parameters by component; a bias counts with its matrix."""
    sites: pd.DataFrame
    """One row per kind of site: site layers axes, and elements for a single token."""
    unread: tuple[str, ...] = ()
    """Files of its folder that are not read."""

    @property
    def n_params(self) -> int:
        """All parameters."""
        return int(self.params.sum())

    def weight_bytes(self, dtype: str = "float32") -> int:
        """Bytes of the weights."""
        return self.n_params * BYTES[dtype]

    def cache_bytes(self, n_tokens: int = 1, dtype: str = "float32") -> int:
        """Bytes, at most, of what `run_with_cache` keeps by default of one such sequence.

        Scores and patterns grow with the square of its length.
        """
        elements = (
            _elements(stack_config(site, self.cfg), site.axes, n_tokens) * count
            for site, count in self._kinds
        )
        return sum(elements) * BYTES[dtype]

    @cached_property
    def _table(self) -> SiteTable:
        return SiteTable(self.cfg)

    @cached_property
    def _kinds(self) -> list[tuple[Site, int]]:
        """One site of each kind that is kept by default, and how many there are."""
        chosen = map(self._table.__getitem__, self._table.select())
        kinds: dict[tuple, list[Site]] = {}
        for site in chosen:
            kinds.setdefault((site.in_encoder, site.axes), []).append(site)
        return [(sites[0], len(sites)) for sites in kinds.values()]

    def kv_bytes(self, n_tokens: int = 1, dtype: str = "float32") -> int:
        """Bytes of the keys and values that generation keeps; of a source, as many again."""
        cfg = self.cfg
        return 2 * cfg.n_layers * cfg.n_kv_heads * cfg.d_head * n_tokens * BYTES[dtype]

    def __str__(self) -> str:
        title = f"{self.name}: {self.family}, {self.n_params:,} parameters"
        blocks = {
            title: _config_rows(self.cfg),
            "Parameters": [
                (component, f"{count:>20,} {count / self.n_params:>7.1%}")
                for component, count in self.params.items()
                if count
            ],
            f"Sites ({len(self._table)})": [
                (site, f"{layers:<9} {' '.join(axes)}")
                for site, layers, axes, _ in self.sites.to_numpy().tolist()
            ],
            "Memory": self._memory_rows(),
        }
        if self.unread:
            blocks["Not read"] = [(name, "") for name in self.unread]
        text = "\n\n".join(_table(heading, rows) for heading, rows in blocks.items())
        return visible(text, "\n")

    def _memory_rows(self) -> list[tuple[str, str]]:
        length = min(self.cfg.n_ctx, 1024)
        dtypes = ("bfloat16", "float32")
        sizes = {
            "weights": [self.weight_bytes(dtype) for dtype in dtypes],
            "keys and values per token": [self.kv_bytes(1, dtype) for dtype in dtypes],
            "all sites, 1 token": [self.cache_bytes(1, dtype) for dtype in dtypes],
            f"all sites, {length:,} tokens": [self.cache_bytes(length, dtype) for dtype in dtypes],
        }
        if not self.cfg.causal:  # nothing is generated
            del sizes["keys and values per token"]
        heading = ("", " ".join(f"{dtype:>12}" for dtype in dtypes))
        rows = [
            (name, " ".join(f"{bytes_text(b):>12}" for b in both)) for name, both in sizes.items()
        ]
        return [heading, *rows]


def _table(heading: str, rows: list[tuple[str, str]]) -> str:
    width = max(28, *(len(name) for name, _ in rows))
    return "\n".join([heading, *(f"  {name:<{width}} {text}".rstrip() for name, text in rows)])


@visible_errors()
def info(model: str | os.PathLike) -> ModelInfo:
    """What a model is, from its config alone.

    `model` is a name as `load` takes it, or the path of a config.json. Raises ValueError as `load`
    does. Neither weights nor memory are needed.
    """
    path = Path(model).expanduser()
    if path.suffix == ".json" and path.is_file():
        name, file, values = path.resolve().parent.name, path, read_json(path)
        beside = ()
    else:
        source = locate(model)
        name, file, values = source.name, source.folder / "config.json", config_values(source)
        beside = tuple(unread(source.folder))
    family, cfg = read_config(values, str(file))
    params = num_params(cfg, by="component")
    assert isinstance(params, pd.Series)
    return ModelInfo(name, family.name, cfg, params, site_frame(cfg), beside)


def site_frame(cfg: TransformerConfig) -> pd.DataFrame:
    """One row per kind of site: site layers axes, and elements for a single token."""
    kinds: dict[tuple[str, tuple[str, ...], int], list[int]] = {}
    for site in SiteTable(cfg):
        elements = _elements(stack_config(site, cfg), site.axes, 1)
        layers = kinds.setdefault((site.local_name, site.axes, elements), [])
        layers += [] if site.layer is None else [site.layer]
    rows = [(name, _span(layers), axes, n) for (name, axes, n), layers in kinds.items()]
    return pd.DataFrame(rows, columns=["site", "layers", "axes", "elements"])


def _span(layers: list[int]) -> str:
    if not layers:
        return ""
    whole = len(layers) == layers[-1] - layers[0] + 1
    return f"{layers[0]}–{layers[-1]}" if whole else f"{len(layers)} layers"


def _elements(cfg: TransformerConfig, axes: tuple[str, ...], n_tokens: int) -> int:
    sizes = {
        **dict.fromkeys(("batch", "one"), 1),
        **dict.fromkeys(("pos", "q_pos", "k_pos"), n_tokens),
        "head": cfg.n_heads,
        "kv_head": cfg.n_kv_heads,
        "d_head": cfg.d_head,
        "d_model": cfg.d_model,
        "d_mlp": cfg.d_mlp,
        "expert": cfg.n_experts,
        "d_vocab": cfg.d_vocab,
    }
    return math.prod(sizes[axis] for axis in axes)


def _config_rows(cfg: TransformerConfig) -> list[tuple[str, str]]:
    """The fields that are not at their default."""
    rows = []
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if isinstance(value, TransformerConfig):
            rows += [(f"{field.name}.{name}", shown) for name, shown in _config_rows(value)]
        elif value != field.default and (field.name != "rotary_dim" or cfg.positions == "rotary"):
            rows.append((field.name, _shown(value)))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        runs = [(one, len(list(group))) for one, group in itertools.groupby(value)]
        return ", ".join(f"{one} × {count}" for one, count in runs[:6]) + ", …" * (len(runs) > 6)
    if isinstance(value, RotaryScaling):
        given = [(f.name, getattr(value, f.name), f.default) for f in dataclasses.fields(value)]
        return ", ".join(f"{name} {one}" for name, one, default in given if one != default)
    return str(value)


def bytes_text(n_bytes: int) -> str:
    """A number of bytes for people: "812 GB"."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.4g} TB"
