"""Every kernel compiled ahead of time, without a GPU, and its machine code read: needs only Triton and pytest."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from aot import DEVICES, BackwardJob, CooperativeJob, Job, ask

from norm_fusion.kernels.launch import Launch

OPS = ("rms_norm", "layer_norm")
# Rows that no access fits, hidden sizes of known models, and every power of two that a launch treats apart.
WIDTHS = (
    1,
    7,
    33,
    128,
    256,
    512,
    768,
    1024,
    2048,
    3072,
    4096,
    5120,
    6144,
    7168,
    8192,
    12288,
    16384,
    20480,
    28672,
    32768,
    65536,
    131072,
)
SOME_WIDTHS = (1, 7, 33, 128, 768, 2048, 4096, 5120, 8192, 16384, 32768, 65536, 131072)

# Both 16-bit types are launched alike.
EVERY_LAUNCH = [
    *[Job(op, cols, dtype) for op in OPS for cols in WIDTHS for dtype in ("bf16", "fp32")],
    *[Job(op, cols, "fp16") for op in OPS for cols in (33, 128, 768, 4096, 8192, 65536)],
]
OTHER_GPUS = [
    Job(op, cols, dtype, cc) for cc in (80, 86, 100) for op in OPS for cols in SOME_WIDTHS for dtype in ("bf16", "fp32")
]
# Without weight and bias every access is one of x or y.
BARE = [Job(op, cols, dtype, given="") for op in OPS for cols in SOME_WIDTHS for dtype in ("bf16", "fp32")]
EACH_KERNEL = [Job(op, cols, "fp16") for op in OPS for cols in (128, 2560, 65536, 131072)]

BACKWARD_WIDTHS = (1, 33, 128, 256, 512, 1024, 2048, 4096, 5120, 8192, 12288, 16384, 32768, 131072)
BACKWARDS = [
    *[BackwardJob(op, cols, dtype) for op in OPS for cols in BACKWARD_WIDTHS for dtype in ("bf16", "fp32")],
    *[BackwardJob(op, cols, "bf16", cc) for cc in (80, 86, 100) for op in OPS for cols in (128, 4096, 8192, 16384)],
    *[BackwardJob(op, cols, "bf16", given="wbr") for op in OPS for cols in (128, 4096, 16384)],
    *[BackwardJob(op, cols, "bf16", given="wr", weight="fp32") for op in OPS for cols in (4096, 16384)],
    *[
        BackwardJob("rms_norm", cols, dtype, given="wz")
        for cols in (128, 512, 4096, 16384, 65536)
        for dtype in ("bf16", "fp32")
    ],
    *[BackwardJob(op, 32768, "bf16", cc) for cc in (80, 86, 100) for op in OPS],
    *[BackwardJob(op, 32768, "fp32", given="wbr") for op in OPS],
    *[
        BackwardJob(op, 65536, dtype, name=name, cooperative=False)
        for name in ("norm_backward", "row_means")
        for op in OPS
        for dtype in ("bf16", "fp32")
    ],
    *[BackwardJob(op, cols, "bf16", name="column_sums") for op in OPS for cols in (128, 4096, 65536)],
]
SHARED_BACKWARDS = [job for job in BACKWARDS if job.name == "norm_backward" and job.backward_launch.cooperative]
SHARED = [
    *[CooperativeJob("rms_norm", 131072, dtype, cc) for cc in (80, 86, 90, 100) for dtype in ("bf16", "fp32")],
    *[CooperativeJob("rms_norm", 131073, "fp16", given=given) for given in ("", "wbrs")],
    CooperativeJob("rms_norm", 131072, "bf16", given="wzs"),
    CooperativeJob("rms_norm", 131072, "bf16", given="wzs", gate_first=True),
]
VARIANTS = [Job(op, cols, "bf16", given=g) for op in OPS for cols in (128, 4096, 5120, 16384) for g in ("wr", "wrs")]
VARIANTS += [Job("rms_norm", cols, "bf16", given="wz") for cols in (128, 4096, 5120, 16384)]
VARIANTS += [Job(op, cols, "bf16", given="wr", uneven=True) for op in OPS for cols in (128, 4096)]

# The most bytes of stack that a thread takes, over all dtypes and GPUs below, by Triton's version. Wide rows fill the
# registers, and what little spills was measured to cost less than more warps or a second reading; rows without a whole
# 16-byte access are loaded element by element.
KNOWN_SPILLS = {
    ("rms_norm", 1): {"3.6": 8, "3.7": 8, "3.9": 8},
    ("rms_norm", 7): {"3.6": 8, "3.7": 8, "3.9": 8},
    ("rms_norm", 33): {"3.6": 16, "3.7": 16, "3.9": 0},
    ("rms_norm", 7168): {"3.6": 0, "3.7": 0, "3.9": 8},
    ("rms_norm", 8192): {"3.6": 0, "3.7": 0, "3.9": 8},
    ("rms_norm", 65536): {"3.6": 40, "3.7": 40, "3.9": 288},
    ("rms_norm", 131072): {"3.6": 16, "3.7": 16, "3.9": 0},
    ("layer_norm", 8192): {"3.6": 8, "3.7": 8, "3.9": 8},
    ("layer_norm", 32768): {"3.6": 8, "3.7": 8, "3.9": 8},
    ("layer_norm", 16384): {"3.6": 0, "3.7": 16, "3.9": 16},
    ("layer_norm", 131072): {"3.6": 8, "3.7": 8, "3.9": 0},
}

# The same of the backward, by dtype.
BACKWARD_SPILLS = {
    ("layer_norm", 16384, "bf16"): 24,
    ("layer_norm", 32768, "bf16"): 24,
    ("rms_norm", 1024, "fp32"): 8,
    ("rms_norm", 2048, "fp32"): 8,
}

Compile = Callable[[Job], dict[str, str]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compile]:
    """Compiles a job in a process that does not interpret, once, and really: the cache starts empty."""
    env = os.environ | {
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    env.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(Path(__file__).with_name("aot.py"))]
    with subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        yield cache(lambda job: ask(server, job))
        assert server.stdin is not None
        server.stdin.close()


class Access(NamedTuple):
    """One global load or store instruction."""

    kind: str
    bytes: int


def accesses(ptx: str) -> list[Access]:
    found = re.findall(r"\b(ld|st)\.global\S*?(?:\.v(\d))?\.b(\d+) [{\[]", ptx)
    assert len(found) == len(re.findall(r"\b(?:ld|st)\.(?:volatile\.)?global", ptx)), "an access of unknown form"
    return [Access(kind, int(n or 1) * int(bits) // 8) for kind, n, bits in found]


def widths(answer: dict[str, str], kind: str) -> list[int]:
    """Bytes that each load (or store) of a thread moves, in ascending order."""
    return sorted(access.bytes for access in accesses(answer["ptx"]) if access.kind == kind)


def one_pass(job: Job) -> list[int]:
    """`widths` of moving the row tile once: 16 bytes an access, or all that a thread has of a small tail."""
    found = []
    for lanes in (job.launched.block_rows * job.launched.body, job.launched.tail):
        if lanes:
            mine = max(1, lanes // (32 * job.launched.num_warps)) * job.itemsize
            width = min(mine, job.constexprs["VEC"] * job.itemsize)
            found += [width] * (mine // width)
    return sorted(found)


def spilled(answer: dict[str, str]) -> int:
    """Bytes of stack and local memory a thread takes: these kernels put nothing there but spilled registers."""
    usage = re.search(r"REG:\d+ STACK:(\d+) .*?LOCAL:(\d+)", answer["usage"])
    assert usage is not None, answer["usage"]
    return int(usage[1]) + int(usage[2])


@pytest.mark.parametrize("job", EVERY_LAUNCH + OTHER_GPUS, ids=str)
def test_registers_do_not_spill(job: Job, compiled: Compile) -> None:
    answer = compiled(job)
    known = KNOWN_SPILLS.get((job.op, job.cols), {})
    stack, allowed = spilled(answer), known.get(answer["triton"][:3], max(known.values(), default=0))
    assert stack <= allowed, f"{job.launched} spills {stack} bytes with Triton {answer['triton']}"


@pytest.mark.parametrize("job", BACKWARDS, ids=str)
def test_backwards_fit_registers_and_shared_memory(job: BackwardJob, compiled: Compile) -> None:
    """What does not fit in shared memory fails at its first launch, in somebody's training run."""
    answer = compiled(job)
    assert int(answer["shared"]) <= DEVICES[job.cc].shared
    stack = spilled(answer)
    assert stack <= BACKWARD_SPILLS.get((job.op, job.cols, job.dtype), 0), f"{job.backward_launch} spills {stack} bytes"


