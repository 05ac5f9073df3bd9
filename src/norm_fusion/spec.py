"""What can be asked: operators, cases, profiles and the shard of work that one process measures.

Ground floor: no torch, nothing of ours. Everything here is a value that survives a trip through JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, ClassVar


class Op(StrEnum):
    """An operator under test. The last two add a residual first, and return the sum too."""

    RMSNORM = "rmsnorm"
    LAYERNORM = "layernorm"
    ADD_RMSNORM = "add-rmsnorm"
    ADD_LAYERNORM = "add-layernorm"

    @property
    def centred(self) -> bool:
        """LayerNorm, not RMSNorm?"""
        return self in (Op.LAYERNORM, Op.ADD_LAYERNORM)

    @property
    def added(self) -> bool:
        """Is a residual added?"""
        return self in (Op.ADD_RMSNORM, Op.ADD_LAYERNORM)

    @property
    def parameters(self) -> int:
        """How many vectors of `cols` elements it reads: RMSNorm a weight, LayerNorm a weight and a bias."""
        return 2 if self.centred else 1


class Pass(StrEnum):
    """Which way through an operator: its outputs of its inputs, or all gradients of those of its outputs."""

    FORWARD = "forward"
    BACKWARD = "backward"


def parts_of(op: Op, pass_: Pass) -> tuple[str, ...]:
    """What an input consists of: tensors of one shape, stacked, x first."""
    residual = ("residual",) if op.added else ()
    if pass_ is Pass.FORWARD:
        return ("x", *residual)
    return ("x", *residual, "dy", *(("dresidual",) if op.added else ()))


# Bytes per element of the dtypes under test.
ITEMSIZE: Mapping[str, int] = {"float16": 2, "bfloat16": 2, "float32": 4}

# Half a unit in the last place at 1: the largest relative error of one rounding to the dtype.
UNIT_ROUNDOFF: Mapping[str, float] = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}

MAX_DIM = 2**31 - 1
MAX_INPUT_BYTES = 2**40

_CASE_NAME = re.compile(
    r"(?P<op>[a-z]+(?:-[a-z]+)*?)(?P<backward>-backward)?"
    r"-(?P<rows>[0-9]{1,18})x(?P<cols>[0-9]{1,18})-(?P<dtype>[a-z]+\d+)"
)
_SHAPE = re.compile(r"([0-9]{1,18})x([0-9]{1,18})")


class SpecError(ValueError):
    """A question that cannot be asked. The message says what was seen, what is allowed and what to do."""


def parse_shape(text: str) -> tuple[int, int]:
    """`"4096x8192"` -> `(4096, 8192)`; anything else raises SpecError."""
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise SpecError(f"shape {text[:40]!r} is not ROWSxCOLS: write it like 4096x8192")
    return int(match[1]), int(match[2])


@dataclass(frozen=True, order=True)
class Case:
    """One operator, one way, at one shape and dtype: `rmsnorm-4096x8192-float16`, `rmsnorm-backward-512x64-float32`.

    Activations, residuals and their gradients have shape (rows, cols), parameters and theirs (cols,), all in dtype.

    Raises:
        SpecError: a dimension, the dtype or the input's size is out of range.
    """

    op: Op
    rows: int
    cols: int
    dtype: str
    pass_: Pass = Pass.FORWARD

    def __post_init__(self) -> None:
        for name in ("rows", "cols"):
            value = getattr(self, name)
            if not 1 <= value <= MAX_DIM:
                raise SpecError(f"{name} is {value}: it must be 1 to {MAX_DIM:,}")
        if self.dtype not in ITEMSIZE:
            raise SpecError(f"dtype {self.dtype!r} is unknown: choose from {', '.join(ITEMSIZE)}")
        if self.input_bytes > MAX_INPUT_BYTES:
            raise SpecError(
                f"{self.name} needs {self.input_bytes / 2**40:,.1f} TiB for its input alone: "
                f"at most {MAX_INPUT_BYTES // 2**40} TiB, so use fewer rows or columns"
            )

    @classmethod
    def parse(cls, name: str) -> Case:
        """The case of a name such as `rmsnorm-4096x8192-float16`."""
        match = _CASE_NAME.fullmatch(name)
        if match is None:
            raise SpecError(f"case {name!r} is not OP-ROWSxCOLS-DTYPE: write it like rmsnorm-4096x8192-float16")
        if match["op"] not in set(Op):
            raise SpecError(f"op {match['op']!r} of case {name!r} is unknown: choose from {', '.join(Op)}")
        pass_ = Pass.BACKWARD if match["backward"] else Pass.FORWARD
        return cls(Op(match["op"]), int(match["rows"]), int(match["cols"]), match["dtype"], pass_)

    @classmethod
    def of(cls, name: str) -> Case | None:
        """The case of a name that may be none: of records, which hold names of any kind."""
        try:
            return cls.parse(name)
        except SpecError:
            return None

    @property
    def name(self) -> str:
        backward = "-backward" if self.pass_ is Pass.BACKWARD else ""
        return f"{self.op}{backward}-{self.rows}x{self.cols}-{self.dtype}"

    @property
    def parts(self) -> tuple[str, ...]:
        """What its input consists of."""
        return parts_of(self.op, self.pass_)

    @property
    def outputs(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of its outputs: y and the new residual, or the gradients of input, residual, weight and bias."""
        of_rows = [(self.rows, self.cols)] * (2 if self.op.added else 1)
        return *of_rows, *([(self.cols,)] * self.op.parameters if self.pass_ is Pass.BACKWARD else ())

    @property
    def output_names(self) -> tuple[str, ...]:
        """Theirs, in the same order."""
        if self.pass_ is Pass.FORWARD:
            return ("y", "residual")[: len(self.outputs)]
        return "dx", *(("dresidual",) if self.op.added else ()), *("dw", "db")[: self.op.parameters]

    @property
    def tensor_bytes(self) -> int:
        """Of one tensor of shape (rows, cols)."""
        return self.rows * self.cols * ITEMSIZE[self.dtype]

    @property
    def input_bytes(self) -> int:
        """Of an input, all its parts."""
        return len(self.parts) * self.tensor_bytes

    @property
    def moved_bytes(self) -> int:
        """Of tensors of shape (rows, cols) that have to be read or written.

        Backward reads what was normalized, the sum where a residual was added, and writes one gradient for both.
        """
        if self.pass_ is Pass.BACKWARD:
            return (4 if self.op.added else 3) * self.tensor_bytes
        return (4 if self.op.added else 2) * self.tensor_bytes

    @property
    def compulsory_bytes(self) -> int:
        """Every input read once, every output written once: the same for every contestant.

        Backward reads the weight and writes the parameters' gradients; a row's saved statistics are not counted.
        """
        vectors = self.op.parameters + (1 if self.pass_ is Pass.BACKWARD else 0)
        return self.moved_bytes + vectors * self.cols * ITEMSIZE[self.dtype]

    @property
    def flops(self) -> int:
        """Arithmetic of the textbook formulas; forward, 5 and 8 an element, is the original experiment's model."""
        forward, backward = (8, 13) if self.op.centred else (5, 9)
        each = backward if self.pass_ is Pass.BACKWARD else forward
        return (each + self.op.added) * self.rows * self.cols

    @property
    def tolerance(self) -> float:
        """Largest allowed error of an element, relative to |reference| + rms(reference's row).

        16-bit: the output is rounded once, a composition that casts before it multiplies rounds up to three times,
        each by at most one unit roundoff; four leaves room for the statistics. float32: the statistics' own error
        is of the output's order and grows with the logarithm of the row (pairwise sums): 32 units roundoff.
        """
        return (32 if self.dtype == "float32" else 4) * UNIT_ROUNDOFF[self.dtype]


