"""DTensors and sharded training on two GPUs over NCCL: the checks that CI runs over gloo on a CPU."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import test_distributed
import test_sharded_training
import torch
from ranks import OF_ZEROS, RANKS, run_both

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < RANKS, reason=f"needs {RANKS} GPUs")


@pytest.mark.parametrize("file", [test_distributed, test_sharded_training], ids=lambda file: file.__name__)
def test_two_gpus_do_what_pytorch_does(file: ModuleType, tmp_path: Path) -> None:
    """And without kernels every comparison fails."""
    said = run_both(str(file.__file__), tmp_path, "cuda")
    names = [*file.CHECKS, *(name + OF_ZEROS for name in file.CHECKS.controlled)]
    assert not {name: complaint for name in names if (complaint := said(name))}
