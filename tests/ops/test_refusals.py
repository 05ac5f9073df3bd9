"""Bad input: the argument is named, what was seen and what is allowed, before anything runs."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from accuracy import normal
from torch import Tensor

import norm_fusion as nf
from norm_fusion.ops import route
from norm_fusion.ops.forward import Dispatch

X = normal(2, 3, 8)
V = normal(8)
F64 = X.double()
TAKES = "takes torch.float16, torch.bfloat16, torch.float32"
EPS = "eps is a {}: it must be a float"
GOOD: dict[str, dict[str, Any]] = {
    "rms_norm": {"input": X, "normalized_shape": (8,), "weight": V, "bias": V},
    "layer_norm": {"input": X, "normalized_shape": (8,), "weight": V, "bias": V},
    "add_rms_norm": {"input": X, "residual": X, "normalized_shape": (8,), "weight": V, "bias": V},
    "add_layer_norm": {"input": X, "residual": X, "normalized_shape": (8,), "weight": V, "bias": V},
    "gated_rms_norm": {"input": X, "gate": X, "weight": V},
}

OF_ALL: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": None}, TypeError, "input is a NoneType: {} takes a torch.Tensor"),
    ({"input": [1.0]}, TypeError, "input is a list: {} takes a torch.Tensor"),
    ({"input": F64}, TypeError, f"input is torch.float64: {{}} {TAKES}"),
    ({"input": X.int()}, TypeError, f"input is torch.int32: {{}} {TAKES}"),
    ({"input": X.to_sparse()}, TypeError, "input is torch.sparse_coo: {} takes torch.strided"),
    ({"input": torch.nested.nested_tensor([V, V])}, TypeError, "input is nested: {} takes torch.strided"),
    ({"input": torch.nested.nested_tensor([V, V], layout=torch.jagged)}, TypeError, "input is nested: {} takes"),
    ({"weight": [1.0] * 8}, TypeError, "weight is a list: {} takes a torch.Tensor"),
    ({"weight": V.double()}, TypeError, f"weight is torch.float64: {{}} {TAKES}"),
    ({"weight": V.to_sparse()}, TypeError, "weight is torch.sparse_coo: {} takes torch.strided"),
    ({"weight": V.to("meta")}, ValueError, "weight is on meta, input on cpu: they must be on one device"),
    ({"weight": V[1:]}, ValueError, "weight has shape [7], normalized_shape is [8]: they must match"),
    ({"weight": V[:1]}, ValueError, "weight has shape [1], normalized_shape is [8]"),
    ({"weight": V[None]}, ValueError, "weight has shape [1, 8], normalized_shape is [8]"),
    ({"weight": None, "bias": None, "offset": 1.0}, ValueError, "offset is 1.0 and there is no weight to add it to"),
    ({"eps": "1e-5"}, TypeError, EPS.format("str")),
    ({"eps": torch.tensor(1e-5)}, TypeError, EPS.format("Tensor")),
    ({"eps": -1e-5}, ValueError, "eps is -1e-05: it must be 0 or more"),
    ({"eps": float("nan")}, ValueError, "eps is nan: it must be 0 or more"),
    ({"eps": float("inf")}, ValueError, "eps is inf: it must be 0 or more, and finite"),
    ({"offset": float("nan")}, ValueError, "offset is nan: it must be finite"),
    ({"cast_first": "no"}, TypeError, "cast_first is a str: it must be a bool"),
    ({"cast_first": torch.ones(2)}, TypeError, "cast_first is a torch.Tensor: it must be a bool"),
    ({"offset": None}, TypeError, "offset is a NoneType: it must be a float"),
    ({"offset": V}, TypeError, "offset is a Tensor: it must be a float"),
    ({"eps": True}, TypeError, EPS.format("bool")),
    ({"eps": 10**400}, ValueError, "eps is too large an int: it must be a float"),
    ({"cast_first": np.bool_(True)}, TypeError, f"cast_first is a numpy.{np.bool_.__name__}: it must be a bool"),
    ({"out_dtype": torch.float64}, TypeError, "out_dtype is torch.float64: it must be one of torch.float16, "),
]
OF_SHAPES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"normalized_shape": 8}, TypeError, "normalized_shape is 8: it must be a sequence of ints, as (4096,)"),
    ({"normalized_shape": None}, TypeError, "normalized_shape is None: it must be a sequence of ints"),
    ({"normalized_shape": (8.0,)}, TypeError, "normalized_shape is (8.0,): it must be a sequence of ints"),
    ({"normalized_shape": [True]}, TypeError, "normalized_shape is [True]: it must be a sequence of ints"),
    ({"normalized_shape": ()}, ValueError, "normalized_shape is [], input has shape [2, 3, 8]"),
    ({"normalized_shape": (3,)}, ValueError, "normalized_shape is [3], input has shape [2, 3, 8]: it must be one or "),
    ({"normalized_shape": (2, 3)}, ValueError, "normalized_shape is [2, 3]"),
    ({"normalized_shape": (1, 2, 3, 8)}, ValueError, "normalized_shape is [1, 2, 3, 8]"),
    ({"normalized_shape": (3, 8), "weight": normal(24)}, ValueError, "weight has shape [24], normalized_shape is [3, "),
    ({"bias": V[1:]}, ValueError, "bias has shape [7], normalized_shape is [8]: they must match"),
    ({"bias": V.int()}, TypeError, f"bias is torch.int32: {{}} {TAKES}"),
    ({"bias": V.to("meta")}, ValueError, "bias is on meta, input on cpu: they must be on one device"),
    ({"bias": normal(3, 8)}, ValueError, "bias has shape [3, 8], weight has shape [8]: they must match"),
]
OF_RESIDUALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"residual": None}, TypeError, "residual is a NoneType: {} takes a torch.Tensor"),
    ({"residual": F64}, TypeError, f"residual is torch.float64: {{}} {TAKES}"),
    ({"residual": X.to_sparse()}, TypeError, "residual is torch.sparse_coo: {} takes torch.strided"),
    ({"residual": X[:1]}, ValueError, "residual has shape [1, 3, 8], input has shape [2, 3, 8]: they must match"),
    ({"residual": X.to("meta")}, ValueError, "residual is on meta, input on cpu"),
    ({"residual_dtype": torch.int8}, TypeError, "residual_dtype is torch.int8: it must be one of torch.float16"),
]
OF_GATES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"gate": None}, TypeError, "gate is a NoneType: {} takes a torch.Tensor"),
    ({"gate": X[..., 1:]}, ValueError, "gate has shape [2, 3, 7], input has shape [2, 3, 8]: they must match"),
    ({"gate": X.to("meta")}, ValueError, "gate is on meta, input on cpu"),
    ({"input": V[0], "gate": V[0]}, ValueError, "input has no dimension to normalize over"),
    ({"group_size": 3}, ValueError, "group_size is 3, input has 8 columns: it must divide them"),
    ({"group_size": 0}, ValueError, "group_size is 0, input has 8 columns: it must divide them"),
    ({"group_size": 4.0}, TypeError, "group_size is a float: it must be an int, or None"),
    ({"group_size": "4"}, TypeError, "group_size is a str: it must be an int, or None"),
    ({"group_size": 8.0}, TypeError, "group_size is a float: it must be an int, or None"),
    ({"group_size": True}, TypeError, "group_size is a bool: it must be an int, or None"),
    ({"norm_before_gate": 1}, TypeError, "norm_before_gate is a int: it must be a bool"),
    ({"group_size": 4, "weight": normal(3, 8)}, ValueError, "weight has shape [3, 8]: with group_size it must have"),
]
# In groups what is short must be seen before it is viewed as groups.
IN_GROUPS = [(bad | {"group_size": 4}, error, message) for bad, error, message in OF_ALL + OF_GATES[:3]]
REFUSED = [
    *((name, *case) for name in GOOD for case in OF_ALL),
    *((name, *case) for name in GOOD if name != "gated_rms_norm" for case in OF_SHAPES),
    *((name, *case) for name in ("add_rms_norm", "add_layer_norm") for case in OF_RESIDUALS),
    *(("gated_rms_norm", *case) for case in OF_GATES + IN_GROUPS),
]


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(*_: Any, **__: Any) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr(Dispatch, "__call__", ran)
    monkeypatch.setattr(route, "composition", ran)


@pytest.mark.parametrize("name", GOOD)
def test_what_fits_would_run(name: str) -> None:
    """The control of this file."""
    with pytest.raises(AssertionError, match="it ran"):
        getattr(nf, name)(**GOOD[name])


@pytest.mark.parametrize(("name", "bad", "error", "message"), REFUSED)
def test_what_does_not_fit_is_refused(name: str, bad: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {label: value for label, value in (GOOD[name] | bad).items() if label != "bias" or "bias" in GOOD[name]}
    with pytest.raises(error, match=re.escape(message.format(name))):
        getattr(nf, name)(**given)


@pytest.mark.parametrize("name", ["layer_norm", "add_layer_norm"])
def test_layer_norm_has_no_eps_of_none(name: str) -> None:
    with pytest.raises(TypeError, match="eps is a NoneType: it must be a float"):
        getattr(nf, name)(**GOOD[name], eps=None)


def test_a_row_too_long_for_its_counter_is_refused() -> None:
    x = torch.empty(1, device="meta").expand(1, 2**31)
    with pytest.raises(ValueError, match="a row has at most 2,147,483,647 elements"):
        nf.rms_norm(x, (2**31,), None, 1e-6)


# torch.ops.norm_fusion, called by one who does not go through these functions.

NORM = {"trailing": 1, "eps": 1e-5, "offset": 0.0, "cast_first": False, "gate_first": False}
CALL = {"input": X, "residual": X, "gate": None, "weight": V, "bias": V, **NORM}
CALL |= {"out_dtype": None, "residual_dtype": None}
BAD_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"weight": V[1:]}, ValueError, "weight has shape [7], normalized_shape is [8]"),
    ({"bias": V[1:]}, ValueError, "bias has shape [7], normalized_shape is [8]"),
    ({"weight": V.double()}, TypeError, f"weight is torch.float64: {{}} {TAKES}"),
    ({"gate": X[1:]}, ValueError, "gate has shape [1, 3, 8], "),
    ({"trailing": 0}, ValueError, "trailing is 0, input has shape [2, 3, 8]: it must be 1 to 3"),
    ({"trailing": 4}, ValueError, "trailing is 4, input has shape [2, 3, 8]: it must be 1 to 3"),
    ({"trailing": 2}, ValueError, "weight has shape [8], normalized_shape is [3, 8]"),
    ({"eps": -1.0}, ValueError, "eps is -1.0: it must be 0 or more"),
    ({"weight": None, "bias": None, "offset": 1.0}, ValueError, "offset is 1.0 and there is no weight"),
    ({"out_dtype": torch.float64}, TypeError, "out_dtype is torch.float64: it must be one of"),
    ({"residual_dtype": torch.int8}, TypeError, "residual_dtype is torch.int8: it must be one of"),
]
BAD_FORWARDS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": F64}, TypeError, f"input is torch.float64: {{}} {TAKES}"),
    ({"residual": X[1:]}, ValueError, "residual has shape [1, 3, 8], input has shape [2, 3, 8]"),
]
BAD_BACKWARDS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"dy": X[1:]}, ValueError, "dy has shape [1, 3, 8] on cpu, h [2, 3, 8] on cpu: they must match"),
    ({"dy": F64}, TypeError, f"dy is torch.float64: a backward {TAKES}"),
    ({"dh": X[1:]}, ValueError, "dh has shape [1, 3, 8] on cpu, h [2, 3, 8] on cpu: they must match"),
    ({"saved": normal(5)}, ValueError, "saved is torch.float32 of shape [5] on cpu: it must be what the forward saved"),
    ({"saved": normal(6, 2).half()}, ValueError, "saved is torch.float16 of shape [6, 2]"),
    ({"input_dtype": torch.float64}, TypeError, f"input_dtype is torch.float64: a backward {TAKES}"),
    ({"wanted": [True]}, TypeError, "missing 4 required positional arguments"),
]


@pytest.mark.parametrize("fake", [False, True], ids=["run", "traced"])
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize(("bad", "error", "message"), BAD_CALLS + BAD_FORWARDS)
def test_an_operators_bad_call_is_refused(
    name: str, bad: dict[str, Any], error: type[Exception], message: str, fake: bool
) -> None:
    _refused(name, CALL | {"save": True} | bad, error, message.format(name), fake)


@pytest.mark.parametrize("fake", [False, True], ids=["run", "traced"])
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize(("bad", "error", "message"), BAD_CALLS + BAD_BACKWARDS)
def test_a_backward_operators_bad_call_is_refused(
    name: str, bad: dict[str, Any], error: type[Exception], message: str, fake: bool
) -> None:
    call = {label: value for label, value in CALL.items() if label not in ("input", "residual")}
    saved = normal(2, 6) if name == "layer_norm" else normal(6)
    dtypes = {"input_dtype": torch.float32, "old_residual_dtype": torch.float32}
    given = {"dy": X, "dh": None, "h": X, "saved": saved, **call, **dtypes, "wanted": [True] * 5} | bad
    _refused(f"{name}_backward", given, error, message.format(name), fake)


def test_operators_do_not_run_where_triton_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that was exported for CUDA."""
    monkeypatch.delenv("NORM_FUSION_FORCE_TRITON")
    message = "are on cpu. Call norm_fusion's functions"
    _refused("rms_norm", CALL | {"save": True}, RuntimeError, message, False)
    given = {label: value for label, value in CALL.items() if label not in ("input", "residual")}
    given |= {"dy": X, "dh": None, "h": X, "saved": normal(6), "input_dtype": torch.float32}
    given |= {"old_residual_dtype": torch.float32, "wanted": [True] * 5}
    _refused("rms_norm_backward", given, RuntimeError, message, False)


def test_a_layer_norm_has_no_gate() -> None:
    _refused(
        "layer_norm", CALL | {"gate": X, "save": True}, ValueError, "gate is given, and layer_norm has none", False
    )


def _refused(op: str, given: dict[str, Any], error: type[Exception], message: str, fake: bool) -> None:
    """Run, or traced with fake tensors, as a compiler does."""
    mode = torch._subclasses.FakeTensorMode()
    if fake:
        given = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in given.items()}
    with mode if fake else nullcontext(), pytest.raises(error, match=re.escape(message)):
        getattr(torch.ops.norm_fusion, op)(**given)