def odd_kind(found: Sequence[Mapping[str, Any]], case: Case, device: str) -> str | None:
    """How outputs of these kinds (type, shape, dtype, device) differ from what a case's should be; None if they do not.

    `device`: the type of device that they should be on.
    """
    expected = case.outputs
    if len(found) != len(expected):
        return f"there are {len(found)} outputs, expected {len(expected)}"
    for name, one, shape in zip(case.output_names, found, expected, strict=True):
        label = "output" if len(expected) == 1 else f"output {name}"
        if one["type"] != "Tensor":
            return f"{label} is a {one['type']}, expected a tensor"
        for what, right in (("shape", list(shape)), ("dtype", case.dtype), ("device", device)):
            if one[what] != right:
                return f"{label} has {what} {one[what]}, expected {right}"
    return None


# The seed's four cases, and its shape sweep: what is measured when no shape is given.
DEFAULT_CASES: tuple[Case, ...] = (
    Case(Op.RMSNORM, 512, 1024, "float16"),
    Case(Op.RMSNORM, 2048, 4096, "float16"),
    Case(Op.RMSNORM, 4096, 4096, "float16"),
    Case(Op.LAYERNORM, 4096, 4096, "float32"),
)


@dataclass(frozen=True)
class Profile:
    """An implementation under test, by name.

    `family` is what `--backend` selects by: torch or triton; those of family check are the harness's own. `judged` is
    False for what computes no normalization, as a spin of known duration.
    """

    name: str
    family: str
    ops: tuple[Op, ...]
    summary: str
    judged: bool = True