@pytest.mark.parametrize("job", VARIANTS, ids=str)
def test_variants_do_not_spill(job: Job, compiled: Compile) -> None:
    assert spilled(compiled(job)) == 0


@pytest.mark.parametrize("job", SHARED + SHARED_BACKWARDS, ids=str)
def test_programs_that_wait_for_each_other_fit_on_the_gpu_at_once(job: Job, compiled: Compile) -> None:
    """Else a cooperative launch fails. An SM has 64 K registers, and 1 KiB of shared memory more for each program."""
    answer = compiled(job)
    launch = job.backward_launch if isinstance(job, BackwardJob) else job.cooperative_launch
    registers = re.search(r"REG:(\d+)", answer["usage"])
    assert registers is not None
    threads = 32 * launch.num_warps * launch.per_sm
    assert -(-int(registers[1]) // 8) * 8 * threads <= 65536 and threads <= 1536
    assert int(answer["shared"]) * launch.per_sm <= DEVICES[job.cc].shared


@pytest.mark.parametrize("job", SHARED + SHARED_BACKWARDS, ids=str)
def test_each_thread_waits_for_one_word_at_a_time(job: Job, compiled: Compile) -> None:
    """For eight, one after the other, it waited four times as long as the rest of the kernel takes."""
    ptx = compiled(job)["ptx"]
    words = 1 if job.op == "rms_norm" else 2 if isinstance(job, BackwardJob) else 3
    assert ptx.count("ld.volatile.global.b64") == words == len(re.findall(r"atom\.\S*exch\.b64", ptx))


@pytest.mark.parametrize("job", [job for job in SHARED if job.cols % 8 == 0], ids=str)
def test_shared_rows_do_not_spill(job: Job, compiled: Compile) -> None:
    """Rows without a whole 16-byte access are loaded element by element, and with a residual do."""
    assert spilled(compiled(job)) == 0


@pytest.mark.parametrize("job", [j for j in BACKWARDS if j.cc >= 90 and j not in SHARED_BACKWARDS], ids=str)
def test_backwards_read_nothing_before_the_predecessor_has_ended(job: Job, compiled: Compile) -> None:
    before, _ = compiled(job)["ptx"].split("griddepcontrol.wait")
    assert not accesses(before) and "cp.async" not in before


PIPELINED = [job for job in BACKWARDS if job.name == "norm_backward" and job.backward_launch.stages > 2]


@pytest.mark.parametrize("job", [*PIPELINED, *[job for job in SHARED if job.cols % 8 == 0]], ids=str)
def test_the_next_rows_are_on_their_way_16_bytes_at_a_time(job: Job, compiled: Compile) -> None:
    found = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^\]]*\], \[[^\]]*\], (0x\w+|\d+)", compiled(job)["ptx"])
    assert found and 16 in {int(size, 0) for size in found}


