"""What README.md says is supported, from the signatures and tables that decide it. Cog calls it, as `quote`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from norm_fusion import functional
from norm_fusion.backends.builtin import FUSED
from norm_fusion.known_norms import TABLE, Form
from norm_fusion.ops.norm import DTYPES

OPERATORS: tuple[Callable[..., Any], ...] = (
    functional.rms_norm,
    functional.layer_norm,
    functional.add_rms_norm,
    functional.add_layer_norm,
    functional.gated_rms_norm,
)
# What a parameter of a function gives its user.
FEATURES: Mapping[str, str] = {
    "residual": "adds a residual, returns the sum",
    "residual_dtype": "the sum in a dtype of its own",
    "gate": "silu gate, before or after",
    "group_size": "groups of columns",
    "bias": "bias",
    "offset": "1 + weight",
    "cast_first": "Hugging Face's roundings",
    "out_dtype": "output in another dtype",
}
FAMILY: Mapping[str, str] = {"torch": "torch.nn"}


def operators() -> str:
    """A table of features and functions: a feature is there where its parameter is."""
    heads = " | ".join(f"`{each.__name__}`" for each in OPERATORS)
    table = [f"| | {heads} |", f"|---|{'---|' * len(OPERATORS)}"]
    for parameter, words in FEATURES.items():
        has = ["yes" if parameter in inspect.signature(each).parameters else "-" for each in OPERATORS]
        table.append(f"| {words} | {' | '.join(has)} |")
    dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
    table.append(f"| dtypes of each tensor, in any mixture | {' | '.join([dtypes] + ['the same'] * 4)} |")
    measured = ["yes" if each in FUSED.values() else "-" for each in OPERATORS]
    table.append(f"| measured by the lab, forward and backward | {' | '.join(measured)} |")
    return "\n".join(table) + "\n"


def patched() -> str:
    """A table of what `patch_model` knows: classes that compute the same, by their model's folder."""
    alike: dict[Form, list[str]] = {}
    for name, form in TABLE.items():
        module, _, cls = name.rpartition(".")
        where = module.split(".")
        alike.setdefault(form, []).append(f"torch.nn.{cls}" if where[0] == "torch" else where[2])
    table = ["| computes | rounds before the weight | weight | of the models |", "|---|---|---|---|"]
    for form, names in alike.items():
        rounds = {
            "nothing": "no",
            "input": "to the input's dtype",
            "weight": "to the weight's dtype, if it is the input's",
        }[form.rounds]
        weight = f"{form.offset:g} + weight" if form.offset else "as it is"
        table.append(f"| {form.kind} | {rounds} | {weight} | {', '.join(dict.fromkeys(names))} |")
    return "\n".join(table) + "\n"
