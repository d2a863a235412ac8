"""Shared by the tests of planted models."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def one_thread():
    """Matrices of this size lose time to a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
