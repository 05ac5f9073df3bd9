"""Kernels that do nothing, for tests that must then fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from norm_fusion.kernels.dispatch import Dispatch


@contextmanager
def zeros() -> Iterator[None]:
    """Kernels write nothing, and memory is zeros where it is allocated."""
    with (
        mock.patch.object(Dispatch, "__call__", return_value=None),
        mock.patch.object(torch, "empty", torch.zeros),
        mock.patch.object(torch, "empty_like", torch.zeros_like),
    ):
        yield