def test_a_spill_would_be_seen(compiled: Compile) -> None:
    """The control: 24 registers do not hold 32 elements a thread."""
    assert spilled(compiled(Job("layer_norm", 4096, "fp32", launch=Launch(1, 4096, 0, 4, maxnreg=24)))) > 0


@pytest.mark.parametrize("job", [job for job in BARE if not job.launched.wide], ids=str)
def test_x_is_read_once_and_y_written_once_16_bytes_at_a_time(job: Job, compiled: Compile) -> None:
    answer = compiled(job)
    assert widths(answer, "ld") == widths(answer, "st") == one_pass(job)


@pytest.mark.parametrize("job", [job for job in BARE if job.launched.wide], ids=str)
def test_wide_rows_are_walked_16_bytes_at_a_time(job: Job, compiled: Compile) -> None:
    answer = compiled(job)
    assert set(widths(answer, "ld")) == set(widths(answer, "st")) == {16}


@pytest.mark.parametrize("job", [job for job in EVERY_LAUNCH if job.launched.lean], ids=str)
def test_lean_rows_load_their_vectors_after_the_reduction_once_16_bytes_at_a_time(job: Job, compiled: Compile) -> None:
    before, after = re.split(r"bar\.sync(?!.*bar\.sync)", compiled(job)["ptx"], flags=re.DOTALL)
    assert [access.bytes for access in accesses(before)] == one_pass(job)
    loads = [access.bytes for access in accesses(after) if access.kind == "ld"]
    assert loads == one_pass(job) * (1 if job.op == "rms_norm" else 2)


@pytest.mark.parametrize("job", [job for job in EACH_KERNEL + OTHER_GPUS if job.constexprs["PDL"]], ids=str)
def test_nothing_is_read_before_the_predecessor_has_ended(job: Job, compiled: Compile) -> None:
    before, _ = compiled(job)["ptx"].split("griddepcontrol.wait")
    assert not accesses(before)


@pytest.mark.parametrize("job", [job for job in OTHER_GPUS if job.cc < 90], ids=str)
def test_no_gpu_gets_an_instruction_that_it_lacks(job: Job, compiled: Compile) -> None:
    assert "griddepcontrol" not in compiled(job)["ptx"]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("cols", [64, 1000, 5120, 131072])
