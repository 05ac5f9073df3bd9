"""Compile one kernel for a GPU that is not there, as `ops` would launch it.

Run as a program it is a server, one JSON line in and one out: it lives in a process of its own, because a process
that interprets Triton cannot compile it. Triton is all that it needs, and it alone imports it.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from norm_fusion.kernels.launch import (
    CooperativeLaunch,
    Device,
    Launch,
    pick_cooperative,
    pick_layer_norm,
    pick_rms_norm,
)
from norm_fusion.kernels.launch_backward import BackwardLaunch, Given, pick_backward

ITEMSIZE = {"fp16": 2, "bf16": 2, "fp32": 4}
PICK = {"rms_norm": pick_rms_norm, "layer_norm": pick_layer_norm}
TYPES = {
    **dict.fromkeys(("saved_ptr", "means_ptr", "dw_ptr", "db_ptr", "dw_partial_ptr", "db_partial_ptr"), "*fp32"),
    "board_ptr": "*i64",
}
DEVICES = {
    80: Device(108, 163 * 1024, True),
    86: Device(80, 99 * 1024, True),
    90: Device(132, 227 * 1024, True),
    100: Device(148, 227 * 1024, True),
}
STRIDED = ("x", "r", "z", "dy", "dh")


@dataclass(frozen=True)
class Job:
    """A kernel at one width, dtype and compute capability.

    `given`: what there is besides x and y: of w, b, r (residual), z (gate), s (statistics saved); None for weight and,
    of LayerNorm, bias. `aligned`: every pointer a multiple of 16 bytes. `vec`: elements that divide a row and its
    stride, None for what a contiguous tensor has. `uneven`: rows at three strides. `weight`: its dtype,
    None for x's. `launch`: None for the one picked.
    """

    op: str
    cols: int
    dtype: str
    cc: int = 90
    given: str | None = None
    aligned: bool = True
    vec: int | None = None
    uneven: bool = False
    gate_first: bool = False
    weight: str | None = None
    launch: Launch | None = None

    def __str__(self) -> str:
        marks = (
            [f"vec{self.vec}"] * bool(self.vec)
            + [self.given or "bare"] * (self.given is not None)
            + ["uneven"] * self.uneven
        )
        return "-".join([self.op, str(self.cols), self.dtype, f"sm{self.cc}", *marks])

    @property
    def letters(self) -> str:
        return {"rms_norm": "w", "layer_norm": "wb"}[self.op] if self.given is None else self.given

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def module(self) -> str:
        return self.op

    @property
    def launched(self) -> Launch:
        return self.launch or PICK[self.op](self.cols, self.itemsize)

    @property
    def kernel(self) -> str:
        return f"{self.op}_{'wide' if self.launched.wide else 'rows'}"

    @property
    def pointers(self) -> set[str]:
        """Those that are no None."""
        present = {"x", "y", *self.letters.replace("s", "")}
        if "r" in self.letters:
            present.add("h")
        if "s" in self.letters:
            present.add("saved")
        return {f"{name}_ptr" for name in present}

    @property
    def constexprs(self) -> dict[str, Any]:
        """Every constant that some kernel takes, by name; each takes those that it names."""
        launch = self.launched
        return {
            **self._common,
            "CAST": None,
            "PRODUCT": None,
            "BLOCK_ROWS": launch.block_rows,
            "BODY": launch.body,
            "TAIL": launch.tail,
            "LEAN": launch.lean,
        }

    @property
    def _common(self) -> dict[str, Any]:
        return {
            "COLS": self.cols,
            "VEC": self.vec or math.gcd(16 // self.itemsize, self.cols),
            "HEADS": 1,
            "CENTRED": self.op == "layer_norm",
            "OFFSET": 0.0,
            "GATE_FIRST": self.gate_first,
            "PDL": self.cc >= 90,
        }

    @property
    def options(self) -> dict[str, Any]:
        cap = {} if self.launched.maxnreg is None else {"maxnreg": self.launched.maxnreg}
        return {"num_warps": self.launched.num_warps, **cap, **self._pdl}

    @property
    def _pdl(self) -> dict[str, Any]:
        return {"launch_pdl": True} if self.cc >= 90 else {}

    def to_dict(self) -> dict[str, Any]:
        fields = ("module", "kernel", "dtype", "weight", "cc", "aligned", "uneven", "constexprs", "options")
        return {name: getattr(self, name) for name in fields} | {"pointers": sorted(self.pointers)}


@dataclass(frozen=True)
class CooperativeJob(Job):
    """The forward of `op` by programs that share a row."""

    def __str__(self) -> str:
        return f"cooperative-{super().__str__()}"

    @property
    def module(self) -> str:
        return "cooperative"

    @property
    def kernel(self) -> str:
        return "rms_norm_cooperative"

    @property
    def cooperative_launch(self) -> CooperativeLaunch:
        launch = pick_cooperative(self.cols, 4 if self.gate_first else self.itemsize)
        assert launch is not None, self
        return launch

    @property
    def pointers(self) -> set[str]:
        return super().pointers | {"board_ptr"}

    @property
    def constexprs(self) -> dict[str, Any]:
        launch = self.cooperative_launch
        constants = {"CAST": None, "PRODUCT": None, "BODY": launch.body, "STAGES": launch.stages, "PDL": False}
        return {**self._common, **constants}

    @property
    def options(self) -> dict[str, Any]:
        launch = self.cooperative_launch
        return {"num_warps": launch.num_warps, "maxnreg": launch.maxnreg, "launch_cooperative_grid": True}


@dataclass(frozen=True)
class BackwardJob(Job):
    """A backward kernel of `op`, with dx and of `given` dw, db, dr and dh, dz, on a GPU with `cooperative` launch."""

    name: str = "norm_backward"
    cooperative: bool = True

    def __str__(self) -> str:
        return f"{self.name}-{super().__str__()}"

    @property
    def module(self) -> str:
        return "backward"

    @property
    def kernel(self) -> str:
        return self.name

    @property
    def backward_launch(self) -> BackwardLaunch:
        vectors = sum(name in self.letters for name in "wb")
        weight = ITEMSIZE[self.weight or self.dtype] * ("w" in self.letters)
        given = Given(vectors, True, "r" in self.letters, "z" in self.letters)
        device = DEVICES[self.cc]._replace(cooperative=self.cooperative)
        return pick_backward(self.cols, self.itemsize, weight, 1, given, device)

    @property
    def pointers(self) -> set[str]:
        present = {"x", "dy", "dx", "saved"}
        for letter, more in (("w", ("w", "dw")), ("b", ("db",)), ("r", ("dh",)), ("z", ("z", "dz"))):
            present |= set(more) if letter in self.letters else set()
        if self.name == "row_means" or self.backward_launch.body < self.cols:
            present.add("means")
        if self.name == "column_sums":
            present = {name for vector in present & {"dw", "db"} for name in (vector, f"{vector}_partial")}
        return {f"{name}_ptr" for name in present}

    @property
    def constexprs(self) -> dict[str, Any]:
        launch = self.backward_launch
        tile = {"BLOCK_ROWS": launch.block_rows, "BODY": launch.body, "LEAN": launch.lean}
        tile |= {
            "STAGES": launch.stages,
            "COOPERATIVE": launch.cooperative,
            "PDL": self._pdl != {} and not launch.cooperative,
        }
        if self.name == "column_sums":
            tile = {"BLOCK_ROWS": launch.sum_rows, "BLOCK_COLS": launch.sum_cols}
        return {**self._common, **tile}

    @property
    def options(self) -> dict[str, Any]:
        launch = self.backward_launch
        if self.name != "norm_backward":
            return {"num_warps": 4 if self.name == "column_sums" else launch.num_warps, **self._pdl}
        if launch.cooperative:
            return {"num_warps": launch.num_warps, "maxnreg": launch.maxnreg, "launch_cooperative_grid": True}
        return {"num_warps": launch.num_warps, **self._pdl}


def build(job: dict[str, Any]) -> dict[str, str]:
    """The kernel's ttir and ptx, and what cuobjdump says that its machine code uses."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import compiler as nvidia
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"norm_fusion.kernels.{job['module']}"), job["kernel"])
    names = kernel.arg_names
    types = {"eps": "fp32", "rows": "i32", "partials": "i32", "n": "i32"}
    types |= {name: TYPES.get(name, f"*{job['dtype']}") for name in job["pointers"]}
    if job["constexprs"].get("COOPERATIVE"):
        types["means_ptr"] = TYPES["board_ptr"]
    if job["weight"] and "w_ptr" in types:
        types["w_ptr"] = f"*{job['weight']}"
    levels = ("stride", "middle", "outer") if job["uneven"] else ("stride",)
    types |= {f"{name}_{level}": "i32" for name in STRIDED if f"{name}_ptr" in types for level in levels}
    if job["uneven"]:
        types |= {"inner": "i32", "middle": "i32"}
    constexprs = {name: job["constexprs"].get(name) for name in names if name not in types}
    types |= dict.fromkeys(constexprs, "constexpr")
    compiled = triton.compile(
        ASTSource(
            fn=kernel,
            signature={name: types[name] for name in names},
            constexprs={(names.index(name),): value for name, value in constexprs.items()},
            attrs={
                (i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if job["aligned"] and n.endswith("_ptr")
            },
        ),
        target=GPUTarget("cuda", job["cc"], 32),
        options={**job["options"], "enable_fp_fusion": True},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    ttir = re.sub(r"(?m)^#loc.*\n| loc\(.*$", "", compiled.asm["ttir"])  # without its debug locations
    shared = str(compiled.metadata.shared)
    return {"usage": usage, "ttir": ttir, "ptx": compiled.asm["ptx"], "shared": shared, "triton": triton.__version__}


def serve() -> None:
    for line in sys.stdin:
        try:
            answer = build(json.loads(line))
        except Exception:  # noqa: BLE001 - whatever it is, the asking side raises it
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


def ask(server: subprocess.Popen[str], job: Job) -> dict[str, str]:
    """What `build` makes of this job in the server's process; its error is one here too."""
    assert server.stdin is not None and server.stdout is not None
    print(json.dumps(job.to_dict()), file=server.stdin, flush=True)
    line = server.stdout.readline()
    if not line:
        raise RuntimeError(f"the compiling process ended with code {server.wait()} at {job}: see its stderr")
    answer: dict[str, str] = json.loads(line)
    if "error" in answer:
        raise RuntimeError(f"{job} does not compile:\n{answer['error']}")
    return answer


if __name__ == "__main__":
    serve()
