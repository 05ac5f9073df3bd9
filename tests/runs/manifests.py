"""A manifest of which only what a test is about is told."""

from norm_fusion.records import Manifest


def manifest(run_id: str = "a", **changes: object) -> Manifest:
    told = {"cases": ["a", "b"], "profiles": ["torch-eager"], "device": "cpu", "quick": False, "seed": 0}
    said = {"title": "t", "question": "q", "command": [], "started_at": "now"}
    return Manifest.model_validate({"run_id": run_id} | told | said | changes)
