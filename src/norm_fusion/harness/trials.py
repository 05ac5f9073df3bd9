"""What the harness is tried on, as runs: cases, contestants whose answer is known, processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from norm_fusion.backends import SPIN_RATIOS
from norm_fusion.records import Code
from norm_fusion.spec import FEWEST, ITEMSIZE, RERUNS, Case, Effort, Op

SABOTEURS = "norm_fusion.backends.saboteurs"
# Each with the reason that it has to be found by.
CHEATS = {
    "stale_output": Code.WRONG_OUTPUT,
    "cached_output": Code.WRONG_OUTPUT,
    "side_stream": Code.WRONG_OUTPUT,
    "mutated_input": Code.MUTATED_INPUT,
    "wrong_dtype": Code.WRONG_KIND,
    "patched_clock": Code.TIMER,
    "skipped_rows": Code.WRONG_OUTPUT,
    "lying_clock": Code.TIMER,
}
# That one lies for everybody in its process: it has a run of its own.
APART = "lying_clock"
BREAKERS = ("raises_late", "wrong_shape", "crashes", "memory_fault", "hangs")

# Ten shapes x two operators x three dtypes: 60 cases, on a GPU of 2 MiB to 64 MiB in 16 bits.
SHAPES = {
    "cuda": (
        (1024, 1024),
        (4096, 1024),
        (2048, 2048),
        (8192, 1024),
        (4096, 2048),
        (2048, 4096),
        (8192, 2048),
        (4096, 4096),
        (4096, 8192),
        (8192, 4096),
    ),
    "cpu": (
        (64, 1024),
        (128, 1024),
        (256, 1024),
        (512, 512),
        (512, 1024),
        (128, 4096),
        (1024, 512),
        (256, 2048),
        (64, 8192),
        (1024, 1024),
    ),
}
# A ring of two to five contestants, in 12 or more rounds.
SHORT = {
    "cuda": Effort(rounds=12, block=8, warmup_s=0.1, settle_s=0.3),
    "cpu": Effort(rounds=20, block=5, warmup_s=0.1, settle_s=0.3, fill_s=0.5),
}
# A/A on a shared CPU: its intervals are wide, and beyond delta is where Student's tail ends. Twice as many processes
# make a false call in 60 cases three times as rare.
AA_PROCESSES = {"cuda": FEWEST, "cpu": 10}
# Spins in groups of like length, that no sample lasts minutes: microseconds, and how they are sampled.
SPINS = {
    "cuda": (
        ((2, 5, 10, 20, 50, 100), Effort(rounds=24, block=5, warmup_s=0.2, settle_s=1.0)),
        ((200, 500, 1000), Effort(rounds=12, block=3, warmup_s=0.2, settle_s=0.5)),
        ((2000, 10000), Effort(rounds=8, block=2, warmup_s=0.0, settle_s=0.0)),
    ),
    "cpu": (
        ((20, 50, 100, 200), Effort(rounds=16, block=10, warmup_s=0.2, settle_s=0.5)),
        ((500, 1000, 2000, 5000), Effort(rounds=16, block=5, warmup_s=0.2, settle_s=0.5)),
    ),
}


@dataclass(frozen=True)
class Trial:
    """One run. `group` is what it is asked for by, `name` its folder."""

    group: str
    name: str
    question: str
    cases: tuple[Case, ...]
    profiles: tuple[str, ...]
    processes: int
    series: tuple[str, ...]
    effort: Effort | None = None
    timeout_s: float = 300.0
    reruns: int = 0  # of cases that were noisy, as any other run has them


def trials(device: str, reduced: bool) -> Iterator[Trial]:
    """All of them for `device` (cpu, cuda or cuda:N); reduced: fewer cases and processes, for every change's tests."""
    kind = device.partition(":")[0]
    timer = ("wall-cold",) if kind == "cpu" else ("graph",)
    cases = tuple(
        Case(op, rows, cols, dtype)
        for op in (Op.RMSNORM, Op.LAYERNORM)
        for rows, cols in SHAPES[kind][:: 5 if reduced else 1]
        for dtype in (ITEMSIZE if not reduced else ("float32",))
    )
    k, reruns = (3, 0) if reduced else (FEWEST, RERUNS)
    yield Trial(
        "aa",
        "aa",
        "Is a kernel faster than itself?",
        cases,
        ("known-norm", "known-norm-again"),
        k if reduced else AA_PROCESSES[kind],
        timer if kind == "cpu" else ("device", "graph", "wall"),  # every one that claims are made of
        SHORT[kind],
        reruns=reruns,
    )
    slower = ("known-slower-25",) if kind == "cpu" else ("known-slower-3", "known-slower-5")
    # A third of them, each shape in another dtype than the one before.
    some = cases if kind == "cpu" else tuple(case for i, case in enumerate(cases) if i % 3 == i // 3 % 3)
    yield Trial(
        "planted",
        "planted",
        "Is an effect of known size found?",
        some,
        ("known-base", *slower),
        k,
        timer,
        SHORT[kind],
        reruns=reruns,
    )
    small = Case(Op.RMSNORM, 4096, 4096, "float16") if kind == "cuda" else Case(Op.RMSNORM, 256, 1024, "float32")
    for i, (lengths, effort) in enumerate(SPINS[kind][: 1 if reduced else None]):
        spins = tuple(f"known-spin-{us}-{ratio}" for us in lengths for ratio in SPIN_RATIOS)
        empty = ("known-empty",) if i == 0 else ()
        yield Trial(
            "known", f"known-{i + 1}", "Does it take as long as it takes?", (small,), (*empty, *spins), 1, timer, effort
        )
    if kind == "cpu":
        yield Trial(
            "disturbed",
            "disturbed",
            "Is a disturbed workload given a figure?",
            (small,),
            ("known-norm", "known-noisy", "known-drifting"),
            k,
            timer,
            SHORT[kind],
        )
    large = Case(Op.RMSNORM, 4096, 4096, "float16") if kind == "cuda" else Case(Op.RMSNORM, 2048, 1024, "float32")
    both = ("graph", "wall-cold")
    yield Trial(
        "sabotage",
        "sabotage",
        "Is cheating found?",
        (large,),
        ("torch-native", *_users(name for name in CHEATS if name != APART)),
        2,
        both,
        SHORT[kind],
    )
    yield Trial(
        "sabotage",
        "sabotage-clock",
        "Is a clock found that lies from within?",
        (large,),
        ("torch-native", *_users((APART,))),
        2,
        both,
        SHORT[kind],
    )
    yield Trial(
        "breakage",
        "breakage",
        "Does what breaks cost its own row only?",
        (large,),
        ("torch-native", *_users(BREAKERS)),
        1,
        both,
        SHORT[kind],
        20.0,
    )


def _users(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"rmsnorm={SABOTEURS}:{name}" for name in names)