# A user's own function, for one operator or for all.
USERS = re.compile(rf"(?:(?P<op>{'|'.join(Op)})=)?(?P<module>[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)")


def is_users(name: str) -> bool:
    """Is this profile a user's own function?"""
    return USERS.fullmatch(name) is not None


# Where a worker leaves word of whose code runs next, for when nobody can be asked any more: a file's name, its size.
CRUMB, CRUMB_BYTES = "NORM_FUSION_CRUMB", 512
# A worker that is started before its turn, to import what it needs meanwhile.
STANDBY = "--standby"

BASELINE = "torch-baseline"
# What the original experiment compared with: an alias, never timed twice.
BASELINE_OF: Mapping[Op, str] = {op: "torch-native" if op.centred else "torch-eager" for op in Op}

# What PyTorch has to offer, by the names of its profiles.
TORCH = ("torch-eager", "torch-native", "torch-compile", "torch-compile-max")
# Our own kernel for each operator.
FUSED_OF: Mapping[Op, str] = {op: f"triton-fused-{'layernorm' if op.centred else 'rmsnorm'}" for op in Op}

# The roof is measured like a contestant, in the same rounds, but it is none: it moves the bytes and computes nothing.
ROOF = "copy"
# Nor is the control: one of the contestants a second time, under this name. They must not differ (A/A).
CONTROL = "control"


@dataclass(frozen=True)
class Effort:
    """How long to measure: at least `rounds` rounds, filled up to whole balanced squares, of `block` samples each.

    `traced`: calls of the device series, at least. `fill_s`: a series by the host's clock is to last about so many
    seconds: of short calls it has more rounds, up to `MOST_ROUNDS`, of long ones smaller blocks, with `least` samples.
    """

    rounds: int
    block: int
    warmup_s: float
    settle_s: float
    traced: int = 200
    fill_s: float | None = None
    least: int = 0


MOST_ROUNDS = 100


# By device and `quick`. Pooled over the processes n >= 200 on a GPU, n >= 50 on a CPU (protocol step 10), and so many
# already where there is one process only. More in each would not help: what differs is mostly the processes.
EFFORTS: Mapping[tuple[str, bool], Effort] = {
    ("cuda", False): Effort(rounds=14, block=8, warmup_s=0.2, settle_s=2.0, traced=100),
    ("cuda", True): Effort(rounds=28, block=8, warmup_s=0.2, settle_s=0.5, traced=200),
    # Calls take microseconds or a twentieth of a second here.
    ("cpu", False): Effort(rounds=10, block=5, warmup_s=0.2, settle_s=1.0, fill_s=0.5, least=10),
    ("cpu", True): Effort(rounds=10, block=5, warmup_s=0.2, settle_s=0.5, fill_s=0.5, least=50),
}

