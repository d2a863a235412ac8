"""Ours is Hugging Face's model: the output, every residual stream, z and the neurons, to rounding.

Measured against the library as it is (which rounds some steps to float32, up to 8e-7 of the result
by itself) and against the library with those steps lifted to float64.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import interp
from tests.parity.families import FAMILIES
from tests.parity.inputs import Batch, Padding, batch
from tests.parity.reference import Reference, relative_error, run

AS_IT_IS = 1e-5
LIFTED = 1e-9

every_family = pytest.mark.parametrize("name", FAMILIES)
every_padding = pytest.mark.parametrize("padding", ["none", "left", "right"])


def ours_on(model, inputs: Batch, sites) -> Reference:
    tokens = interp.Tokens(inputs.ids, mask=inputs.mask)
    output, cache = model.run_with_cache(tokens, names_filter=list(sites))
    return Reference(output, dict(cache.items()))


def errors(ours: Reference, reference: Reference, mask: torch.Tensor) -> dict[str, float]:
    found = {site: relative_error(ours.sites[site], x, mask) for site, x in reference.sites.items()}
    return {"output": relative_error(ours.output, reference.output, mask), **found}


@every_padding
@every_family
@pytest.mark.parametrize("lifted", [False, True], ids=["as it is", "float64 islands"])
def test_output_and_sites(pair, name: str, padding: Padding, lifted: bool) -> None:
    this, inputs = pair(name), batch(padding)
    reference = run(this.reference, this.family.layout, inputs.for_reference(), lifted=lifted)
    ours = ours_on(this.ours, inputs, reference.sites)
    found = errors(ours, reference, inputs.mask)
    tolerance = LIFTED if lifted else AS_IT_IS
    assert {site: e for site, e in found.items() if not e <= tolerance} == {}


@every_family
def test_a_run_without_cache_gives_the_same(pair, name: str) -> None:
    this, inputs = pair(name), batch("left")
    tokens = interp.Tokens(inputs.ids, mask=inputs.mask)
    plain = this.ours(tokens)
    cached, _ = this.ours.run_with_cache(tokens)
    assert relative_error(plain, cached, inputs.mask) < LIFTED


@every_family
def test_the_islands_are_lifted(pair, name: str) -> None:
    """Whether the lifted reference is another one: BERT and GPT-2 round nothing, Llama does."""
    this, inputs = pair(name), batch().for_reference()
    as_it_is = run(this.reference, this.family.layout, inputs, lifted=False).output
    lifted = run(this.reference, this.family.layout, inputs, lifted=True).output
    rounds = relative_error(as_it_is, lifted) > LIFTED
    assert rounds != this.family.exact


def test_token_types(pair) -> None:
    this, inputs = pair("bert"), batch()
    types = (torch.arange(inputs.ids.shape[1]) > 8).long().expand_as(inputs.ids)
    reference = run(
        this.reference,
        this.family.layout,
        {**inputs.for_reference(), "token_type_ids": types},
        lifted=True,
    )
    ours = this.ours(interp.Tokens(inputs.ids, token_types=types))
    assert relative_error(ours, reference.output) < LIFTED


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("name", ["llama-linear", "llama-yarn", "llama-llama3"])
def test_configs_of_before_transformers_5(pair, name: str, key: str, tmp_path) -> None:
    """Published configs have `rope_theta` beside `rope_scaling`, with `type` earlier still."""
    this = pair(name)
    folder = shutil.copytree(this.folder, tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {key: rope.pop("rope_type"), **rope}
    (folder / "config.json").write_text(json.dumps(config))
    assert interp.load(folder, dtype="float64").cfg == this.ours.cfg
