"""The same work on the CPU and on the pretend accelerator, and the comparison of what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import interp
from interp import tasks
from interp.core.tokens import Tokens
from interp.model import HookedTransformer
from tests.device.pretend import Pretend
from tests.test_contract import small_model

RTOL, ATOL = 1e-12, 1e-14
"""Of float64. With one attention kernel (conftest.py) the numbers are the same bits, but where
memory begins may decide in which order a CPU adds."""


class Bench:
    """A small random model with words, in float64, on one device; and what methods are given.

    What a user brings (labels, ids of answers, vectors that were read from a file) lies on the CPU
    or on the device, as `given` says: that a method takes it to the model is part of what is
    tested.
    """

    given = "cpu"
    folder: Path
    """Where a case may write."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.gave = 0
        """How often something was brought."""
        self.model: HookedTransformer = small_model().double().to(device)
        self.world: HookedTransformer = interp.load("tinyworld", device, "float64")

    def give(self, x: torch.Tensor) -> torch.Tensor:
        self.gave += 1
        return x.to(self.given)

    def there(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.device)

    @cached_property
    def pairs(self) -> tasks.Pairs:
        return tasks.agreement(self.model, 8)

    @cached_property
    def tokens(self) -> Tokens:
        """Rows of unequal length, padded."""
        texts = ["the king and the queen", "the man", "a woman and the king and a man"]
        return self.model.to_tokens(texts, bos=True)

    @property
    def answers(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.give(self.pairs.answer), self.give(self.pairs.wrong)

    @property
    def repeats(self) -> torch.Tensor:
        """Ids that come twice."""
        generator = torch.Generator().manual_seed(3)
        half = torch.randint(2, self.model.cfg.d_vocab, (3, 6), generator=generator)
        return self.give(torch.cat([half, half], dim=1))

    @property
    def features(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations [40 d] on the device, and two classes."""
        generator = torch.Generator().manual_seed(4)
        y = torch.arange(40) % 2
        x = torch.randn(40, self.model.cfg.d_model, generator=generator, dtype=torch.float64)
        return self.there(x + y[:, None]), self.give(y)

    @property
    def direction(self) -> torch.Tensor:
        """A vector of the stream."""
        generator = torch.Generator().manual_seed(5)
        size = self.model.cfg.d_model
        return self.give(torch.randn(size, generator=generator, dtype=torch.float64))

    @property
    def labels(self) -> torch.Tensor:
        """A class for each of the pairs."""
        return self.give(torch.arange(len(self.pairs)) % 2)


def check_same(ours: Any, theirs: Any, where: str = "result") -> None:
    """That what came out on the device is what comes out on the CPU, to rounding."""
    if isinstance(theirs, torch.Tensor):
        ours = ours.cpu() if isinstance(ours, Pretend) else ours
        assert type(theirs) is not Pretend, f"{where}: the CPU's result lies on the device"
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, where
        ours, theirs = ours.detach(), theirs.detach()
        if theirs.is_floating_point() or theirs.is_complex():
            assert torch.allclose(ours, theirs, RTOL, ATOL, equal_nan=True), where
        else:
            assert torch.equal(ours, theirs), where
    elif isinstance(theirs, pd.DataFrame):
        pd.testing.assert_frame_equal(ours, theirs, rtol=RTOL, atol=ATOL, obj=where)
    elif isinstance(theirs, pd.Series):
        pd.testing.assert_series_equal(ours, theirs, rtol=RTOL, atol=ATOL, obj=where)
    elif isinstance(theirs, np.ndarray):
        np.testing.assert_allclose(ours, theirs, RTOL, ATOL, err_msg=where)
    elif isinstance(theirs, torch.nn.Module):
        check_same(ours.state_dict(), theirs.state_dict(), where)
    elif isinstance(theirs, Mapping):
        assert list(ours) == list(theirs), where
        for key in theirs:
            check_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), where
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            check_same(one, other, f"{where}[{i}]")
    elif dataclasses.is_dataclass(theirs):
        for field in dataclasses.fields(theirs):
            at = f"{where}.{field.name}"
            check_same(getattr(ours, field.name), getattr(theirs, field.name), at)
    elif isinstance(theirs, float):
        assert ours == theirs or abs(ours - theirs) <= ATOL + RTOL * abs(theirs) or theirs != theirs
    elif not isinstance(theirs, torch.device) and not callable(theirs):
        assert ours == theirs, where
