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

from norm_fusion.kernels.launch import Launch, pick_layer_norm, pick_rms_norm

ITEMSIZE = {"fp16": 2, "bf16": 2, "fp32": 4}
PICK = {"rms_norm": pick_rms_norm, "layer_norm": pick_layer_norm}


@dataclass(frozen=True)
class Job:
    """A kernel at one width, dtype and compute capability.

    `vectors`: with weight and bias. `aligned`: every pointer a multiple of 16 bytes. `vec`: elements that divide a
    row and its stride, None for what a contiguous tensor has. `launch`: None for the one that is picked.
    """

    op: str
    cols: int
    dtype: str
    cc: int = 90
    vectors: bool = True
    aligned: bool = True
    vec: int | None = None
    launch: Launch | None = None

    def __str__(self) -> str:
        return f"{self.op}-{self.cols}-{self.dtype}-sm{self.cc}" + (f"-vec{self.vec}" if self.vec else "")

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def launched(self) -> Launch:
        return self.launch or PICK[self.op](self.cols, self.itemsize)

    @property
    def kernel(self) -> str:
        return f"{self.op}_{'wide' if self.launched.wide else 'rows'}"

    @property
    def constexprs(self) -> dict[str, Any]:
        """Every constant that some kernel takes, by name; each takes those that it names."""
        launch = self.launched
        return {
            "COLS": self.cols,
            "VEC": self.vec or math.gcd(16 // self.itemsize, self.cols),
            "HAS_WEIGHT": self.vectors,
            "HAS_BIAS": self.vectors,
            "BLOCK_ROWS": launch.block_rows,
            "BODY": launch.body,
            "TAIL": launch.tail,
            "LEAN": launch.lean,
            "PDL": self.cc >= 90,
        }

    @property
    def options(self) -> dict[str, Any]:
        cap = {} if self.launched.maxnreg is None else {"maxnreg": self.launched.maxnreg}
        pdl = {"launch_pdl": True} if self.cc >= 90 else {}
        return {"num_warps": self.launched.num_warps, **cap, **pdl}

    def to_dict(self) -> dict[str, Any]:
        fields = ("op", "kernel", "dtype", "cc", "aligned", "constexprs", "options")
        return {name: getattr(self, name) for name in fields}


def build(job: dict[str, Any]) -> dict[str, str]:
    """The kernel's ttir and ptx, and what cuobjdump says that its machine code uses."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import compiler as nvidia
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"norm_fusion.kernels.{job['op']}"), job["kernel"])
    names = kernel.arg_names
    constexprs = {name: value for name, value in job["constexprs"].items() if name in names}
    types = dict.fromkeys(constexprs, "constexpr")
    types |= {name: f"*{job['dtype']}" for name in names if name.endswith("_ptr")}
    types |= {"rows": "i32", "x_stride": "i32", "y_stride": "i32", "eps": "fp32"}
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
    return {"usage": usage, "ttir": ttir, "ptx": compiled.asm["ptx"], "triton": triton.__version__}


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