# How many processes measure a run: at least, and at most (protocol step 13); reruns of what was noisy.
FEWEST, MOST, RERUNS = 5, 15, 2
PRECISION = 0.01


@dataclass(frozen=True)
class Shard:
    """The unit of work: some cases, all their contestants, one replicate, one device, one process.

    `skip`: pairs of case and profile that ended a process before this one, and are left out. `series`: the timers to
    sample, like wall or wall-cold, all where empty. `effort`: how long, where it is not what `EFFORTS` says.
    `yardsticks`: are the roof and the control, one contestant a second time, measured beside the others?
    """

    run_id: str
    cases: tuple[Case, ...]
    profiles: tuple[str, ...]
    device: str
    replicate: int = 0
    attempt: int = 0
    seed: int = 0
    quick: bool = False
    yardsticks: bool = True
    series: tuple[str, ...] = ()
    effort: Effort | None = None
    skip: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"cases": [case.name for case in self.cases]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Shard:
        cases = tuple(Case.parse(name) for name in data["cases"])
        lists = {name: tuple(data[name]) for name in ("profiles", "series")}
        skip = tuple((case, name) for case, name in data["skip"])
        effort = None if data["effort"] is None else Effort(**data["effort"])
        return cls(**{**data, **lists, "cases": cases, "skip": skip, "effort": effort})


_MATMUL_NAME = re.compile(r"matmul-([0-9]{1,18})x([0-9]{1,18})x([0-9]{1,18})-([a-z]+\d+)")


@dataclass(frozen=True, order=True)
class Matmul:
    """C = A B of shapes (m, k), (k, n), (m, n), all in dtype: `matmul-4096x4096x4096-float16` names m, n and k.

    Profiled only, never timed: it shows what counters say of kernels that the tensor pipes limit.

    Raises:
        SpecError: a dimension, the dtype or their size is out of range.
    """

    m: int
    n: int
    k: int
    dtype: str

    op: ClassVar[str] = "matmul"

    def __post_init__(self) -> None:
        for name in ("m", "n", "k"):
            value = getattr(self, name)
            if not 1 <= value <= MAX_DIM:
                raise SpecError(f"{name} is {value}: it must be 1 to {MAX_DIM:,}")
        if self.dtype not in ITEMSIZE:
            raise SpecError(f"dtype {self.dtype!r} is unknown: choose from {', '.join(ITEMSIZE)}")
        if self.compulsory_bytes > MAX_INPUT_BYTES:
            seen = f"{self.compulsory_bytes / 2**40:,.1f} TiB"
            raise SpecError(f"{self.name} needs {seen} for its matrices: at most {MAX_INPUT_BYTES // 2**40} TiB")

    @classmethod
    def parse(cls, name: str) -> Matmul:
        """The product of a name such as `matmul-4096x4096x4096-float16`."""
        match = _MATMUL_NAME.fullmatch(name)
        if match is None:
            raise SpecError(f"case {name!r} is not matmul-MxNxK-DTYPE: write it like matmul-4096x4096x4096-float16")
        return cls(int(match[1]), int(match[2]), int(match[3]), match[4])

    @property
    def name(self) -> str:
        return f"{self.op}-{self.m}x{self.n}x{self.k}-{self.dtype}"

    @property
    def compulsory_bytes(self) -> int:
        """A and B read once, C written once."""
        return (self.m * self.k + self.k * self.n + self.m * self.n) * ITEMSIZE[self.dtype]

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each term of each element of C."""
        return 2 * self.m * self.n * self.k


def profiled(name: str) -> Case | Matmul:
    """What can be profiled, by its name: a case, or a matrix product.

    Raises:
        SpecError: it is the name of neither.
    """
    return Matmul.parse(name) if name.startswith(f"{Matmul.op}-") else Case.parse(name)
