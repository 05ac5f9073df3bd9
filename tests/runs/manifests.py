"""A manifest of which only what a test is about is told, and a card."""

from norm_fusion.records import Environment, Manifest

CARD = Environment(
    device="cuda", device_name="NVIDIA A10G", device_uuid="one", memory_bytes=1, cache_bytes=1, python="3",
    platform="p", torch="2", norm_fusion="0",
)  # fmt: skip


def manifest(run_id: str = "a", **changes: object) -> Manifest:
    told = {"cases": ["a", "b"], "profiles": ["torch-eager"], "device": "cpu", "quick": False, "seed": 0}
    said = {"title": "t", "question": "q", "command": [], "started_at": "now"}
    return Manifest.model_validate({"run_id": run_id} | told | said | changes)