@pytest.mark.parametrize("vec", [1, 2, 4, 8])
def test_no_access_is_wider_than_the_rows_are_aligned(op: str, cols: int, vec: int, compiled: Compile) -> None:
    """Rows `vec` elements apart from a 16-byte boundary: a wider access there is a misaligned address on a GPU.

    The output's rows follow each other: what divides a row is what they are apart.
    """
    answer = compiled(Job(op, cols, "fp16", given="", vec=vec))
    assert max(widths(answer, "ld")) == 2 * vec
    assert 2 * vec <= max(widths(answer, "st")) <= 2 * math.gcd(8, cols)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("cols", [64, 4096, 5120, 65536, 131072])
def test_no_access_is_wide_from_a_misaligned_pointer(op: str, cols: int, compiled: Compile) -> None:
    assert {access.bytes for access in accesses(compiled(Job(op, cols, "fp16", aligned=False))["ptx"])} == {2}


@pytest.mark.parametrize("job", EACH_KERNEL, ids=str)
def test_row_offsets_are_64_bit(job: Job, compiled: Compile) -> None:
    """Neither the row's number nor a stride is used before it is widened: a tensor may pass 2^31 elements."""
    lines = compiled(job)["ttir"].splitlines()
    program = [m[1] for line in lines if (m := re.search(r"(%\S+) = tt\.get_program_id", line))]
    assert len(program) == 1
    for name in (*program, "%x_stride"):
        uses = [line for line in lines if re.search(rf"[ (]{name}\b(?!:| =)", line)]
        assert uses and all("arith.extsi" in line and line.endswith("to i64") for line in uses), (name, uses)


@pytest.mark.parametrize("job", [Job(op, 2**31 - 1, dtype) for op in OPS for dtype in ("fp16", "fp32")], ids=str)
def test_the_widest_row_ends(job: Job, compiled: Compile) -> None:
    """A 32-bit counter that steps past 2^31 - 1, or a block's first column past it, wraps: a loop without end."""
    ttir = compiled(job)["ttir"]
    loops = re.findall(r"scf\.for \S+ = %c0_i32\S* to %c(\d+)_i32\S* step %c(\d+)_i32", ttir)
    assert len(loops) == 2
    for end, step in loops:
        trips = -(-int(end) // int(step))
        assert trips * int(step) < 2**31, f"range(0, {end}, {step}) steps to {trips * int(step)}"
        for factor in re.findall(r"= arith\.muli \S+, %c(\d+)_i32\S* : i32$", ttir, re.MULTILINE):
            assert (trips - 1) * int(factor) < 2**31, f"block {trips - 1} begins at {(trips - 1) * int(factor)}"


@pytest.mark.parametrize("job", [Job(op, cols, "bf16") for op in OPS for cols in (128, 514, 4096)], ids=str)
def test_bfloat16_is_widened_whole_and_stays_in_its_place(job: Job, compiled: Compile) -> None:
    """The interpreter does not run that assembly. Two elements a register: each returns into the half it came from."""
    half: dict[str, str] = {}
    packed = 0
    for line in compiled(job)["ptx"].splitlines():
        if asm := re.match(r"\s*shl\.b32 (%r\d+), (%r\d+), 16; and\.b32 (%r\d+), (%r\d+), (\w+);", line):
            low, source, high, same, mask = asm.groups()
            assert source == same and mask == "0xffff0000"
            half |= {low: "low", high: "high"}
        elif arithmetic := re.match(r"\s*(?:mul|add|sub|fma|neg)\S*\.f32 \s*(%r\d+), (.*);", line):
            found = {half[name] for name in re.findall(r"%r\d+", arithmetic[2]) if name in half}
            if len(found) == 1:
                half[arithmetic[1]] = found.pop()
        elif pack := re.match(r"\s*cvt\.rn\.bf16x2\.f32 \s*%r\d+, (%r\d+), (%r\d+);", line):
            assert [half[name] for name in pack.groups()] == ["high", "low"]
            packed += 1
    assert packed


@pytest.mark.parametrize("job", EACH_KERNEL, ids=str)
def test_arithmetic_is_fp32(job: Job, compiled: Compile) -> None:
    """No statistic in 16 bits, no eps that promotes to fp64."""
    assert set(re.findall(r"\b(?:add|sub|mul|fma|div|rsqrt|sqrt)\.\S*?(b?f\d\d)\b", compiled(job)["ptx"])) == {"f32"}
