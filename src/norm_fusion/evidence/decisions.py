"""Decisions: TOML files that say what is recommended, and on which claims that rests. Nobody types their status.

title = "Fused RMSNorm"
domain = "Fusion wins"
statement = "Use fusion for RMSNorm because ..."
owner = "kernels"
experiments = ["normalization-fusion"]     # the suites that supply the evidence

[expires]                                  # what of the evidence's machine has to stay as it was, and how long
when = ["gpu", "driver", "torch", "triton"]
days = 180

[claims.over-eager]                        # a sentence that calls or counters decide
says = "faster than the unfused composition"
cases = ["rmsnorm-*x*-float16"]            # OP[-backward]-ROWSxCOLS-DTYPE; *, a number or a range: 1024..8192
profile = "triton-fused-rmsnorm"
baseline = "torch-baseline"                # or fastest (correct PyTorch), or a profile
metric = "speedup"                         # or of METRICS
series = "kernel"                          # in CUDA graphs; or eager: synchronized calls
at_least = 1.02                            # or at_most
boundary = false                           # true: where the decision ends; it does not rest on this
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from norm_fusion.evidence.verdicts import DELTA
from norm_fusion.records import Counters, Record
from norm_fusion.runs.toml import TomlFile
from norm_fusion.spec import BASELINE, BASELINE_OF, FUSED_OF, ITEMSIZE, Case, Matmul, Op, Pass, SpecError

SPEEDUP = "speedup"
FASTEST, FUSED = "fastest", "fused"
SERIES: Mapping[str, str] = {"kernel": "graph", "eager": "wall"}  # a claim's word: the timer, its inputs cold
# What may be claimed beside a speedup: how it is read, of counters or of a pooled record.
COUNTED: Mapping[str, Callable[[Counters], float | None]] = {
    "dram_pct": lambda c: c.dram_pct,
    "occupancy_pct": lambda c: c.occupancy_pct,
    "sm_pct": lambda c: c.sm_pct,
    "tensor_pct": lambda c: c.tensor_pct,
    "l2_hit_pct": lambda c: c.l2_hit_pct,
}
RATED: Mapping[str, Callable[[Record], float | None]] = {
    "roof_share": lambda r: r.roof_share,
    "gbps": lambda r: r.gbps,
    "p50_ms": lambda r: r.p50_ms,
    "max_rel_error": lambda r: r.max_rel_error,
}
METRICS = (SPEEDUP, *RATED, *COUNTED)
EXPIRY = ("gpu", "driver", "torch", "triton")

KEYS = ("title", "domain", "statement", "owner", "experiments", "expires", "claims")
CLAIM_KEYS = ("says", "cases", "profile", "baseline", "metric", "series", "at_least", "at_most", "boundary", "example")
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_SELECTOR = re.compile(
    r"(?P<op>[a-z-]+?)(?P<backward>-backward)?-(?P<rows>[0-9.*]+)x(?P<cols>[0-9.*]+)-(?P<dtype>\w+|\*)"
)
_RANGE = re.compile(r"\*|([0-9]{1,18})|([0-9]{0,18})\.\.([0-9]{0,18})")
_MOST = 10**18  # rows or columns: above all that a case may have


@dataclass(frozen=True)
class Cases:
    """Which cases: `rmsnorm-*x4096-float16`, `layernorm-backward-64..1024x*-*`, or the name of one."""

    text: str
    op: str
    pass_: Pass
    rows: tuple[int, int]
    cols: tuple[int, int]
    dtype: str

    @classmethod
    def parse(cls, text: str) -> Cases:
        """Raises SpecError where it is none."""
        if text.startswith(f"{Matmul.op}-"):
            product = Matmul.parse(text)
            return cls(text, Matmul.op, Pass.FORWARD, (product.m,) * 2, (product.n,) * 2, product.dtype)
        match = _SELECTOR.fullmatch(text)
        if match is None or match["op"] not in set(Op):
            raise SpecError(
                f"{text[:80]!r} selects no cases: write OP-ROWSxCOLS-DTYPE or OP-backward-ROWSxCOLS-DTYPE, with "
                f"{', '.join(Op)}; rows and columns as a number, a range like 1024..8192, or *"
            )
        if match["dtype"] not in ("*", *ITEMSIZE):
            known = f"{', '.join(ITEMSIZE)} or *"
            raise SpecError(f"{text[:80]!r} selects no cases: dtype {match['dtype'][:20]!r} is none of {known}")
        way = Pass.BACKWARD if match["backward"] else Pass.FORWARD
        return cls(text, match["op"], way, _ends(text, match["rows"]), _ends(text, match["cols"]), match["dtype"])

    def takes(self, name: str) -> bool:
        """Is a case among them?"""
        if self.op == Matmul.op:
            return name == self.text
        case = Case.of(name)
        return (
            case is not None
            and (case.op, case.pass_) == (self.op, self.pass_)
            and self.rows[0] <= case.rows <= self.rows[1]
            and self.cols[0] <= case.cols <= self.cols[1]
            and self.dtype in ("*", case.dtype)
        )


def _op_of(case: str) -> Op:
    return next(op for op in sorted(Op, key=len, reverse=True) if case.startswith(op))


def _ends(text: str, part: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(part)
    if match is None:
        said = f"{part[:40]!r} is no number, no range like 1024..8192, and not *"
        raise SpecError(f"{text[:80]!r} selects no cases: {said}")
    if part == "*":
        return 0, _MOST
    if match[1]:
        return int(match[1]), int(match[1])
    low, high = int(match[2] or 0), int(match[3] or _MOST)
    if low > high:
        raise SpecError(f"{text[:80]!r} selects no cases: {part!r} ends before it begins")
    return low, high


@dataclass(frozen=True)
class Claimed:
    """A sentence that records can decide. `example`: of a kept example's samples, `cases` are then none."""

    name: str
    says: str
    cases: tuple[Cases, ...]
    profile: str
    baseline: str
    metric: str
    series: str
    threshold: float
    at_most: bool
    boundary: bool
    example: str | None = None

    @property
    def counted(self) -> bool:
        """Is it of hardware counters?"""
        return self.metric in COUNTED

    def profile_at(self, case: str) -> str:
        """Who claims something of a case."""
        return FUSED_OF[_op_of(case)] if self.profile == FUSED else self.profile

    def baseline_at(self, case: str) -> str:
        """Over whom: a profile, FASTEST, or nobody."""
        return BASELINE_OF[_op_of(case)] if self.baseline == BASELINE else self.baseline


