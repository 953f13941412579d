"""Fixtures that several files share; a file asks for them by `pytestmark = pytest.mark.usefixtures(…)`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from treewright.training.decoders.check import doubled


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def single() -> None:
    """For a test in float32."""


@pytest.fixture
def all_float64(request: pytest.FixtureRequest) -> Iterator[None]:
    """Models compute parts in float32, which would blur the comparison."""
    if "single" in request.fixturenames:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with doubled():
        yield
    torch.set_default_dtype(before)
