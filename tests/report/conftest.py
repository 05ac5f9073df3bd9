"""Example runs and their pages, made once, and the browser that reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_runs import CPU, GPU, cpu_measurements, gpu_measurements, manifest, stored
from example_runs import five as made_of_five

from norm_fusion.report import page
from norm_fusion.runs.store import RunStore


@pytest.fixture(scope="session")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return stored(tmp_path_factory.mktemp("runs"), manifest("20261122-124000-h200", GPU), gpu_measurements)


@pytest.fixture(scope="session")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return stored(tmp_path_factory.mktemp("runs"), manifest("20261122-124000-epyc", CPU), cpu_measurements)


@pytest.fixture(scope="session")
def five(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """Five processes, judged."""
    return made_of_five(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def five_page(five: RunStore) -> Path:
    return page.write(five, five.path / "report.html")


@pytest.fixture(scope="session")
def gpu_page(gpu: RunStore) -> Path:
    return page.write(gpu, gpu.path / "report.html")


@pytest.fixture(scope="session")
def cpu_page(cpu: RunStore) -> Path:
    return page.write(cpu, cpu.path / "report.html")