@dataclass(frozen=True)
class Decision:
    """A recommendation, and what it rests on."""

    name: str
    path: Path
    title: str
    domain: str
    statement: str
    owner: str
    experiments: tuple[str, ...]
    claims: tuple[Claimed, ...]
    expires_when: tuple[str, ...]
    expires_days: int | None

    def wrong(self, key: str, said: str, at: str | None = None) -> SpecError:
        """What is wrong with it, by file, line and key."""
        try:
            TomlFile.read(self.path).wrong(key, said, at=at)
        except SpecError as error:
            return error


def load_all(folder: Path, suites: Sequence[str]) -> list[Decision]:
    """The decisions of a folder, by name; `suites`: what an experiment may be.

    Raises:
        SpecError: there are none, or a file is wrong; says which file, line and key.
    """
    found = [load(path, suites) for path in sorted(folder.glob("*.toml"))]
    if not found:
        raise SpecError(f"{folder} holds no decisions: each is a .toml file")
    return found


def load(path: Path, suites: Sequence[str]) -> Decision:
    """A decision's file, checked."""
    file = TomlFile.read(path)
    file.allow(KEYS)
    if NAME.fullmatch(path.stem) is None:
        raise SpecError(f"{path} has a name that cannot be a page's: use lower-case words, digits and hyphens")
    said = {key: file.words(key, file.data.get(key)) for key in ("title", "domain", "statement", "owner")}
    expires = file.table("expires")
    file.allow(("when", "days"), expires, "expires")
    days = expires.get("days")
    if days is not None and (not isinstance(days, int) or isinstance(days, bool) or not 1 <= days <= 10_000):
        file.wrong("expires.days", "must be a whole number of days, 1 to 10,000")
    claims = file.table("claims")
    if not claims:
        file.wrong("claims", "must be one or more tables: [claims.NAME]")
    made = tuple(_claim(file, name, value) for name, value in claims.items())
    if all(claim.boundary for claim in made):
        file.wrong("claims", "are all of the boundary: a decision has to rest on one")
    return Decision(
        name=path.stem,
        path=path,
        **said,
        experiments=()
        if file.data.get("experiments") == [] and all(claim.example is not None for claim in made)
        else file.each("experiments", file.data.get("experiments"), lambda text: _among(text, suites, "suite")),
        claims=made,
        expires_when=file.each("expires.when", expires["when"], lambda text: _among(text, EXPIRY, "trigger"))
        if "when" in expires
        else (),
        expires_days=days,
    )


