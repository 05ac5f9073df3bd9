"""What makes the lab's tests as fast on a busy machine as on an idle one."""

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _fast() -> Iterator[None]:
    """Before each series garbage is collected: what PyTorch is made of need not be looked at each time. One thread."""
    gc.collect()
    gc.freeze()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    gc.unfreeze()
