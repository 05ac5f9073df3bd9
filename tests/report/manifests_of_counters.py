"""Counters of which only what a test is about is told, and a manifest that asked for them."""

from collections.abc import Sequence

from norm_fusion.records import Counters, KernelCounters, Manifest, Status

CASE, MATMUL = "rmsnorm-4096x4096-float16", "matmul-64x64x64-float16"


def counters(profile: str, case: str = CASE, **changes: object) -> Counters:
    told: dict[str, object] = {
        "run_id": "a",
        "case": case,
        "profile": profile,
        "status": Status.OK,
        "kernels": [KernelCounters(name="k", duration_ms=0.02)],
        "duration_ms": 0.02,
        "dram_bytes": 33_600_000,
        "dram_pct": 50.0,
        "occupancy_pct": 60.0,
        "l2_hit_pct": 50.0,
        "sm_pct": 30.0,
        "tensor_pct": 0.0,
        "registers": 40,
        "compulsory_bytes": 67_200_000,
        "traced_kernels": 1,
        "traced_ms": 0.019,
        "fingerprint": "f",
    }
    return Counters.model_validate(told | changes)


def manifest(rows: Sequence[Counters]) -> Manifest:
    return Manifest(
        run_id="a",
        title="t",
        question="q",
        command=[],
        cases=[CASE],
        profiles=["torch-eager"],
        profiled=[(one.case, one.profile) for one in rows],
        device="cuda",
        quick=False,
        seed=0,
        started_at="2026-01-01T00:00:00+00:00",
    )
