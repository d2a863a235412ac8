"""Random numbers come from one place, on the CPU, so that a seed means the same on every device."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import interp
from interp import chance
from interp.model import HookedTransformer
from tests.strategies import small_config

ROOT = Path(interp.__file__).parents[1]
FILES = [p for d in ("interp", "analyses") for p in sorted((ROOT / d).rglob("*.py"))]
HOME = ROOT / "interp" / "core" / "chance.py"
DRAWS = {
    *("Generator", "manual_seed", "default_generator", "set_rng_state", "fork_rng"),
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"),
    *("normal_", "uniform_", "random_", "bernoulli", "bernoulli_", "multinomial", "poisson"),
    *("exponential_", "geometric_", "cauchy_", "log_normal_", "trunc_normal_", "orthogonal_"),
    *("kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_"),
    *("dropout", "Dropout", "svd_lowrank", "pca_lowrank", "lobpcg", "RandomState"),
}
"""Calls of torch and numpy that draw, or set what is drawn."""
SEEDED = {
    "KMeans",
    "train_test_split",
    "KFold",
    "StratifiedKFold",
    "StratifiedGroupKFold",
    "sample",
}
"""Calls of scikit-learn and pandas that read numpy's global seed unless they are given one."""


def faults(tree: ast.AST) -> list[str]:
    """What draws in a file, and not from a generator of its own."""
    drawn = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(name.name == "random" for name in node.names):
            drawn.append("import random")
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "np.random":
            drawn += [] if node.attr in ("default_rng", "Generator") else [ast.unparse(node)]
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            given = {keyword.arg for keyword in node.keywords}
            if name in DRAWS:
                drawn.append(ast.unparse(node))
            if name in SEEDED and not given & {"random_state", None}:
                drawn.append(f"{name} without random_state")
            if name == "default_rng" and not node.args:
                drawn.append("default_rng without a seed")
    return drawn


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_else_draws(path: Path):
    if path != HOME:
        assert faults(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.randn(3, generator=torch.Generator(device).manual_seed(0))",
        "parameter.normal_(0, 1, generator=g)",
        "torch.multinomial(p, 1)",
        "np.random.rand(3)",
        "np.random.default_rng()",
        "import random",
        "nn.functional.dropout(x)",
        "KMeans(3)",
        "frame.sample(3)",
    ],
)
def test_what_draws_is_seen(line: str):
    assert faults(ast.parse(line))


def test_the_numbers_are_those_of_a_generator_on_the_cpu():
    one, other, float64 = chance.seeded(3), torch.Generator().manual_seed(3), torch.float64
    draws = (
        (
            chance.normal(4, 5, generator=one),
            torch.randn(4, 5, generator=other, dtype=float64),
        ),
        (chance.uniform(7, generator=one), torch.rand(7, generator=other, dtype=float64)),
        (chance.integers(2, 9, 50, generator=one), torch.randint(2, 9, (50,), generator=other)),
        (chance.permutation(9, one), torch.randperm(9, generator=other)),
        (chance.uniform(generator=one), torch.rand((), generator=other, dtype=float64)),
    )
    for ours, plain in draws:
        assert ours.dtype == plain.dtype and torch.equal(ours, plain)
    wide = chance.normal(10_000, generator=one, std=3.0)
    assert abs(float(wide.std()) - 3) < 0.1 and abs(float(wide.mean())) < 0.15


def test_whatever_device_torch_was_told_to_use_they_are_on_the_cpu():
    plain = chance.normal(3, generator=chance.seeded(0))
    with torch.device("meta"):
        generator = chance.seeded(0)
        drawn = chance.normal(3, generator=generator)
        others = (
            chance.uniform(2, generator=generator),
            chance.integers(0, 5, 2, generator=generator),
            chance.permutation(4, generator),
        )
    assert torch.equal(drawn, plain)
    assert all(other.device.type == "cpu" for other in others)


def test_no_global_seed_is_read_or_changed():
    def model(seed: int) -> torch.Tensor:
        return HookedTransformer(small_config(), seed=seed).W_E

    first = model(0)
    torch.rand(3), np.random.rand(3)  # noqa: NPY002
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    assert torch.equal(model(0), first)
    assert not torch.equal(model(1), first)
    after = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    assert (
        torch.equal(before[0], after[0]) and before[1] == after[1]
    )  # not `random`: the shape checks use it
