"""DTensors and sharded training of two processes on GPUs: the checks that CI runs over gloo on a CPU.

On two GPUs they are one process each over NCCL; where there is one, both share it: see `staged`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import test_distributed
import test_sharded_training
from ranks import OF_ZEROS, run_both


@pytest.mark.parametrize("file", [test_distributed, test_sharded_training], ids=lambda file: file.__name__)
def test_two_ranks_do_what_pytorch_does(file: ModuleType, tmp_path: Path) -> None:
    """And without kernels every comparison fails."""
    said = run_both(str(file.__file__), tmp_path, "cuda")
    names = [*file.CHECKS, *(name + OF_ZEROS for name in file.CHECKS.controlled)]
    assert not {name: complaint for name in names if (complaint := said(name))}