def _among(text: str, allowed: Sequence[str], what: str) -> str:
    if text not in allowed:
        raise SpecError(f"there is no {what} {text[:80]!r}: choose from {', '.join(allowed)}")
    return text


def _claim(file: TomlFile, name: str, value: Any) -> Claimed:
    key = f"claims.{name}"
    if NAME.fullmatch(name) is None:
        file.wrong(key, "must be lower-case words, digits and hyphens", at=name)
    if not isinstance(value, dict):
        file.wrong(key, "must be a table", at=name)
    file.allow(CLAIM_KEYS, value, key)
    metric = _one_of(file, f"{key}.metric", value.get("metric", SPEEDUP), METRICS)
    series = _one_of(file, f"{key}.series", value.get("series", "kernel"), tuple(SERIES))
    if not isinstance(value.get("boundary", False), bool):
        file.wrong(f"{key}.boundary", "must be true or false")
    example = value.get("example")
    if (example is None) == ("cases" not in value):
        file.wrong(key, "must have either cases or an example", at=name)
    if metric == SPEEDUP and not value.get("baseline"):
        file.wrong(key, f"needs a baseline: {BASELINE}, {FASTEST} or a profile", at=name)
    if metric != SPEEDUP and ("baseline" in value or example is not None):
        file.wrong(key, f"is of {metric}, which has no baseline and is of no example", at=name)
    if metric in COUNTED and "series" in value:
        file.wrong(f"{key}.series", "has no meaning for hardware counters")
    threshold, at_most = _threshold(file, key, value, metric)
    cases = () if example is not None else file.each(f"{key}.cases", value["cases"], Cases.parse)
    says, profile = (
        file.words(f"{key}.{part}", value.get(part), at=None if part in value else name) for part in ("says", "profile")
    )
    baseline = file.words(f"{key}.baseline", value["baseline"]) if metric == SPEEDUP else ""
    if profile == baseline:
        file.wrong(f"{key}.baseline", "is the profile itself")
    if any(one.op == Matmul.op for one in cases) and (metric not in COUNTED or profile == FUSED):
        file.wrong(f"{key}.cases", "are of matrix products, which only counters of a named profile tell of")
    return Claimed(
        name=name,
        says=says,
        cases=cases,
        profile=profile,
        baseline=baseline,
        metric=metric,
        series=series,
        threshold=threshold,
        at_most=at_most,
        boundary=value.get("boundary", False),
        example=None if example is None else _example(file, key, example),
    )


def _one_of(file: TomlFile, key: str, value: object, allowed: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        file.wrong(key, f"is {value!r}: choose from {', '.join(allowed)}")
    return value


def _example(file: TomlFile, key: str, value: object) -> str:
    name = file.words(f"{key}.example", value)
    if NAME.fullmatch(name) is None:
        file.wrong(f"{key}.example", f"is {name[:80]!r}: it must be the name of a file, without its folder and ending")
    return name


def _threshold(file: TomlFile, key: str, value: dict[str, Any], metric: str) -> tuple[float, bool]:
    """By default a speedup has to be one that counts: 1 + DELTA at least."""
    given = [name for name in ("at_least", "at_most") if name in value]
    if len(given) > 1 or (not given and metric != SPEEDUP):
        file.wrong(key, "needs one of at_least and at_most", at=key.rpartition(".")[2])
    if not given:
        return 1 + DELTA, False
    number = value[given[0]]
    if not isinstance(number, int | float) or isinstance(number, bool) or not 0 < number < 1e12:
        file.wrong(f"{key}.{given[0]}", "must be a number above 0 and below 1e12")
    return float(number), given == ["at_most"]
